"""Random segments of clips: what is judged, or decoded, of each clip in a step of training.

B clips   S samples   T frames   D dimensions
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_counts(wave: Tensor, lengths: Tensor | None) -> Tensor:
    """Samples of each clip of wave [B, S], int64 [B]; all S where `lengths` is None."""
    return torch.full((len(wave),), wave.shape[1], device=wave.device) if lengths is None else lengths


def draw_starts(sizes: Tensor, length: int) -> Tensor:
    """Where a segment of `length` begins in each of [B] clips of `sizes`, int64 [B]: evenly drawn, 0 where the clip is shorter."""
    room = (sizes - length).clamp_min(0)
    return (torch.rand(len(sizes), device=sizes.device) * (room + 1)).long().clamp_max(room)


def cut(x: Tensor, starts: Tensor, length: int) -> Tensor:
    """Rows [B, N] or [B, N, D] -> [B, length] or [B, length, D] from `starts` [B] on, which must leave room for `length` in N."""
    index = starts[:, None] + torch.arange(length, device=x.device)
    return x.gather(1, index if x.ndim == 2 else index[..., None].expand(-1, -1, x.shape[2]))
