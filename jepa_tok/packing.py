"""Mixed-radix packing of codes into tokens, and its exact inverse (arXiv 2512.07168, section 3.3).

A token is a number whose digits are the codes of `group_size` consecutive dimensions, most significant digit first: with
four levels, [2, 1, 3, 0, 2, 1, 3] is 2*4^6 + 1*4^5 + 3*4^4 + 0*4^3 + 2*4^2 + 1*4 + 3 = 10023, the paper's worked example.
Each dimension may have its own number of levels (its radix), and the last group may be short: 128 dimensions in groups
of 7 are 18 tokens below 16384 and one, of two digits, below 16.

    ... any leading axes   D dimensions   G = ceil(D / group_size) tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_tok.errors import TokenError

GROUP_SIZE = 7
"""Digits in a token, unless told otherwise."""

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def pack(codes: Any, levels: int | Sequence[int], group_size: int = GROUP_SIZE) -> Tensor:
    """Packs codes [..., D] into tokens [..., G], int64 on the device of `codes`.

    `codes` are integers as a tensor, numpy array or nested list; `levels` is the radix of all dimensions, or of each.
    Raises TokenError for values that are not integers, a wrong shape, and codes out of range (naming the first).
    """
    values = as_integers(codes, "codes")
    radices = _radices(levels, values.shape[-1] if isinstance(levels, int) else None, group_size)
    dim = len(radices)
    if values.shape[-1] != dim:
        raise TokenError(
            f"`codes` must have {dim} values on the last axis, one a dimension, but has {values.shape[-1]} instead."
        )
    check_range(values, radices, "codes")
    digits = values * _weights(radices, group_size, values.device)
    groups = math.ceil(dim / group_size)
    digits = torch.nn.functional.pad(digits, (0, groups * group_size - dim))
    return digits.unflatten(-1, (groups, group_size)).sum(-1)


def unpack(tokens: Any, levels: int | Sequence[int], group_size: int = GROUP_SIZE, dim: int | None = None) -> Tensor:
    """Unpacks tokens [..., G] into codes [..., D], int64 on the device of `tokens`: the inverse of `pack`.

    D is `len(levels)`, or `dim` where `levels` is one int; without `dim` every group is taken as full, D = G * group_size.
    Raises TokenError for values that are not integers, a wrong shape, and ids out of range (naming the first).
    """
    values = as_integers(tokens, "tokens")
    if dim is None and isinstance(levels, int):
        dim = values.shape[-1] * max(group_size, 1)
    radices = _radices(levels, dim, group_size)
    dim = len(radices)
    sizes = _group_products(radices, group_size)
    if values.shape[-1] != len(sizes):
        raise TokenError(
            f"`tokens` must have {len(sizes)} ids on the last axis ({dim} dimensions in groups of {group_size}), but has {values.shape[-1]} instead."
        )
    check_range(values, sizes, "tokens")
    digits = values.repeat_interleave(group_size, dim=-1)[..., :dim]
    return digits // _weights(radices, group_size, values.device) % torch.tensor(radices, device=values.device)


def vocab_sizes(levels: int | Sequence[int], group_size: int = GROUP_SIZE, dim: int | None = None) -> list[int]:
    """Number of ids of each of the G tokens of a frame; `dim` is needed where `levels` is one int."""
    if dim is None and isinstance(levels, int):
        raise TokenError("`dim` must be given where `levels` is one number, but is missing.")
    return _group_products(_radices(levels, dim, group_size), group_size)


def as_integers(values: Any, name: str) -> Tensor:
    """`values` as int64 of at least one axis."""
    if not isinstance(values, Tensor):
        try:
            values = torch.from_numpy(np.array(values))  # np.array copies: read-only and strided input is fine
        except (ValueError, TypeError, OverflowError):
            raise TokenError(
                f"`{name}` must be a rectangular array of integers, but is {_short(values)} instead."
            ) from None
    if values.dtype not in _INTEGERS:
        raise TokenError(
            f"`{name}` must be integers, but has dtype {str(values.dtype).removeprefix('torch.')} instead."
        )
    if values.ndim == 0:
        raise TokenError(f"`{name}` must have at least one axis, but is the single number {int(values)} instead.")
    return values.to(torch.int64)


def _radices(levels: int | Sequence[int], dim: int | None, group_size: int) -> list[int]:
    """The radix of each dimension, checked: each at least 1, and no group's product past int64."""
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise TokenError(f"`group_size` must be a positive integer, but is {group_size!r} instead.")
    if isinstance(levels, int) and not isinstance(levels, bool):
        if dim is None or dim < 1:
            raise TokenError(f"`dim` must be at least 1, but is {dim} instead.")
        radices = [levels] * dim
    else:
        try:
            given: list[Any] = levels.tolist() if isinstance(levels, (Tensor, np.ndarray)) else list(levels)  # type: ignore[arg-type]
        except TypeError:
            raise TokenError(
                f"`levels` must be an integer or a sequence of integers, but is {_short(levels)} instead."
            ) from None
        if not all(isinstance(r, (int, np.integer)) and not isinstance(r, bool) for r in given):
            raise TokenError(f"`levels` must be an integer or a sequence of integers, but is {_short(levels)} instead.")
        radices = [int(r) for r in given]
        if dim is not None and dim != len(radices):
            raise TokenError(f"`levels` must have {dim} entries, one a dimension, but has {len(radices)} instead.")
    if not radices:
        raise TokenError("`levels` must have at least one entry, but is empty.")
    if min(radices) < 1:
        raise TokenError(f"`levels` must be at least 1 each, but the least is {min(radices)} instead.")
    widest = max(_group_products(radices, group_size))
    if widest >= 2**63:
        raise TokenError(
            f"`group_size` must keep the ids of a group below 2^63, but {group_size} gives {widest} ids; take a smaller one."
        )
    return radices


def _group_products(radices: Sequence[int], group_size: int) -> list[int]:
    return [math.prod(radices[i : i + group_size]) for i in range(0, len(radices), group_size)]


def _weights(radices: Sequence[int], group_size: int, device: torch.device) -> Tensor:
    """Place value of each digit [D]: the product of the radices that follow it in its group."""
    weights = [math.prod(radices[i + 1 : i - i % group_size + group_size]) for i in range(len(radices))]
    return torch.tensor(weights, dtype=torch.int64, device=device)


def check_range(values: Tensor, sizes: Sequence[int], name: str) -> None:
    """Raises TokenError where a value [..., i] does not lie in 0..sizes[i] - 1, naming the first in row-major order."""
    bad = (values < 0) | (values >= torch.tensor(sizes, dtype=torch.int64, device=values.device))
    if bool(bad.any()):
        position = bad.nonzero()[0].tolist()
        where = ", ".join(map(str, position))
        raise TokenError(
            f"`{name}[{where}]` must lie in 0..{sizes[position[-1]] - 1}, but is {int(values[tuple(position)])} instead."
        )


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
