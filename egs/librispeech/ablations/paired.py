"""Paired comparisons of a variant with its reference: over training seeds, and over what was measured.

Two questions, two tests. Would other seeds tell the same? A paired t-test over seeds: a seed gives reference and variant the same
order of data and, where both draw the same random numbers, the same weights to start from (a gate that draws none shifts those behind
it). With three seeds it has two degrees of freedom: only differences that are large beside their scatter count. Would other readers tell
the same, of these very weights? Wilcoxon's signed-rank test and a bootstrap interval over readers, each reader's difference averaged over its
pieces and over seeds. Readers are the unit because the pieces of a reader are not independent; four of them could not give a p below .125,
which is why the sweep holds out more. A difference that passes one test alone is not established.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jepa_tok.evaluation.intervals import Interval, bootstrap


@dataclass(frozen=True)
class Comparison:
    """Variant minus reference."""

    difference: float
    """Mean over seeds."""

    seeds: int
    p_seeds: float | None
    """Two-sided; None for fewer than two seeds."""

    units: int
    p_units: float | None
    """Two-sided; None where no unit differs."""

    interval: Interval | None
    """Of the units' mean difference, 95 %."""


def seed_p(differences: list[float]) -> float | None:
    """p of a paired t-test; None for fewer than two differences and where all are the same."""
    from scipy.stats import ttest_1samp

    if len(differences) < 2 or float(np.ptp(differences)) == 0.0:
        return None
    return float(ttest_1samp(differences, 0.0).pvalue)


def unit_p(differences: list[float]) -> float | None:
    """p of Wilcoxon's signed-rank test; None where all differences are 0."""
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue) if np.any(differences) else None


def compare(
    reference: Mapping[int, float],
    variant: Mapping[int, float],
    reference_units: Mapping[int, Mapping[str, float]],
    variant_units: Mapping[int, Mapping[str, float]],
) -> Comparison | None:
    """Compares on the seeds that both have; None where they share none.

    :param reference: Value of each seed.
    :param reference_units: Value of each reader (or clip) of each seed.
    """
    seeds = sorted(set(reference) & set(variant))
    if not seeds:
        return None
    differences = [variant[s] - reference[s] for s in seeds]
    names = sorted(set.intersection(*(set(units[s]) for units in (reference_units, variant_units) for s in seeds)))
    by_unit = [float(np.mean([variant_units[s][n] - reference_units[s][n] for s in seeds])) for n in names]
    return Comparison(
        float(np.mean(differences)),
        len(seeds),
        seed_p(differences),
        len(names),
        unit_p(by_unit) if names else None,
        bootstrap(by_unit, names) if names else None,
    )
