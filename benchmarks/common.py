"""What the benchmarks share: the head of every result, tables, JSON."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_tok import provenance
from jepa_tok.files import write_text


def machine() -> dict[str, Any]:
    """What a figure needs beside it: command, commit, machine, versions, and what else kept the machine busy (1 min load)."""
    module = sys.modules["__main__"].__spec__
    name = f"-m {module.name}" if module else sys.argv[0]
    return {
        "command": f"python {name} {shlex.join(sys.argv[1:])}",
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows of the same keys in columns, at once."""
    cells = [[str(key) for key in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print(
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))),
            flush=True,
        )


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    write_text(path, json.dumps(found, indent=1) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
