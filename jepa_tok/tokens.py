"""`Tokens`: what a clip becomes, with all that is needed to check it and to turn it back into sound.

T frames   G tokens of a frame   D code dimensions
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jepa_tok import packing
from jepa_tok.config import TokenizerConfig
from jepa_tok.errors import TokenError


@dataclass(frozen=True, eq=False, repr=False)
class Tokens:
    """The tokens of one clip, validated when made and immutable by convention: do not write into `ids`.

    `ids` may be given as a nested list, an array or a tensor of any integer dtype and device; it is kept as int64 on the
    CPU. Raises TokenError where ids are out of range or fields contradict each other.
    """

    ids: Tensor
    """int64 [T, G], each below its group's vocabulary size."""

    num_samples: int
    """Length of the clip, in samples at `sample_rate`; T * hop >= num_samples > (T - 1) * hop."""

    radices: tuple[int, ...]
    """Levels of each of the D dimensions."""

    group_size: int = packing.GROUP_SIZE
    """Digits in a token."""

    sample_rate: int = 24_000
    """Samples per second of the audio that they decode to."""

    tokenizer: str = ""
    """Hash of the tokenizer that made them; empty where unknown."""

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "radices", tuple(map(operator.index, self.radices)))
        except TypeError:
            raise TokenError(f"`radices` must be a sequence of integers, but is {self.radices!r} instead.") from None
        for name in ("num_samples", "sample_rate"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
                raise TokenError(f"`{name}` must be a positive integer, but is {value!r} instead.")
            object.__setattr__(self, name, int(value))
        sizes = packing.vocab_sizes(self.radices, self.group_size)
        ids = packing.as_integers(self.ids, "ids")
        if ids.ndim != 2 or ids.shape[0] < 1 or ids.shape[1] != len(sizes):
            raise TokenError(f"`ids` must have shape [T, {len(sizes)}] with T >= 1, but has {list(ids.shape)} instead.")
        packing.check_range(ids, sizes, "ids")
        if self.num_samples < ids.shape[0]:
            raise TokenError(
                f"`num_samples` must be at least one a frame ({ids.shape[0]}), but is {self.num_samples} instead."
            )
        # A copy: what was validated cannot change behind our back.
        object.__setattr__(self, "ids", ids.detach().cpu().clone(memory_format=torch.contiguous_format))

    @property
    def codes(self) -> Tensor:
        """int64 [T, D]: the code of each dimension."""
        return packing.unpack(self.ids, self.radices, self.group_size)

    @property
    def vocab_sizes(self) -> list[int]:
        """Number of ids of each of the G tokens of a frame."""
        return packing.vocab_sizes(self.radices, self.group_size)

    @property
    def num_frames(self) -> int:
        """T"""
        return self.ids.shape[0]

    @property
    def num_groups(self) -> int:
        """G"""
        return self.ids.shape[1]

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return self.num_samples / self.sample_rate

    def flat(self) -> Tensor:
        """int64 [T * G], row-major: token g of frame t is at t * G + g."""
        return self.ids.flatten()

    def check_layout(self, config: TokenizerConfig, name: str = "tokens") -> None:
        """Raises TokenError, telling of them as `name`, unless a tokenizer of this config can decode them."""
        quantizer, encoder = config.quantizer, config.encoder
        if list(self.radices) != quantizer.radices or self.group_size != quantizer.group_size:
            raise TokenError(
                f"{name} must have {_layout(quantizer.radices, quantizer.group_size)}, but has "
                f"{_layout(self.radices, self.group_size)} instead; they are of another tokenizer."
            )
        if self.sample_rate != encoder.sample_rate:
            raise TokenError(
                f"{name} must be of {encoder.sample_rate} Hz audio, but is of {self.sample_rate} Hz instead; "
                "they are of another tokenizer."
            )
        frames = -(-self.num_samples // encoder.hop)
        if self.num_frames != frames:
            raise TokenError(
                f"{name} must have {frames} frames for its {self.num_samples} samples, but has {self.num_frames} instead."
            )

    def __len__(self) -> int:
        return self.num_frames

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokens):
            return NotImplemented
        return self._key() == other._key() and torch.equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self._key(), self.ids.numpy().tobytes()))

    def _key(self) -> tuple[Any, ...]:
        return (self.num_samples, self.radices, self.group_size, self.sample_rate, self.tokenizer)

    def __repr__(self) -> str:
        made_by = f", tokenizer={self.tokenizer!r}" if self.tokenizer else ""
        return f"Tokens({self.num_frames} frames x {self.num_groups}, {self.duration:.2f} s, {self.num_samples} samples at {self.sample_rate} Hz{made_by})"


def _layout(radices: Sequence[int], group_size: int) -> str:
    levels = f"{radices[0]} levels" if len(set(radices)) == 1 else "mixed levels"
    return f"{len(radices)} dimensions of {levels} in groups of {group_size}"
