"""Periodicity: its peak stands at the period, silence has none, padding changes nothing, and a mel head learns to tell it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jepa_tok.config import GeneratorConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.mel_head import N_MELS, MelHead
from jepa_tok.models.pitch import HIGHEST, LOWEST, N_LAGS, Periodicity
from jepa_tok.presets import codec_config


def voice(pitch: float, samples: int = 24_000) -> Tensor:
    """Ten harmonics [S] that fall as a voice's do."""
    t = torch.arange(samples, dtype=torch.float64) / 24_000
    return 0.05 * torch.stack([torch.sin(2 * math.pi * pitch * k * t + k) / k for k in range(1, 11)]).sum(0).float()


@pytest.mark.parametrize("pitch", [80.0, 110.0, 180.0, 250.0, 380.0])
def test_the_peak_stands_at_the_period(pitch: float) -> None:
    told = Periodicity(24_000, 1024, 240)(voice(pitch)[None])[0, 20:80]
    step = (HIGHEST / LOWEST) ** (1 / (N_LAGS - 1))
    found = HIGHEST / step ** told.argmax(-1)
    assert torch.all((found / pitch).log().abs() < 1.5 * math.log(step))
    assert told.abs().max() <= 1.0 and told.amax(-1).min() > 0.25


def test_silence_and_noise_have_no_period() -> None:
    periodicity = Periodicity(24_000, 1024, 240)
    torch.manual_seed(0)
    assert periodicity(torch.zeros(1, 5000)).abs().max() == 0.0
    assert periodicity(1e-5 * voice(100.0)[None]).abs().max() < 0.1
    assert periodicity(0.05 * torch.randn(1, 24_000)).abs().mean() < 0.1


def test_windows_are_those_of_the_log_mels_and_padding_changes_none() -> None:
    config = GeneratorConfig(strides=[5, 2, 2, 2], channels=[16] * 4, head_hop=240)
    head = MelHead(config, 2, pitch=True)
    wave = voice(140.0, 5_003)[None]
    padded = torch.cat([wave, torch.zeros(1, 4_000)], dim=1)
    told, longer = head.truth(wave), head.truth(padded)
    assert told.shape == (1, 21, N_MELS + N_LAGS)
    torch.testing.assert_close(longer[:, :21], told)
    assert head(torch.zeros(1, 16, 6)).shape == (1, 24, N_MELS + N_LAGS)
    mel, pitch = head.loss(torch.zeros(1, 16, 6), wave, torch.tensor([5_003]))
    assert mel > 0 and pitch > 0
    plain = MelHead(config, 2)
    assert plain.loss(torch.zeros(1, 16, 6), wave, None)[1] == 0.0


def test_pitch_needs_a_mel_head() -> None:
    config = codec_config("tiny")
    config.pitch_weight = 1.0
    with pytest.raises(ConfigError, match="`pitch_weight` must be 0 without a mel head"):
        config.check()
