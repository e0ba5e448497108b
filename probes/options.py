"""Kinds of values that a task's parameters take: annotations of the probes' `prepare` and `run`, which suites' files are checked
against, and whose choices are those of the command line."""

from __future__ import annotations

import os
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

UnitKind = Literal["char", "spm"]
HeadKind = Literal["linear", "bilstm"]
DecoderKind = Literal["greedy", "beam"]


@dataclass(frozen=True)
class AtLeast:
    """Of a whole number."""

    least: int


@dataclass(frozen=True)
class Exists:
    """Of the name of a file."""


Natural = Annotated[int, AtLeast(0)]
Count = Annotated[int, AtLeast(1)]
Folds = Annotated[int, AtLeast(2)]
"""One fold would leave nothing to train on."""

File = Annotated[str, Exists()]


def kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Name -> annotation of each parameter."""
    found = get_type_hints(function, include_extras=True)
    return {name: kind for name, kind in found.items() if name != "return"}


def is_file(kind: Any) -> bool:
    """Whether values of this kind name a file."""
    return any(get_origin(part) is Annotated and isinstance(get_args(part)[1], Exists) for part in _parts(kind))


def wrong(value: Any, kind: Any) -> str:
    """What is wrong with a value as YAML gives it, as `must be true or false, but is 3`; empty where nothing is."""
    return "" if _fits(value, kind) else f"must be {_rule(kind)}, but is {shown(value)}"


def shown(value: Any) -> str:
    """A value in one short line, as YAML writes it."""
    plain = {None: "empty", True: "`true`", False: "`false`"}
    if value is None or isinstance(value, bool):
        return plain[value]
    text = " ".join(str(value).split())
    return f"`{text if len(text) <= 60 else text[:60] + '...'}`"


def _parts(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union; else the kind alone."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    if len(_parts(kind)) > 1:
        return any(_fits(value, part) for part in _parts(kind))
    origin, given = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in given
    if origin is list:
        return isinstance(value, list) and all(_fits(item, given[0]) for item in value)
    if origin is Annotated:
        base, mark = given
        if not _fits(value, base):
            return False
        return value >= mark.least if isinstance(mark, AtLeast) else os.path.isfile(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)  # bool is a kind of int in Python alone
    if kind is str:
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, kind)


def _rule(kind: Any) -> str:
    parts = [part for part in _parts(kind) if part is not type(None)]
    if len(parts) > 1:
        return ", or ".join(map(_rule, parts))
    (kind,) = parts
    origin, given = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(given)}"
    if origin is list:
        return "a list of such"
    if origin is Annotated:
        mark = given[1]
        return f"a whole number from {mark.least} up" if isinstance(mark, AtLeast) else "a file that is there"
    return {bool: "true or false", str: "text (a number or a date in quotes)"}[kind]
