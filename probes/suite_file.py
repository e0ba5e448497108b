"""The files of suites: where they are, which of them one names, and whether what stands in them has the right form.

Of tasks only the names are looked at here; `suite.py` reads what they ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from probes.data import ProbeError
from probes.layouts import LAYOUTS
from probes.options import shown, wrong

FOLDER = Path(__file__).parent / "suites"

_CORPUS: dict[str, Any] = {
    "manifest": str | list[str] | None,
    "layout": str | None,
    "folder": str | None,
    "more": str | list[str] | None,
}
_KINDS: dict[str, Any] = {"about": str | None, **_CORPUS, "suites": str | list[str] | None}
"""What may stand in a file besides `tasks`."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice: YAML's own loader drops the first of them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):  # `!!map` before something else
            return super().construct_mapping(node, deep)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"`{key.value}` is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def names() -> list[str]:
    """Names of the suites that come with the probes."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def find(name: str) -> Path:
    """The file of `--suite`: a suite's name, or the file itself. Raises ProbeError where there is none."""
    if not name.endswith((".yaml", ".yml")):
        return _known(name, "`--suite` must be")
    path = Path(name)
    if not os.path.isfile(path):  # Path.is_file raises for names that are too long
        raise ProbeError(f"`--suite` must be a suite's name or its .yaml file, but there is no file '{name}'.")
    return path


def _known(name: str, rule: str) -> Path:
    if name not in names():
        raise ProbeError(f"{rule} one of {', '.join(names())}, or a .yaml file, but is '{name}'.")
    return FOLDER / f"{name}.yaml"


def flatten(path: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files of single corpora that `path` is or names; raises ProbeError as `read` does, or where one is missing."""
    found = read(path)
    if not found.get("suites"):
        yield path
        return
    above = (*above, path.resolve())
    for name in as_list(found["suites"]):
        if name.endswith((".yaml", ".yml")):
            inner = path.parent / name
            if not os.path.isfile(inner):
                raise ProbeError(f"'{path}': `suites` must name files that are there, but there is no file '{inner}'.")
        else:
            inner = _known(name, f"'{path}': `suites` must be")
        if inner.resolve() in above:
            raise ProbeError(f"'{path}' must not name a suite that names it, but names `{name}`.")
        yield from flatten(inner, above)


def read(path: Path) -> dict[str, Any]:
    """What stands in a file: `tasks`, which map texts, and the corpus; or `suites`.

    Raises ProbeError where it cannot be read, or a key or the kind of its value is wrong.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    # No UTF-8, no such date, or a tag such as `!!bool` before what is none.
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ProbeError(f"'{path}' must be a suite in YAML, but cannot be read: {reason}.") from None
    if not isinstance(found, dict):
        raise ProbeError(f"'{path}' must map `tasks` or `suites` to what they are, but is {shown(found)}.")
    known = {*_KINDS, "tasks"}
    unknown = [key for key in found if key not in known]
    if unknown:
        raise ProbeError(f"'{path}' may have {', '.join(sorted(known))}, but has {shown(unknown[0])}.")
    for key, kind in _KINDS.items():
        fault = wrong(found.get(key), kind)
        if fault:
            raise ProbeError(f"'{path}': `{key}` {fault}.")
    if not (found.get("tasks") or found.get("suites")):
        raise ProbeError(f"'{path}' must have `tasks` or `suites`, but has neither.")
    both = [key for key in (*_CORPUS, "tasks") if found.get(key) is not None]
    if found.get("suites") and both:
        raise ProbeError(
            f"'{path}' must have either `suites` or a corpus with its `tasks`, but has `suites` and `{both[0]}`; give the corpus a file "
            "of its own, and name that in `suites`."
        )
    if not found.get("suites"):
        _check_corpus(path, found)
    return found


def _check_corpus(path: Path, found: dict[str, Any]) -> None:
    tasks, layout = found["tasks"], found.get("layout")
    if not isinstance(tasks, dict):
        raise ProbeError(f"'{path}': `tasks` must map names to parameters, but is {shown(tasks)}.")
    for name in tasks:
        fault = wrong(name, str)
        if fault:
            raise ProbeError(f"'{path}': a task's name {fault}.")
    if layout is not None and layout not in LAYOUTS:
        raise ProbeError(f"'{path}': `layout` must be one of {', '.join(LAYOUTS)}, but is `{layout}`.")
    if layout is None and found.get("folder") is not None:
        raise ProbeError(
            f"'{path}': `folder` must go with a `layout`, but there is none; a `manifest` is under `--data`."
        )


def as_list(given: str | list[str] | None) -> list[str]:
    """One name, several, or none."""
    return [given] if isinstance(given, str) else list(given or [])
