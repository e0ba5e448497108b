"""Bootstrap intervals of means over utterances that come in clusters: a speaker's utterances are not independent.

Speakers are drawn with replacement, each with all its utterances (the cluster bootstrap: Field and Welsh, 2007, DOI
10.1111/j.1467-9868.2007.00593.x); the interval is between percentiles of the means of the draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_CLUSTERS = 5
"""With fewer there is no interval: the draws would be a handful of values. Up to 20 or so it is still rather narrow."""


@dataclass(frozen=True)
class Interval:
    """An interval for a mean, and what was drawn to get it."""

    low: float
    high: float
    clusters: int
    """Speakers, or whatever was drawn."""


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """sum(w * v) / sum(w): with words as weights, errors per word over all utterances."""
    return float(np.average(values, weights=weights))


def drawn_by_speaker(speakers: Sequence[str]) -> bool:
    """Whether intervals are drawn over the speakers of these utterances: where all are known, and enough."""
    return all(speakers) and len(set(speakers)) >= LEAST_CLUSTERS


def bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    weights: Sequence[float] | None = None,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """The interval of the weighted mean of `values`, drawing whole `clusters`; None where there are too few.

    All sequences have one entry an utterance. The same seed gives the same interval.
    """
    names = sorted(set(clusters), key=repr)
    if len(names) < LEAST_CLUSTERS:
        return None
    place = {name: i for i, name in enumerate(names)}
    which = np.array([place[name] for name in clusters])
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    totals = np.bincount(which, weight, len(names))
    sums = np.bincount(which, weight * np.asarray(values, dtype=float), len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[drawn].sum(1) / totals[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(names))
