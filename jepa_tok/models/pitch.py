"""Periodicity of speech by lag: what a mel head is asked beside log-mels, so that tokens hold the pitch.

    B clips   S samples   L windows   K lags

The low harmonics of a voice move with its pitch all at once, so a spectrum's error says little of which way the pitch is wrong. The
autocorrelation has one peak, at the period.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from jepa_tok.models.logmel import hann_windows

N_LAGS = 48
HIGHEST, LOWEST = 400.0, 62.5
"""Pitches whose periods are the first and the last lag, Hz; lags are spaced evenly in log."""

BAND = 1_500.0
"""Frequencies up to this one count, Hz: above it voices are more noise than harmonics."""


@lru_cache(maxsize=16)
def _cosines(sample_rate: int, n_fft: int, device: torch.device) -> Tensor:
    """Of each frequency up to BAND at each lag, [n_fft + 1 bins, K] of a spectrum of 2 n_fft samples; zero at 0 Hz and above BAND."""
    with torch.inference_mode(False), torch.no_grad():
        hertz = torch.arange(n_fft + 1, dtype=torch.float64) * sample_rate / (2 * n_fft)
        lags = torch.logspace(math.log10(1 / HIGHEST), math.log10(1 / LOWEST), N_LAGS, dtype=torch.float64)
        inside = (hertz > 0.0) & (hertz <= BAND)
        return (torch.cos(2.0 * math.pi * hertz[:, None] * lags) * inside[:, None]).float().to(device)


class Periodicity(nn.Module):
    """Autocorrelation, in -1 to 1, of windows of speech at K lags, from magnitudes instead of powers, which flattens formants.

    (Tolonen and Karjalainen, IEEE Trans. Speech and Audio Processing 8(6), 2000, compress them so.) Always float32.
    """

    FLOOR = 0.1  # of the sum of magnitudes: silence has no period

    def __init__(self, sample_rate: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop = sample_rate, n_fft, hop

    def forward(self, wave: Tensor) -> Tensor:
        """[B, S], zero outside each clip -> [B, L, K] with L = ceil(S / hop); windows stand where those of `LogMel` do."""
        with torch.autocast(wave.device.type, enabled=False):
            cosines = _cosines(self.sample_rate, self.n_fft, wave.device)
            steps, left = -(-wave.shape[-1] // self.hop), (self.n_fft - self.hop) // 2
            frames = hann_windows(wave.float(), self.n_fft, self.hop, left, steps)
            bins = int(BAND * 2 * self.n_fft / self.sample_rate) + 1
            magnitude = torch.fft.rfft(frames, 2 * self.n_fft)[..., :bins].abs()
            return (magnitude @ cosines[:bins]) / (magnitude[..., 1:].sum(-1, keepdim=True) + self.FLOOR)
