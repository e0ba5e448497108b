"""Augmentation of batches: repeatable, within the clip, at the levels asked for, and of the same shape."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import tasks  # noqa: F401  (preloads libsndfile)
from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.models.layers import sequence_mask
from tasks.augment import FILTER_HZ, AugmentSection, augment

SIZES = [48_000, 40_000, 24_000, 30_001]
EVERYTHING = AugmentSection(
    speed=[0.9, 1.0, 1.1],
    filter_probability=0.7,
    gain_probability=0.7,
    mix_probability=0.7,
    noise_probability=0.7,
    denoise=True,
)


def make_batch() -> SpeechBatch:
    """Tones of 300, 400, ... Hz of level 0.1 over the clip, zero past its end."""
    wave = torch.zeros(len(SIZES), 52_800)
    for i, (row, size) in enumerate(zip(wave, SIZES)):
        row[:size] = 0.1 * math.sqrt(2.0) * torch.sin(2 * torch.pi * (300 + 100 * i) * torch.arange(size) / 24_000)
    return SpeechBatch(wave, torch.tensor(SIZES), [f"u{i}" for i in range(len(SIZES))], 0, list(SIZES))


def level(wave: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    return torch.stack([row[:size].square().mean().sqrt() for row, size in zip(wave, sizes)])


def pitch(row: torch.Tensor) -> float:
    """Frequency of the strongest bin, in Hz."""
    return float(torch.fft.rfft(row * torch.hann_window(len(row))).abs().argmax()) * 24_000 / len(row)


def test_nothing_is_done_by_default() -> None:
    batch = make_batch()
    out = augment(batch, AugmentSection(), (1, 2, 0, 0))
    assert torch.equal(out.wave, batch.wave) and out.sizes == batch.sizes and out.clean is None
    assert not AugmentSection().validate().has_error()


def test_draws_follow_from_the_seed_alone_and_the_batch_is_left_as_it_was() -> None:
    batch, outs = make_batch(), []
    for seed in [(1, 2, 0, 0), (1, 2, 0, 0), (1, 2, 1, 0), (1, 3, 0, 0), (1, 2, 0, 1)]:
        torch.manual_seed(len(outs))
        outs.append(augment(batch, EVERYTHING, seed))
    assert torch.equal(batch.wave, make_batch().wave) and batch.sizes == SIZES
    assert torch.equal(outs[0].wave, outs[1].wave) and outs[0].sizes == outs[1].sizes
    assert all(not torch.equal(outs[0].wave, out.wave) for out in outs[2:])
    assert torch.get_rng_state().equal(
        torch.random.manual_seed(4).get_state()
    )  # the global generator is not drawn from


@pytest.mark.parametrize("step", range(8))
def test_what_comes_out_is_a_batch(step: int) -> None:
    batch = make_batch()
    batch.wave.mul_(9.0).clamp_(-1.0, 1.0)  # loud: what is added clips
    out = augment(batch, EVERYTHING, (0, step, 0, 0))
    assert out.clean is not None and out.wave.shape == out.clean.shape == batch.wave.shape
    assert out.ids == batch.ids and out.lengths.tolist() == out.sizes
    for wave in (out.wave, out.clean):
        assert wave.dtype == torch.float32 and wave.abs().max() <= 1.0
        assert not wave[~sequence_mask(out.lengths, wave.shape[1])].any()


@pytest.mark.parametrize(("factor", "expected"), [(0.9, [52_800, 44_445, 26_667, 33_335]), (1.1, [43_637, 36_364, 21_819, 27_274])])  # fmt: skip
def test_speed_moves_length_and_pitch_together(factor: float, expected: list[int]) -> None:
    batch = make_batch()
    out = augment(batch, AugmentSection(speed=[factor]), (0, 0, 0, 0))
    # Slower, the first clip would pass the end of the batch.
    assert out.sizes == expected and out.lengths.tolist() == expected
    for i, (row, size) in enumerate(zip(out.wave, out.sizes)):
        assert pitch(row[:size]) == pytest.approx((300 + 100 * i) * factor, abs=1.5)
    assert level(out.wave, out.sizes).allclose(torch.full((4,), 0.1), rtol=0.02)


def test_each_speed_occurs() -> None:
    config = AugmentSection(speed=[0.9, 1.0, 1.1])
    sizes = {tuple(augment(make_batch(), config, (5, step, 0, 0)).sizes) for step in range(20)}
    assert len(sizes) == 3


def test_gain_is_drawn_for_each_clip_within_its_range() -> None:
    batch = make_batch()
    db = []
    for step in range(50):
        out = augment(batch, AugmentSection(gain_probability=0.5, gain_db=(-6.0, 3.0)), (0, step, 0, 0))
        db += (20.0 * (level(out.wave, SIZES) / 0.1).log10()).tolist()
    assert min(db) == pytest.approx(-6.0, abs=0.5) and max(db) == pytest.approx(3.0, abs=0.5)
    assert 0.35 < sum(abs(x) < 1e-3 for x in db) / len(db) < 0.65


def test_filter_is_straight_between_its_points_over_mels_and_keeps_the_level() -> None:
    batch = make_batch()
    batch.wave = torch.zeros(40, 48_000).normal_(std=0.05, generator=torch.Generator().manual_seed(0))
    batch = replace(batch, lengths=torch.full((40,), 48_000), sizes=[48_000] * 40)
    out = augment(batch, AugmentSection(filter_probability=0.5, filter_db=(-8.0, 4.0)), (0, 0, 0, 0))
    assert level(out.wave, out.sizes).allclose(level(batch.wave, batch.sizes), rtol=1e-4)
    gains = (
        20.0 * (torch.fft.rfft(out.wave).abs() / torch.fft.rfft(batch.wave).abs()).log10()
    )  # [40, bins of half a Hz]
    changed = gains.std(1) > 1e-2
    assert 10 <= changed.sum() <= 30 and torch.equal(out.wave[~changed], batch.wave[~changed])
    points = gains[changed][:, [round(2 * hertz) for hertz in FILTER_HZ]]
    spread = points.amax(1) - points.amin(1)
    assert spread.max() <= 12.0 + 1e-3 and spread.mean() > 4.0
    low, high = (1127.0 * math.log1p(hertz / 700.0) for hertz in FILTER_HZ[2:4])
    middle = 700.0 * math.expm1((low + high) / 2 / 1127.0)
    assert gains[changed][:, round(2 * middle)].allclose((points[:, 2] + points[:, 3]) / 2, atol=0.02)
    assert gains[changed][:, -1].allclose(points[:, -1], atol=1e-2)  # level past the last point


def test_a_filter_leaves_the_other_draws_as_they_were() -> None:
    plain = augment(make_batch(), AugmentSection(gain_probability=0.5, gain_db=(-6.0, 3.0)), (0, 3, 0, 0))
    filtered = augment(
        make_batch(), AugmentSection(gain_probability=0.5, gain_db=(-6.0, 3.0), filter_probability=1.0), (0, 3, 0, 0)
    )
    assert level(filtered.wave, SIZES).allclose(level(plain.wave, SIZES), rtol=1e-3)
    assert not torch.allclose(filtered.wave, plain.wave, atol=1e-4)


def test_noise_has_the_ratio_asked_for_and_the_clean_clip_is_kept() -> None:
    batch = make_batch()
    out = augment(batch, AugmentSection(noise_probability=1.0, noise_snr_db=(20.0, 20.0), denoise=True), (0, 0, 0, 0))
    assert out.clean is not None and torch.equal(out.clean, batch.wave)
    noise = out.wave - out.clean
    assert level(noise, SIZES).allclose(torch.full((4,), 0.01), rtol=0.03)
    assert augment(batch, AugmentSection(noise_probability=1.0), (0, 0, 0, 0)).clean is None


def test_another_clip_is_mixed_in_at_the_ratio_asked_for() -> None:
    batch = make_batch()
    batch.wave[1] *= 0.2  # its level must not matter
    config = AugmentSection(mix_probability=1.0, mix_snr_db=(10.0, 10.0), denoise=True)
    out = augment(batch, config, (0, 0, 0, 0))
    other = out.wave - batch.wave
    assert pitch(other[2, : SIZES[2]]) == pytest.approx(400.0, abs=1.5)
    ratio = level(batch.wave, SIZES)[2] / level(other, SIZES)[2]
    assert float(20.0 * ratio.log10()) == pytest.approx(10.0, abs=0.1)
    alone = SpeechBatch(batch.wave[:1], batch.lengths[:1], ["u0"], 0, SIZES[:1])
    assert torch.equal(augment(alone, config, (0, 0, 0, 0)).wave, alone.wave)


def test_silence_stays_silent() -> None:
    batch = make_batch()
    batch.wave.zero_()
    assert not augment(batch, EVERYTHING, (0, 0, 0, 0)).wave.any()


@pytest.mark.parametrize(
    "wrong", [{"noise_probability": 1.5}, {"speed": []}, {"speed": [0.1]}, {"gain_db": (3.0, -3.0)}]
)
def test_section_values_are_checked(wrong: dict) -> None:
    assert AugmentSection(**wrong).validate().has_error()
