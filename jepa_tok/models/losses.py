"""Losses of stage 2: L1, multi-resolution STFT, least-squares GAN, feature matching (paper, section 3.4); multi-scale mel.

    B clips   S samples   F frequency bins   L steps of a feature map

All are means over what belongs to clips, never over padding, and are computed in float32 whatever the models run in:
the loss of a padded batch is that of its clips, each weighted by its length.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jepa_tok.models.discriminator import Feature
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.logmel import LogMel, mel_filters
from jepa_tok.models.stft import magnitudes

LOG_EPSILON = 1e-5
"""Added to magnitudes before the logarithm: the level below which a bin counts as silent (paper, section 3.4)."""


def l1_loss(fake: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean absolute difference of samples: fake, real [B, S], lengths [B] samples or None -> scalar."""
    difference = (fake.float() - real.float()).abs()
    return masked_mean(difference, None if lengths is None else sequence_mask(lengths, real.shape[1]))


class Spectra:
    """Magnitudes of a reconstruction and its original at any window size, each computed once for all losses that ask for it.

    Frames are centred (Hann window, hop of a quarter of it) and zeros lie beyond both ends of a clip, so that each sample
    counts and a clip shorter than a window still has frames; those centred past its end are left out.

    :param fake, real: [B, S]; samples past a clip's length are taken as zeros.
    :param lengths: Samples of each clip [B]; None if each has S.
    """

    def __init__(self, fake: Tensor, real: Tensor, lengths: Tensor | None = None) -> None:
        fake, real = fake.float(), real.float()
        if lengths is not None:
            mask = sequence_mask(lengths, real.shape[1])
            fake, real = fake * mask, real * mask
        self.fake, self.real, self.lengths = fake, real, lengths
        self._pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, n_fft: int) -> tuple[Tensor, Tensor]:
        """Magnitudes of fake and real, [B, L, F] each with L = S // (n_fft // 4) + 1 and F = n_fft // 2 + 1."""
        if n_fft not in self._pairs:
            hop = n_fft // 4
            self._pairs[n_fft] = magnitudes(self.fake, n_fft, hop), magnitudes(self.real, n_fft, hop)
        return self._pairs[n_fft]

    def mean(self, values: Tensor, n_fft: int) -> Tensor:
        """Mean of values [B, L, ...] over the clips' own frames."""
        lengths = self.lengths
        return masked_mean(
            values, None if lengths is None else sequence_mask(lengths // (n_fft // 4) + 1, values.shape[1])
        )


def stft_loss(spectra: Spectra, ffts: Sequence[int]) -> Tensor:
    """Multi-resolution STFT loss: L1 of magnitudes plus L1 of their logarithms, averaged over resolutions.

    :param ffts: Window sizes in samples (paper: 2048, 1024, 512, 256, 128).
    :returns: Scalar.
    """
    total = spectra.fake.new_zeros(())
    for n_fft in ffts:
        a, b = spectra.at(n_fft)
        total = total + spectra.mean((a - b).abs(), n_fft)
        total = total + spectra.mean(((a + LOG_EPSILON).log() - (b + LOG_EPSILON).log()).abs(), n_fft)
    return total / len(ffts)


def mel_loss(spectra: Spectra, ffts: Sequence[int], sample_rate: int) -> Tensor:
    """L1 of log-mel magnitudes in nats, averaged over window sizes (HiFi-GAN, equation 6; several scales as in DAC, arXiv 2306.06546).

    Each window of N samples has N / 16 filters. Levels below `LogMel.FLOOR` (about -90 dBFS) count as silent: what recordings
    hold below is noise of their making, and the empty band above 8 kHz of speech that was once at 16 kHz.

    :returns: Scalar.
    """
    total = spectra.fake.new_zeros(())
    for n_fft in ffts:
        filters = mel_filters(sample_rate, n_fft, max(n_fft // 16, 1), spectra.fake.device)
        with torch.autocast(spectra.fake.device.type, enabled=False):
            a, b = ((x @ filters + LogMel.FLOOR).log() for x in spectra.at(n_fft))  # [B, L, M]
        total = total + spectra.mean((a - b).abs(), n_fft)
    return total / len(ffts)


def discriminator_loss(real: list[list[Feature]], fake: list[list[Feature]]) -> Tensor:
    """Least-squares GAN, discriminators' side: real logits to 1, fake ones to 0 (HiFi-GAN, equation 1); summed over them."""
    total = real[0][-1].values.new_zeros((), dtype=torch.float32)
    for r, f in zip(real, fake, strict=True):
        total = total + _feature_mean((r[-1].values.float() - 1.0).square(), r[-1].lengths)
        total = total + _feature_mean(f[-1].values.float().square(), f[-1].lengths)
    return total


def generator_loss(fake: list[list[Feature]]) -> Tensor:
    """Least-squares GAN, generator's side: fake logits to 1 (HiFi-GAN, equation 2); summed over discriminators."""
    total = fake[0][-1].values.new_zeros((), dtype=torch.float32)
    for f in fake:
        total = total + _feature_mean((f[-1].values.float() - 1.0).square(), f[-1].lengths)
    return total


def feature_matching_loss(real: list[list[Feature]], fake: list[list[Feature]]) -> Tensor:
    """Twice the sum over layers of the mean absolute difference of feature maps (HiFi-GAN, equation 4, weight 2).

    Real maps are constants here: only the wave that made `fake` gets a gradient.
    """
    total = fake[0][-1].values.new_zeros((), dtype=torch.float32)
    for r, f in zip(real, fake, strict=True):
        for a, b in zip(r, f, strict=True):
            total = total + _feature_mean((a.values.detach().float() - b.values.float()).abs(), b.lengths)
    return 2.0 * total


def _feature_mean(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Mean of values [B, C, L, W] over the first `lengths` [B] steps."""
    values = values.permute(0, 2, 1, 3)
    return masked_mean(values, None if lengths is None else sequence_mask(lengths, values.shape[1]))


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of values [B, L, ...] over the steps where mask [B, L] is True (all if None)."""
    if mask is None:
        return values.mean()
    each = values[0, 0].numel()  # elements of one step
    shaped = mask.view(*mask.shape, *[1] * (values.dim() - 2))
    return (values * shaped).sum() / (mask.sum() * each).clamp_min(1)


def unevenness(mean: Tensor, square: Tensor, even: Tensor | float) -> Tensor:
    """How far dimensions are from even use of their range, by their first two moments; mean over them.

    :param mean: Of each dimension's values, [D].
    :param square: Their mean square, [D].
    :param even: Mean square of values evenly spread about 0: 1/3 over (-1, 1), (1 - L^-2) / 3 on the L levels of `FSQ`.
    """
    return (mean.square() + (square - even).square()).mean()
