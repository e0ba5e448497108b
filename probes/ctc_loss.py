"""CTC (Graves et al., ICML 2006) for CPUs, several times as fast there as `torch.nn.functional.ctc_loss`, whose loops run one state at a time.

The forward recursion of all clips of a batch is one vector operation a position, and the backward recursion is the forward one of clips
and labels turned round, so that both run at once. Probabilities are float64 and scaled every few positions (Rabiner,
doi:10.1109/5.18626, section V.A) instead of logarithms. Where even that underflows, which takes a head that is very sure and very wrong,
torch does the batch.

    B clips   P positions   V labels, the blank 0 first   L labels of the longest target   S = 2 L + 1 states, blanks between labels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SCALE_EVERY = 8  # positions; float64 holds eight probabilities of 1e-38 each


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
    """Losses float64 [B], infinite or NaN where numbers underflow, and float32 [P, B, V]: the probability of each label at each position,
    given the target (zeros without `backward`)."""
    positions, count, size = log_probs.shape
    rows = [(b, list(target)) for b, target in enumerate(targets)]
    rows += [(b, own[::-1]) for b, own in rows] if backward else []
    longest = max(len(own) for _, own in rows)
    # A row of states begins with two cells that are always empty, so that all rows are one vector, and moving that vector by one or
    # two cells moves each row. `places` says which probability a state emits; number V is 0, for what is no state.
    width = 2 * longest + 3
    places = np.full((len(rows), width), size)
    skips = np.zeros((len(rows), width))
    for row, (_, own) in enumerate(rows):
        places[row, 2 : 2 * len(own) + 3] = 0
        places[row, 3 : 2 * len(own) + 3 : 2] = own
        skips[row, 5 : 2 * len(own) + 3 : 2] = np.diff(own) != 0
    places += (size + 1) * np.arange(len(rows))[:, None]
    probs = np.zeros((positions, len(rows), size + 1))
    probs[:, :count, :size] = np.exp(log_probs)
    for row, (b, _) in enumerate(rows[count:], count):
        probs[: lengths[b], row] = probs[: lengths[b], b][::-1]
        probs[lengths[b] :, row, :size] = 1.0  # past its end; what comes of it is not looked at
    emits = probs.reshape(positions, -1).take(places.ravel(), axis=1)  # [P, rows * width]
    arrives = np.empty_like(emits)  # probability of the prefixes that arrive in a state, its own emission not counted
    logs = np.zeros((positions + 1, len(rows)))  # logs[p]: of all scales up to position p - 1
    skip, now = skips.ravel(), np.zeros(len(rows) * width + 2)
    arrives[0] = 0.0
    arrives[0].reshape(len(rows), width)[:, 2:4] = 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for p in range(positions):
            into = arrives[p]
            if p:
                np.multiply(now[:-2], skip, out=into)
                into += now[1:-1]
                into += now[2:]
            np.multiply(into, emits[p], out=now[2:])
            logs[p + 1] = logs[p]
            if p % SCALE_EVERY == SCALE_EVERY - 1:
                reached = now[2:].reshape(len(rows), width)
                total = reached.sum(1)
                reached /= total[:, None]
                logs[p + 1] += np.log(total)
        arrives, emits = (x.reshape(positions, len(rows), width)[:, :, 2:] for x in (arrives, emits))
        losses = np.empty(count)
        posteriors = np.zeros((positions, count, size), np.float32)
        for b, target in enumerate(targets):
            end, states = lengths[b], 2 * len(target) + 1
            last = (arrives[end - 1, b] * emits[end - 1, b])[states - 2 : states].sum()
            losses[b] = -(np.log(last) + logs[end - 1, b])
            if backward:
                reach = arrives[:end, b, :states]
                reach *= arrives[:end, count + b, :states][::-1, ::-1]
                reach *= emits[:end, b, :states]
                labels = np.zeros((states, size))  # which label each state emits
                labels[::2, 0] = 1.0
                labels[np.arange(1, states, 2), target] = 1.0
                found = reach @ labels
                found /= found.sum(1, keepdims=True)
                posteriors[:end, b] = found
                if not np.isfinite(found).all():
                    losses[b] = np.nan
    return losses, posteriors
