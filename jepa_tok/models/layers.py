"""Layers that encoder and generator share: masks, SnakeBeta, convolutions, residual blocks, channel norm, initialisation.

    B clips   C channels   L steps at the rate of the layer

Every layer that looks beyond one step takes `mask` [B, L] (True on a clip's own steps) and treats what lies outside as
zeros, so that a clip gives the same output alone and padded in a batch. A causal layer takes `state` too (`causal.py`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.models.causal import StreamState, look_back


def sequence_mask(lengths: Tensor, size: int) -> Tensor:
    """Bool [B, size], True where the step index is below `lengths` [B]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def apply_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zeroes the steps of x [B, C, L] outside `mask` [B, L]; a mask of None means that every step is real."""
    return x if mask is None else x * mask[:, None, :].to(x.dtype)


class SnakeBeta(nn.Module):
    """Periodic activation x + min(1 / a, 10) sin²(a x) with a = softplus(raw) + 0.01 for each channel (arXiv 2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        alpha = (F.softplus(self.raw) + 1e-2)[:, None]
        return x + alpha.reciprocal().clamp_max(10.0) * torch.sin(alpha * x).square()


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each step: no statistics over time, so a step does not feel the clip's far end."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class TimeConv(nn.Conv1d):
    """Convolution that keeps the number of steps (stride 1, odd kernel): centred, or causal, seeing a step and those before."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        dilation: int = 1,
        groups: int = 1,
        causal: bool = False,
    ) -> None:
        reach = (kernel - 1) * dilation
        padding = 0 if causal else reach // 2
        super().__init__(channels_in, channels_out, kernel, padding=padding, dilation=dilation, groups=groups)
        self.causal = causal
        self.context = reach if causal else 0

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        """[B, C, L] -> [B, C', L]."""
        if self.causal:
            x = look_back(x, self.context, state, self)
        return super().forward(x)


class ConvNeXtBlock(nn.Module):
    """Depthwise conv over time, norm, pointwise pair with GELU, scaled residual (arXiv 2201.03545).

    Nearly all of its multiplications are in two dense products, which CPUs and GPUs run at their full rate; the residual
    scale starts small, so that a deep stack passes the signal on unchanged.
    """

    def __init__(
        self, channels: int, expansion: int, kernel: int = 7, scale: float = 0.1, causal: bool = False
    ) -> None:
        super().__init__()
        self.depthwise = TimeConv(channels, channels, kernel, groups=channels, causal=causal)
        self.norm = nn.LayerNorm(channels)
        self.up = nn.Linear(channels, expansion * channels)
        self.down = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> Tensor:
        """[B, C, L] -> [B, C, L]; steps outside `mask` [B, L] are zero in the output."""
        h = self.depthwise(apply_mask(x, mask), state).transpose(1, 2)
        h = self.scale * self.down(F.gelu(self.up(self.norm(h))))
        return apply_mask(x + h.transpose(1, 2), mask)


def meeting_taps(conv: TimeConv, length: int | None) -> tuple[Tensor, int]:
    """The taps [C', C, K'] of `conv` that can see more than padding, and which of them meets the step itself.

    A tap that looks d steps aside multiplies zeros wherever |d| >= L: for the paper's dilations, up to 78,125, most clips
    are shorter than that. Where only the centre tap is left the convolution is one dense product of a third of the cost;
    the result is the same. In a stream (`length` None) a tap may meet what came before, so all stay.
    """
    kernel = conv.kernel_size[0]
    own = kernel - 1 if conv.causal else kernel // 2
    # Taps before it that can meet a sample, and after it unless causal.
    reach = own if length is None else min(own, (length - 1) // conv.dilation[0])
    return conv.weight[:, :, own - reach : own + reach + 1], reach


def dilated_conv(x: Tensor, conv: TimeConv, state: StreamState | None = None) -> Tensor:
    """`conv` on x [B, C, 1, L], with the taps that matter alone."""
    weight, reach = meeting_taps(conv, x.shape[-1] if state is None else None)
    weight = weight[:, :, None]
    if x.is_contiguous(memory_format=torch.channels_last):  # the kernels take both in one layout
        weight = weight.contiguous(memory_format=torch.channels_last)
    padding = reach * conv.dilation[0]
    if conv.causal:
        x, padding = look_back(x, padding, state, conv), 0
    return F.conv2d(x, weight, conv.bias, padding=(0, padding), dilation=(1, conv.dilation[0]))


class HifiGanResBlock(nn.Module):
    """Three pairs of convolutions, dilated then plain, each pair with a residual (HiFi-GAN, arXiv 2010.05646)."""

    def __init__(self, channels: int, kernel: int, dilations: list[int], causal: bool = False) -> None:
        super().__init__()
        self.dilated = nn.ModuleList(TimeConv(channels, channels, kernel, dilation=d, causal=causal) for d in dilations)
        self.plain = nn.ModuleList(TimeConv(channels, channels, kernel, causal=causal) for _ in dilations)
        self.fused = False

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """In place of nn.Module's: our own kernels for GPUs in half precision, which fuse what a compiler leaves apart."""
        self.fused = True

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> Tensor:
        """[B, C, L] -> [B, C, L]; steps outside `mask` [B, L] are zero in the output.

        On CPUs channels last, and masks and activations in place: what is not a convolution only moves memory. What is
        written to is the block's own, and nothing that the backward pass reads.
        """
        dtype = _half_precision(x) if self.fused and state is None and x.shape[1] % 16 == 0 else None
        if dtype is not None:
            return self._forward_fused(x.to(dtype), mask)
        x = x[:, :, None, :]  # [B, C, 1, L]
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        real = 1.0 if mask is None else mask[:, None, None, :].to(x.dtype)
        for dilated, plain in zip(self.dilated, self.plain):
            assert isinstance(dilated, TimeConv) and isinstance(plain, TimeConv)
            h = dilated_conv(F.leaky_relu(x, 0.1).mul_(real), dilated, state).mul_(real)
            h = dilated_conv(F.leaky_relu(h, 0.1, inplace=True), plain, state)
            x = h.add_(x) if h.dtype == x.dtype else x + h  # under autocast the residual stays in float32
        return (x * real)[:, :, 0]

    def _forward_fused(self, x: Tensor, mask: Tensor | None) -> Tensor:
        from jepa_tok.models.kernels import residual_pair  # needs Triton, which is where a GPU is

        x = x.transpose(1, 2).contiguous()  # [B, L, C]
        clips, steps = x.shape[:2]
        lengths = x.new_full((clips,), steps, dtype=torch.int32) if mask is None else mask.sum(1, dtype=torch.int32)
        for dilated, plain in zip(self.dilated, self.plain):
            assert isinstance(dilated, TimeConv) and isinstance(plain, TimeConv)
            assert dilated.bias is not None and plain.bias is not None
            (w1, own1), (w2, own2) = (meeting_taps(conv, steps) for conv in (dilated, plain))
            x = residual_pair(x, lengths, w1, dilated.bias, w2, plain.bias, dilated.dilation[0], (own1, own2))
        return x.transpose(1, 2)


def _half_precision(x: Tensor) -> torch.dtype | None:
    """bf16 or fp16 where a convolution on x would run in it on a GPU; None elsewhere."""
    if x.device.type != "cuda":
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def init_weights(module: nn.Module, how: str) -> None:
    """Initialises every convolution and linear layer below `module`; biases become zero.

    `trunc_normal`: std 0.02 whatever the width (the paper's code; on raw samples the signal fades stage by stage).
    `scaled`: std 1 / sqrt(fan-in), which keeps the amplitude through the stack.
    """
    for m in module.modules():
        if not isinstance(m, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            continue
        if how == "trunc_normal":
            std = 0.02
        elif isinstance(
            m, nn.ConvTranspose1d
        ):  # each output step is met by kernel / stride taps of every input channel
            std = 1.0 / math.sqrt(m.in_channels * m.kernel_size[0] / m.stride[0] / m.groups)
        else:
            std = 1.0 / math.sqrt(m.weight[0].numel())
        nn.init.trunc_normal_(m.weight, std=std, a=-3 * std, b=3 * std)
        if m.bias is not None:
            nn.init.zeros_(m.bias)
