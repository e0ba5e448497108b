"""Configurations as nested dicts of plain values, for `config.json`, cards and hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from jepa_tok.errors import ConfigError


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of plain values, as written to `config.json`."""
    return dataclasses.asdict(config)


def differences(config: Any) -> dict[str, Any]:
    """Nested dict of the fields that are not their class's defaults; what tells tokenizers apart by name (`hub`).

    For that a default stays what it is for good, and a new field's is what was done before it came.
    """
    default = type(config)()
    found: dict[str, Any] = {}
    for field_ in dataclasses.fields(config):
        value, usual = getattr(config, field_.name), getattr(default, field_.name)
        if dataclasses.is_dataclass(value):
            value, usual = differences(value), {}
        if value != usual:
            found[field_.name] = value
    return found


C = TypeVar("C")


def from_dict(kls: type[C], values: Mapping[str, Any]) -> C:
    """Inverse of `to_dict`; absent fields keep their defaults.

    Raises ConfigError for unknown fields and for values of a wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(f"{kls.__name__} has no field `{unknown[0]}`; it has {', '.join(fields)}.")
    given: dict[str, Any] = {}
    default = kls()
    for name, value in values.items():
        current = getattr(default, name)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{kls.__name__} `{name}` must be a mapping, but is {value!r} instead.")
            given[name] = from_dict(type(current), value)
        elif isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
            given[name] = float(value)
        elif type(value) is type(current):
            given[name] = value
        else:
            raise ConfigError(f"{kls.__name__} `{name}` must be {type(current).__name__}, but is {value!r} instead.")
    return kls(**given)
