"""Sections of the page that are numbers: head of the page, code usage, probes, commands.

N frames   D code dimensions
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import torch
from torch import Tensor

from jepa_tok.errors import JepaTokError
from jepa_tok.report.charts import bars, usage_map
from jepa_tok.report.rundir import RunDir, number
from jepa_tok.report.training import baseline_levels, missing, section

INPUTS = {
    "tokens": "these tokens",
    "random": "tokens, random tokenizer",
    "logmel": "log-mel statistics",
    "shuffled": "these tokens, labels shuffled",
    "chance": "chance",
    "majority": "majority class",
}
SYNTHETIC = (
    "The speech is synthetic (espeak-ng voices, styles set by rate, pitch and volume) and training takes minutes: this page "
    "proves that every part runs and fits together. It measures nothing about real speech."
)


def metric_name(metric: str) -> str:
    """WER, EER, UAR, minDCF as one writes them; words without underscores."""
    if metric in ("wer", "cer", "eer", "uar"):
        return metric.upper()
    named = re.sub(r"min_dcf_0(\d)", r"minDCF 0.0\1", metric)
    return named.replace("_cosine", ", cosine").replace("_", " ").replace(" f1", " F1").replace("eer,", "EER,")


def seconds_text(value: float) -> str:
    """12 s, 3 min 5 s, 1 h 2 min."""
    whole = round(value)
    if whole < 60:
        return f"{value:.1f} s" if value < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def head(run: RunDir, tiles: Iterable[tuple[str, str]]) -> str:
    """Title, the sentence that says what one sees, key figures, and what ran where."""
    info, corpus = run.info, run.corpus
    title = str(info.get("title") or f"jepa-tok run: {run.path.resolve().name}")
    lead = (
        "What you see: a JEPA encoder and a 2.5 Hz tokenizer trained from nothing, how its tokens sound when decoded, a language model "
        "that continues them, and what linear probes can read in them."
    )
    note = str(info.get("note") or (SYNTHETIC if str(corpus.get("note", "")).startswith("Synthetic") else ""))
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles
    )
    facts = [
        (name, _plain(info[name])) for name in ("date", "commit", "seeds", "machine", "versions") if info.get(name)
    ]
    if corpus:
        splits = ", ".join(
            f"{k} {v.get('utterances')} utterances of {v.get('speakers')} speakers"
            for k, v in corpus.get("splits", {}).items()
            if isinstance(v, dict)
        )
        facts.append(("corpus", f"{corpus.get('name', '')}: {splits or corpus.get('utterances', '')}"))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return (
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>'
        + (f'<p class="note"><b>Read with care.</b> {escape(note)}</p>' if note else "")
        + f'<div class="tiles">{boxes}</div><dl class="facts">{rows}</dl></header>'
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def tiles(run: RunDir, usage: Usage | None, bits: float | None, valid: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The figures at the top of the page."""
    found = []
    if run.corpus.get("minutes"):
        found.append(("minutes of speech", f"{run.corpus['minutes']:g}"))
    spent = sum(number(row.get("seconds")) or 0.0 for row in run.commands)
    if run.commands:
        found.append((f"for all of {len(run.commands)} commands", seconds_text(spent)))
    if usage is not None:
        found.append(("tokens a second", f"{usage.tokens_per_second:g}"))
        found.append((f"bit/s in the codes, at most (of {usage.capacity:.0f})", f"{usage.bits_per_second:.0f}"))
    if bits is not None:
        unigram = next((level for level in baseline_levels(valid) if "unigram" in level.name), None)
        found.append((f"bit/s, language model{f' (unigram {unigram.y:.0f})' if unigram else ''}", f"{bits:.0f}"))
    for probe in run.probes():
        metric = next(iter(probe.get("better", {})), None)
        row = next((r for r in probe["rows"] if r.get("input") == "tokens"), None)
        value = (row or {}).get("metrics", {}).get(metric, {}).get("mean")
        if metric is not None and value is not None:
            found.append((f"{metric_name(metric)}, {task_name(probe)} probe", f"{value:.2f}"))
    return found


class Usage:
    """Share of each level in each dimension over all frames of the shards."""

    def __init__(self, counts: list[Tensor], frames: int, frame_rate: float, tokens_per_second: float) -> None:
        self.shares = [(c / max(frames, 1)).tolist() for c in counts]
        self.frames = frames
        self.tokens_per_second = tokens_per_second
        entropies = [-sum(p * math.log2(p) for p in column if p > 0) for column in self.shares]
        self.normalised = [e / math.log2(len(column)) for e, column in zip(entropies, self.shares)]
        self.bits_per_second = frame_rate * sum(entropies)
        """Sum of the dimensions' entropies: an upper bound, for it takes them as independent."""
        self.capacity = frame_rate * sum(math.log2(len(column)) for column in self.shares)


def read_usage(run: RunDir) -> Usage | None:
    """Counts the codes of the token shards; None where there are none."""
    if not any((run.path / "tokens").glob("*.parquet")):
        return None
    from jepa_tok.corpus.shards import read_metadata, read_shards
    from jepa_tok.packing import unpack

    try:
        meta = read_metadata(run.path / "tokens")
        radices = list(meta.radices)
        counts = [torch.zeros(r) for r in radices]
        frames = 0
        for row in read_shards(run.path / "tokens"):
            codes = unpack(row.ids, radices, meta.group_size)  # [T, D]
            frames += len(codes)
            for d, radix in enumerate(radices):
                counts[d] += torch.bincount(codes[:, d], minlength=radix)
    except JepaTokError as error:
        run.problems.append(str(error))
        return None
    return Usage(counts, frames, meta.frame_rate, meta.frame_rate * meta.num_groups)


def codes(usage: Usage | None) -> str:
    """How evenly the codes are used."""
    title = "How the codes are used"
    if usage is None:
        return section("codes", title, missing("Token shards", "tokens/*.parquet"))
    dead = sum(e < 1e-9 for e in usage.normalised)
    mean = sum(usage.normalised) / len(usage.normalised)
    lead = (
        f"All {usage.frames:,} frames of the corpus. Normalised entropy is {mean:.2f} on average; {dead} of {len(usage.shares)} dimensions use a single level. "
        f"Taken as independent, the dimensions carry {usage.bits_per_second:.0f} of {usage.capacity:.0f} bit/s: an upper bound."
    )
    body = (
        f'<figure class="broad"><figcaption><b>Share of each level</b>, by dimension: the stronger the colour, the more often</figcaption>{usage_map(usage.shares)}</figure>'
        f'<figure class="broad"><figcaption><b>Normalised entropy</b>, by dimension: 1 is even use of all levels</figcaption>{bars(usage.normalised, "normalised entropy")}</figure>'
    )
    return section("codes", title, body, lead)


def probes(run: RunDir) -> str:
    """Linear probes beside their controls."""
    title = "What linear probes read in the tokens"
    found = run.probes()
    if not found:
        return section("probes", title, missing("Results of probes", "probes/*/results.json"))
    lead = (
        "Mean ± deviation over seeds. The row of these tokens says something only where it leaves the controls behind: "
        "the same model untrained, shuffled labels, chance."
    )
    told = "".join(f'<p class="small"><b>{task_name(r)}.</b> {escape(_remarks(r))}</p>' for r in found)
    return section("probes", title, f'<figure class="broad">{_probe_table(found)}{told}</figure>', lead)


def task_name(result: dict[str, Any]) -> str:
    """ASR; Speaker; Emotion."""
    task = str(result.get("task", ""))
    return escape(task.upper() if task == "asr" else task.capitalize())


def _metrics(result: dict[str, Any]) -> list[str]:
    return list(result.get("better", {})) or sorted({m for row in result["rows"] for m in row.get("metrics", {})})


def _probe_table(found: list[dict[str, Any]]) -> str:
    """One table: a row an input, a group of columns a probe."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    groups = "".join(f'<th class="n group" colspan="{len(_metrics(r))}">{task_name(r)}' for r in found)
    names = "".join(
        f'<th class="n{" group" if k == 0 else ""}">{escape(metric_name(m))}{arrows.get(r.get("better", {}).get(m, ""), "")}'
        for r in found
        for k, m in enumerate(_metrics(r))
    )
    inputs = list(dict.fromkeys([*INPUTS, *(str(row.get("input")) for r in found for row in r["rows"])]))
    body = []
    for name in inputs:
        rows = [next((row for row in r["rows"] if row.get("input") == name), None) for r in found]
        if not any(rows):
            continue
        cells = ""
        for result, row in zip(found, rows):
            if row is not None and not row.get("metrics"):
                why = escape(str(row.get("note") or "not available"))
                cells += f'<td class="n group" colspan="{len(_metrics(result))}"><span class="dev">{why}</span></td>'
                continue
            for k, m in enumerate(_metrics(result)):
                value = _value((row or {}).get("metrics", {}).get(m))
                cells += f'<td class="n{" group" if k == 0 else ""}">{value}</td>'
        main = " class=main" if name == "tokens" else ""
        body.append(f"<tr{main}><td>{escape(INPUTS.get(name, name))}</td>{cells}</tr>")
    return (
        f"<div class=scroll><table><thead><tr><th>{groups}</tr><tr><th>input{names}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _remarks(result: dict[str, Any]) -> str:
    seeds = result.get("seeds") or []
    parts = [_verdict(result, _metrics(result), result.get("better", {})), f"Seeds {', '.join(map(str, seeds))}."]
    return " ".join([*filter(None, parts), *(f"{str(note).rstrip('.')}." for note in result.get("notes", []))])


def _value(cell: dict[str, Any] | None) -> str:
    if not cell or number(cell.get("mean")) is None:
        return "&ndash;"
    spread = (
        f' <span class="dev">± {cell["std"]:.3f}</span>' if cell.get("std") and len(cell.get("values", [])) > 1 else ""
    )
    return f"{cell['mean']:.3f}{spread}"


def _verdict(result: dict[str, Any], metrics: list[str], better: dict[str, str]) -> str:
    """One plain sentence: whether the main metric tells these tokens from the untrained model's."""
    rows = {row.get("input"): row.get("metrics", {}) for row in result["rows"]}
    metric = metrics[0] if metrics else ""
    tokens, control = rows.get("tokens", {}).get(metric), rows.get("random", {}).get(metric)
    if not tokens or not control:
        return ""
    if metric == "wer" and min(tokens["mean"], control["mean"]) > 0.9:
        return (
            "By WER nothing is recognised yet, in these tokens or in an untrained tokenizer's: saying nothing scores 1."
        )
    sign = 1 if better.get(metric) == "higher" else -1
    gap = sign * (tokens["mean"] - control["mean"])
    spread = tokens.get("std", 0.0) + control.get("std", 0.0)
    name = metric_name(metric)
    if gap > spread:
        return f"By {name}, these tokens do better than an untrained tokenizer's."
    if gap < -spread:
        return f"By {name}, these tokens do worse than an untrained tokenizer's."
    return f"By {name}, these tokens cannot be told from an untrained tokenizer's."


def commands(run: RunDir) -> str:
    """Every command with its seconds and status."""
    title = "Every command"
    rows = run.commands
    if not rows:
        return section("commands", title, missing("The list of commands", "commands.jsonl"))
    body = []
    for row in rows:
        status = row.get("status")
        state = "ok" if status == 0 else f"status {status}"
        if row.get("attempts", 1) > 1:
            state += f", {row['attempts']} runs"
        body.append(
            f"<tr><td>{escape(str(row.get('stage', '')))}</td><td>{escape(str(row.get('name', '')))}</td><td><code>{escape(str(row.get('command', '')))}</code></td>"
            f"<td class=n>{seconds_text(number(row.get('seconds')) or 0.0)}</td><td>{escape(state)}</td></tr>"
        )
    total = seconds_text(sum(number(row.get("seconds")) or 0.0 for row in rows))
    table = f"<div class=scroll><table><thead><tr><th>stage<th>name<th>command<th class=n>time<th>state</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    return section("commands", title, table, f"{total} in all. Run from the root of the checkout.")
