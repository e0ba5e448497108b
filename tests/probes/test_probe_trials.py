"""EER and minDCF against values known in closed form, their symmetries, and lists of trials."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from probes.data import ProbeError
from probes.trials import cosines, curve, draw, eer, equal_error, min_cost, read

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


def test_min_cost_by_hand() -> None:
    # Accepting 0, 1, 2, 3, 4 of T N T N: misses 1, 1/2, 1/2, 0, 0; alarms 0, 0, 1/2, 1/2, 1.
    c = curve(np.array([4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, False]))
    assert min_cost(c, 0.5)[0] == pytest.approx(0.5)  # accepting the first: (1/2 + 0) * 0.5 / 0.5
    assert min_cost(c, 0.05)[0] == pytest.approx(0.5)
    assert min_cost(curve(np.arange(4.0), np.array([True, True, False, False])), 0.01)[0] == 1.0  # always no
    assert min_cost(curve(np.arange(4.0), np.array([False, False, True, True])), 0.01)[0] == 0.0


@given(LABELS, st.integers(0, 99))
def test_whole_weights_are_repeated_trials(labels: list[bool], seed: int) -> None:
    rng, same = np.random.default_rng(seed), np.array(labels)
    scores = rng.integers(-3, 4, len(same)).astype(float)
    weights = rng.integers(1, 4, (2, len(same)))
    weighted = curve(scores, same, weights)
    for b in range(2):
        repeated = curve(np.repeat(scores, weights[b]), np.repeat(same, weights[b]))
        assert equal_error(weighted)[b] == pytest.approx(equal_error(repeated)[0])
        assert min_cost(weighted, 0.05)[b] == pytest.approx(min_cost(repeated, 0.05)[0])


def test_a_draw_without_a_kind_of_trial_is_undefined() -> None:
    c = curve(np.arange(3.0), np.array([True, False, False]), np.array([[0, 1, 1], [1, 1, 1]]))
    assert np.isnan(equal_error(c)[0]) and np.isnan(min_cost(c, 0.05)[0])
    assert np.isfinite(equal_error(c)[1])


@pytest.mark.parametrize("kind", ["array", "csr"])
@pytest.mark.parametrize("lda", [False, True])
def test_cosines_find_speakers_that_were_not_trained_on(lda: bool, kind: str) -> None:
    rng = np.random.default_rng(0)
    speakers = [f"s{i // 10}" for i in range(160)]
    centres = rng.normal(0, 2, (16, 20))
    x = np.stack([centres[i // 10] for i in range(160)]) + rng.normal(0, 1, (160, 20))
    train, held = np.arange(100), np.arange(100, 160)
    wrap = np.asarray if kind == "array" else sparse.csr_array
    pairs = draw(speakers, held, 0)
    assert len(pairs.same) == 60 * 59 // 2 and pairs.same.sum() == 6 * 45
    assert eer(cosines(wrap(x), speakers, train, pairs, lda=lda), pairs.same) < 0.12
    noise = rng.normal(0, 1, (160, 20))
    assert abs(eer(cosines(wrap(noise), speakers, train, pairs, lda=lda), pairs.same) - 0.5) < 0.1


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    ids, speakers = ["u one", "u2", "u3", "u4"], ["a", "a", "b", "b"]
    pairs = draw(speakers, np.arange(4), 0)
    path = tmp_path / "trials.tsv"
    path.write_text(pairs.text(ids))
    again = read(path, ids, speakers)
    assert again.text(ids) == pairs.text(ids) and again.rows.tolist() == [0, 1, 2, 3]
    path.write_text("u2 u3 0\nu3 u4 1\n")  # blanks will do, and no header
    assert read(path, ids, speakers).same.tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1 u2 1\nu1 u9 0", "t.tsv:2: trials must be of utterances that have tokens and a speaker, but 'u9' has not"),
        ("u1 u2", "must be `enroll id, test id, 0 or 1`"),
        ("u1 u2 yes", "must be `enroll id, test id, 0 or 1`"),
        ("u1 u3 1", "t.tsv:1: the label must agree with the speakers, but is 1 for 'a' and 'b'"),
        ("u1 u1 1", "must be of two utterances"),
        ("u1 u2 1\nu1 u2 1", "occur once"),
        ("u1 u2 1", "both kinds"),
        (None, "cannot be read"),
    ],
)
def test_broken_lists_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProbeError, match=re.escape(message)):
        read(path, ["u1", "u2", "u3"], ["a", "a", "b"])
