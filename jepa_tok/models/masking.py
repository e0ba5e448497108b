"""Span masks over frames for masked prediction (paper, section 3.1).

B clips   T frames
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_tok.training_config import MaskConfig


def _draw(low: int, high: int, generator: torch.Generator | None) -> int:
    """A whole number in [low, high]."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def sample_span_mask(lengths: Tensor, config: MaskConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draws a mask for each clip: spans of random length and place until exactly round(ratio * T) frames are covered.

    Overlaps are not counted twice; the last span is cut where the count is met. The draw uses the CPU generator, so that it
    is the same on every device.

    :param lengths: Frames of each clip, [B].
    :returns: Bool [B, T] on the device of `lengths`, T the longest clip, True on masked frames.
    """
    frames = [int(n) for n in lengths]
    mask = torch.zeros(len(frames), max(frames), dtype=torch.bool)
    for row, count in zip(mask, frames):
        left = round(config.ratio * count)
        longest = max(config.min_span, int(config.max_span_fraction * count))
        while left > 0:
            span = min(_draw(config.min_span, longest, generator), count)
            start = _draw(0, count - span, generator)
            fresh = (~row[start : start + span]).nonzero().squeeze(1)[:left] + start
            row[fresh] = True
            left -= len(fresh)
    return mask.to(lengths.device)
