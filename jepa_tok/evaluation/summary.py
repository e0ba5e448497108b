"""Figures of the table from the scores of single utterances: mean, deviation, interval, difference, failures."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jepa_tok.evaluation.bounds import System
from jepa_tok.evaluation.intervals import Interval, bootstrap, drawn_by_speaker, weighted_mean
from jepa_tok.evaluation.metrics import Column, Scores


@dataclass
class Found:
    """What one system gave for one utterance."""

    id: str
    speaker: str
    system: str
    seconds: float
    """Duration of the utterance."""

    scores: Scores
    spent: dict[str, float] = field(default_factory=dict)
    """Seconds that the system's parts took."""

    def as_dict(self) -> dict[str, Any]:
        """A line of utterances.jsonl."""
        return {
            "id": self.id,
            "speaker": self.speaker,
            "system": self.system,
            "seconds": round(self.seconds, 4),
            "scores": {key: round(value, 6) for key, value in self.scores.values.items()},
            "failures": self.scores.failures,
            **self.scores.details,
        }


def summarize(
    found: Sequence[Found], systems: Sequence[System], columns: Mapping[str, Column], seed: int
) -> dict[str, Any]:
    """Rows and columns of the table, and what they were measured on; the first system is the one that is judged."""
    first = [f for f in found if f.system == systems[0].label]
    speakers = {f.speaker for f in first} - {""}
    by_speaker = drawn_by_speaker([f.speaker for f in first])
    rows = []
    for system in systems:
        own = [f for f in found if f.system == system.label]
        figures = {key: _figure(key, own, by_speaker, seed) for key in columns}
        differences = (
            {} if system is systems[0] else {key: _difference(key, first, own, by_speaker, seed) for key in columns}
        )
        rows.append(
            {
                "system": system.label,
                "bit_rate": system.bit_rate,
                "delay_ms": None if system.delay is None else round(system.delay * 1000.0),
                "real_time_factor": _real_time(own),
                "figures": figures,
                "differences": differences,
                "failures": {key: reasons for key in columns if (reasons := _failures(key, own))},
            }
        )
    return {
        "corpus": {
            "utterances": len(first),
            "seconds": round(sum(f.seconds for f in first), 2),
            "speakers": len(speakers) or None,
            "intervals_over": "speakers" if by_speaker else "utterances",
        },
        "columns": {key: {"title": c.title, "better": c.better} for key, c in columns.items()},
        "rows": rows,
    }


def _figure(key: str, found: Sequence[Found], by_speaker: bool, seed: int) -> dict[str, Any] | None:
    """Mean, deviation over utterances and interval; None where no utterance has a value."""
    having = [f for f in found if key in f.scores.values]
    if not having:
        return None
    values = [f.scores.values[key] for f in having]
    weights = [f.scores.weights.get(key, 1.0) for f in having]
    interval = bootstrap(values, _clusters(having, by_speaker), weights, seed=seed)
    return {
        "mean": _round(weighted_mean(values, weights)),
        "std": _round(statistics.stdev(values)) if len(values) > 1 else 0.0,
        "interval": _ends(interval),
        "utterances": len(values),
        "failed": len(found) - len(having),
    }


def _difference(
    key: str, first: Sequence[Found], other: Sequence[Found], by_speaker: bool, seed: int
) -> dict[str, Any] | None:
    """First system minus the other, utterance by utterance where both have a value."""
    theirs = {f.id: f.scores.values[key] for f in other if key in f.scores.values}
    pairs = [f for f in first if key in f.scores.values and f.id in theirs]
    if not pairs:
        return None
    values = [f.scores.values[key] - theirs[f.id] for f in pairs]
    weights = [f.scores.weights.get(key, 1.0) for f in pairs]
    interval = bootstrap(values, _clusters(pairs, by_speaker), weights, seed=seed)
    return {"mean": _round(weighted_mean(values, weights)), "interval": _ends(interval), "utterances": len(values)}


def _clusters(found: Sequence[Found], by_speaker: bool) -> list[str]:
    return [f.speaker if by_speaker else f.id for f in found]


def _failures(key: str, found: Sequence[Found]) -> dict[str, int]:
    return dict(Counter(f.scores.failures[key] for f in found if key in f.scores.failures))


def _real_time(found: Sequence[Found]) -> dict[str, float]:
    """Seconds spent for a second of audio, for each part of the system that was timed."""
    timed = [f for f in found if f.spent]
    audio = sum(f.seconds for f in timed)
    return {part: _round(sum(f.spent[part] for f in timed) / audio) for part in (timed[0].spent if timed else ())}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [_round(interval.low), _round(interval.high)]


def _round(value: float) -> float:
    return round(value, 6)
