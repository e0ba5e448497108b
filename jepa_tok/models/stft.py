"""Short-time Fourier transforms that know where clips end, and magnitudes with a gradient that is cheap.

B clips   S samples   L steps   N = n_fft   F = N / 2 + 1 frequency bins
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from jepa_tok.models.causal import StreamState, look_back


def istft(
    spectrum: Tensor, n_fft: int, hop: int, mask: Tensor | None = None, state: StreamState | None = None
) -> Tensor:
    """Inverse STFT (Hann window, least squares) whose step i is centred on samples [i * hop, (i + 1) * hop).

    Inverse of `stft`: windowed inverse FFTs are overlapped, added and divided by the sum of squared windows. That sum is
    each clip's own: where a clip ends, no window of the padding behind it counts.

    :param spectrum: complex [B, N / 2 + 1, L].
    :param mask: Bool [B, L], True on a clip's own steps; None if every step is.
    :param state: Of the streams that the spectrum continues.
    :returns: wave [B, L * hop], zero past a clip's own steps; in a stream (n_fft - hop) // 2 samples late, when no later
        step reaches them.
    """
    window = torch.hann_window(n_fft, device=spectrum.device)
    frames = torch.fft.irfft(spectrum, n=n_fft, dim=1).transpose(1, 2) * window  # [B, L, N]
    size, before = frames.shape[1] * hop, (n_fft - hop) // 2
    start = before  # of the samples that are given
    if state is not None:
        context = math.ceil(n_fft / hop) - 1  # steps whose windows reach into this piece
        start = context * hop
        mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device) if mask is None else mask
        frames = look_back(frames, context, state, "istft frames", dim=1)
        mask = look_back(mask, context, state, "istft mask")
    envelope = window.square().expand(1, frames.shape[1], n_fft)  # [1, L, N]
    if mask is not None:
        frames, envelope = frames * mask[..., None], envelope * mask[..., None]
    wave = overlap_add(frames, hop)[:, start : start + size]
    envelope = overlap_add(envelope, hop)[:, start : start + size]
    if mask is not None:  # windows reach past the clip's last sample
        wave = wave * mask.repeat_interleave(hop, dim=1)[:, start - before : start - before + size]
    return wave / envelope.clamp_min(1e-8)


def stft(
    wave: Tensor,
    n_fft: int,
    hop: int,
    *,
    ahead: int = 0,
    causal: bool = False,
    state: StreamState | None = None,
    key: Hashable = "stft",
) -> Tensor:
    """STFT (Hann window) on the grid of `istft`, zeros beyond both ends of the wave.

    :param wave: float32 [B, S].
    :param ahead: How many samples later than centred on its step a window stands (not causal).
    :param causal: Whether windows end with their step instead.
    :param state: Of the streams that `wave` continues (causal), under `key`.
    :returns: complex [B, N / 2 + 1, L] with L = ceil(S / hop).
    """
    steps, left = -(-wave.shape[-1] // hop), (n_fft - hop) // 2 - ahead
    if causal:
        wave, left = look_back(wave, n_fft - hop, state, key), 0
    right = (steps - 1) * hop + n_fft - left - wave.shape[-1]
    frames = F.pad(wave, (left, right)).unfold(-1, n_fft, hop) * _window(n_fft, wave.device)  # [B, L, N]
    return torch.fft.rfft(frames).transpose(1, 2)


@lru_cache(maxsize=16)
def _window(n_fft: int, device: torch.device) -> Tensor:
    """Hann window [N]."""
    with torch.inference_mode(False), torch.no_grad():
        return torch.hann_window(n_fft, dtype=torch.float64).float().to(device)


def magnitudes(wave: Tensor, n_fft: int, hop: int) -> Tensor:
    """Magnitudes of the centred STFT (Hann window) with zeros beyond both ends: [B, S] -> float32 [B, S // hop + 1, F].

    Their gradient at zero is zero. `n_fft` is even and a multiple of `hop`.
    """
    with torch.autocast(wave.device.type, enabled=False):
        return _Magnitudes.apply(wave.float(), n_fft, hop)  # type: ignore[no-any-return]


class _Magnitudes(torch.autograd.Function):
    """The gradient by one real inverse FFT: autograd's own goes through a full complex one of a zero-filled copy, and takes twice a step's time."""

    @staticmethod
    def forward(ctx: Any, wave: Tensor, n_fft: int, hop: int) -> Tensor:
        window = torch.hann_window(n_fft, device=wave.device)
        frames = F.pad(wave, (n_fft // 2, n_fft // 2)).unfold(-1, n_fft, hop)  # [B, L, N]
        spectrum = torch.fft.rfft(frames * window)  # [B, L, F]
        magnitude = (spectrum.real.square() + spectrum.imag.square()).sqrt()  # abs() is twice as slow on CPUs
        ctx.save_for_backward(spectrum, magnitude)
        ctx.sizes = (n_fft, hop, wave.shape[-1])
        return magnitude

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        spectrum, magnitude = ctx.saved_tensors
        n_fft, hop, samples = ctx.sizes
        # d|X| / dX is X / |X|. A real signal meets each bin but the first and the last twice, and irfft divides by N.
        scale = gradient / magnitude.clamp_min(1e-20) * n_fft  # where both are zero: finite, times zero
        scale[..., 1:-1] *= 0.5
        bins = torch.view_as_complex(torch.view_as_real(spectrum) * scale[..., None])
        frames = torch.fft.irfft(bins, n=n_fft) * torch.hann_window(n_fft, device=gradient.device)  # [B, L, N]
        wave = overlap_add(frames, hop)[:, n_fft // 2 :]
        return F.pad(wave, (0, samples))[:, :samples], None, None


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Adds frames [B, L, N] at multiples of `hop`: [B, at least (L - 1) * hop + N].

    Frames are cut into pieces of one hop, so that a few shifted additions do it: unlike a scatter, the order of additions
    is fixed on every device.
    """
    pieces = math.ceil(frames.shape[-1] / hop)
    frames = F.pad(frames, (0, pieces * hop - frames.shape[-1])).unflatten(-1, (pieces, hop))  # [B, L, pieces, hop]
    parts = frames.unbind(2)
    total = F.pad(parts[0], (0, 0, 0, pieces - 1))  # [B, L + pieces - 1, hop]
    for i in range(1, pieces):
        total = total + F.pad(parts[i], (0, 0, i, pieces - 1 - i))
    return total.flatten(1)
