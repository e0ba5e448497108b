"""Residual pairs of HiFi-GAN blocks on GPUs, in half precision: each convolution one kernel, with all that stands around it.

Library kernels leave masks, activations, biases and residual sums to kernels of their own, which read and write whole tensors:
at the 128 channels and 3,000 steps a second where the paper's encoder spends half its arithmetic, that takes longer than the
products. Here a pair reads its input, writes what lies between its two convolutions and its output, and keeps its input and what lies
between for the backward pass. Sums are taken in float32 and in an order that depends on neither batch nor run.

    B clips   L steps   C channels   K taps; tensors are [B, L, C], weights [K, C_in, C_out]
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

REGISTERS = 128
"""Of a thread, where tiles are of 128 by 128: two blocks of 256 threads fit on a multiprocessor, one working while one waits."""

ROWS = 64
"""Steps that a weight's gradient takes in at once."""


@triton.jit(do_not_specialize=["steps", "dilation"])
def _convolve(
    x, weight, bias, lengths, like, add, out, sums, steps, dilation,
    TAPS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATE: tl.constexpr, ACTIVATE_OUT: tl.constexpr,
    BIAS: tl.constexpr, LIKE: tl.constexpr, ADD: tl.constexpr, SUM: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[t] = slope at like[t] * sum over k of in[t + (k - OWN) * dilation] @ weight[k] + bias + add[t], its leaky ReLU with
    ACTIVATE_OUT; zero past the clip's steps.

    `in` is x or, with ACTIVATE, its leaky ReLU, and zero outside the clip. A negative dilation is the backward pass; there SUM
    tells whether the sums over steps, a bias's gradient, are those of "add" or of "out".
    """
    tiles = tl.cdiv(CHANNELS, BLOCK_N)
    pid = tl.program_id(0)
    clip = tl.program_id(1).to(tl.int64)
    length = tl.load(lengths + clip)
    t = pid // tiles * BLOCK_L + tl.arange(0, BLOCK_L)
    n = pid % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_K)
    x += clip * steps * CHANNELS
    parts: tl.constexpr = CHANNELS // BLOCK_K
    total = tl.zeros((BLOCK_L, BLOCK_N), tl.float32)
    for i in range(TAPS * parts):
        k, c0 = i // parts, i % parts * BLOCK_K
        source = t + (k - OWN) * dilation
        inside = (source >= 0) & (source < length)
        a = tl.load(x + source[:, None] * CHANNELS + (c0 + c)[None, :], mask=inside[:, None], other=0.0)
        if ACTIVATE:
            a = _leaky_relu(a.to(tl.float32)).to(a.dtype)
        row = (k * CHANNELS + c0 + c)[:, None]
        w = tl.load(weight + row * CHANNELS + n[None, :], mask=(n < CHANNELS)[None, :], other=0.0)
        total = tl.dot(a, w, total)
    here = (t < steps)[:, None] & (n < CHANNELS)[None, :]
    place = clip * steps * CHANNELS + t[:, None] * CHANNELS + n[None, :]
    if BIAS:
        total += tl.load(bias + n, mask=n < CHANNELS, other=0.0)[None, :]
    if LIKE:
        total = tl.where(tl.load(like + place, mask=here, other=0.0) > 0, total, total * SLOPE)
    real = (t < length)[:, None]
    if ADD:
        more = tl.load(add + place, mask=here & real, other=0.0).to(tl.float32)
        total += more
    if ACTIVATE_OUT:
        total = _leaky_relu(total)
    total = tl.where(real, total, 0.0)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=here)
    if SUM != "none":
        row = clip * tl.cdiv(steps, BLOCK_L) + pid // tiles
        tl.store(sums + row * CHANNELS + n, tl.sum(more if SUM == "add" else total, axis=0), mask=n < CHANNELS)


@triton.jit(do_not_specialize=["clips", "group", "steps", "share", "dilation"])
def _correlate(
    x, gradient, lengths, weight, clips, group, steps, share, dilation,
    TAPS: tl.constexpr, OWN: tl.constexpr, CHANNELS: tl.constexpr, ACTIVATE: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient over a share of the steps of a group of clips: weight[s, k] = sum over t of in[t + (k - OWN) * dilation]' @ gradient[t].

    `in` as in `_convolve`; the gradient counts as zero past the clip's steps.
    """
    tiles: tl.constexpr = (CHANNELS + BLOCK_C - 1) // BLOCK_C
    pid = tl.program_id(0)
    k, tile = pid % TAPS, pid // TAPS
    first = tl.program_id(1) * share
    part = tl.program_id(2).to(tl.int64)
    m = tile // tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    n = tile % tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    shift = (k - OWN) * dilation
    total = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    for clip in range(part * group, tl.minimum((part + 1) * group, clips)):
        length = tl.load(lengths + clip)
        begin = clip * steps * CHANNELS
        for start in range(first, tl.minimum(first + share, length), BLOCK_R):
            t = start + tl.arange(0, BLOCK_R)
            source = t + shift
            inside = (t < length) & (source >= 0) & (source < length)
            # Loaded as [C, steps]: transposed later, it would not be fetched ahead.
            place = begin + source[None, :] * CHANNELS + m[:, None]
            a = tl.load(x + place, mask=inside[None, :] & (m < CHANNELS)[:, None], other=0.0)
            if ACTIVATE:
                a = _leaky_relu(a.to(tl.float32)).to(a.dtype)
            place = begin + t[:, None] * CHANNELS + n[None, :]
            g = tl.load(gradient + place, mask=(t < length)[:, None] & (n < CHANNELS)[None, :], other=0.0)
            total = tl.dot(a, g, total)
    row = part * tl.num_programs(1) + tl.program_id(1)
    place = ((row * TAPS + k) * CHANNELS + m[:, None]) * CHANNELS + n[None, :]
    tl.store(weight + place, total, mask=(m < CHANNELS)[:, None] & (n < CHANNELS)[None, :])


@triton.jit
def _leaky_relu(x):
    return tl.maximum(x, x * SLOPE)


def _conv(
    x: Tensor, weight: Tensor, lengths: Tensor, dilation: int, own: int, *, activate: bool = False,
    activate_out: bool = False, bias: Tensor | None = None, like: Tensor | None = None, add: Tensor | None = None,
    sum_of: str = "none",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`_convolve` on x [B, L, C]: its result, and the sums [C] in float32 (of no meaning without `sum_of`)."""
    clips, steps, channels = x.shape
    out = torch.empty_like(x)
    shape = (clips * triton.cdiv(steps, 128), channels) if sum_of != "none" else (0, channels)
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    block_n = 256 if channels % 256 == 0 else min(triton.next_power_of_2(channels), 128)
    block_k = next(size for size in (64, 32, 16) if channels % size == 0)
    grid = (triton.cdiv(steps, 128) * triton.cdiv(channels, block_n), clips)
    _convolve[grid](
        x, weight, bias, lengths, like, add, out, sums, steps, dilation,
        TAPS=weight.shape[0], OWN=own, CHANNELS=channels, ACTIVATE=activate, ACTIVATE_OUT=activate_out,
        BIAS=bias is not None, LIKE=like is not None, ADD=add is not None, SUM=sum_of,
        BLOCK_L=128, BLOCK_N=block_n, BLOCK_K=block_k,
        num_warps=8, num_stages=3, maxnreg=REGISTERS if block_n <= 128 else None,
    )  # fmt: skip
    return out, sums.sum(0) if sum_of != "none" else sums


def _weight_gradient(
    x: Tensor, gradient: Tensor, lengths: Tensor, dilation: int, own: int, taps: int, *, activate: bool
) -> Tensor:
    """Float32 gradient [K, C_in, C_out] of a convolution's weight on x [B, L, C]."""
    clips, steps, channels = x.shape
    block = min(triton.next_power_of_2(channels), 128)
    tiles = taps * triton.cdiv(channels, block) ** 2
    group = max(tiles * clips // PROGRAMS, 1)  # clips of a program, where there are many
    shares = min(
        triton.cdiv(PROGRAMS, tiles * clips), triton.cdiv(steps, ROWS)
    )  # programs of a clip, where there are few
    groups, share = triton.cdiv(clips, group), triton.cdiv(triton.cdiv(steps, shares), ROWS) * ROWS
    weight = torch.empty(groups * shares, taps, channels, channels, dtype=torch.float32, device=x.device)
    _correlate[(tiles, shares, groups)](
        x, gradient, lengths, weight, clips, group, steps, share, dilation,
        TAPS=taps, OWN=own, CHANNELS=channels, ACTIVATE=activate, BLOCK_R=ROWS, BLOCK_C=block,
        num_warps=8, num_stages=3, maxnreg=REGISTERS,
    )  # fmt: skip
    return weight.sum(0)


class _Pair(torch.autograd.Function):
    """x + plain(leaky_relu(dilated(leaky_relu(x)))), with zeros past each clip's steps before and after each convolution."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dilation: int, own: tuple[int, int]
    ) -> Tensor:  # fmt: skip
        first, second = (w.to(x.dtype).permute(2, 1, 0).contiguous() for w in (w1, w2))
        h, _ = _conv(x, first, lengths, dilation, own[0], activate=True, bias=b1.float(), activate_out=True)
        out, _ = _conv(h, second, lengths, 1, own[1], bias=b2.float(), add=x)
        ctx.save_for_backward(x, h, lengths, w1, w2)
        ctx.dilation, ctx.own = dilation, own
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, h, lengths, w1, w2 = ctx.saved_tensors
        dilation, (own1, own2) = ctx.dilation, ctx.own
        gradient = gradient.to(x.dtype).contiguous()
        first, second = (w.to(x.dtype).permute(2, 0, 1).contiguous() for w in (w1, w2))  # [K, C_out, C_in]
        # The leaky ReLU keeps signs: its slope can be told from what it gave.
        dh, db1 = _conv(gradient, second, lengths, -1, own2, like=h, sum_of="out")
        dw2 = _weight_gradient(h, gradient, lengths, 1, own2, w2.shape[2], activate=False)
        dx, db2 = _conv(dh, first, lengths, -dilation, own1, like=x, add=gradient, sum_of="add")
        dw1 = _weight_gradient(x, dh, lengths, dilation, own1, w1.shape[2], activate=True)
        dw1, dw2 = dw1.permute(2, 1, 0).to(w1.dtype), dw2.permute(2, 1, 0).to(w2.dtype)
        return dx, None, dw1, db1, dw2, db2, None, None


def residual_pair(
    x: Tensor, lengths: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, dilation: int, own: tuple[int, int]
) -> Tensor:
    """A dilated and a plain convolution with leaky ReLUs before them, on a residual.

    :param x: [B, L, C] contiguous, bf16 or fp16; C a multiple of 16.
    :param lengths: Steps of each clip, int32 [B]: those past them count as zeros, and are zero in the output.
    :param w1, w2: [C_out, C_in, K] of the dilated and of the plain convolution, of any dtype.
    :param own: The tap of each that meets the step itself.
    """
    return _Pair.apply(x, lengths, w1, b1, w2, b2, dilation, own)
