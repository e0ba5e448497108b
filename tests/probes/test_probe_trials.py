"""EER against values known in closed form, and its symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.data import ProbeError
from probes.trials import eer, score

LABELS = st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda s: any(s) and not all(s))


def test_perfect_reversed_and_constant_scores() -> None:
    same = np.array([True, True, False, False, False])
    assert eer(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), same) == 0.0
    assert eer(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), same) == 1.0
    assert eer(np.ones(5), same) == 0.5


def test_by_hand() -> None:
    # Thresholds pass 4T 3N 2T 1N: misses 1, 1/2, 1/2, 0; alarms 0, 0, 1/2, 1/2: they meet at 1/2.
    assert eer(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False])) == pytest.approx(0.5)
    # One of four targets below one of four others: both rates are 1/4 between them.
    scores = np.array([9.0, 8.0, 7.0, 2.0, 3.0, 1.0, 0.5, 0.1])
    same = np.array([True] * 4 + [False] * 4)
    assert eer(scores, same) == pytest.approx(0.25)


def test_two_gaussians() -> None:
    """Equal variance, means d apart: EER = Phi(-d / 2)."""
    rng, n, d = np.random.default_rng(0), 40_000, 1.5
    scores = np.concatenate([rng.normal(d, 1, n), rng.normal(0, 1, n)])
    same = np.arange(2 * n) < n
    assert eer(scores, same) == pytest.approx(0.5 * math.erfc(d / 2 / math.sqrt(2)), abs=0.005)


@given(LABELS, st.data())
def test_symmetries(labels: list[bool], data: st.DataObject) -> None:
    same = np.array(labels)
    scores = np.array(data.draw(st.lists(st.integers(-5, 5), min_size=len(same), max_size=len(same))), dtype=float)
    value = eer(scores, same)
    assert 0.0 <= value <= 1.0
    assert eer(np.exp(scores), same) == pytest.approx(value)  # any increasing map
    assert eer(-scores, ~same) == pytest.approx(value)  # the other kind as targets
    assert eer(-scores, same) == pytest.approx(1.0 - value)


def test_refuses_one_kind_and_nan() -> None:
    with pytest.raises(ProbeError, match="both kinds"):
        eer(np.ones(3), np.array([True, True, True]))
    with pytest.raises(ProbeError, match="finite"):
        eer(np.array([1.0, math.nan]), np.array([True, False]))


@pytest.mark.parametrize("lda", [False, True])
def test_score_finds_speakers_that_were_not_trained_on(lda: bool) -> None:
    rng = np.random.default_rng(0)
    speakers = [f"s{i // 10}" for i in range(160)]
    centres = rng.normal(0, 2, (16, 20))
    x = np.stack([centres[i // 10] for i in range(160)]) + rng.normal(0, 1, (160, 20))
    train, held = np.arange(100), np.arange(100, 160)
    assert score(x, speakers, train, held, 0, lda=lda) < 0.12
    noise = rng.normal(0, 1, (160, 20))
    assert abs(score(noise, speakers, train, held, 0, lda=lda) - 0.5) < 0.1
