"""From codes, latents or log-mels to one vector an utterance: statistics over all its frames.

N utterances   T frames   D dimensions   L levels   F features   M mel filters
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from torch import Tensor

QUANTILES = (0.125, 0.375, 0.625, 0.875)

DENSE_LEVELS = 1024
"""Codes of more levels than this in all have their histograms stored sparsely: a clip has few of 8 x 1024."""

Values = Callable[[np.ndarray], np.ndarray]
"""Codes [T, D] -> float32 [T, F]: what they stand for."""


def values_of(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    """Codes [T, D] -> float32 [T, D]: level k of L stands for -1 + (2k + 1) / L, as the quantiser reads it."""
    return ((2.0 * codes.astype(np.float32) + 1.0) / np.asarray(radices, dtype=np.float32) - 1.0).astype(np.float32)


def columns_of(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    """Codes [T, D] -> int64 [T, D]: the columns of the one-hot form, a block of them a dimension, that are 1."""
    offsets = np.concatenate([[0], np.cumsum(radices)[:-1]]).astype(np.int64)
    return codes.astype(np.int64) + offsets


def one_hot(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    """Codes [T, D] -> float32 [T, sum of radices]: one 1 in the columns of each dimension."""
    out = np.zeros((len(codes), int(sum(radices))), dtype=np.float32)
    np.put_along_axis(out, columns_of(codes, radices), 1.0, axis=1)
    return out


@dataclass(frozen=True)
class OneHot:
    """How heads over time read codes."""

    radices: tuple[int, ...]

    @property
    def width(self) -> int:
        """F, the sum of the radices."""
        return sum(self.radices)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Codes [T, D] -> float32 [T, F]."""
        return one_hot(codes, self.radices)

    def columns(self, codes: np.ndarray) -> np.ndarray:
        """Codes [T, D] -> int64 [T, D]: the columns that are 1."""
        return columns_of(codes, self.radices)


def pool_codes(
    codes: np.ndarray, radices: Sequence[int], *, transitions: bool = False, values: Values | None = None
) -> np.ndarray:
    """Codes [T, D] -> float32 [F]: share of each level, mean and deviation of the values, all over time.

    F is sum(radices) + 2 D, or 2 F' for `values` of F' dimensions; with `transitions` also the share of each pair of successive
    levels, sum(radices²) more (zeros for a clip of one frame).
    """
    parts = [_share(codes, radices), _moments(values(codes) if values else values_of(codes, radices))]
    if transitions:
        parts.append(_share(*_pairs(codes, radices)))
    return np.concatenate(parts).astype(np.float32)


def pool_all(
    clips: Iterable[np.ndarray], radices: Sequence[int], *, transitions: bool = False, values: Values | None = None
) -> np.ndarray | sparse.csr_array:
    """`pool_codes` of N clips: float32 [N, F], CSR where there are more than DENSE_LEVELS levels. Clips are read one at a time."""
    if sum(radices) + (sum(r * r for r in radices) if transitions else 0) <= DENSE_LEVELS:
        return np.stack([pool_codes(c, radices, transitions=transitions, values=values) for c in clips])
    rows = []
    for codes in clips:
        parts = [_share_sparse(codes, radices)]
        if transitions:
            parts.append(_share_sparse(*_pairs(codes, radices)))
        moments = _moments(values(codes) if values else values_of(codes, radices))
        rows.append(sparse.hstack([*parts, sparse.csr_array(moments[None])], format="csr", dtype=np.float32))
    return sparse.vstack(rows, format="csr")


def pool_frames(frames: np.ndarray) -> np.ndarray:
    """Latents [T, F] -> float32 [6 F]: as `pool_mels`, of as many numbers as pooled codes of four levels."""
    return pool_mels(np.asarray(frames, np.float32))


def _moments(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values.mean(0), values.std(0)])


def _pairs(codes: np.ndarray, radices: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Pairs of successive levels as codes [T - 1, D] of radices²."""
    base = np.asarray(radices, dtype=np.int64)
    return codes[:-1].astype(np.int64) * base + codes[1:], [int(r) ** 2 for r in radices]


def _share(codes: np.ndarray, radices: Sequence[int]) -> np.ndarray:
    return np.bincount(columns_of(codes, radices).ravel(), minlength=sum(radices)) / max(1, len(codes))


def _share_sparse(codes: np.ndarray, radices: Sequence[int]) -> sparse.csr_array:
    columns, counts = np.unique(columns_of(codes, radices), return_counts=True)
    shape = (1, int(sum(radices)))
    share = (counts / max(1, len(codes))).astype(np.float32)
    return sparse.csr_array((share, columns, [0, len(columns)]), shape=shape)


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
