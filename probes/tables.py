"""From cells to tables: one a corpus and task, a row a tokenizer and control, means over seeds with their intervals.

    {"format": "jepa-tok-probe-suite/1", "suite": "fsdd", "tables": [
      {"corpus": "fsdd", "task": "keyword", "better": {"uar": "higher"}, "rows": [
        {"name": "exp/tok", "kind": "tokenizer", "bits_per_second": 640.0, "frame_rate": 2.5, "error": "",
         "metrics":  {"uar": {"mean": 0.9, "low": 0.86, "high": 0.93, "values": [0.9, 0.91, 0.89]}},
         "shuffled": {"uar": {...}}, "verdicts": {"uar": "ahead"}, "signal": true}, ...]}],
     "absent": ["random:CONFIG"], "command": ..., "commit": ..., "seeds": [...], ...}

Kinds: `tokenizer`, then the controls `logmel`, `majority` and `chance`. `shuffled` is the same row with its labels permuted,
`verdicts` each metric beside it (`verdicts.py`), `signal` whether that of the first is `ahead`; null without an interval.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from jepa_tok.provenance import commit, machine, versions
from probes.entries import LATENT, LOGMEL, RANDOM, Entry, Tokenizer
from probes.results import cell, interval_note, md_row
from probes.suite import Suite, Task
from probes.verdicts import AHEAD, LEVEL, left_out, sentences, verdict

FORMAT = "jepa-tok-probe-suite/1"
UNTRAINED = f"{RANDOM}:"

NOTE = (
    "Mean ± deviation over seeds [95 % interval by bootstrap over speakers]. A row says something only where it leaves its controls behind: the same row with shuffled "
    "labels, log-mels through the same head, an untrained tokenizer (`random:...`), the majority class, chance."
)


def build(
    suite: Suite, entries: Sequence[Entry], seeds: Sequence[int], records: Sequence[dict[str, Any]], argv: Sequence[str]
) -> dict[str, Any]:
    """All that `results.json` holds."""
    by_cell = {(r["corpus"], r["task"], r["tokenizer"], r["seed"]): r for r in records}
    found = []
    for corpus in suite.corpora:
        for task in corpus.tasks:
            cells = {e.name: [by_cell[corpus.name, task.name, e.name, s] for s in seeds] for e in entries}
            found.append({"corpus": corpus.name, "about": corpus.about, **_table(task, entries, cells)})
    commits = sorted({str(r["commit"]) for r in records if r.get("commit")})
    return {
        "format": FORMAT,
        "suite": suite.name,
        "tables": found,
        "absent": absent_controls(entries),
        "failed": sum(r["status"] == "failed" for r in records),
        "command": shlex.join(["python", "-m", "probes", *argv]),
        "commit": commit(),
        "commits_of_cells": commits,
        "seeds": list(seeds),
        "machine": machine(),
        "versions": versions(),
        "seconds": _sum(records, "seconds"),
        "cpu_seconds": _sum(records, "cpu_seconds"),
    }


def absent_controls(entries: Sequence[Entry]) -> list[str]:
    """Rows that the command could have had besides: an untrained tokenizer, and latents of those that have some."""
    from jepa_tok.adapters import Adapter

    rows = {entry.name for entry in entries}
    found = [] if any(name.startswith(UNTRAINED) for name in rows) else [f"{UNTRAINED}CONFIG"]
    for entry in entries:
        if isinstance(entry, Tokenizer) and not entry.latents and not entry.name.startswith(UNTRAINED):
            has = type(entry.adapter).latents is not Adapter.latents
            found += [LATENT + entry.name] if has and LATENT + entry.name not in rows else []
    return found


def absent_note(results: dict[str, Any]) -> str:
    """A sentence on the controls that the command left out; empty where it has all."""
    names = ", ".join(f"`{name}`" for name in results["absent"])
    return f"Controls that were not asked for: {names}." if names else ""


def _sum(records: Sequence[dict[str, Any]], name: str) -> float:
    return round(sum(r.get(name, 0.0) for r in records), 1)


def _table(task: Task, entries: Sequence[Entry], cells: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    good = [r for rows in cells.values() for r in rows if r["status"] == "ok"]
    first = good[0] if good else {}
    better: dict[str, str] = first.get("better", {})
    rows = [_row(entry, cells[entry.name], better) for entry in entries]
    whole = next((own for own in cells.values() if all(r["status"] == "ok" for r in own)), [])
    for name in ("majority", "chance"):
        metrics = _merged(whole, name)
        if metrics:
            rows.append(
                {
                    "name": name,
                    "kind": name,
                    "metrics": metrics,
                    "shuffled": {},
                    "error": "",
                    "note": _note(whole, name),
                }
            )
    return {
        "task": task.name,
        "probe": task.probe,
        "better": better,
        "rows": rows,
        "splits": first.get("splits", {}),
        "settings": {k: v for k, v in first.get("settings", {}).items() if k not in ("C_chosen", "chosen", "examples")},
        "notes": [*first.get("notes", []), *left_out(first.get("counts", {}), first.get("splits", {}))],
    }


def _row(entry: Entry, own: Sequence[dict[str, Any]], better: dict[str, str]) -> dict[str, Any]:
    errors = [r["error"] for r in own if r["status"] == "failed"]
    good = [r for r in own if r["status"] == "ok"]
    metrics, shuffled = _merged(good, "tokens"), _merged(good, "shuffled")
    told = {m: v for m, way in better.items() if (v := verdict(metrics.get(m), shuffled.get(m), way))}
    return {
        "name": entry.name,
        "kind": "logmel" if entry.name == LOGMEL else "tokenizer",
        "bits_per_second": entry.bits_per_second,
        "frame_rate": entry.view.meta.frame_rate,
        "fingerprint": entry.view.meta.hash,
        "metrics": metrics,
        "shuffled": shuffled,
        "verdicts": told,
        "signal": {AHEAD: True, LEVEL: False}.get(told.get(next(iter(better), ""), "")),
        "error": f"{len(errors)} of {len(own)} seeds failed: {errors[0]}" if errors else "",
        "note": entry.view.note,
    }


def _merged(records: Sequence[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """Metric -> what the seeds found together; without metrics that a seed lacks."""
    own: list[dict[str, Any]] = [
        next((row["metrics"] for row in r["rows"] if row["input"] == name), {}) for r in records
    ]
    out = {}
    for metric in own[0] if own else {}:
        if all(metric in metrics for metrics in own):
            out[metric] = merge([metrics[metric] for metrics in own])
    return out


def merge(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `results.summary` gave for each seed -> the same of all: the interval's ends are the means of the seeds' ends."""
    values = [float(v) for f in found for v in f["values"]]
    out = {
        "mean": round(statistics.fmean(values), 6),
        "std": round(statistics.stdev(values), 6) if len(values) > 1 else 0.0,
        "values": values,
    }
    for end in ("low", "high"):
        ends = [float(f[end]) for f in found if f.get(end) is not None]
        out[end] = round(statistics.fmean(ends), 6) if len(ends) == len(found) else None
    return out | {key: found[0][key] for key in ("speakers", "by") if key in found[0]}


def _note(records: Sequence[dict[str, Any]], name: str) -> str:
    return next((row["note"] for r in records for row in r["rows"] if row["input"] == name), "")


# --- as text


def lines_of(table: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What a table shows below each other: name, metrics, and the row they are of; shuffled labels after each row."""
    out = []
    for row in table["rows"]:
        out.append((row["name"], row["metrics"], row))
        if row["shuffled"]:
            out.append(("labels shuffled", row["shuffled"], row))
    return out


def header(table: dict[str, Any]) -> list[str]:
    """Names of the columns."""
    arrows = {"higher": "↑", "lower": "↓"}
    return ["row", "bit/s", *(f"{name} ({arrows[way]})" for name, way in table["better"].items())]


def cells_of(table: dict[str, Any]) -> list[list[str]]:
    """The table as text, without its header."""
    out = []
    for name, metrics, row in lines_of(table):
        bits = row.get("bits_per_second")
        own = name == row["name"]
        shown = f"{name} (failed)" if own and row["error"] else name if own else f"- {name}"
        out.append([shown, f"{bits:.0f}" if own and bits else "", *(cell(metrics.get(m)) for m in table["better"])])
    return out


def notes_of(table: dict[str, Any]) -> list[str]:
    """Sentences below a table, failures first."""
    errors = [f"{row['name']}: {row['error']}" for row in table["rows"] if row["error"]]
    return [note for note in (*errors, *sentences(table), *table["notes"], interval_note(table)) if note]


def splits_of(table: dict[str, Any]) -> list[str]:
    """What the parts are, a line each."""
    shown = []
    for key, value in table["splits"].items():
        if key == "ignored":  # told by `left_out`
            continue
        text = ", ".join(f"{n} {name}" for name, n in value.items()) if isinstance(value, dict) else value
        if text:
            shown.append(f"{key.replace('_', ' ')}: {text}")
    return shown


def markdown(results: dict[str, Any]) -> str:
    """`results.md`."""
    lines = [
        f"# Probes: {results['suite']}",
        "",
        *(line for note in (NOTE, absent_note(results)) if note for line in (note, "")),
    ]
    for table in results["tables"]:
        head = header(table)
        lines += [f"## {table['corpus']}: {table['task']}", "", f"{table['about']}", ""]
        lines += [md_row(head), md_row(["---"] * len(head)), *map(md_row, cells_of(table)), ""]
        lines += [f"- {note}" for note in notes_of(table)]
        lines += [f"- {line}" for line in splits_of(table)] + [""]
    lines += ["## How", "", "```", results["command"], "```", "", *(f"- {k}: {v}" for k, v in facts(results)), ""]
    return "\n".join(lines)


def facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What the figures need beside them."""
    made = ", ".join(results["commits_of_cells"])
    commits = f"{results['commit'] or 'unknown'}" + (
        f"; cells made at {made}" if made and made != results["commit"] else ""
    )
    return [
        ("commit", commits),
        ("seeds", ", ".join(map(str, results["seeds"]))),
        ("machine", results["machine"]),
        ("versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())),
        ("time of all cells", f"{results['seconds']:g} s, {results['cpu_seconds']:g} s of one CPU core"),
        ("failed cells", str(results["failed"])),
    ]


def console(results: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = []
    for table in results["tables"]:
        rows = [header(table), *cells_of(table)]
        widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
        lines += [f"{table['corpus']}: {table['task']}"]
        lines += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows] + [
            ""
        ]
    return "\n".join(lines)
