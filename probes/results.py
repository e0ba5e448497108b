"""One shape of results for all probes: `results.json`, the same as a Markdown table, and a table on the console.

    {"format": "jepa-tok-probe/1", "task": "speaker",
     "rows": [{"input": "tokens", "available": true, "note": "",
               "metrics": {"accuracy": {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6]}}}, ...],
     "better": {"accuracy": "higher", "eer": "lower"}, "command": ..., "commit": ..., "seeds": [...], ...}

Rows are always tokens, random, logmel, shuffled, chance, majority; one that could not be had has no metrics and says why.
"""

from __future__ import annotations

import json
import shlex
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_tok.files import write_text
from jepa_tok.provenance import commit, versions
from probes.data import ProbeError

FORMAT = "jepa-tok-probe/1"
ROWS = ("tokens", "random", "logmel", "shuffled", "chance", "majority")


@dataclass
class Row:
    """One input of a probe: each metric's value for each seed."""

    input: str
    metrics: dict[str, list[float]] = field(default_factory=dict)
    note: str = ""
    available: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The row as `results.json` holds it."""
        return {
            "input": self.input,
            "available": self.available,
            "metrics": {name: summary(values) for name, values in self.metrics.items()},
            "note": self.note,
        }


@dataclass
class Outcome:
    """What a probe found."""

    task: str
    rows: list[Row]
    better: dict[str, str]
    """`higher` or `lower` for each metric; the first is the probe's main one."""

    splits: dict[str, Any]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, deviation over seeds (of a sample; 0 for one seed) and the values themselves, rounded to six places."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 6), "std": round(std, 6), "values": [round(v, 6) for v in values]}


def report(
    outcome: Outcome,
    *,
    argv: list[str],
    seeds: list[int],
    counts: dict[str, Any],
    tokens: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """All that `results.json` holds."""
    order = {name: i for i, name in enumerate(ROWS)}
    return {
        "format": FORMAT,
        "task": outcome.task,
        "rows": [row.as_dict() for row in sorted(outcome.rows, key=lambda r: order[r.input])],
        "better": outcome.better,
        "notes": outcome.notes,
        "command": shlex.join(["python", "-m", "probes", *argv]),
        "commit": commit(),
        "seeds": seeds,
        "tokens": tokens,
        "counts": counts,
        "splits": outcome.splits,
        "settings": outcome.settings,
        "versions": versions(),
        "seconds": round(seconds, 1),
    }


def check_out(folder: Path, task: str) -> None:
    """Raises ProbeError where `folder` cannot be made, or holds the results of another probe, which stay as they are."""
    path = folder / "results.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"task": task}
        found = old.get("task") if isinstance(old, dict) else None
    except OSError as e:
        raise ProbeError(
            f"`--out` must be a folder that can be written, but '{folder}' is not: {e.strerror}."
        ) from None
    except ValueError:
        found = None
    if found != task:
        raise ProbeError(
            f"'{path}' must not be overwritten, since it holds {f'results of `{found}`' if found else 'something else'}; "
            "give each probe an `--out` of its own."
        )


def write(folder: Path, results: dict[str, Any]) -> None:
    """Writes `results.json` and `results.md` in `folder`, each at once or not at all."""
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "results.md", markdown(results))


def cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text: mean ± deviation over seeds, to three places."""
    names = list(results["better"])
    header = ["input", *(f"{name} ({'↑' if results['better'][name] == 'higher' else '↓'})" for name in names), "note"]
    table = []
    for row in results["rows"]:
        values = [_cell(row["metrics"].get(name)) for name in names]
        table.append([row["input"], *values, row["note"]])
    return header, table


def _cell(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "-"
    return f"{metric['mean']:.3f} ± {metric['std']:.3f}" if len(metric["values"]) > 1 else f"{metric['mean']:.3f}"


def markdown(results: dict[str, Any]) -> str:
    """`results.md`: the table, then what made it."""
    header, table = cells(results)
    lines = [
        f"# Probe: {results['task']}",
        "",
        _md_row(header),
        _md_row(["---"] * len(header)),
        *map(_md_row, table),
        "",
    ]
    lines += [f"- {note}" for note in results["notes"]]
    lines += [f"- {key}: {value}" for key, value in results["splits"].items()]
    lines += [
        f"- seeds {', '.join(map(str, results['seeds']))}; mean ± standard deviation over them; {results['seconds']} s",
        f"- commit {results['commit'] or 'unknown'}; " + ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
        "",
        "```",
        results["command"],
        "```",
        "",
    ]
    return "\n".join(lines)


def _md_row(row: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def console(results: dict[str, Any]) -> str:
    """The table for a terminal; notes below it."""
    header, table = cells(results)
    rows = [header[:-1], *(row[:-1] for row in table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += [f"{row[0]}: {row[-1]}" for row in table if row[-1]]
    return "\n".join([f"probe: {results['task']}", *lines, *results["notes"]])
