"""Loss in loudness: how much louder or softer than it should be each critical band is heard.

    B clips   S samples   L windows of 32 ms   Z bands of half a Bark

A nat of a log-mel counts the same where nothing is heard and where all is. Specific loudness (Zwicker's power law above the threshold in
quiet) does not; as in PESQ (ITU-T P.862; DOI 10.1109/ICASSP.2001.941023) a quarter of the softer of both is a dead zone, and what is added to
a sound counts for more than what is missing. Unlike there, no gain is made up for, of a clip, a band or a window: differences of level count.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.losses import masked_mean
from jepa_tok.models.stft import magnitudes

WINDOW_SECONDS = 0.032
BANDS_PER_BARK = 2
LOWEST, HIGHEST = 50.0, 8_000.0
"""Frequencies that count, Hz."""

LEVEL = 73.0
"""What a clip is taken to be played at, dB SPL: that of P.862."""

SOFTEST = -60.0
"""dB of full scale: clips below it are not played louder than if they had it."""

EXPONENT, SONE = 0.23, 0.187
"""Of the power law (Zwicker), and the scale of P.862."""

DEAD_ZONE = 0.25
ASYMMETRY, LEAST, MOST = 1.2, 3.0, 12.0
"""What is added weighs by the ratio of powers to the power `ASYMMETRY`, at most by `MOST`; where that is below `LEAST`, not at all."""

LIMIT = 45.0
SYMMETRIC, ASYMMETRIC = 0.1, 0.0309
"""Most that a window's disturbances come to, so that noise in a pause is not all that counts, and what both take off a score; of P.862."""


def loudness_loss(fake: Tensor, real: Tensor, lengths: Tensor | None, sample_rate: int) -> Tensor:
    """Disturbance of a reconstruction, in points off a PESQ-like score of 4.5: mean over the clips' windows.

    :param fake, real: [B, S], zero outside each clip.
    :param lengths: Samples of each clip [B]; None if each has S.
    :returns: Float32 scalar.
    """
    with torch.autocast(fake.device.type, enabled=False):
        n_fft = 4 * round(WINDOW_SECONDS * sample_rate / 4)
        hop = n_fft // 2
        share, threshold, width = _bands(sample_rate, n_fft, fake.device)
        powers = [magnitudes(wave, n_fft, hop).square() for wave in (fake, real)]  # [B, L, F]
        own = None if lengths is None else sequence_mask(lengths // hop + 1, powers[0].shape[1])
        total = powers[1].sum(-1) if own is None else powers[1].sum(-1) * own
        windows = total.shape[1] if own is None else own.sum(1)
        squares = 0.375 * n_fft  # of a Hann window, summed
        softest = 0.5 * n_fft * squares * 10 ** (SOFTEST / 10)
        gain = 10 ** (LEVEL / 10) / (total.sum(1) / windows).clamp_min(softest)  # [B]
        heard, meant = (gain[:, None, None] * (power @ share) for power in powers)  # [B, L, Z]

        loud, should = _loudness(heard, threshold), _loudness(meant, threshold)
        disturbance = ((loud - should).abs() - DEAD_ZONE * torch.minimum(loud, should)).clamp_min(0.0)
        added = ((heard.detach() + 50.0) / (meant + 50.0)) ** ASYMMETRY
        added = added.clamp_max(MOST) * (added >= LEAST)
        barks = width * disturbance.shape[-1]
        symmetric = (barks * (disturbance.square().mean(-1) + 1e-8).sqrt()).clamp_max(LIMIT)  # [B, L]
        asymmetric = (width * (disturbance * added).sum(-1)).clamp_max(LIMIT)
        return masked_mean(SYMMETRIC * symmetric + ASYMMETRIC * asymmetric, own)


def _loudness(power: Tensor, threshold: Tensor) -> Tensor:
    """Specific loudness of powers [..., Z], 0 up to the threshold [Z]."""
    above = torch.maximum(power, threshold) / threshold
    return SONE * (2.0 * threshold) ** EXPONENT * ((0.5 + 0.5 * above) ** EXPONENT - 1.0)


@lru_cache(maxsize=16)
def _bands(sample_rate: int, n_fft: int, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Share of each bin's power that is each band's [F, Z], the threshold in quiet of each [Z], and their width in Bark."""

    def bark(hertz: Tensor) -> Tensor:  # Traunmueller, DOI 10.1121/1.399849
        return 26.81 * hertz / (1960.0 + hertz) - 0.53

    with torch.inference_mode(False), torch.no_grad():
        low, high = bark(torch.tensor([LOWEST, min(HIGHEST, sample_rate / 2)], dtype=torch.float64)).tolist()
        count = round(BANDS_PER_BARK * (high - low))
        edges = torch.linspace(low, high, count + 1, dtype=torch.float64)
        step = sample_rate / n_fft
        middle = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * step
        below, above = bark((middle - step / 2).clamp_min(0.0)), bark(middle + step / 2)
        overlap = torch.minimum(above[:, None], edges[1:]) - torch.maximum(below[:, None], edges[:-1])
        share = overlap.clamp_min(0.0) / (above - below)[:, None]
        centre = 0.5 * (edges[1:] + edges[:-1])
        kilohertz = 1.96 * (centre + 0.53) / (26.28 - centre)
        # Terhardt, DOI 10.1016/0378-5955(79)90025-X; dB SPL
        quiet = 3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3) ** 2) + 1e-3 * kilohertz**4
        return share.float().to(device), (10 ** (quiet / 10)).float().to(device), (high - low) / count
