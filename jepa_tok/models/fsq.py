"""Finite scalar quantisation of latent frames (arXiv 2309.15505; arXiv 2512.07168, section 3.3).

z is bounded to (-1, 1), which L equal bins divide; level k stands for the middle of its bin, -1 + (2k + 1) / L: four
levels are -.75, -.25, .25 and .75. Always in float32 and outside autocast: float16 holds integers to 2048, bfloat16 to
256, and a bin's edge must lie at the same place whatever the dtype of the model around it.

    B clips   T frames   D dimensions   G tokens of a frame   L levels
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from jepa_tok import packing
from jepa_tok.config import QuantizerConfig
from jepa_tok.errors import ConfigError, TokenError

EVEN_SCALE = math.atanh(0.5) / 0.67448975
"""tanh(EVEN_SCALE * x) has its quartiles at -.5, 0 and .5 for x ~ N(0, 1): four levels are used evenly."""

_EPS = 1e-5

_MAX_SCALE = 100.0
"""Of `calibrate`: a dimension that hardly moves is not blown up to float noise."""


class FSQ(nn.Module):
    """Bounds, rounds and packs latent frames; `bound` is `tanh` (paper) or `norm`.

    `norm` normalises each frame over its D dimensions, applies a learned scale and bias per dimension, then tanh: z of any
    size uses the levels evenly, where tanh alone saturates on large z and leaves the outer levels unused on small z. A
    frame's statistics are its own, so codes depend on nothing but the frame. Padded frames get codes too: mask them.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        config.check()
        if config.bound not in ("tanh", "norm"):
            raise ConfigError(f"quantizer `bound` must be `tanh` or `norm`, but is `{config.bound}` instead.")
        if config.bound == "norm" and config.dim < 2:
            raise ConfigError(
                "quantizer `bound` must be `tanh` for `dim` 1, but is `norm` instead (one value has no spread)."
            )
        self.config = config
        self.radices = config.radices
        self.settled_dims = 0  # how many of the last dimensions keep their scale and bias in training
        self.scale: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if config.bound == "norm":
            self.scale = nn.Parameter(torch.empty(config.dim, dtype=torch.float32))
            self.bias = nn.Parameter(torch.empty(config.dim, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets `norm`'s scale so that the levels are used evenly for z ~ N(0, 1)."""
        if self.scale is not None and self.bias is not None:
            nn.init.constant_(self.scale, EVEN_SCALE)
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def calibrate(self, frames: Tensor, dims: Tensor | None = None) -> None:
        """Sets `norm`'s scale and bias so that these frames [N, D] use the levels of every dimension about evenly.

        Each dimension's median goes to 0 and its half interquartile range to atanh(1/2), the edge of the outer two of four
        levels. What an encoder puts out has its own mean and spread in each dimension; without this, dimensions of little
        spread would hold a single level. Does nothing for the `tanh` bound, which has nothing to set.

        :param dims: Bool [D], which dimensions to set; None means all.
        """
        if self.scale is None or self.bias is None:
            return
        if (
            len(frames) > 1
        ):  # an even number: quartiles of an odd one are frames' own values, where a last bit decides the code
            frames = frames[: len(frames) // 2 * 2]
        quartiles = torch.tensor([0.25, 0.5, 0.75], device=frames.device)
        low, median, high = torch.quantile(self.normalise(frames.float()), quartiles, dim=0)
        scale = (2.0 * math.atanh(0.5) / (high - low)).clamp_max(_MAX_SCALE)
        dims = torch.ones_like(scale, dtype=torch.bool) if dims is None else dims.to(scale.device)
        self.scale.copy_(torch.where(dims, scale, self.scale))
        self.bias.copy_(torch.where(dims, -scale * median, self.bias))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [B, T, D] -> (values float32 [B, T, D] in (-1, 1), codes int64 [B, T, D]).

        Gradients pass the rounding unchanged and then the bound, so that they fade where tanh is flat.
        """
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bound(z)
            codes = self._round(bounded)
            values = self._values(codes)
            return values + (bounded - bounded.detach()), codes  # adds exactly zero: the values stay those of the codes

    def quantize(self, z: Tensor) -> Tensor:
        """z [..., D] -> codes int64 [..., D]."""
        with torch.autocast(z.device.type, enabled=False):
            return self._round(self.bound(z))

    def dequantize(self, codes: Tensor) -> Tensor:
        """codes [..., D] -> values float32 [..., D]; raises TokenError for codes out of range or of a wrong shape."""
        if codes.shape[-1:] != (self.config.dim,):
            raise TokenError(
                f"`codes` must have {self.config.dim} values on the last axis, but has shape {list(codes.shape)} instead."
            )
        packing.check_range(codes, self.radices, "codes")
        return self._values(codes)

    def pack(self, codes: Tensor) -> Tensor:
        """codes [..., D] -> tokens int64 [..., G]."""
        return packing.pack(codes, self.radices, self.config.group_size)

    def unpack(self, tokens: Tensor) -> Tensor:
        """tokens [..., G] -> codes int64 [..., D]."""
        return packing.unpack(tokens, self.radices, self.config.group_size)

    def bound(self, z: Tensor) -> Tensor:
        """z [..., D] -> float32 [..., D] in [-1, 1], what is rounded."""
        if self.scale is None or self.bias is None:
            return torch.tanh(z.float())
        return torch.tanh(self.normalise(z.float()) * self._settle(self.scale) + self._settle(self.bias))

    def _settle(self, parameter: Tensor) -> Tensor:
        """`scale` or `bias`, float32 [D], through which no gradient reaches the last `settled_dims`."""
        if not self.settled_dims:  # as in every tokenizer, which codes a stream frame by frame
            return parameter.float()
        learned, settled = parameter.float().tensor_split([self.config.dim - self.settled_dims])
        return torch.cat([learned, settled.detach()])

    @staticmethod
    def normalise(z: Tensor) -> Tensor:
        """z [..., D] with mean 0 and deviation 1 over D, what `norm` scales, shifts and bounds."""
        z = z - z.mean(-1, keepdim=True)
        return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + _EPS)

    def _round(self, bounded: Tensor) -> Tensor:
        levels = self._levels(bounded.device)
        codes = ((bounded + 1) * 0.5 * levels).floor().to(torch.int64)
        return torch.minimum(codes.clamp(min=0), levels - 1)  # float32's tanh reaches 1 itself

    def _values(self, codes: Tensor) -> Tensor:
        return (2 * codes + 1).float() / self._levels(codes.device) - 1

    def _levels(self, device: torch.device) -> Tensor:
        # Made on each call: a buffer would be one more thing for meta devices, dtype casts and sharding to lose.
        if len(set(self.radices)) == 1:
            return torch.full((), self.radices[0], dtype=torch.int64, device=device)
        return torch.tensor(self.radices, dtype=torch.int64, device=device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves to a device as any module does, but stays in float32 where the model is cast to another dtype."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        levels = sorted(set(self.radices))
        shown = levels[0] if len(levels) == 1 else f"{levels[0]}..{levels[-1]}"
        return f"dim={self.config.dim}, levels={shown}, bound={self.config.bound}, group_size={self.config.group_size}"
