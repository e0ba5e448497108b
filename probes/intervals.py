"""How sure is a number? 95 % intervals by bootstrap over speakers, not utterances.

Utterances of one speaker are alike, so that resampling them one by one would make intervals too narrow. Whole speakers are drawn
with replacement, as many as there are, and the metric is computed anew from all utterances of those drawn, each as often as its
speaker was (Bisani and Ney, ICASSP 2004, doi:10.1109/ICASSP.2004.1326009, for error rates; Poh and Bengio, IEEE TPAMI 29(3), 2007,
doi:10.1109/TPAMI.2007.55, for trials). The 2.5th and 97.5th percentile of the draws are the interval.

    B draws   U speakers   K classes   P trials   weights [B, U]: how often each speaker was drawn
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

DRAWS = 1000
LEVEL = 0.95
LEAST_SPEAKERS = 5
"""With fewer speakers there is no interval: the draws would be a handful of values. Up to 20 or so it is still rather narrow."""

_CELLS = 2_000_000  # of an array [B, P] at a time: 16 MB


@dataclass(frozen=True)
class Sample:
    """A metric on one test part: its value, and what it would be had other speakers been drawn."""

    units: tuple[str, ...]
    """The U speakers; utterances where they are unknown."""

    statistic: Callable[[np.ndarray], np.ndarray]
    """weights [B, U] -> values [B], nan where the speakers drawn do not define it."""

    by: str = "speaker"
    """What the units are: `speaker` or `utterance`."""

    @cached_property
    def value(self) -> float:
        """The metric where every speaker counts once."""
        return float(self.statistic(np.ones((1, len(self.units))))[0])


@dataclass(frozen=True)
class Interval:
    """`low` and `high` are None where there are fewer than LEAST_SPEAKERS units."""

    low: float | None
    high: float | None
    units: int
    by: str


def interval(samples: Sequence[Sample], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Of the mean over `samples`, one for each seed of a probe.

    A speaker who is tested by several seeds is drawn for all of them at once, so that seeds do not count as more speakers.
    """
    units = sorted({name for s in samples for name in s.units})
    by = samples[0].by
    if len(units) < LEAST_SPEAKERS:
        return Interval(None, None, len(units), by)
    place = {name: i for i, name in enumerate(units)}
    weights = np.random.default_rng([seed, 9]).multinomial(len(units), [1 / len(units)] * len(units), size=draws)
    values = np.stack([s.statistic(weights[:, [place[name] for name in s.units]]) for s in samples])  # [samples, B]
    means = values.mean(0)
    means = means[np.isfinite(means)]
    if len(means) < draws / 2:  # a metric that most draws do not define
        return Interval(None, None, len(units), by)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), len(units), by)


def _places(owners: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct owners, and the place of each utterance's among them."""
    names, places = np.unique(np.asarray(owners, dtype=str), return_inverse=True)
    return tuple(map(str, names)), places.reshape(-1)


def ratio(
    owners: Sequence[str], above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, by: str = "speaker"
) -> Sample:
    """Sum of `above` divided by sum of `below`, both one number an utterance: hits of 1 for accuracy, edits of words for WER."""
    names, places = _places(owners)
    sums = np.stack([np.bincount(places, np.asarray(part, float), len(names)) for part in (above, below)])  # [2, U]

    def statistic(weights: np.ndarray) -> np.ndarray:
        top, bottom = sums @ weights.T  # [B] each
        return np.divide(top, bottom, out=np.full(len(weights), np.nan), where=bottom > 0)

    return Sample(names, statistic, by)


def accuracy(owners: Sequence[str], truth: Sequence[str], guess: Sequence[str], by: str = "speaker") -> Sample:
    """Share of utterances whose label was found."""
    hits = [float(t == g) for t, g in zip(truth, guess, strict=True)]
    return ratio(owners, hits, np.ones(len(hits)), by)


def unweighted_recall(owners: Sequence[str], truth: Sequence[str], guess: Sequence[str], by: str = "speaker") -> Sample:
    """Mean, over the classes of `truth` that were drawn, of the share found of each."""
    names, counts = _confusions(owners, truth, guess)
    return Sample(names, lambda w: _over_classes(*_totals(w, counts), lambda hit, true, said: hit / true), by)


def macro_f1(owners: Sequence[str], truth: Sequence[str], guess: Sequence[str], by: str = "speaker") -> Sample:
    """Mean, over the classes of `truth` that were drawn, of 2 hits / (utterances of the class + utterances taken for it)."""
    names, counts = _confusions(owners, truth, guess)
    return Sample(
        names, lambda w: _over_classes(*_totals(w, counts), lambda hit, true, said: 2 * hit / (true + said)), by
    )


def _confusions(
    owners: Sequence[str], truth: Sequence[str], guess: Sequence[str]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Speakers, and for each the hits, true and said utterances of each class of `truth`: [3, U, K]."""
    names, places = _places(owners)
    classes = {name: k for k, name in enumerate(sorted(set(truth)))}
    counts = np.zeros((3, len(names), len(classes)))
    for place, t, g in zip(places, truth, guess, strict=True):
        counts[1, place, classes[t]] += 1
        if t == g:
            counts[0, place, classes[t]] += 1
        if g in classes:
            counts[2, place, classes[g]] += 1
    return names, counts


def _totals(weights: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits, true and said of each class in each draw: [B, K] each."""
    hit, true, said = (weights @ part for part in counts)
    return hit, true, said


def _over_classes(hit: np.ndarray, true: np.ndarray, said: np.ndarray, score: Callable[..., np.ndarray]) -> np.ndarray:
    there = true > 0
    values = np.where(there, score(hit, np.where(there, true, 1.0), said), 0.0)
    number = there.sum(1)
    return np.divide(values.sum(1), number, out=np.full(len(hit), np.nan), where=number > 0)


def trials(
    first: Sequence[str], second: Sequence[str], metric: Callable[[np.ndarray], np.ndarray], by: str = "speaker"
) -> Sample:
    """A metric over P trials between utterances of the speakers `first` and `second` [P].

    `metric` maps weights of the trials [B, P] to [B]. Two different speakers' trials count w_a w_b times, as the copies of one
    meet those of the other; trials within a speaker count w_a times: each copy is only compared with itself, for two copies
    of one person would make trials of equal utterances, which are neither kind.
    """
    names, places = _places([*first, *second])
    a, b = places[: len(first)], places[len(first) :]

    def statistic(weights: np.ndarray) -> np.ndarray:
        step = max(1, _CELLS // max(1, len(a)))
        parts = []
        for i in range(0, len(weights), step):
            w = weights[i : i + step].astype(np.float64)
            parts.append(metric(np.where(a == b, w[:, a], w[:, a] * w[:, b])))
        return np.concatenate(parts)

    return Sample(names, statistic, by)
