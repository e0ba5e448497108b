"""Luck or not? Each row beside itself with shuffled labels, and what a reader must know of who was left out and how few were tested."""

from __future__ import annotations

from typing import Any

AHEAD, LEVEL = "ahead", "level"
AHEAD_IN_SEEDS, LEVEL_IN_SEEDS = "ahead in all seeds", "not ahead in all seeds"
TOLD = ("eer", "nats")
"""Metrics that sentences tell of besides a task's first."""

LEAST_TESTED = 20
"""Fewer test utterances than this are pointed out."""

_SENTENCES = {
    LEVEL: "cannot be told from shuffled labels ({metric}): {rows}",
    LEVEL_IN_SEEDS: "not ahead of shuffled labels in all seeds ({metric}, no intervals): {rows}",
    AHEAD_IN_SEEDS: "ahead of shuffled labels in all seeds ({metric}, no intervals): {rows}",
    None: "no verdict beside shuffled labels ({metric}; neither intervals nor several seeds): {rows}",
}


def verdict(own: dict[str, Any] | None, shuffled: dict[str, Any] | None, way: str) -> str | None:
    """Of one metric, `way` being `higher` or `lower`: whether its interval lies wholly on the better side of the shuffled control's; where
    there are no intervals, whether each seed is better than all of the control's; None where there is but one, or no control."""
    if not own or not shuffled:
        return None
    if own.get("low") is not None and shuffled.get("low") is not None:
        ahead = own["low"] > shuffled["high"] if way == "higher" else own["high"] < shuffled["low"]
        return AHEAD if ahead else LEVEL
    mine, others = own.get("values", ()), shuffled.get("values", ())
    if min(len(mine), len(others)) < 2:
        return None
    ahead = min(mine) > max(others) if way == "higher" else max(mine) < min(others)
    return AHEAD_IN_SEEDS if ahead else LEVEL_IN_SEEDS


def sentences(table: dict[str, Any]) -> list[str]:
    """What the verdicts of a suite's table come to, for its first metric and those of TOLD."""
    out = []
    metrics = list(table["better"])
    for metric in [m for m in metrics if m == metrics[0] or m in TOLD]:
        rows = [r for r in table["rows"] if metric in r["metrics"] and metric in r["shuffled"]]
        for found, text in _SENTENCES.items():
            names = [f"`{r['name']}`" for r in rows if r["verdicts"].get(metric) == found]
            out += [text.format(metric=metric, rows=", ".join(names))] if names else []
    return out


def left_out(counts: dict[str, Any], splits: dict[str, Any]) -> list[str]:
    """Sentences on utterances that a probe did not use."""
    total = counts.get("utterances", 0)
    kinds = {
        "without_label_row": "have no row in the labels",
        "without_label": "have no label, or none that was asked for",
        "without_words": "have a transcript without a letter or digit",
        "dropped_utterances": f"are of rare classes ({', '.join(counts.get('dropped_classes', ()))})",
    }
    found = [(counts.get(kind) or 0, why) for kind, why in kinds.items()]
    found.append((splits.get("ignored") or 0, "are blank in the split column"))
    return [f"left out: {n} of {total} utterances {why}" for n, why in found if n]


def few_tested(count: int) -> list[str]:
    """A sentence where a test part is so small that its figures say little; none otherwise."""
    return [f"only {count} utterances are tested: figures of so few say little"] if count < LEAST_TESTED else []
