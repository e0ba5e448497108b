"""benchmarks.whitening: the transform whitens, and its floor holds."""

from __future__ import annotations

import torch

from benchmarks.whitening import effective_rank, whitening, with_neighbours


def _eigen(x):
    centred = x - x.mean(0)
    return torch.linalg.eigh(centred.T @ centred / len(x))


def test_whitened_latents_are_uncorrelated_with_deviation_one():
    torch.manual_seed(0)
    x = torch.randn(400, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    values, axes = _eigen(x)
    for back in (False, True):
        white = (x - x.mean(0)) @ whitening(values, axes, 0.0, back)
        torch.testing.assert_close(white.T @ white / len(x), torch.eye(6, dtype=torch.float64))


def test_a_floor_leaves_small_components_small():
    values, axes = torch.tensor([1.0, 100.0]), torch.eye(2)
    torch.testing.assert_close(whitening(values, axes, 0.5, back=False).diagonal(), torch.tensor([0.2, 0.1]))


def test_effective_rank_counts_equal_directions():
    assert abs(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) - 3) < 1e-4


def test_neighbours_beyond_the_clip_are_zero():
    assert with_neighbours(torch.tensor([[1.0], [2.0]])).tolist() == [[0, 1, 2], [1, 2, 0]]
