"""Masks over frames for masked prediction (paper, section 3.1).

B clips   T frames
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from jepa_tok.training_config import MaskConfig


def sample_mask(lengths: Tensor, config: MaskConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draws a mask for each clip, by the law of `config`, that covers exactly round(ratio * T) of its frames.

    The draw is made on the CPU, so that it is the same on every device.

    :param lengths: Frames of each clip, [B], on the CPU where nothing should wait for a GPU.
    :returns: Bool [B, T] on the device of `lengths`, T the longest clip, True on masked frames.
    """
    frames = [int(n) for n in lengths]
    # Of torch's generator only a seed: some thousand small tensors a step would cost more than the model's launches.
    rng = Random(int(torch.randint(2**62, (), generator=generator)))
    law = _blocks if config.law == "blocks" else _spans
    longest = max(frames)
    rows = [law(count, round(config.ratio * count), config, rng) + [False] * (longest - count) for count in frames]
    return torch.tensor(rows, dtype=torch.bool).to(lengths.device)


def _spans(count: int, masked: int, config: MaskConfig, rng: Random) -> list[bool]:
    """Spans of random length and place until `masked` of `count` frames are covered.

    Overlaps are not counted twice; the last span is cut where the count is met.
    """
    row = [False] * count
    longest = max(config.min_span, int(config.max_span_fraction * count))
    while masked > 0:
        span = min(rng.randint(config.min_span, longest), count)
        start = rng.randint(0, count - span)
        for i in range(start, start + span):
            if masked > 0 and not row[i]:
                row[i] = True
                masked -= 1
    return row


def _blocks(count: int, masked: int, config: MaskConfig, rng: Random) -> list[bool]:
    """`masked` of `count` frames in `config.blocks` blocks (fewer where there are fewer frames to mask) that do not overlap.

    Their lengths are equal, or differ by one where the count is no multiple; every placement is equally likely.
    """
    blocks = min(config.blocks, masked)
    if not blocks:
        return [False] * count
    sizes = [masked // blocks + (i < masked % blocks) for i in range(blocks)]
    rng.shuffle(sizes)
    # The visible frames are dealt to the gaps before, between and behind the blocks: a choice of `blocks` bars among them.
    bars = sorted(rng.sample(range(count - masked + blocks), blocks))
    row: list[bool] = []
    for i, (bar, size) in enumerate(zip(bars, sizes)):
        row += [False] * (bar - i - (len(row) - sum(sizes[:i])))
        row += [True] * size
    return row + [False] * (count - len(row))
