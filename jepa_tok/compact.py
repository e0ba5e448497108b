"""The compact form of a tokenizer's weights: int8 with a scale for each channel, about a quarter of float32's size.

    NAME          float32 [C, ...]: norms, biases, depthwise kernels, gates, the quantiser's scale, as they are
    NAME.int8     int8 [C, ...], -127 to 127, and
    NAME.scale    bfloat16 [C]: matrices and convolutions; a weight is int8 * scale of its row along the first axis

Rounding makes another tokenizer, which is the one to measure, to name by its hash and to make tokens with. It is the same on every
machine: a product of 7 and 8 bits is exact in float32. Rounding it once more changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from jepa_tok.errors import ConfigError

TOP = 127
LEAST_ROW = 32
"""Weights of a row from which on it is rounded: a depthwise kernel is shorter, costs little and reaches a whole channel."""


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights by name as what is stored of them; raises ConfigError for other dtypes and for values that are not finite."""
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            what = "finite" if tensor.dtype == torch.float32 else str(tensor.dtype).removeprefix("torch.")
            raise ConfigError(
                f"a compact tokenizer must be rounded from finite float32 weights, but `{name}` is {'not ' * (what == 'finite')}{what}."
            )
        if tensor.ndim < 2 or tensor.shape[0] == 1 or tensor[0].numel() < LEAST_ROW:
            stored[name] = tensor
            continue
        rows = tensor.flatten(1)
        # A row of zeros, too, has a scale to divide by.
        scale = (rows.abs().amax(1) / TOP).clamp_min(torch.finfo(torch.bfloat16).tiny).to(torch.bfloat16)
        rounded = (rows / scale.float()[:, None]).round().clamp(-TOP, TOP)
        stored[f"{name}.int8"] = rounded.to(torch.int8).reshape(tensor.shape)
        stored[f"{name}.scale"] = scale
    return stored


def expand(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `compact`, but for the rounding: float32 weights by name, those stored as they are included.

    Raises ConfigError where int8 and scale do not belong together.
    """
    tensors = {}
    for key, tensor in stored.items():
        name, _, kind = key.rpartition(".")
        if kind == "scale" and f"{name}.int8" in stored:
            continue
        if kind != "int8":
            tensors[key] = tensor
            continue
        scale = stored.get(f"{name}.scale")
        if (
            tensor.dtype != torch.int8
            or scale is None
            or not scale.is_floating_point()
            or scale.shape != tensor.shape[:1]
        ):
            raise ConfigError(f"tensor `{key}` must be int8 with a scale for each row in `{name}.scale`, but is not.")
        tensors[name] = tensor.float() * scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
    return tensors
