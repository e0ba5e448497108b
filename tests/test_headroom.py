"""benchmarks.headroom: the yardstick is the textbook's, and components are judged on the frames they were not made of."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import headroom
from benchmarks.headroom import Sound, components, distortion, fit, r2, read, weighed_error
from jepa_tok.models.mel_head import MelHead
from jepa_tok.presets import tokenizer_config


def test_distortion_of_equal_values_falls_by_a_factor_of_four_a_bit() -> None:
    assert distortion(torch.full((8,), 2.0), 8.0) == pytest.approx(16.0 / 4.0, rel=1e-4)
    assert distortion(torch.full((8,), 2.0), 0.0) == pytest.approx(16.0, rel=1e-4)


def test_small_values_get_no_bits() -> None:
    variances = torch.tensor([64.0, 1.0, 1.0])
    assert distortion(variances, 2.0) == pytest.approx(64.0 / 16.0 + 2.0, rel=1e-4)
    level = 2.0 ** (math.log2(64.0) / 3.0 - 2.0 * 6.0 / 3.0)  # all three are in the water at 6 bits
    assert distortion(variances, 6.0) == pytest.approx(3.0 * level, rel=1e-4)


def test_components_of_training_frames_hold_less_of_others() -> None:
    rng = torch.Generator().manual_seed(0)
    train, dev = (torch.randn(60, 40, generator=rng) * torch.linspace(3, 1, 40) for _ in range(2))
    found = {row["what"]: row for row in components(train, dev, torch.ones_like(dev), 30.0)}
    own = {row["what"]: row for row in components(train, train, torch.ones_like(train), 30.0)}
    assert list(found) == ["16 components", "32 components", "components at 30 bits"]
    assert found["16 components"]["r2"] < own["16 components"]["r2"] < own["32 components"]["r2"] < 1.0
    assert found["16 components"]["nats"] > own["16 components"]["nats"] > own["32 components"]["nats"] > 0.0
    assert 0.0 < found["components at 30 bits"]["r2"] < 1.0


def test_measures() -> None:
    truth = torch.tensor([[0.0, 4.0], [2.0, 0.0]])
    assert r2(truth, truth) == 1.0 and r2(truth.mean(0).expand(2, 2), truth) == pytest.approx(0.0)
    assert weighed_error(truth + 1.0, truth, torch.tensor([[2.0, 0.0], [1.0, 1.0]])) == pytest.approx(2.5)


def test_the_head_is_fitted_to_what_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headroom, "STEPS", 300)
    torch.manual_seed(0)
    head = MelHead(tokenizer_config("tiny").generator, 2)
    steps = torch.randn(600, 128)
    logmel = torch.where(torch.rand(600, head.windows * 128) < 0.7, -1.0, 1.0)  # the median is -1, the mean -.4
    sound = Sound(logmel, torch.where(logmel > 0.0, 5.0, 0.1), {})
    head.fit(steps, logmel)
    before = weighed_error(read(head, steps).detach(), logmel, sound.weights)
    fit(head, steps, sound)
    assert (
        weighed_error(read(head, steps).detach(), logmel, sound.weights) < 0.5 * before
    )  # loud ones count, and they are 1
