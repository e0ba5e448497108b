"""CTC (Graves et al., ICML 2006) for CPUs, several times as fast there as `torch.nn.functional.ctc_loss`, whose loops run one state at a time.

The forward recursion of all clips of a batch is one vector operation a position, and the backward recursion is the forward one of clips
and labels turned round, so that both run at once. Probabilities are float64 and divided by the blank's, which spares the products of
half of the states; they are scaled every few positions (Rabiner, doi:10.1109/5.18626, section V.A) instead of kept as logarithms. Where
even that under- or overflows, which takes a head that is very sure and very wrong, torch does the batch.

    B clips   P positions   V labels, the blank 0 first   L labels of the longest target   C = L + 2 cells of a label and the blank behind it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SCALE_EVERY = 8  # positions; float64 holds eight probabilities of 1e-38 each
LEAST = 1e-280  # share of what a position holds, below which float64 may have lost digits of it
JOINED = 64  # positions of which both recursions are multiplied at once, few enough to stay in a core's cache


def ctc_loss(log_probs: Tensor, targets: Sequence[Sequence[int]], lengths: Tensor) -> Tensor:
    """Log-probabilities [P, B, V], B targets of labels 1..V-1, none empty, and positions of each clip [B] -> loss of each clip [B].

    Equal to `F.ctc_loss(..., reduction="none")`, which it calls on other devices than the CPU. A target must fit its clip: one
    position a label, and one more between equal neighbours.
    """
    if log_probs.device.type == "cpu":
        losses = _CTC.apply(log_probs, targets, lengths.tolist())
        if bool(torch.isfinite(losses.detach()).all()):
            return losses
    flat = torch.tensor([u for own in targets for u in own], device=log_probs.device)
    sizes = torch.tensor([len(own) for own in targets], device=log_probs.device)
    return F.ctc_loss(log_probs, flat, lengths.to(log_probs.device), sizes, reduction="none")


class _CTC(torch.autograd.Function):
    """Losses [B]; the gradient is worked out on the way, where one is asked for."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, targets: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        losses, posteriors = _forward_backward(log_probs.detach().numpy(), targets, lengths, backward=wanted)
        if wanted:
            ctx.save_for_backward(torch.from_numpy(posteriors))
        return torch.from_numpy(losses).to(log_probs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posteriors,) = ctx.saved_tensors
        return -posteriors * gradients[0][None, :, None], None, None


def _forward_backward(
    log_probs: np.ndarray, targets: Sequence[Sequence[int]], lengths: Sequence[int], *, backward: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Losses float64 [B], infinite or NaN where numbers under- or overflow, and float32 [P, B, V]: the probability of each label at each
    position, given the target (zeros without `backward`)."""
    positions, count, size = log_probs.shape
    sizes = np.array([len(own) for own in targets])
    width = int(sizes.max()) + 2
    # A row of cells a clip. A cell holds two states: a label, and the blank behind it. The first cell has no label, but the blank before
    # all labels, and the last one is empty: it is the first of the row turned round. Number V is no label, with a probability of 0.
    cells = np.full((count, width), size)
    for row, own in zip(cells, targets):
        row[1 : len(own) + 1] = own
    inside = np.arange(positions)[:, None] < np.asarray(lengths)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # All is divided by the probability of the blank, whose own is one then. Past its end a clip has no labels: what has reached the
        # last states stays there.
        blanks = log_probs[:, :, 0].astype(np.float64)
        odds = np.zeros((positions, count, size + 1))
        np.exp(log_probs - blanks[..., None], out=odds[..., :size])
        odds *= inside[..., None]
        heard = odds.reshape(positions, -1)
        places = (cells + (size + 1) * np.arange(count)[:, None]).ravel()
        skips = np.diff(cells.ravel()) != 0
        begins = (np.arange(width) == np.zeros((count, 1))).ravel()
        if backward:
            # The same beside it from the last position to the first, the cells of all rows turned round.
            heard = np.hstack([heard, heard[::-1]])
            places = np.append(places, places[::-1] + heard.shape[1] // 2)
            skips = np.concatenate([skips, [False], skips[::-1]])
            begins = np.append(begins, (np.arange(width) == sizes[:, None] + 1).ravel()[::-1])
        reached, arrives, scales = _recursion(heard, places, skips * 1.0, begins * 1.0, width, store=backward)
        # Of all scales before a block; the last row is of all there are.
        logs = np.vstack([np.zeros(scales.shape[1]), np.log(scales).cumsum(0)])
        whole = reached[np.arange(count), sizes]
        total = np.log(whole) + logs[-1, :count]
        losses = -(total + (blanks * inside).sum(0))
        losses[~(whole > LEAST)] = np.nan
        posteriors = np.zeros((positions, count, size), np.float32)
        if not backward:
            return losses, posteriors
        logs = logs[:-1].repeat(SCALE_EVERY, 0)[:positions]
        factors = np.where(inside, np.exp(logs[:, :count] + logs[::-1, count:][:, ::-1] - total), 0.0)
        losses[~(factors.max(0) < 1.0 / LEAST)] = np.nan
        labels = (cells[..., None] == np.arange(size)).astype(float)  # [B, C, V]
        ahead, behind = arrives[:, : count * width], arrives[::-1, count * width :][:, ::-1]
        for start in range(0, positions, JOINED):
            part = slice(start, start + JOINED)
            both = (ahead[part] * behind[part]).reshape(-1, count, width).transpose(1, 0, 2)
            found = np.matmul(both, labels).transpose(1, 0, 2)
            found *= odds[part, :, :size]
            found *= factors[part, :, None]
            found[..., 0] = inside[part] - found.sum(2)  # what is no label's is the blank's
            posteriors[part] = found
    return losses, posteriors


def _recursion(
    heard: np.ndarray, places: np.ndarray, skips: np.ndarray, begins: np.ndarray, width: int, *, store: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The forward recursion of R rows of C = `width` cells, N = R * C, as one vector.

    :param heard: [P, X] odds of labels against the blank; `places` [N]: which of the X numbers of a position is that of a cell's label.
    :param skips: [N - 1], 1 where a label may follow on that of the cell before it with no blank between, else 0.
    :param begins: [N], the probability of a cell's blank before the first position.

    Returns the probability of each cell's two states after the last position [R, C]; with `store`, that of all prefixes that arrive at a
    cell's label, its own emission not counted [P, N]; and what rows were divided by, after each SCALE_EVERY positions [blocks, R].
    """
    positions, size = len(heard), len(places)
    states = np.stack([begins, np.zeros(size)])
    blank, label = states
    rows = states.reshape(2, -1, width)
    arrives = np.empty((positions if store else SCALE_EVERY, size))
    arrives[:, 0] = 0.0
    scales = np.empty((-(-positions // SCALE_EVERY), size // width))
    odds = np.empty((SCALE_EVERY, size - 1))
    # Moving the vector by one cell moves each row; the first cells of rows have no label, so that nothing gets into the next row.
    blank_before, label_before, label_here = blank[:-1], label[:-1], label[1:]
    for block, scale in enumerate(scales):
        own = slice(block * SCALE_EVERY, (block + 1) * SCALE_EVERY)
        count = len(heard[own])
        np.take(heard[own], places[1:], axis=1, out=odds[:count], mode="clip")  # mode "raise" copies
        for into, emits in zip(arrives[own if store else slice(count), 1:], odds):
            np.multiply(label_before, skips, out=into)
            into += blank_before
            into += label_here
            blank += label
            np.multiply(into, emits, out=label_here)
        rows.sum((0, 2), out=scale)
        rows /= scale[:, None]
    return rows.sum(0), arrives, scales
