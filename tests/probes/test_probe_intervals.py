"""Intervals over speakers: vectorised draws against plain resampling, coverage, and when there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import intervals, linear
from probes.trials import curve, equal_error

METRICS = {
    intervals.accuracy: linear.accuracy,
    intervals.unweighted_recall: linear.unweighted_recall,
    intervals.macro_f1: linear.macro_f1,
}


@given(
    st.lists(st.tuples(*[st.sampled_from("abc")] * 3), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_weights_are_repeated_speakers(rows: list[tuple[str, str, str]], times: list[int]) -> None:
    """A weight of n is the speaker's utterances n times over, for every metric, as scikit-learn computes it."""
    owners, truth, guess = map(list, zip(*rows))
    for made, plain in METRICS.items():
        sample = made(owners, truth, guess)
        assert sample.value == pytest.approx(plain(truth, guess))
        weights = np.array([[times["abc".index(u)] for u in sample.units]])
        own = [(t, g) for o, t, g in rows for _ in range(times["abc".index(o)])]
        value = sample.statistic(weights)[0]
        if own:
            assert value == pytest.approx(plain(*map(list, zip(*own))))
        else:
            assert np.isnan(value)


def test_ratio_is_of_sums() -> None:
    sample = intervals.ratio(["a", "a", "b"], [1, 2, 0], [10, 10, 5])
    assert sample.value == pytest.approx(3 / 25)
    assert sample.statistic(np.array([[2, 1], [0, 3]])) == pytest.approx([6 / 45, 0.0])


def test_trials_of_two_copies_are_no_trials() -> None:
    """Weights: w_a w_b between speakers, w_a within one."""
    seen = []

    def metric(weights: np.ndarray) -> np.ndarray:
        seen.append(weights)
        return weights.sum(1)

    sample = intervals.trials(["a", "a", "b"], ["a", "b", "c"], metric)
    sample.statistic(np.array([[2, 1, 0], [3, 2, 1]]))
    assert np.concatenate(seen).tolist() == [[2, 2, 0], [3, 6, 2]]


def test_whole_speakers_are_drawn() -> None:
    """Utterances of a speaker that are all alike say no more than one: intervals do not narrow with their number."""
    rng = np.random.default_rng(0)
    right = rng.random(30) < 0.6
    widths = []
    for copies in (1, 20):
        owners = [f"s{i}" for i in range(30) for _ in range(copies)]
        found = intervals.interval([intervals.ratio(owners, np.repeat(right, copies), np.ones(30 * copies))])
        assert found.low is not None and found.high is not None
        assert (found.units, found.by) == (30, "speaker")
        widths.append((found.low, found.high))
    assert widths[0] == pytest.approx(widths[1])


def test_coverage() -> None:
    """Of 200 worlds of 40 speakers about 190 have the truth in their interval."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        skill = rng.beta(6, 4, 40)  # mean 0.6
        hits = rng.binomial(10, skill)
        found = intervals.interval([intervals.ratio([f"s{i}" for i in range(40)], hits, np.full(40, 10))], draws=300)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.6 <= found.high
    assert 176 <= inside <= 198


def test_seeds_that_test_the_same_speakers_add_none() -> None:
    owners = [f"s{i}" for i in range(12)]
    one = intervals.ratio(owners, np.arange(12) % 2, np.ones(12))
    alone, thrice = intervals.interval([one]), intervals.interval([one] * 3)
    assert (alone.low, alone.high, alone.units) == pytest.approx((thrice.low, thrice.high, thrice.units))
    other = intervals.ratio([f"t{i}" for i in range(12)], np.arange(12) % 2, np.ones(12))
    assert intervals.interval([one, other]).units == 24


def test_too_few_speakers_have_no_interval() -> None:
    few = intervals.interval([intervals.ratio(["a", "b", "c", "d"] * 50, np.ones(200), np.ones(200))])
    assert (few.low, few.high, few.units) == (None, None, 4)


def test_error_rates_of_trials_have_intervals() -> None:
    rng = np.random.default_rng(2)
    voices = rng.normal(0, 1, 24)
    first, second = np.triu_indices(24 * 4, 1)
    a, b = first // 4, second // 4
    x = np.repeat(voices, 4) + rng.normal(0, 0.3, 96)
    scores, same = -np.abs(x[first] - x[second]), a == b
    names = np.array([f"s{i:02d}" for i in range(24)])
    sample = intervals.trials(names[a].tolist(), names[b].tolist(), lambda w: equal_error(curve(scores, same, w)))
    found = intervals.interval([sample], draws=300)
    assert found.low is not None and found.high is not None
    assert found.low < sample.value < found.high and 0.01 < found.high - found.low < 0.3
    again = intervals.interval([sample], draws=300)
    assert (found.low, found.high) == (again.low, again.high)
