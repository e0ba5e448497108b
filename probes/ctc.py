"""Training and reading the CTC heads of the ASR probe (`heads.py`).

B clips   T frames   F inputs of a frame   D codes of a frame   G slots of a frame   V labels, the blank among them   P = T * G positions
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jepa_tok.seeding import seeded
from probes.ctc_loss import ctc_loss
from probes.features import OneHot
from probes.heads import Head, make_head

Rows = Sequence[int] | np.ndarray

BLANK = 0  # of `ctc_loss`, too

GRIDS: dict[str, tuple[tuple[float, float], ...]] = {
    "linear": ((0.01, 0.3), (0.05, 0.3)),
    "bilstm": ((0.001, 0.01), (0.003, 0.01)),
}
"""(learning rate, weight decay) pairs that are tried for each head; the one with the least loss on dev is kept."""

UPDATES = 50  # an epoch aims at this many batches, so that a small corpus is not trained on too few
EPOCHS, LEAST_UPDATES = 15, 300  # a corpus of a few seconds is passed through more often
MOST_UPDATES = (
    1_000  # a large corpus is passed through fewer times: 15 passes of 10 hours take a core a quarter of an hour
)
LEAST_SECONDS, MOST_SECONDS = 8.0, 64.0  # of a batch, padding counted
CONTEXT_SECONDS, MOST_INPUTS = 0.4, 20_000
MOST_DENSE = 16  # values of a code on average, up to which a matrix product is the faster way
MIN_SCALE = 0.05  # features that vary less than this are not blown up


@dataclass
class Clips:
    """What the head is trained and tested on: frames as the source stores them, and labels 1..V-1."""

    frames: list[np.ndarray]
    expand: Callable[[np.ndarray], np.ndarray]
    """One clip's stored frames to float32 [T, F]; `OneHot` where they are codes."""

    labels: list[list[int]]
    slots: int
    frame_rate: float = 2.5

    def fits(self, i: int) -> bool:
        """Whether clip i has enough positions for its labels: one each, and a blank between equal neighbours."""
        own = self.labels[i]
        return 0 < len(own) + sum(a == b for a, b in itertools.pairwise(own)) <= len(self.frames[i]) * self.slots

    @property
    def codes(self) -> OneHot | None:
        """How codes are read that have so many values that a matrix product with their one-hot form would be of zeros mostly."""
        own = self.expand
        return own if isinstance(own, OneHot) and own.width > MOST_DENSE * len(own.radices) else None

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Padded frames and lengths [B] in frames: float32 [B, T, F], or where there are `codes`, columns int64 [B, T, D]."""
        read = self.codes.columns if self.codes else self.expand
        parts = [torch.from_numpy(read(self.frames[i])) for i in rows]
        return nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.tensor([len(p) for p in parts])

    def batches(self, rows: Rows, most: float = MOST_SECONDS) -> list[list[int]]:
        """`rows` by length, in batches of at most `most` seconds with padding; a longer clip is a batch of its own."""
        out: list[list[int]] = []
        for i in sorted(rows, key=lambda i: len(self.frames[i])):
            if not out or (len(out[-1]) + 1) * len(self.frames[i]) > most * self.frame_rate:
                out.append([])
            out[-1].append(int(i))
        return out


def default_context(clips: Clips) -> int:
    """Neighbours that the linear head sees on each side: frames of CONTEXT_SECONDS, but of at most MOST_INPUTS inputs; at least one."""
    width = clips.expand(clips.frames[0][:1]).shape[1]
    return max(1, min(round(CONTEXT_SECONDS * clips.frame_rate), (MOST_INPUTS // width - 1) // 2))


def moments(clips: Clips, rows: Rows) -> tuple[Tensor, Tensor]:
    """Mean and scale [F] of the frames of `rows`: centred, of like deviation, and of length about one as a whole."""
    total, squares, count = np.zeros(1), np.zeros(1), 0
    for i in rows:
        own = clips.frames[i]
        if isinstance(clips.expand, OneHot):
            once = np.bincount(clips.expand.columns(own).ravel(), minlength=clips.expand.width)
            total, squares, count = total + once, squares + once, count + len(own)
        else:
            x = clips.expand(own).astype(np.float64)
            total, squares, count = total + x.sum(0), squares + (x * x).sum(0), count + len(x)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    scale = 1.0 / np.maximum(deviation, MIN_SCALE) / math.sqrt(len(mean))
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))


def label_shares(clips: Clips, rows: Rows, size: int) -> Tensor:
    """Logarithm of each label's share of the positions [V], the blank's what is left: all that transcripts and lengths alone tell."""
    counts = np.bincount([u for i in rows for u in clips.labels[i]], minlength=size).astype(np.float64)
    positions = sum(len(clips.frames[i]) for i in rows) * clips.slots
    counts[BLANK] = positions - counts.sum()
    return torch.from_numpy(np.log(np.maximum(counts, 0.5) / positions).astype(np.float32))


def train(
    clips: Clips,
    train_rows: Rows,
    dev_rows: Rows,
    *,
    kind: str = "linear",
    size: int,
    context: int,
    epochs: int | None,
    lr: float,
    decay: float,
    seed: int,
    device: str,
) -> tuple[Head, float]:
    """Trains a head by AdamW with a falling rate; returns the weights with the least CTC loss on dev, and that loss: the first ones, or
    those after a pass.

    `size` is V. There are `epochs` passes, EPOCHS where it is None, or more where those would make less than LEAST_UPDATES updates; fewer
    where they would make more than MOST_UPDATES, and at least one. The
    order of the batches, the first weights and (on the CPU) dropout come from `seed`. Biases start from `label_shares` and do not decay: a head that must
    find, and hold against the decay, that most positions are blank learns little else.
    """
    rows = [int(i) for i in train_rows if clips.fits(int(i))]
    checks = [int(i) for i in dev_rows if clips.fits(int(i))]
    head = make_head(kind, *moments(clips, rows), slots=clips.slots, labels=size, context=context, seed=seed).to(device)
    shares = label_shares(clips, rows, size).to(device)
    with torch.no_grad():
        head.map.bias.copy_(shares.repeat(len(head.map.bias) // size))
    groups = [
        {"params": [p for p in head.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in head.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    share = sum(len(clips.frames[i]) for i in rows) / clips.frame_rate / UPDATES
    batches = clips.batches(rows, min(max(share, LEAST_SECONDS), MOST_SECONDS))
    if epochs is None:
        epochs = max(EPOCHS, math.ceil(LEAST_UPDATES / len(batches)))
    epochs = min(epochs, max(1, MOST_UPDATES // len(batches)))
    rng = np.random.default_rng([seed, 6])
    with seeded(seed):  # of dropout
        best, state = evaluate(head, clips, checks, device), copy.deepcopy(head.state_dict())
        step, steps = 0, epochs * len(batches)
        for _ in range(epochs):
            head.train()
            for k in rng.permutation(len(batches)):
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
                loss = loss_of(head, clips, batches[k], device) / len(batches[k])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), 5.0)
                optimizer.step()
                step += 1
            value = evaluate(head, clips, checks, device)
            if value < best:
                best, state = value, copy.deepcopy(head.state_dict())
    head.load_state_dict(state)
    return head, best


def loss_of(head: Head, clips: Clips, rows: Rows, device: str) -> Tensor:
    """Sum over `rows` of each clip's CTC loss divided by its number of labels."""
    x, lengths = clips.batch(rows)
    targets = [clips.labels[i] for i in rows]
    losses = ctc_loss(head(x.to(device), lengths.to(device)), targets, lengths * clips.slots)
    return (losses / torch.tensor([len(own) for own in targets], device=device)).sum()


@torch.no_grad()
def evaluate(head: Head, clips: Clips, rows: Rows, device: str) -> float:
    """Mean CTC loss per label of `rows`."""
    head.eval()
    total = sum(float(loss_of(head, clips, batch, device)) for batch in clips.batches(rows))
    return total / max(len(rows), 1)


@torch.no_grad()
def emissions(head: Head, clips: Clips, rows: Rows, device: str) -> list[Tensor]:
    """Log-probabilities [P, V] of each of `rows`, in their order, on the CPU."""
    head.eval()
    found: dict[int, Tensor] = {}
    for batch in clips.batches(rows):
        x, lengths = clips.batch(batch)
        log_probs = head(x.to(device), lengths.to(device)).transpose(0, 1).cpu()  # [B, P, V]
        for i, own, frames in zip(batch, log_probs, lengths.tolist()):
            found[i] = own[: frames * clips.slots].clone()
    return [found[int(i)] for i in rows]


def nats(found: Sequence[Tensor], labels: Sequence[Sequence[int]]) -> list[float]:
    """Minus the logarithm of the probability that `emissions` give to each clip's labels, over all their paths."""
    lengths = [torch.tensor([len(x)]) for x in found]
    return [float(ctc_loss(x[:, None], [own], n)) for x, own, n in zip(found, labels, lengths, strict=True)]


def collapse(path: Sequence[int]) -> list[int]:
    """The labels of a CTC path: repeats merged, then blanks dropped."""
    return [u for k, u in enumerate(path) if u != BLANK and (k == 0 or u != path[k - 1])]
