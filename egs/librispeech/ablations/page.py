"""The page of a sweep: a table for each measure of each group, from OUT/cells/*.json, and the data behind it in one file.

What a page holds above the line `MARK` is written by hand and stays.
"""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egs.librispeech.ablations.data import SECONDS
from egs.librispeech.ablations.paired import Comparison, compare
from egs.librispeech.ablations.variants import Group, Variant
from jepa_tok.errors import ConfigError
from jepa_tok.evaluation.table import table
from jepa_tok.files import write_text

MARK = "<!-- Below: written by `python -m egs.librispeech.ablations`. -->"

MEASURES = {
    "prediction_r2": "R2 of the prediction against the clip's mean",
    "mel_r2": "R2 of a ridge from z to the log-mels of the frame's sub-frames",
    "speaker": "accuracy of a logistic regression from a clip's mean z to its reader",
    "sound_class": "accuracy of a logistic regression from a clip's mean z to the class of a sound",
    "mel": "multi-scale mel loss, nats (lower is better)",
    "stft": "multi-resolution STFT loss (lower is better)",
    "stoi": "STOI",
    "sound_mel": "multi-scale mel loss on sounds, nats (lower is better)",
    "sound_stft": "multi-resolution STFT loss on sounds (lower is better)",
}

RULES = """Mean ± standard deviation over training seeds. *Difference*: to the group's first row, mean over seeds, with its 95 % interval by
bootstrap over readers (over clips where sounds are measured), each reader's difference averaged over seeds. *p, seeds*: paired t-test over
seeds. *p, readers*: Wilcoxon's signed-rank test over readers. The first asks whether other seeds would tell the same, the second whether other
readers would, of these weights; only what passes both is established. None is corrected for the number of rows."""

Cells = dict[str, dict[int, dict[str, Any]]]
"""Cells by variant and seed."""


def read_cells(out: Path) -> Cells:
    """The cells of a sweep; ConfigError where there is none."""
    cells: Cells = defaultdict(dict)
    for path in sorted((out / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        cells[cell["variant"]][cell["seed"]] = cell
    if not cells:
        raise ConfigError(f"'{out}' must hold finished cells, but has none; run the sweep first.")
    return cells


def compare_variants(cells: Cells, reference: Variant, variant: Variant, measure: str) -> Comparison | None:
    """A variant beside its reference in one measure; None where they share no seed."""
    found = [
        {seed: c["found"][measure] for seed, c in cells[v.name].items() if measure in c["found"]}
        for v in (reference, variant)
    ]
    values = [{seed: m["value"] for seed, m in side.items()} for side in found]
    units = [{seed: m["units"] for seed, m in side.items()} for side in found]
    return compare(values[0], values[1], units[0], units[1])


def p_text(p: float | None) -> str:
    """A p value in a cell."""
    return "-" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0")


def measure_table(cells: Cells, group: Group, measure: str) -> list[str]:
    """Rows of the variants that were measured; empty where none was."""
    rows = []
    for variant in group.variants:
        values = [c["found"][measure]["value"] for c in cells[variant.name].values() if measure in c["found"]]
        if not values:
            continue
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        row = [
            group.title_of(variant),
            str(len(values)),
            f"{statistics.fmean(values):.3f}{spread}",
            "reference",
            "",
            "",
        ]
        found = None if variant is group.reference else compare_variants(cells, group.reference, variant, measure)
        if found is not None:
            interval = f" [{found.interval.low:+.3f}, {found.interval.high:+.3f}]" if found.interval else ""
            row[3:] = [f"{found.difference:+.3f}{interval}", p_text(found.p_seeds), p_text(found.p_units)]
        elif variant is not group.reference:
            row[3] = "-"
        rows.append(row)
    header = [
        group.name,
        "seeds",
        "mean",
        "difference",
        "p, seeds",
        "p, readers" if "sound" not in measure else "p, clips",
    ]
    return [f"**{MEASURES[measure]}**", "", *table(header, rows), ""] if rows else []


def facts_table(cells: Cells, group: Group) -> list[str]:
    """What else is known of a group's variants: size, and of codecs the bits."""
    is_codec = group.reference.kind == "codec"
    header = [
        "variant",
        "parameters",
        *(["bit/s", "entropy of codes, bit/s", "code usage"] if is_codec else ["effective rank", "between-clip share"]),
    ]
    names = ["bit_rate", "bits_used", "code_usage"] if is_codec else ["effective_rank", "between_clip_share"]
    rows = []
    for variant in group.variants:
        own = list(cells[variant.name].values())
        if own:
            figures = [statistics.fmean(c["found"][n]["value"] for c in own) for n in names]
            rows.append([group.title_of(variant), f"{own[0]['parameters']:,}", *(f"{x:.4g}" for x in figures)])
    return [*table(header, rows), ""] if rows else []


def missing(cells: Cells, groups: Sequence[Group], seeds: Sequence[int]) -> list[str]:
    """A line for each group with cells that were not run."""
    lines = []
    for group in groups:
        lacking = []
        for variant in group.variants:
            without = [str(s) for s in seeds if s not in cells[variant.name]]
            if without:
                which = "" if len(without) == len(seeds) else f" (seed {', '.join(without)})"
                lacking.append(group.title_of(variant) + which)
        if lacking:
            lines.append(f"- {group.title}: {'; '.join(lacking)}")
    return lines


def tables(cells: Cells, groups: Sequence[Group], data: dict[str, Any]) -> str:
    """The part of the page that is written by the script."""
    every = [cell for own in cells.values() for cell in own.values()]
    settings = every[0]["settings"]
    commits = sorted({str(c["commit"]) for c in every})
    seeds = sorted({c["seed"] for c in every})
    train, valid = data["train"], data["valid"]
    stage = {kind: [c for c in every if c["kind"] == kind] for kind in ("jepa", "codec")}
    lines = [
        MARK,
        "",
        f"{len(every)} cells, seeds {', '.join(map(str, seeds))}; commit {', '.join(commits)}; {every[0]['hardware']}, one thread. Stage 1: "
        f"{settings['jepa_steps']} steps of {settings['jepa_batch']} pieces of {SECONDS:g} s; stage 2: {settings['codec_steps']} steps of {settings['codec_batch']} crops of "
        f"{settings['crop_seconds']:g} s. {_seconds(stage['jepa'], 'stage 1')} {_seconds(stage['codec'], 'stage 2')}",
        "",
        f"Trained on {train['pieces']} pieces of {train['readers']} readers ({train['minutes']:.0f} minutes), measured on {valid['pieces']} pieces of "
        f"{valid['readers']} other readers ({valid['minutes']:.1f} minutes).",
        "",
        RULES,
        "",
    ]
    for group in groups:
        if not any(cells[v.name] for v in group.variants[1:]):
            continue  # a reference alone
        parts = [line for measure in group.measures for line in measure_table(cells, group, measure)]
        if parts:
            lines += [f"## {group.title}", "", *parts, *facts_table(cells, group)]
    lacking = missing(cells, groups, seeds)
    if lacking:
        lines += ["## Not run", "", *lacking, ""]
    lines += ["## Commands", "", "    " + _command(every), "", "Each cell's own command stands in the data.", ""]
    return "\n".join(lines)


def _seconds(cells: Sequence[dict[str, Any]], name: str) -> str:
    spent = [c["cpu_seconds"] for c in cells]
    return (
        f"A cell of {name} took {statistics.fmean(spent):.0f} s of one core, measuring included."
        if spent
        else f"No cell of {name}."
    )


def _command(cells: Sequence[dict[str, Any]]) -> str:
    """The command of the whole sweep: that of a cell without its variant and seed."""
    return re.sub(r" --(variants|groups) \S+ --seeds \d+", "", cells[0]["command"])


def summary(cells: Cells, data: dict[str, Any]) -> dict[str, Any]:
    """The data behind the page: each cell without its readers, and each reader's mean over seeds."""
    rows, units = [], {}
    for name, own in sorted((name, own) for name, own in cells.items() if own):
        for _, cell in sorted(own.items()):
            found = {k: m["value"] for k, m in cell["found"].items()}
            rows.append({**{k: v for k, v in cell.items() if k not in ("settings", "found")}, "found": found})
        units[name] = {
            measure: {
                u: round(statistics.fmean(c["found"][measure]["units"][u] for c in own.values()), 4) for u in m["units"]
            }
            for measure, m in next(iter(own.values()))["found"].items()
            if m["units"]
        }
    settings = json.loads(json.dumps(rows and next(iter(next(iter(cells.values())).values()))["settings"]))
    for key in ("manifest", "sounds"):  # folders of one machine say nothing
        settings["data"][key] = settings["data"][key] and Path(settings["data"][key]).name
    return {"settings": settings, "data": data, "cells": rows, "units": units}


def write_page(out: Path, groups: Sequence[Group], page: Path, json_path: Path) -> Path:
    """Writes the page and its data; keeps what stands above the tables of a page that is there."""
    cells = read_cells(out)
    data = json.loads((out / "data" / "data.json").read_text())
    above = "# Ablations at micro scale\n\n"
    if page.exists() and MARK in page.read_text():
        above = page.read_text().split(MARK)[0]
    write_text(page, above + tables(cells, groups, data))
    write_text(
        json_path,
        json.dumps(summary(cells, data), separators=(",", ":")).replace('},{"variant"', '},\n{"variant"') + "\n",
    )
    return page
