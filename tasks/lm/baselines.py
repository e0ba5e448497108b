"""What counting alone achieves: unigram and bigram models of the digits of speech tokens, add-one smoothed.

A language model's loss says little by itself: nats per token depend on how many digits a token packs, and half of a
stream may be guessed from how often each digit occurs. These baselines are fitted on the training rows, judged on the
validation rows, and stand beside the model's numbers.

    uniform        every id alike: the tokenizer's bit rate
    unigram        p(digit), one distribution a dimension
    bigram_time    p(digit | the same dimension in the frame before); a clip's first frame falls back on unigram
    bigram_digit   p(digit | the dimension before, in the same frame); a frame's first digit falls back on unigram

All but `uniform` include the end of the clip, as the model does: one Bernoulli decision a frame.

    T frames   D code dimensions   R levels of a dimension (the widest)   G tokens of a frame (slots)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_tok import packing

if TYPE_CHECKING:
    from jepa_tok.corpus.schema import ShardMetadata, TokenRow

MAX_FRAMES = 4_000_000
"""Frames after which counting and judging stop: 444 hours at 2.5 Hz change no digit that is printed."""


class DigitCounts:
    """How often each digit, and each pair of digits, occurred."""

    def __init__(self, radices: tuple[int, ...]) -> None:
        self.radices = np.array(radices)
        dim, levels = len(radices), max(radices)
        self.single = np.zeros((dim, levels))
        self.time = np.zeros((dim, levels, levels))  # [digit's dimension, digit before, digit]
        self.within = np.zeros((dim, levels, levels))
        self.frames = 0
        self.clips = 0

    def add(self, codes: np.ndarray) -> None:
        """Counts a clip's codes [T, D]."""
        dim, levels = self.single.shape
        at = np.arange(dim) * levels  # where a dimension's counts begin
        self.single += _count(at + codes, dim * levels).reshape(self.single.shape)
        size, shape = dim * levels * levels, self.time.shape
        self.time += _count((at + codes[:-1]) * levels + codes[1:], size).reshape(shape)
        self.within[1:] += _count((at[1:] + codes[:, :-1]) * levels + codes[:, 1:], size).reshape(shape)[1:]
        self.frames += len(codes)
        self.clips += 1

    def nats(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Nats [T, D] of each digit of a clip under each model."""
        dims = np.arange(len(self.radices))
        unigram = self._log(self.single)[dims, codes]
        time, within = unigram.copy(), unigram.copy()
        time[1:] = self._log(self.time)[dims, codes[:-1], codes[1:]]
        within[:, 1:] = self._log(self.within)[dims[1:], codes[:, :-1], codes[:, 1:]]
        return {"unigram": -unigram, "bigram_time": -time, "bigram_digit": -within}

    def end_nats(self, frames: int) -> float:
        """Nats of going on `frames` - 1 times and then ending."""
        p = (self.clips + 1) / (self.frames + 2)
        return -(frames - 1) * math.log1p(-p) - math.log(p)

    def _log(self, counts: np.ndarray) -> np.ndarray:
        # Add-one over the levels that a dimension has; others never occur.
        radices = self.radices.reshape(-1, *[1] * (counts.ndim - 1))
        return np.log((counts + 1) / (counts.sum(-1, keepdims=True) + radices))


def fit_baselines(
    train: Iterable[TokenRow], valid: Iterable[TokenRow], metadata: ShardMetadata, max_frames: int = MAX_FRAMES
) -> dict[str, Any]:
    """Fits on `train`, judges on `valid`, at most `max_frames` of each; plain values, ready for JSON.

    For each model: bits_per_second (of audio), nats_per_token, and nats_per_slot [G].
    """
    counts = DigitCounts(metadata.radices)
    for codes in _codes(train, metadata, max_frames):
        counts.add(codes)
    frames = clips = 0
    end = 0.0
    sums: dict[str, np.ndarray] = {}
    for codes in _codes(valid, metadata, max_frames):
        frames, clips, end = frames + len(codes), clips + 1, end + counts.end_nats(len(codes))
        for name, nats in counts.nats(codes).items():
            sums[name] = sums.get(name, 0) + nats.sum(0)
    result: dict[str, Any] = {
        "tokenizer": metadata.hash,
        "train": {"frames": counts.frames, "clips": counts.clips},
        "valid": {"frames": frames, "clips": clips},
        "end_nats_per_frame": end / frames,
        "uniform": _report(np.log(counts.radices), 0.0, metadata),
    }
    for name, total in sums.items():
        result[name] = _report(total / frames, end / frames, metadata)
    return result


def _report(nats: np.ndarray, end: float, metadata: ShardMetadata) -> dict[str, Any]:
    """Nats [D] and of the end, a frame each, as they are reported."""
    slots = np.add.reduceat(nats, np.arange(0, len(nats), metadata.group_size))
    return {
        "bits_per_second": float((nats.sum() + end) / math.log(2) * metadata.frame_rate),
        "nats_per_token": float(nats.sum() / metadata.num_groups),
        "nats_per_slot": [float(s) for s in slots],
    }


def _codes(rows: Iterable[TokenRow], metadata: ShardMetadata, max_frames: int) -> Iterator[np.ndarray]:
    frames = 0
    for row in rows:
        yield packing.unpack(row.ids, metadata.radices, metadata.group_size).numpy()
        frames += len(row.ids)
        if frames >= max_frames:
            return


def _count(index: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(index.ravel(), minlength=size)
