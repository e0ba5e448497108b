"""jepa_tok.models.loudness: what is not heard does not count, what is added counts more, and clips count as they do alone."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_tok.models.loudness import _bands, _loudness, loudness_loss
from tests.tokenizers import speech, voice


def loss(fake: torch.Tensor, real: torch.Tensor, lengths: torch.Tensor | None = None) -> float:
    return float(loudness_loss(fake, real, lengths, 24_000))


def test_a_sound_is_as_loud_as_itself_at_any_gain() -> None:
    wave = voice(120.0)[None]
    noisy = wave + 0.02 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(0))
    assert loss(wave, wave) < 1e-3
    assert loss(noisy, wave) > 0.1
    assert loss(0.1 * noisy, 0.1 * wave) == pytest.approx(loss(noisy, wave), rel=1e-3)


def test_a_change_of_level_counts_and_grows() -> None:
    wave = speech(24_000)[None]
    losses = [loss(gain * wave, wave) for gain in (0.9, 0.3, 0.1)]
    assert losses[0] < 1e-3  # within the dead zone
    assert 0.05 < losses[1] < losses[2]


def test_what_is_added_counts_for_more_than_what_is_missing() -> None:
    voiced = voice(150.0)[None]
    both = voiced + 0.05 * speech(24_000)[None]
    assert loss(both, voiced) > 1.2 * loss(voiced, both)


def test_what_is_below_the_threshold_is_not_heard() -> None:
    time = torch.arange(24_000) / 24_000
    tone = 0.3 * torch.sin(2 * math.pi * 1_000 * time)[None]
    heard, not_heard = (tone + level * torch.sin(2 * math.pi * 3_500 * time) for level in (3e-3, 3e-6))
    assert loss(not_heard, tone) < 1e-3 < 0.05 < loss(heard, tone)


def test_loudness_follows_the_power_law_far_above_the_threshold() -> None:
    threshold = torch.tensor([1.0])
    assert float(_loudness(torch.tensor([0.5]), threshold)) == 0.0
    louder, loud = (_loudness(torch.tensor([10.0**power]), threshold) for power in (9, 8))
    assert float(louder / loud) == pytest.approx(10**0.23, rel=0.02)


def test_bands_share_out_all_power_between_their_ends() -> None:
    share, threshold, width = _bands(24_000, 768, torch.device("cpu"))
    inside = share.sum(1)[3:255]  # 94 to 7,950 Hz
    torch.testing.assert_close(inside, torch.ones_like(inside))
    assert not share[258:].any() and width == pytest.approx(0.5, abs=0.02)
    assert 27 <= int(threshold.argmin()) <= 35  # near 3.3 kHz, where hearing is keenest


def test_a_padded_batch_is_its_clips() -> None:
    real, fake = voice(110.0)[None], speech(24_000, seed=1)[None]
    long = loss(fake, real)
    short = loss(fake[:, :12_096], real[:, :12_096])
    lengths = torch.tensor([24_000, 12_096])
    reals, fakes = real.repeat(2, 1), fake.repeat(2, 1)
    reals[1, 12_096:], fakes[1, 12_096:] = 0.0, 0.0
    windows = lengths // 384 + 1
    expected = (long * windows[0] + short * windows[1]) / windows.sum()
    assert loss(fakes, reals, lengths) == pytest.approx(float(expected), rel=1e-4)


def test_silence_has_a_finite_gradient() -> None:
    fake = torch.zeros(2, 2_000, requires_grad=True)
    for real in (torch.zeros(2, 2_000), 0.1 * torch.randn(2, 2_000)):
        fake.grad = None
        loudness_loss(fake, real, None, 24_000).backward()  # type: ignore[no-untyped-call]
        assert fake.grad is not None and fake.grad.isfinite().all()


def test_noise_where_silence_should_be_counts_up_to_a_limit() -> None:
    noise = torch.randn(1, 24_000, generator=torch.Generator().manual_seed(0))
    for level in (0.0, 1e-4):
        silent = level * speech(24_000, seed=2)[None]
        soft, loud, louder = (loss(silent + gain * noise, silent) for gain in (1e-7, 0.01, 0.1))
        assert soft < 0.1 < loud <= louder <= 45.0 * (0.1 + 0.0309) + 1e-4


def test_descent_brings_a_sound_closer() -> None:
    real = voice(140.0, 6_000)[None]
    fake = (0.3 * real + 0.01 * torch.randn(real.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    optimizer = torch.optim.Adam([fake], 2e-3)
    start = loss(fake.detach(), real)
    for _ in range(60):
        optimizer.zero_grad()
        loudness_loss(fake, real, None, 24_000).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss(fake.detach(), real) < 0.5 * start
