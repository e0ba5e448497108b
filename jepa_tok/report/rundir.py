"""What a run's folder holds, read leniently: a missing file is an empty answer, a broken one is named in the page."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

MANIFESTS = ("corpus/all.jsonl", "data/all.jsonl")


@dataclass
class Curve:
    """One metric over training steps; x and y have one length, non-finite values are left out."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.x)


class RunDir:
    """A run's folder. `problems` collects a line for each file that could not be read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.problems: list[str] = []

    @cached_property
    def info(self) -> dict[str, Any]:
        """run.json."""
        value = self.json("run.json")
        return value if isinstance(value, dict) else {}

    @cached_property
    def commands(self) -> list[dict[str, Any]]:
        """commands.jsonl: each stage's latest row, with `attempts`; `seconds` are summed over those it resumed."""
        latest: dict[tuple[Any, Any], dict[str, Any]] = {}
        for row in self.rows("commands.jsonl"):
            key = (row.get("stage"), row.get("name"))
            before = latest.get(key)
            row = dict(row, attempts=1)
            same = before is not None and all(before.get(k) == row.get(k) for k in ("command", "key"))
            if before is not None and same and before.get("status") != 0:  # resumed
                row["attempts"] += before["attempts"]
                row["seconds"] = float(row.get("seconds") or 0) + float(before.get("seconds") or 0)
            latest[key] = row
        return list(latest.values())

    @cached_property
    def corpus(self) -> dict[str, Any]:
        """Summary of the corpus."""
        value = self.json("corpus/corpus.json")
        return value if isinstance(value, dict) else {}

    @cached_property
    def manifest(self) -> Path | None:
        """The manifest of all utterances."""
        names = [self.info["manifest"]] if self.info.get("manifest") else list(MANIFESTS)
        return next((self.path / name for name in names if (self.path / name).is_file()), None)

    def probes(self) -> list[dict[str, Any]]:
        """Results of the probes, in the order of their names."""
        found = []
        for path in sorted(self.path.glob("probes/*/results.json")):
            value = self.json(str(path.relative_to(self.path)))
            if isinstance(value, dict) and isinstance(value.get("rows"), list):
                found.append(value)
        return found

    def metrics(self, stage: str) -> dict[str, list[dict[str, Any]]]:
        """Rows of each metrics file of a stage, by its name below `metrics/` without suffix (`train`, `valid/...`).

        A resumed run repeats steps: the last row of a step counts.
        """
        folder = self.path / stage / "metrics"
        tables = {}
        for path in sorted(folder.rglob("*.jsonl")):
            steps: dict[Any, dict[str, Any]] = {}
            for row in self.rows(str(path.relative_to(self.path))):
                steps.pop(row.get("Step"), None)
                steps[row.get("Step")] = row
            if steps:
                tables[path.relative_to(folder).with_suffix("").as_posix()] = sorted(
                    steps.values(), key=lambda row: row.get("Step") or 0
                )
        return tables

    def json(self, name: str) -> Any:
        """A JSON file's value; None where it is missing or broken."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            self.problems.append(f"{name} could not be read ({str(error).splitlines()[0]}).")
            return None

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Rows of a JSONL file; a last line that was cut by a kill is passed over."""
        path = self.path / name
        if not path.is_file():
            return
        lines = path.read_text("utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                if number < len(lines):
                    self.problems.append(f"{name}, line {number}, could not be read.")
                continue
            if isinstance(row, dict):
                yield row


def curve(rows: Sequence[dict[str, Any]], *patterns: str) -> Curve:
    """The first metric whose name matches one of `patterns` (regular expressions, whole name, any case), over steps."""
    names = list(dict.fromkeys(key for row in rows for key in row))
    for pattern in patterns:
        for name in names:
            if re.fullmatch(pattern, name, re.IGNORECASE):
                found = Curve()
                for row in rows:
                    value, step = number(row.get(name)), number(row.get("Step"))
                    if value is not None and step is not None:
                        found.x.append(step)
                        found.y.append(value)
                if found:
                    return found
    return Curve()


def number(value: Any) -> float | None:
    """A finite float, also from text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        made = float(value)
    except ValueError:
        return None
    return made if math.isfinite(made) else None
