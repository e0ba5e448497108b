"""Tables of results in Markdown, and scores in VERSA's names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jepa_tok.evaluation.intervals import LEAST_CLUSTERS
from jepa_tok.evaluation.metrics import Metric
from jepa_tok.evaluation.recognition import ROUGH
from jepa_tok.evaluation.summary import Found


def markdown(report: dict[str, Any]) -> str:
    """The whole page."""
    corpus, columns, rows = report["corpus"], report["columns"], report["rows"]
    titles = column_titles(columns)
    lines = [f"# Evaluation of `{report['tokenizer']['name']}`", "", *quality(report)]
    lines += ["## Deviation over utterances", ""]
    body = [[r["system"], *(_plain(r["figures"], key, "std") for key in columns)] for r in rows]
    lines += [*table(["system", *titles], body), ""]
    if rows[1:]:
        lines += [
            f"## {rows[0]['system']} minus the row",
            "",
            "Utterance by utterance; an interval without 0 is a difference that these "
            f"{corpus['intervals_over']} agree on.",
            "",
        ]
        body = [[r["system"], *(figure_cell(r["differences"], key, 3, "+") for key in columns)] for r in rows[1:]]
        lines += [*table(["system", *titles], body), ""]
    lines += ["## Tokens", "", *tokens(report)] if report["tokens"] else []
    lines += ["## Made by", "", f"    {report.get('command', 'jepa_tok.evaluation.evaluate')}", ""]
    packages = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [
        f"Commit {report['commit'] or 'unknown'}; seed {report['settings']['seed']}; {report['machine']}, {report['threads']} threads; {packages}."
    ]
    return "\n".join(lines) + "\n"


def quality(report: dict[str, Any]) -> list[str]:
    """Every system's figures with their intervals, of what, and what a reader must know beside them: lines of Markdown."""
    corpus, columns = report["corpus"], report["columns"]
    speakers = f"{corpus['speakers']} speakers" if corpus["speakers"] else "unknown speakers"
    body = [[_name(r), rate_cell(r), *(figure_cell(r["figures"], key, 3) for key in columns)] for r in report["rows"]]
    missing = report["unavailable"]["systems"]
    body += [[name, "", reason, *[""] * (len(columns) - 1)] for name, reason in missing.items()]
    return [
        f"Tokenizer {report['tokenizer']['hash']}; {corpus['utterances']} utterances, {corpus['seconds'] / 60:.1f} minutes, {speakers}. "
        f"In brackets: 95 % bootstrap interval over {corpus['intervals_over']}.",
        "",
        *table(["system", "bit/s", *column_titles(columns)], body),
        "",
        *_notes(report),
        "",
    ]


def column_titles(columns: dict[str, Any]) -> list[str]:
    """Titles of a report's `columns`, with an arrow to the better side."""
    return [f"{c['title']} {'↑' if c['better'] == 'higher' else '↓'}" for c in columns.values()]


def _notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know beside the table: rough recogniser, delays, failures, what is missing."""
    notes = []
    if report["corpus"]["intervals_over"] == "utterances":
        notes.append(
            f"Intervals are over utterances, since fewer than {LEAST_CLUSTERS} speakers are known: they say nothing about other speakers."
        )
    if "wer" in report["columns"]:
        name = report["settings"]["recognizer"]
        rough = " (rough: it errs on much of what it hears in originals too)" if name == ROUGH else ""
        notes.append(f"WER and dWER by {name}{rough}.")
    delays = [f"{r['system']} {r['delay_ms']} ms" for r in report["rows"] if r["delay_ms"] is not None]
    if delays:
        notes.append(f"Delays taken away before measuring: {', '.join(delays)}.")
    for row in report["rows"]:
        for key, reasons in row["failures"].items():
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
            notes.append(f"Without a value, {row['system']}, {report['columns'][key]['title']}: {told}.")
    notes += [f"Metric `{name}` {reason}." for name, reason in report["unavailable"]["metrics"].items()]
    if report["skipped"]:
        notes.append(f"Skipped, unreadable: {', '.join(s['id'] for s in report['skipped'])}.")
    return [f"* {note}" for note in notes]


def tokens(report: dict[str, Any]) -> list[str]:
    """How the tokens are used, and what they cost: lines of Markdown; only for a report with `tokens`."""
    used, timed = report["tokens"], report["rows"][0]["real_time_factor"]
    groups = used["groups"]
    least = min(groups, key=lambda g: g["used"] / g["vocabulary"])
    rows = [
        ["bit rate, nominal", f"{used['bit_rate']:.1f} bit/s"],
        ["bit rate, sum of the dimensions' entropies", f"{used['entropy_bit_rate']:.1f} bit/s"],
        ["normalised entropy of a dimension, mean and least", f"{used['normalised_entropy']:.4f}, {used['least_normalised_entropy']:.4f}"],
        ["dead dimensions", f"{used['dead_dimensions']} of {len(used['dimensions'])}"],
        ["ids of the least used group", f"{least['used']} of {least['vocabulary']} in {used['frames']} frames"],
        *[[f"real-time factor, {part}", f"{factor:.3f} on {report['settings']['device']}"] for part, factor in timed.items()],
    ]  # fmt: skip
    return [*table(["", ""], rows), ""]


def versa_lines(found: Sequence[Found], metrics: Sequence[Metric]) -> str:
    """One JSON object an utterance: `key`, then scores under the names that VERSA gives them (arXiv 2412.17667).

    A score that VERSA has no name for keeps ours; one that could not be measured is absent.
    """
    names = {key: column.versa or key for metric in metrics for key, column in metric.columns.items()}
    lines = []
    for f in found:
        scores = {names[key]: value for key, value in f.scores.values.items()}
        lines.append(json.dumps({"key": f.id, **scores, **f.scores.details}, ensure_ascii=False) + "\n")
    return "".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown."""
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


def _name(row: dict[str, Any]) -> str:
    failed = max((f["failed"] for f in row["figures"].values() if f), default=0)
    return f"{row['system']} ({failed} failed)" if failed else row["system"]


def rate_cell(row: dict[str, Any]) -> str:
    """Bits a second of a row."""
    return "" if row["bit_rate"] is None else f"{row['bit_rate']:.0f}"


def figure_cell(figures: dict[str, Any], key: str, places: int, sign: str = "") -> str:
    """Mean and interval to so many places; empty where the figure was not taken, `none` where no utterance has a value."""
    figure = figures.get(key)
    if figure is None:
        return "none" if key in figures else ""
    interval = figure["interval"]
    ends = "" if interval is None else f" [{interval[0]:{sign}.{places}f}, {interval[1]:{sign}.{places}f}]"
    return f"{figure['mean']:{sign}.{places}f}{ends}"


def _plain(figures: dict[str, Any], key: str, name: str) -> str:
    figure = figures.get(key)
    return ("none" if key in figures else "") if figure is None else f"{figure[name]:.3f}"
