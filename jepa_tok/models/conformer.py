"""Conformer block (arXiv 2005.08100) as the paper uses it, with masks, and its causal form.

B clips   T steps   D dimensions   H heads
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.models.causal import StreamState, look_back
from jepa_tok.models.layers import TimeConv


class FeedForward(nn.Sequential):
    """LayerNorm, Linear up, GELU, Linear down; half of it is added to the residual."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, inner),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(inner, dim),
            nn.Dropout(dropout),
        )


class SelfAttention(nn.Module):
    """Multi-head attention, no position encoding (the convolution tells order): over all of a clip's steps, or causal.

    :param context: Causal: each step attends to itself and this many before it. None: to the whole clip.
    """

    def __init__(self, dim: int, heads: int, dropout: float, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.context = context
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, state: StreamState | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; keys outside `mask` [B, T] are not attended to."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D / H]
        if self.context is None:
            keys = None if mask is None else mask[:, None, None, :]
        else:
            k = look_back(k, self.context, state, (self, "keys"), dim=-2)
            v = look_back(v, self.context, state, (self, "values"), dim=-2)
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
            keys = self._band(look_back(real, self.context, state, (self, "mask")), self.context)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, dropout_p=self.dropout if self.training else 0.0)
        return self.out(h.transpose(1, 2).flatten(2))

    @staticmethod
    def _band(real: Tensor, context: int) -> Tensor:
        """Which keys [B, context + T] each query may see: [B, 1, T, context + T]."""
        size = real.shape[1]
        band = torch.ones(size - context, size, dtype=torch.bool, device=real.device).triu().tril(context)
        # Itself always: a step of padding, far behind its clip's end, would else divide by a sum over no keys.
        return band & real[:, None, None, :] | band.triu(context)


class ClipNorm(nn.Module):
    """Norm over all steps and dimensions of a clip (GroupNorm of one group), taken over the clip's own steps only."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        with torch.autocast(x.device.type, enabled=False):
            h = x.float()
            if mask is None:
                mean = h.mean((1, 2), keepdim=True)
                variance = (h - mean).square().mean((1, 2), keepdim=True)
            else:
                real = mask[..., None].to(h.dtype)
                count = (real.sum((1, 2), keepdim=True) * h.shape[-1]).clamp_min(1.0)
                mean = (h * real).sum((1, 2), keepdim=True) / count
                variance = ((h - mean).square() * real).sum((1, 2), keepdim=True) / count
            h = (h - mean) * (variance + 1e-5).rsqrt() * self.weight.float() + self.bias.float()
        return h.to(x.dtype)


class StepNorm(nn.LayerNorm):
    """LayerNorm of each step alone, with the call of ClipNorm."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return super().forward(x)


class ConvModule(nn.Module):
    """Norm, pointwise up, GLU, depthwise over time, norm, SiLU, pointwise."""

    def __init__(self, dim: int, kernel: int, norm: str, dropout: float, causal: bool = False) -> None:
        super().__init__()
        make_norm = ClipNorm if norm == "clip" else StepNorm
        self.norm_in = make_norm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.depthwise = TimeConv(dim, dim, kernel, groups=dim, causal=causal)
        self.norm_mid = make_norm(dim)
        self.down = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, state: StreamState | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        h = F.glu(self.up(self.norm_in(x, mask)), dim=-1)
        if mask is not None:
            h = h * mask[..., None].to(h.dtype)
        h = self.depthwise(h.transpose(1, 2), state).transpose(1, 2)
        return self.dropout(self.down(F.silu(self.norm_mid(h, mask))))


class ConformerBlock(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, final norm.

    :param context: Steps before its own that a step of a causal block attends to; None if a step hears the whole clip.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kernel: int = 31,
        norm: str = "clip",
        dropout: float = 0.1,
        ff_mult: int = 4,
        context: int | None = None,
    ) -> None:
        super().__init__()
        self.ff1 = FeedForward(dim, ff_mult * dim, dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout, context)
        self.conv = ConvModule(dim, kernel, norm, dropout, causal=context is not None)
        self.ff2 = FeedForward(dim, ff_mult * dim, dropout)
        self.norm_final = nn.LayerNorm(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]; steps outside `mask` [B, T] neither influence others nor are left non-zero."""
        x = x + 0.5 * self.ff1(x)
        x = x + self.attention(self.norm_attention(x), mask, state)
        x = x + self.conv(x, mask, state)
        x = x + 0.5 * self.ff2(x)
        x = self.norm_final(x)
        return x if mask is None else x * mask[..., None].to(x.dtype)
