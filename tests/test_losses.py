"""Losses of stage 2: against plain formulas, over valid samples alone, short waves, gradients."""

from __future__ import annotations

import pytest
import torch

from jepa_tok.models.discriminator import Feature
from jepa_tok.models.losses import (
    Spectra,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    l1_loss,
    mel_loss,
    stft_loss,
)
from jepa_tok.models.stft import magnitudes

FFTS = [512, 128, 32]


def waves(*lengths: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    size = max(lengths)
    return 0.1 * torch.randn(len(lengths), size), 0.1 * torch.randn(len(lengths), size), torch.tensor(lengths)


def test_l1_counts_valid_samples_only() -> None:
    fake, real = torch.zeros(2, 4), torch.tensor([[1.0, 1, 1, 1], [3, 3, 9, 9]])
    assert l1_loss(fake, real).item() == pytest.approx((4 + 24) / 8)
    assert l1_loss(fake, real, torch.tensor([4, 2])).item() == pytest.approx((4 + 6) / 6)


@pytest.mark.parametrize("samples", [1, 5, 31, 600, 1001])
def test_stft_loss_is_zero_for_equal_waves_and_grows(samples: int) -> None:
    _, real, _ = waves(samples)
    assert stft_loss(Spectra(real, real), ffts=FFTS).item() == 0
    near, far = stft_loss(Spectra(1.1 * real, real), ffts=FFTS), stft_loss(Spectra(2 * real, real), ffts=FFTS)
    assert 0 < near < far


def test_stft_loss_of_a_gain_is_known() -> None:
    """Twice the wave: every log-magnitude is off by log 2, every magnitude by itself."""
    _, real, _ = waves(2000)
    expected = 0.0
    for n_fft in FFTS:
        expected += magnitudes(real, n_fft, n_fft // 4).mean().item() + torch.tensor(2.0).log().item()
    assert stft_loss(Spectra(2 * real, real), ffts=FFTS).item() == pytest.approx(expected / len(FFTS), rel=1e-3)


@pytest.mark.parametrize("length", [1, 100, 511, 512, 513, 900])
def test_padding_is_not_heard_by_the_stft_loss(length: int) -> None:
    fake, real, lengths = waves(length, 900)
    alone = stft_loss(Spectra(fake[:1, :length], real[:1, :length]), ffts=FFTS)
    padded = stft_loss(Spectra(fake[:1], real[:1], lengths[:1]), ffts=FFTS)  # noise behind the end
    torch.testing.assert_close(alone, padded)


@pytest.mark.parametrize("samples", [1, 63, 64, 65, 500])
@pytest.mark.parametrize("n_fft", [64, 16])
def test_magnitudes_and_their_gradient_are_those_of_torch(samples: int, n_fft: int) -> None:
    torch.manual_seed(0)
    wave = torch.randn(2, samples, requires_grad=True)
    window = torch.hann_window(n_fft)
    spectrum = torch.stft(wave, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    expected, found = spectrum.abs().transpose(1, 2), magnitudes(wave, n_fft, n_fft // 4)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((m * weights).sum(), wave)[0] for m in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", [0.0, 1e-22, 1e-40])
def test_silence_gives_a_finite_gradient(level: float) -> None:
    wave = torch.full((1, 300), level, requires_grad=True)
    (1e4 * magnitudes(wave, 64, 16)).sum().backward()
    assert wave.grad is not None and wave.grad.isfinite().all()
    assert level or wave.grad.eq(0).all()


def test_mel_loss_of_a_gain_is_its_logarithm_where_there_is_sound() -> None:
    _, real, _ = waves(2000)
    loss = mel_loss(Spectra(2 * real, real), ffts=[512, 256], sample_rate=24_000).item()
    assert loss == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-2)
    quiet = 1e-7 * real
    assert mel_loss(Spectra(2 * quiet, quiet), ffts=[512], sample_rate=24_000).item() < 0.01  # below the floor


@pytest.mark.parametrize("length", [1, 511, 900])
def test_padding_is_not_heard_by_the_mel_loss(length: int) -> None:
    fake, real, lengths = waves(length, 900)
    alone = mel_loss(Spectra(fake[:1, :length], real[:1, :length]), ffts=[512, 128], sample_rate=24_000)
    torch.testing.assert_close(
        alone, mel_loss(Spectra(fake[:1], real[:1], lengths[:1]), ffts=[512, 128], sample_rate=24_000)
    )


def test_stft_loss_of_a_batch_weighs_clips_by_frames() -> None:
    fake, real, lengths = waves(640, 320)
    one, two = (
        stft_loss(Spectra(fake[i : i + 1, :n], real[i : i + 1, :n]), ffts=[64]) for i, n in enumerate((640, 320))
    )
    batch = stft_loss(Spectra(fake, real, lengths), ffts=[64])
    torch.testing.assert_close(batch, (41 * one + 21 * two) / 62)


def test_stft_loss_has_finite_gradients_in_silence() -> None:
    fake = torch.zeros(1, 700, requires_grad=True)
    stft_loss(Spectra(fake, torch.zeros(1, 700)), ffts=FFTS).backward()
    assert fake.grad is not None and fake.grad.isfinite().all()


def test_losses_are_float32_under_autocast() -> None:
    fake, real, lengths = waves(700, 500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = stft_loss(Spectra(fake, real, lengths), ffts=FFTS)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, stft_loss(Spectra(fake, real, lengths), ffts=FFTS))


def maps(*values: float, lengths: torch.Tensor | None = None) -> list[list[Feature]]:
    """One sub-discriminator of two layers; the last, its logits, holds `values` for one clip."""
    logits = torch.tensor(values).view(1, 1, -1, 1)
    return [[Feature(2 * logits, lengths), Feature(logits, lengths)]]


def test_least_squares_targets() -> None:
    assert discriminator_loss(maps(1.0, 1.0), maps(0.0, 0.0)).item() == 0
    assert discriminator_loss(maps(0.0, 1.0), maps(2.0, 0.0)).item() == pytest.approx(0.5 + 2.0)
    assert generator_loss(maps(1.0, 1.0)).item() == 0
    assert generator_loss(maps(0.0, 1.0) + maps(3.0, 1.0)).item() == pytest.approx(0.5 + 2.0)


def test_padded_logits_do_not_count() -> None:
    two = torch.tensor([2])
    assert generator_loss(maps(0.0, 1.0, 7.0, lengths=two)).item() == pytest.approx(0.5)
    assert discriminator_loss(maps(0.0, 1.0, 7.0, lengths=two), maps(0.0, 0.0, 7.0, lengths=two)).item() == 0.5


def test_feature_matching_is_twice_the_sum_over_layers_and_leaves_real_maps_alone() -> None:
    real, fake = maps(1.0, 0.0), maps(0.0, 0.0)
    real[0][1].values.requires_grad_()
    fake[0][1].values.requires_grad_()
    loss = feature_matching_loss(real, fake)
    assert loss.item() == pytest.approx(2 * (1.0 + 0.5))
    loss.backward()
    assert real[0][1].values.grad is None
    assert fake[0][1].values.grad is not None
