"""`results.json`, `results.md` and `results.html`: the page is one file, tables and plots of dots with their intervals."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from jepa_tok.files import write_text
from jepa_tok.report.charts import Dot, Level, dots
from jepa_tok.report.document import document
from jepa_tok.report.results import metric_name
from probes import tables
from probes.results import cell

WORDS = {"logmel": "log-mel statistics", "majority": "majority class", "labels shuffled": "its labels shuffled"}
SLOTS = {"tokenizer": 1, "logmel": 3, "majority": 5}


def write(folder: Path, results: dict[str, Any]) -> None:
    """Writes the three, each at once or not at all."""
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "results.md", tables.markdown(results))
    write_text(folder / "results.html", render(results))


def render(results: dict[str, Any]) -> str:
    """The whole page as text."""
    title = f"Probes: {results['suite']}"
    links = ", ".join(f'<a href="#{_anchor(t)}">{escape(_title(t))}</a>' for t in results["tables"])
    failed = (
        f'<p class="note"><b>{results["failed"]} cells failed.</b> The tables say why.</p>' if results["failed"] else ""
    )
    head = (
        f"<header><h1>{escape(title)}</h1><p class=lead>What heads can read in the tokens, beside their controls.</p>"
        f"<p>{_prose(tables.NOTE)} {_prose(tables.absent_note(results))}</p><p>{links}</p>{failed}</header>"
    )
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in tables.facts(results))
    how = f'<section id="how"><h2>How</h2><p><code>{escape(results["command"])}</code></p><dl class="facts">{facts}</dl></section>'
    sections = "\n".join(_section(table) for table in results["tables"])
    return document(
        title, head + sections + how, "Made by <code>python -m probes run</code>. This page needs no network."
    )


def _title(table: dict[str, Any]) -> str:
    return f"{table['corpus']}: {table['task']}"


def _anchor(table: dict[str, Any]) -> str:
    return f"{table['corpus']}-{table['task']}"


def _section(table: dict[str, Any]) -> str:
    small = "".join(
        f'<p class="small">{_prose(line)}</p>' for line in [*tables.notes_of(table), *tables.splits_of(table)]
    )
    return (
        f'<section id="{_anchor(table)}"><h2>{escape(_title(table))}</h2><p>{escape(table["about"])}</p>'
        f'{_plots(table)}<figure class="broad">{_rows(table)}{small}</figure></section>'
    )


def _prose(text: str) -> str:
    """A sentence whose names stand in backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _plots(table: dict[str, Any]) -> str:
    """Of the main metric, and of EER where speakers are verified besides."""
    found = list(table["better"])
    if not found:
        return '<p class="missing">Every cell failed.</p>'
    return "".join(_plot(table, metric) for metric in found if metric in (found[0], "eer"))


def _plot(table: dict[str, Any], main: str) -> str:
    """One metric of all rows; chance as a line."""
    rows, level = [], None
    for row in table["rows"]:
        metric = row["metrics"].get(main)
        if row["kind"] == "chance":
            level = Level("chance", metric["mean"]) if metric else None
            continue
        if row["kind"] == "majority" and metric is None:
            continue  # says nothing about trials
        value, low, high = (metric[k] for k in ("mean", "low", "high")) if metric else (None, None, None)
        control = row["shuffled"].get(main, {}).get("mean")
        rows.append(Dot(WORDS.get(row["name"], row["name"]), value, low, high, control, SLOTS[row["kind"]]))
    way = {"higher": "higher is better", "lower": "lower is better"}[table["better"][main]]
    bars = any(dot.low is not None for dot in rows)
    note = ("Bars: 95 % intervals. " if bars else "") + "Hollow: the same row with its labels shuffled."
    return dots(f"{metric_name(main)} ({way})", rows, level=level, note=note)


def _rows(table: dict[str, Any]) -> str:
    arrows = {"higher": " ↑", "lower": " ↓"}
    names = "".join(
        f"<th class=n style='white-space:normal'>{escape(metric_name(m))}{arrows[way]}</th>"
        for m, way in table["better"].items()
    )
    body = "".join(_line(table, *line) for line in tables.lines_of(table))
    return (
        "<div class=scroll><table><thead><tr><th style='min-width:150px'>row</th><th class=n>bit/s</th><th class=n>frames/s</th>"
        f"{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _line(table: dict[str, Any], name: str, metrics: dict[str, Any], row: dict[str, Any]) -> str:
    own = name == row["name"]
    bits, rate = (row.get("bits_per_second"), row.get("frame_rate")) if own else (None, None)
    said = [row["note"]] if own and row["note"] else []
    if own and row.get("signal") is False:
        said.append("cannot be told from shuffled labels")
    if own and row["error"]:
        said.append("failed, see below")
    values = "".join(f"<td class=n>{_value(metrics.get(m))}</td>" for m in table["better"])
    kind = "soft" if not own else "main" if row["kind"] == "tokenizer" else ""
    about = f'<br><span class="dev">{_prose("; ".join(said))}</span>' if said else ""
    return (
        f'<tr class="{kind}"><td>{escape(WORDS.get(name, name))}{about}</td><td class=n>{f"{bits:.0f}" if bits else ""}</td>'
        f"<td class=n>{f'{rate:g}' if rate else ''}</td>{values}</tr>"
    )


def _value(metric: dict[str, Any] | None) -> str:
    """The mean and, small, its deviation where there is one; its interval below."""
    mean, _, rest = cell(metric).partition(" ")
    deviation, _, interval = rest.partition(" [")
    if metric and metric.get("std"):
        mean += f' <span class="dev">{deviation}</span>'
    return mean + (f'<br><span class="dev">[{interval}</span>' if interval else "")
