"""Log-mel filterbank: the `mel` front of the encoder and the features of the anchor's mixture.

B clips   S samples   L steps   M mel filters
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from jepa_tok.models.causal import StreamState
from jepa_tok.models.stft import stft


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz, logarithmic above (Auditory Toolbox, 1998)."""
    return 3.0 * hz / 200.0 if hz < 1000.0 else 15.0 + 27.0 * math.log(hz / 1000.0) / math.log(6.4)


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * torch.exp((mel - 15.0) * math.log(6.4) / 27.0))


@lru_cache(maxsize=32)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int, device: torch.device) -> Tensor:
    """Triangular filters [n_fft // 2 + 1, M] on Slaney's scale up to half the sample rate, each summing to one."""
    # Plain tensors, not buffers: casting the model to bf16 must not touch them. Not inference tensors either, since one
    # cached table serves training and inference.
    with torch.inference_mode(False), torch.no_grad():
        edges = _mel_to_hz(torch.linspace(0.0, _hz_to_mel(sample_rate / 2), n_mels + 2, dtype=torch.float64))
        bins = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate / n_fft
        rise = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
        triangles = torch.minimum(rise, fall).clamp_min(0.0)
        # A filter narrower than a bin may meet none: it then takes the bin nearest to its centre.
        nearest = (edges[1:-1] * n_fft / sample_rate).round().long()
        empty = triangles.sum(0) == 0.0
        triangles[nearest[empty], empty.nonzero().squeeze(1)] = 1.0
        triangles /= triangles.sum(0)
        return triangles.float().to(device)


class LogMel(nn.Module):
    """Log of the mean spectral magnitude under each filter, shifted and scaled by constants to about unit range for speech.

    The window of step i is centred on samples [i * hop, (i + 1) * hop) or, causal, ends with them; what lies outside the clip
    counts as silence. No statistics of the clip enter, so that loudness is kept and a step depends on `n_fft` samples
    alone. Always float32.
    """

    FLOOR = 1e-3  # magnitude of a Hann-windowed signal of about -90 dBFS: below it recordings hold quantisation noise
    MEAN, DEVIATION = -2.5, 2.5  # of log magnitudes of read speech at usual levels, rounded

    def __init__(self, sample_rate: int, n_fft: int, hop: int, n_mels: int, causal: bool = False) -> None:
        super().__init__()
        self.sample_rate, self.n_fft, self.hop, self.n_mels = sample_rate, n_fft, hop, n_mels
        self.causal = causal
        self.context = n_fft - hop if causal else 0  # samples before a step's own

    def forward(self, wave: Tensor, state: StreamState | None = None) -> Tensor:
        """[B, S], zero outside each clip -> [B, L, M] with L = ceil(S / hop); `state` is that of the streams that `wave` continues."""
        return self.of(self.magnitudes(wave, state))

    def magnitudes(self, wave: Tensor, state: StreamState | None = None) -> Tensor:
        """As `forward`, before the filters: [B, L, n_fft / 2 + 1]."""
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = stft(wave.float(), self.n_fft, self.hop, causal=self.causal, state=state, key=self)
            return spectrum.transpose(1, 2).abs()

    def of(self, magnitudes: Tensor) -> Tensor:
        """[B, L, n_fft / 2 + 1] -> [B, L, M]."""
        with torch.autocast(magnitudes.device.type, enabled=False):
            filters = mel_filters(self.sample_rate, self.n_fft, self.n_mels, magnitudes.device)
            return ((magnitudes @ filters + self.FLOOR).log() - self.MEAN) / self.DEVIATION
