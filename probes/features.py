"""From codes, or log-mels, to one vector an utterance: the same statistics over the same 400 ms frames.

T frames   D dimensions   L levels   M mel filters
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0.125, 0.375, 0.625, 0.875)


def values_of(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    """Codes [T, D] -> float32 [T, D]: level k of L stands for -1 + (2k + 1) / L, as the quantiser reads it."""
    return ((2.0 * codes.astype(np.float32) + 1.0) / np.asarray(radices, dtype=np.float32) - 1.0).astype(np.float32)


def one_hot(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    """Codes [T, D] -> float32 [T, sum of radices]: one 1 in the columns of each dimension."""
    offsets = np.concatenate([[0], np.cumsum(radices)[:-1]])
    out = np.zeros((len(codes), int(sum(radices))), dtype=np.float32)
    np.put_along_axis(out, codes.astype(np.int64) + offsets, 1.0, axis=1)
    return out


def pool_codes(codes: np.ndarray, radices: Sequence[int], *, transitions: bool = False) -> np.ndarray:
    """Codes [T, D] -> float32 [F]: share of each level, mean and deviation of the values, all over time.

    F is sum(radices) + 2 D; with `transitions` also the share of each pair of successive levels, sum(radices²) more
    (zeros for a clip of one frame).
    """
    values = values_of(codes, radices)
    parts = [one_hot(codes, radices).mean(0), values.mean(0), values.std(0)]
    if transitions:
        base = np.asarray(radices, dtype=np.int64)
        pairs = codes[:-1].astype(np.int64) * base + codes[1:]
        square = [int(r) ** 2 for r in radices]
        parts.append(one_hot(pairs, square).mean(0) if len(pairs) else np.zeros(sum(square), dtype=np.float32))
    return np.concatenate(parts).astype(np.float32)


def pool_mels(mels: np.ndarray) -> np.ndarray:
    """Log-mels by frame [T, M] -> float32 [6 M]: four quantiles over time, mean and deviation.

    The control's counterpart of `pool_codes`: four numbers for the distribution, where codes have four levels.
    """
    parts = [np.quantile(mels, QUANTILES, axis=0).ravel(), mels.mean(0), mels.std(0)]
    return np.concatenate(parts).astype(np.float32)


def mel_frames(wave: Tensor, sample_rate: int, hop: int, subframes: int, n_mels: int) -> np.ndarray:
    """Log-mels [T, subframes, n_mels] of a wave [S]: T = ceil(S / hop) frames as for tokens, each cut in `subframes`."""
    import torch

    from jepa_tok.models.logmel import LogMel

    frames = -(-wave.numel() // hop)
    wave = torch.nn.functional.pad(wave, (0, frames * hop - wave.numel()))
    mels = LogMel(sample_rate, 1024, hop // subframes, n_mels)(wave[None])[0]
    return mels.reshape(frames, subframes, n_mels).numpy()
