"""Residual pairs of HiFi-GAN blocks on GPUs, in half precision: each convolution one kernel, with all that stands around it.

Library kernels leave masks, activations, biases and residual sums to kernels of their own, which read and write whole tensors:
at the 128 channels and 3,000 steps a second where the paper's encoder spends half its arithmetic, that takes longer than the
products. Here a pair reads its input, writes what lies between its two convolutions and its output, and keeps only these two for
the backward pass. Sums are taken in float32 and in an order that depends on neither batch nor run.

    B clips   L steps   C channels   K taps   tensors are [B, L, C], weights [K, C_in, C_out]
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

SLOPE = tl.constexpr(0.1)
"""Slope of the leaky ReLU below zero."""

PROGRAMS = 528
"""About as many programs share the rows of a weight's gradient: four for each multiprocessor of an H100."""


@triton.jit(do_not_specialize=["steps", "dilation"])
def _convolve(
    x, weight, bias, mask, like, add, out, steps, dilation,
    TAPS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATE: tl.constexpr, BIAS: tl.constexpr,
    LIKE: tl.constexpr, ADD: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[t] = mask[t] * (slope at like[t] * sum over k of in[t + (k - OWN) * dilation] @ weight[k] + bias + add[t]).

    `in` is x, or with ACTIVATE its leaky ReLU, and zero outside the mask. A negative dilation is the backward pass.
    """
    tiles = tl.cdiv(CHANNELS, BLOCK_N)
    pid = tl.program_id(0)
    clip = tl.program_id(1).to(tl.int64)
    t = pid // tiles * BLOCK_L + tl.arange(0, BLOCK_L)
    n = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_K)
    x += clip * steps * CHANNELS
    mask += clip * steps
    parts: tl.constexpr = CHANNELS // BLOCK_K
    total = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    for i in range(TAPS * parts):
        k, c0 = i // parts, i % parts * BLOCK_K
        source = t + (k - OWN) * dilation
        real = tl.load(mask + source, mask=(source >= 0) & (source < steps), other=0) != 0
        a = tl.load(x + source[:, None] * CHANNELS + (c0 + c)[None, :], mask=real[:, None], other=0.0)
        if ACTIVATE:
            a = tl.where(a > 0, a, (a.to(tl.float32) * SLOPE).to(a.dtype))
        w = tl.load(
            weight + (k * CHANNELS + c0 + c)[:, None] * CHANNELS + n[None, :], mask=(n < CHANNELS)[None, :], other=0.0
        )
        total = tl.dot(a, w, total)
    here = (t < steps)[:, None] & (n < CHANNELS)[None, :]
    place = clip * steps * CHANNELS + t[:, None] * CHANNELS + n[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < CHANNELS, other=0.0)[None, :]
    if LIKE:
        total = tl.where(tl.load(like + place, mask=here, other=0.0) > 0, total, total * SLOPE)
    if ADD:
        total += tl.load(add + place, mask=here, other=0.0).to(tl.float32)
    real = tl.load(mask + t, mask=t < steps, other=0) != 0
    total = tl.where(real[:, None], total, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["rows", "steps", "share", "dilation"])
def _correlate(
    x, gradient, mask, weight, bias, rows, steps, share, dilation,
    TAPS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of weight and bias over a share of the rows: weight[s, k] = in[t + (k - OWN) * dilation]' @ gradient[t]."""
    tiles: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0)
    k, tile = pid % TAPS, pid // TAPS
    part = tl.program_id(1).to(tl.int64)
    m = tile // tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tile % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = (k - OWN) * dilation
    first = part * share
    t = (first % steps).to(tl.int32)  # of the share's first row
    total = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for begin in range(0, share, BLOCK_R):
        row = first + begin + tl.arange(0, BLOCK_R)
        source = (t + begin + tl.arange(0, BLOCK_R)) % steps + shift
        inside = row < rows
        real = tl.load(mask + row + shift, mask=inside & (source >= 0) & (source < steps), other=0) != 0
        # Loaded as [C, rows]: transposed later, it would not be fetched ahead.
        a = tl.load(
            x + (row + shift)[None, :] * CHANNELS + m[:, None], mask=real[None, :] & (m < CHANNELS)[:, None], other=0.0
        )
        a = tl.where(a > 0, a, (a.to(tl.float32) * SLOPE).to(a.dtype))
        own = tl.load(mask + row, mask=inside, other=0) != 0
        g = tl.load(
            gradient + row[:, None] * CHANNELS + n[None, :], mask=own[:, None] & (n < CHANNELS)[None, :], other=0.0
        )
        total = tl.dot(a, g, total)
        sums += tl.sum(g.to(tl.float32), axis=0)
    place = ((part * TAPS + k) * CHANNELS + m[:, None]) * CHANNELS + n[None, :]
    tl.store(weight + place, total, mask=(m < CHANNELS)[:, None] & (n < CHANNELS)[None, :])
    if (k == OWN) & (tile // tiles == 0):
        tl.store(bias + part * CHANNELS + n, sums, mask=n < CHANNELS)


def _conv(
    x: Tensor, weight: Tensor, mask: Tensor, dilation: int, own: int, *,
    activate: bool = False, bias: Tensor | None = None, like: Tensor | None = None, add: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`_convolve` on x [B, L, C]."""
    clips, steps, channels = x.shape
    taps = weight.shape[0]
    out = torch.empty_like(x)
    block_n = min(triton.next_power_of_2(channels), 128)
    block_k = next(size for size in (64, 32, 16) if channels % size == 0)
    grid = (triton.cdiv(steps, 128) * triton.cdiv(channels, block_n), clips)
    _convolve[grid](
        x, weight, bias, mask, like, add, out, steps, dilation,
        TAPS=taps, OWN=own, CHANNELS=channels, ACTIVATE=activate, BIAS=bias is not None, LIKE=like is not None,
        ADD=add is not None, BLOCK_L=128, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return out


def _gradients(x: Tensor, gradient: Tensor, mask: Tensor, dilation: int, own: int, taps: int) -> tuple[Tensor, Tensor]:
    """Float32 gradients of the weight [K, C_in, C_out] and the bias [C_out] of a convolution on x's leaky ReLU."""
    clips, steps, channels = x.shape
    rows, block = clips * steps, min(max(triton.next_power_of_2(channels), 16), 128)
    tiles = taps * triton.cdiv(channels, block) ** 2
    share = max(triton.cdiv(rows, max(PROGRAMS // tiles, 1)), 64)
    share = triton.cdiv(share, 64) * 64
    parts = triton.cdiv(rows, share)
    weight = torch.empty(parts, taps, channels, channels, dtype=torch.float32, device=x.device)
    bias = torch.empty(parts, channels, dtype=torch.float32, device=x.device)
    _correlate[(tiles, parts)](
        x, gradient, mask, weight, bias, rows, steps, share, dilation,
        TAPS=taps, OWN=own, CHANNELS=channels, BLOCK_R=64, BLOCK_C=block, num_warps=8, num_stages=3,
    )  # fmt: skip
    return weight.sum(0), bias.sum(0)


class _Pair(torch.autograd.Function):
    """mask * (x + plain(leaky_relu(dilated(leaky_relu(x) * mask)) * mask))."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dilation: int, own: tuple[int, int]
    ) -> Tensor:  # fmt: skip
        first, second = (w.to(x.dtype).permute(2, 1, 0).contiguous() for w in (w1, w2))
        h = _conv(x, first, mask, dilation, own[0], activate=True, bias=b1.float())
        out = _conv(h, second, mask, 1, own[1], activate=True, bias=b2.float(), add=x)
        ctx.save_for_backward(x, h, mask, w1, w2)
        ctx.dilation, ctx.own = dilation, own
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h, mask, w1, w2 = ctx.saved_tensors
        dilation, (own1, own2) = ctx.dilation, ctx.own
        gradient = gradient.to(x.dtype).contiguous()
        first, second = (w.to(x.dtype).permute(2, 0, 1).contiguous() for w in (w1, w2))  # [K, C_out, C_in]
        dh = _conv(gradient, second, mask, -1, own2, like=h)
        dw2, db2 = _gradients(h, gradient, mask, 1, own2, w2.shape[2])
        dx = _conv(dh, first, mask, -dilation, own1, like=x, add=gradient)
        dw1, db1 = _gradients(x, dh, mask, dilation, own1, w1.shape[2])
        dw1, dw2 = dw1.permute(2, 1, 0).to(w1.dtype), dw2.permute(2, 1, 0).to(w2.dtype)
        return dx, None, dw1, db1, dw2, db2, None, None


def residual_pair(
    x: Tensor, mask: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dilation: int, own: tuple[int, int]
) -> Tensor:
    """A dilated and a plain convolution with leaky ReLUs before them, on a residual.

    :param x: [B, L, C] contiguous, bf16 or fp16; C a multiple of 16.
    :param mask: Bool [B, L], contiguous: steps outside count as zeros, and are zero in the output.
    :param w1, w2: [C_out, C_in, K] of the dilated and of the plain convolution, of any dtype.
    :param own: The tap of each that meets the step itself.
    """
    return _Pair.apply(x, mask, w1, b1, w2, b2, dilation, own)
