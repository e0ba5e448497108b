"""Pitch of speech, tracked: which pitch each window of 10 ms has, how periodic it is, and whether it is voiced.

    B clips   S samples   L windows   K lags

The low harmonics of a voice move with its pitch all at once, so a spectrum's error says little of which way the pitch is wrong, and
mel filters hardly tell the harmonics of a low voice apart. The autocorrelation has its peak at the period.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.models.causal import StreamState, look_back
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.stft import stft

WINDOWS_PER_SECOND = 100

HIGHEST, LOWEST = 400.0, 62.5
"""Pitches whose periods are the first and the last lag, Hz; lags are spaced evenly in log."""

RANGES, FINE = 48, 4
"""Ranges of lags that are followed over time, and lags in each; a range stands for the best of its lags."""

LAGS = RANGES * FINE
STEP = math.log(HIGHEST / LOWEST) / (LAGS - 1)
"""From one lag to the next, nats."""

BAND = 1_500.0
"""Frequencies up to this one count, Hz: above it voices are more noise than harmonics."""

N_FFT = 1024
"""Window, samples: two and a half periods of the lowest pitch at 24 kHz."""


class PitchTracker(nn.Module):
    """Tracks the pitch by the autocorrelation of each window and of its neighbours, whose peaks stand where a pitch can have moved.

    Autocorrelations are of magnitudes instead of powers, which flattens formants (Tolonen and Karjalainen, IEEE Trans. Speech and
    Audio Processing 8(6), 2000). In place of the best path over all windows (RAPT; Talkin, 1995), which would have to be searched
    one after the other, each window asks those up to REACH away: nothing depends on what is further. Always float32.

    :param causal: Whether windows end with their 10 ms and ask earlier ones alone; else they are centred on them.
    :param ahead: How many samples later than that they stand (not causal).
    """

    FLOOR = 0.1  # of the sum of magnitudes: silence has no period
    LEAST_TAPER = 0.4  # of what a window leaves of a steady tone at long lags, which is divided out
    SUBHARMONIC = 0.04  # taken off for each octave of lag
    REACH, FADE = 8, 0.9  # windows on either side, and what one more step takes of their weight
    VOICED = 0.3  # from here on; faint and breathy voices still have a pitch to be drawn by

    def __init__(self, sample_rate: int, causal: bool = False, ahead: int = 0) -> None:
        super().__init__()
        self.sample_rate, self.hop = sample_rate, sample_rate // WINDOWS_PER_SECOND
        self.causal, self.ahead = causal, ahead
        self.context = N_FFT - self.hop + self.REACH * self.hop if causal else 0  # samples before a window's own

    @torch.no_grad()
    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        state: StreamState | None = None,
        magnitudes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tracks a batch.

        :param wave: [B, S], zero outside each clip.
        :param lengths: Samples of each clip [B]; None if each has S.
        :param state: Of the streams that `wave` continues (causal).
        :param magnitudes: Of the spectra of `wave` at these windows, [B, L, N_FFT / 2 + 1], where they are known.
        :returns: [B, L] each with L = ceil(S / hop): natural log of the pitch in Hz, float32; periodicity, about 0 to 1; whether the
            window is voiced, bool. Where it is not, the pitch is the best guess.
        """
        with torch.autocast(wave.device.type, enabled=False):
            if magnitudes is None:
                spectrum = stft(
                    wave.float(), N_FFT, self.hop, ahead=self.ahead, causal=self.causal, state=state, key=self
                )
                magnitudes = spectrum.transpose(1, 2).abs()
            scores = self._scores(magnitudes)  # [B, L, K]
            best, lag = scores.unflatten(-1, (RANGES, FINE)).max(-1)  # [B, L, RANGES]
            if lengths is not None:
                best = best * sequence_mask(-(-lengths // self.hop), best.shape[1])[..., None]
            agreed = self._ask_neighbours(best, state)
            range_ = agreed.argmax(-1, keepdim=True)
            periodicity = best.gather(-1, range_)[..., 0]
            voiced = 0.5 * (agreed.gather(-1, range_)[..., 0] + periodicity) > self.VOICED
            lag = (range_ * FINE + lag.gather(-1, range_)).clamp(1, LAGS - 2)
            before, at, behind = (scores.gather(-1, lag + i)[..., 0] for i in (-1, 0, 1))
            # The parabola through three neighbours has its top between the lags.
            shift = 0.5 * (before - behind) / (before - 2.0 * at + behind).clamp_max(-1e-4)
            return math.log(HIGHEST) - STEP * (lag[..., 0] + shift.clamp(-0.5, 0.5)), periodicity, voiced

    def _scores(self, magnitudes: Tensor) -> Tensor:
        """Autocorrelation of each window at each lag, as a share of a steady tone's: [B, L, N_FFT / 2 + 1] -> [B, L, K]."""
        cosines, price = _tables(self.sample_rate, magnitudes.device)
        heard = magnitudes[..., : len(cosines)]
        return (heard @ cosines) / (heard[..., 1:].sum(-1, keepdim=True) + self.FLOOR) - price

    def _ask_neighbours(self, best: Tensor, state: StreamState | None) -> Tensor:
        """Mean over windows up to REACH away of their best score within a range a window, [B, L, RANGES]; none lie outside a clip."""
        steps = best.shape[1]
        if self.causal:
            around = look_back(best, self.REACH, state, (self, "neighbours"), dim=1)
        else:
            around = F.pad(best, (0, 0, self.REACH, self.REACH))
        total, weights = best, 1.0
        for away in range(1, self.REACH + 1):
            near = F.max_pool1d(around, 2 * away + 1, 1, away)
            for start in (self.REACH - away,) if self.causal else (self.REACH - away, self.REACH + away):
                total = total + self.FADE**away * near[:, start : start + steps]
                weights += self.FADE**away
        return total / weights


@lru_cache(maxsize=16)
def _tables(sample_rate: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine of each frequency up to BAND at each lag, [bins, K], zero at 0 Hz, over what a window leaves of a steady tone at its own
    period; and what is taken off for the lag, [K]."""
    with torch.inference_mode(False), torch.no_grad():
        lags = torch.logspace(math.log10(1.0 / HIGHEST), math.log10(1.0 / LOWEST), LAGS, dtype=torch.float64)
        hertz = torch.arange(N_FFT // 2 + 1, dtype=torch.float64) * sample_rate / N_FFT
        cosines = torch.cos(2.0 * math.pi * hertz[:, None] * lags)
        window = torch.fft.rfft(torch.hann_window(N_FFT, dtype=torch.float64)).abs()
        window[1:] *= 2.0  # negative frequencies
        taper = (window @ cosines / window.sum()).clamp_min(PitchTracker.LEAST_TAPER)
        cosines = cosines[: int(BAND * N_FFT / sample_rate) + 1] / taper
        cosines[0] = 0.0
        price = PitchTracker.SUBHARMONIC * STEP / math.log(2.0) * torch.arange(LAGS, dtype=torch.float64)
        return cosines.float().to(device), price.float().to(device)
