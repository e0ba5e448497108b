"""One shape of results for all probes: `results.json`, the same as a Markdown table, and a table on the console.

    {"format": "jepa-tok-probe/1", "task": "speaker",
     "rows": [{"input": "tokens", "available": true, "note": "",
               "metrics": {"accuracy": {"mean": 0.5, "std": 0.1, "values": [0.4, 0.6], "low": 0.3, "high": 0.7,
                                        "speakers": 20, "by": "speaker"}}}, ...],
     "better": {"accuracy": "higher", "eer": "lower"}, "command": ..., "commit": ..., "seeds": [...], ...}

Rows are the inputs (tokens, random, latent, logmel), then shuffled, chance and majority; one that could not be had has no metrics
and says why. `low` and `high` bound the 95 % interval (`intervals`); they are null where `speakers` are too few for one, and absent
where the value is an expectation and needs none.
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
from probes.intervals import Sample, interval
from probes.verdicts import left_out

FORMAT = "jepa-tok-probe/1"
ROWS = ("tokens", "random", "latent", "logmel", "shuffled", "chance", "majority")
"""Of a probe from the command line."""

TRIALS = "trials.tsv"


@dataclass
class Row:
    """One input of a probe: each metric for each seed, a `Sample` where it was measured and a number where it is expected."""

    input: str
    metrics: dict[str, list[Sample | float]] = field(default_factory=dict)
    note: str = ""
    available: bool = True

    def add(self, **metrics: Sample | float) -> None:
        """Puts down what one seed gave."""
        for name, value in metrics.items():
            self.metrics.setdefault(name, []).append(value)

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
    trials: str = ""
    """The text of TRIALS, to be written beside the results; empty where there are none."""


def summary(found: list[Sample | float]) -> dict[str, Any]:
    """Mean, deviation over seeds (of a sample; 0 for one seed), the values themselves and the interval, rounded to six places."""
    values = [f.value if isinstance(f, Sample) else f for f in found]
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    out: dict[str, Any] = {
        "mean": round(statistics.fmean(values), 6),
        "std": round(std, 6),
        "values": [round(v, 6) for v in values],
    }
    samples = [f for f in found if isinstance(f, Sample)]
    if samples:
        own = interval(samples)
        low, high = (None if v is None else round(v, 6) for v in (own.low, own.high))
        out.update(low=low, high=high, speakers=own.units, by=own.by)
    return out


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
    return {
        "format": FORMAT,
        "task": outcome.task,
        "rows": [row.as_dict() for row in outcome.rows],
        "better": outcome.better,
        "notes": [*outcome.notes, *left_out(counts, outcome.splits)],
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


def write(folder: Path, results: dict[str, Any], trials: str = "") -> None:
    """Writes `results.json`, `results.md` and, where there are `trials`, TRIALS in `folder`, each at once or not at all."""
    if trials:
        write_text(folder / TRIALS, trials)
    write_text(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "results.md", markdown(results))


def cells(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text: mean ± deviation over seeds [95 % interval over speakers], to three places."""
    names = list(results["better"])
    header = ["input", *(f"{name} ({'↑' if results['better'][name] == 'higher' else '↓'})" for name in names), "note"]
    table = []
    for row in results["rows"]:
        values = [cell(row["metrics"].get(name)) for name in names]
        table.append([row["input"], *values, row["note"]])
    return header, table


def cell(metric: dict[str, Any] | None) -> str:
    """A metric as `summary` gives it, for a table."""
    if metric is None:
        return "-"
    text = f"{metric['mean']:.3f} ± {metric['std']:.3f}" if len(metric["values"]) > 1 else f"{metric['mean']:.3f}"
    if metric.get("low") is None:
        return text
    return f"{text} [{metric['low']:.3f}, {metric['high']:.3f}]"


def interval_note(results: dict[str, Any]) -> str:
    """One sentence on the intervals of a table, and on those that there are not."""
    having: dict[str, list[str]] = {}
    lacking: dict[str, list[str]] = {}
    for metric in results["better"]:
        for row in results["rows"]:
            found = row["metrics"].get(metric, {})
            if "speakers" in found:
                kind = lacking if found["low"] is None else having
                kind.setdefault(f"{found['speakers']} {found['by']}s", []).append(metric)
                break
    notes = [f"{many} for {', '.join(names)}" for many, names in having.items()]
    text = "[low, high]: 95 % interval by bootstrap over " + "; ".join(notes) if notes else ""
    few = [f"no interval for {', '.join(names)}: {many} in test are too few" for many, names in lacking.items()]
    return "; ".join([text, *few] if text else few)


def markdown(results: dict[str, Any]) -> str:
    """`results.md`: the table, then what made it."""
    header, table = cells(results)
    lines = [
        f"# Probe: {results['task']}",
        "",
        md_row(header),
        md_row(["---"] * len(header)),
        *map(md_row, table),
        "",
    ]
    lines += [f"- {note}" for note in [*results["notes"], interval_note(results)] if note]
    lines += [f"- {key}: {value}" for key, value in results["splits"].items() if key != "ignored"]
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


def md_row(row: list[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def console(results: dict[str, Any]) -> str:
    """The table for a terminal; notes below it."""
    header, table = cells(results)
    rows = [header[:-1], *(row[:-1] for row in table)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines += [f"{row[0]}: {row[-1]}" for row in table if row[-1]]
    return "\n".join([f"probe: {results['task']}", *lines, *results["notes"], interval_note(results)]).rstrip()
