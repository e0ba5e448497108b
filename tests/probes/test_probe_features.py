"""Pooled statistics and one-hot digits, against what a few lines of counting give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes import features, linear
from probes.features import mel_frames, one_hot, pool_codes, pool_mels, values_of
from probes.inputs import subframes_of

RADICES = (4, 2, 3)


@st.composite
def clips(draw: st.DrawFn) -> np.ndarray:
    frames = draw(st.integers(1, 6))
    rows = [[draw(st.integers(0, r - 1)) for r in RADICES] for _ in range(frames)]
    return np.array(rows, dtype=np.uint16)


@given(clips())
def test_one_hot_names_each_digit(codes: np.ndarray) -> None:
    x = one_hot(codes, RADICES)
    assert x.shape == (len(codes), 9)
    start = 0
    for d, r in enumerate(RADICES):
        assert (x[:, start : start + r].argmax(1) == codes[:, d]).all()
        assert (x[:, start : start + r].sum(1) == 1).all()
        start += r


@given(clips())
def test_pool_counts_levels_and_pairs(codes: np.ndarray) -> None:
    pooled = pool_codes(codes, RADICES, transitions=True)
    assert pooled.shape == (9 + 6 + 16 + 4 + 9,)
    assert np.allclose(pooled[:9], one_hot(codes, RADICES).mean(0))
    values = values_of(codes, RADICES)
    assert np.allclose(pooled[9:12], values.mean(0), atol=1e-6)
    assert np.allclose(pooled[12:15], values.std(0), atol=1e-6)
    first = np.zeros((4, 4))  # pairs of dimension 0
    for a, b in zip(codes[:-1, 0], codes[1:, 0]):
        first[a, b] += 1 / (len(codes) - 1)
    assert np.allclose(pooled[15:31], first.ravel(), atol=1e-6)


def test_values_are_the_quantisers() -> None:
    codes = np.array([[0], [1], [2], [3]])
    assert values_of(codes, (4,))[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_mels_share_the_frames_of_tokens() -> None:
    wave = torch.sin(torch.arange(9601) * 0.1)  # one sample more than a frame: two frames
    mels = mel_frames(wave, 24_000, 9600, 20, 40)
    assert mels.shape == (2, 20, 40)
    assert mels[0].mean() > mels[1].mean() + 0.5
    assert pool_mels(mels.mean(1)).shape == (6 * 40,)


def test_pooled_log_mels_are_as_many_as_pooled_codes() -> None:
    assert len(pool_mels(np.zeros((3, 128)))) == len(pool_codes(np.zeros((3, 128), np.uint16), (4,) * 128)) == 768


def test_subframes_divide_the_hop() -> None:
    assert subframes_of(9600, 24_000) == 20
    assert subframes_of(480, 24_000) == 1
    assert subframes_of(1920, 24_000) == 4
    for hop in (1, 7, 1000, 4799):
        assert hop % subframes_of(hop, 24_000) == 0


@pytest.mark.parametrize("transitions", [False, True])
def test_large_histograms_are_sparse_and_the_same(transitions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    clips = [draw.integers(0, RADICES, (n, 3)).astype(np.uint16) for n in (1, 5, 9)]
    dense = features.pool_all(clips, RADICES, transitions=transitions)
    assert isinstance(dense, np.ndarray)
    monkeypatch.setattr(features, "DENSE_LEVELS", 8)
    thin = features.pool_all(clips, RADICES, transitions=transitions)
    assert not isinstance(thin, np.ndarray) and thin.dtype == np.float32
    columns = [*range(9), *range(15, dense.shape[1]), *range(9, 15)] if transitions else range(15)
    assert np.allclose(thin.toarray(), dense[:, list(columns)], atol=1e-6)  # moments stand last in it


def test_codebooks_are_pooled_by_what_they_stand_for() -> None:
    book = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    codes = np.array([[0], [3], [3]], dtype=np.uint16)
    pooled = pool_codes(codes, (4,), values=lambda c: book[c[:, 0]])
    assert np.allclose(pooled, [1 / 3, 0, 0, 2 / 3, *book[[0, 3, 3]].mean(0), *book[[0, 3, 3]].std(0)], atol=1e-6)


def test_logistic_regression_reads_sparse_histograms() -> None:
    draw = np.random.default_rng(1)
    labels = ["ab"[k % 2] for k in range(90)]
    clips = [np.where(draw.random((12, 2)) < 0.5, k % 2, draw.integers(0, 1024, (12, 2))) for k in range(90)]
    x = features.pool_all([c.astype(np.uint16) for c in clips], (1024, 1024))
    assert not isinstance(x, np.ndarray) and x.nnz < 0.05 * x.shape[0] * x.shape[1]
    head = linear.fit(x, labels, np.arange(40), np.arange(40, 60), linear.accuracy)
    assert linear.accuracy(labels[60:], head.model.predict(x[60:]).tolist()) > 0.9
