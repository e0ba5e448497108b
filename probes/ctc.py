"""The CTC heads of the ASR probe: `linear`, one matrix from the digits of a frame and its neighbours to every slot's labels, and
`bilstm` over the slots.

    B clips   T frames   F features of a frame   G slots of a frame   V labels, the blank among them   P = T * G positions

A frame lasts 400 ms and may hold several letters, so a head that emits one label a frame could not spell. Each frame
therefore has G slots in a row, as many as it has tokens: 47.5 positions a second. Slot g of frame t has the logits

    b_g + W_g · [x(t - c), ..., x(t), ..., x(t + c)]

with x the one-hot digits of a frame: every slot sees all digits, and has weights of its own since it stands for its own
part of the frame. W_g times one-hot digits is the sum of a label embedding for each digit, and b_g embeds the position in
the frame; nothing in it is non-linear. (A head in which slot g saw token g alone would mistake the order of the packed
groups for an order in time: all 19 tokens of a frame describe the same 400 ms.)

`bilstm` gives each slot the sum of a label-free embedding of its frame's digits and one of its place in the frame, and runs two
bidirectional LSTM layers over all slots. SpeechBrain's DASB (arXiv:2406.14294) has such a head for ASR; differences: there a layer has
1024 units a direction, here LSTM_UNITS, for less data; there an attention over the codebooks weighs their embeddings, here they
are added; there is a position a frame, here `slots` a frame, since ours are long; AdamW's rate falls by a cosine, not on plateaus.

Inputs are centred and scaled by constants of the training part, an affine map that changes nothing of this.
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
from torch.nn import functional as F

Rows = Sequence[int] | np.ndarray

BLANK = 0

GRIDS: dict[str, tuple[tuple[float, float], ...]] = {
    "linear": ((0.01, 0.3), (0.05, 0.3)),
    "bilstm": ((0.001, 0.01), (0.003, 0.01)),
}
"""(learning rate, weight decay) pairs that are tried for each head; the one with the least character error rate on dev is kept."""

LSTM_UNITS, LSTM_LAYERS, LSTM_DROPOUT = 256, 2, 0.2

UPDATES = 50  # an epoch aims at this many batches, so that a small corpus is not trained on too few
MOST_UPDATES = (
    1_000  # a large corpus is passed through fewer times: 15 passes of 10 hours take a core a quarter of an hour
)
LEAST_SECONDS, MOST_SECONDS = 8.0, 64.0  # of a batch, padding counted
CONTEXT_SECONDS, MOST_INPUTS = 0.4, 20_000
MIN_SCALE = 0.05  # features that vary less than this are not blown up


class Head(nn.Module):
    """Frames [B, T, F] -> log-probabilities [P, B, V]; what the heads share."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int) -> None:
        super().__init__()
        self.slots = slots
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def scaled(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames centred and scaled; those outside a clip count as the mean frame."""
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, T]
        return (x - self.mean) * self.scale * inside[..., None]


class SlotHead(Head):
    """The head `linear`: linear before the softmax."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int, labels: int, context: int, seed: int) -> None:
        super().__init__(mean, scale, slots)
        self.labels, self.context = labels, context
        self.map = nn.Linear((2 * context + 1) * len(mean), slots * labels)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.map.weight.normal_(0.0, 0.01, generator=generator)
            self.map.bias.zero_()

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, F], frames in each clip [B] -> [T * G, B, V]"""
        padded = F.pad(self.scaled(x, lengths), (0, 0, self.context, self.context))
        x = torch.cat([padded[:, i : i + x.shape[1]] for i in range(2 * self.context + 1)], dim=-1)
        logits = self.map(x).unflatten(-1, (self.slots, self.labels)).flatten(1, 2)  # [B, T * G, V]
        return logits.log_softmax(-1).transpose(0, 1)


class LSTMHead(Head):
    """The head `bilstm`."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int, labels: int, seed: int) -> None:
        super().__init__(mean, scale, slots)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # The scale leaves a frame a length of one; LSTMs start best from units of about one.
            self.embed = nn.Linear(len(mean), LSTM_UNITS)
            nn.init.normal_(self.embed.weight)
            self.place = nn.Parameter(torch.randn(slots, LSTM_UNITS))
            self.lstm = nn.LSTM(
                LSTM_UNITS, LSTM_UNITS, LSTM_LAYERS, batch_first=True, bidirectional=True, dropout=LSTM_DROPOUT
            )
            self.dropout = nn.Dropout(LSTM_DROPOUT)
            self.map = nn.Linear(2 * LSTM_UNITS, labels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, F], frames in each clip [B] -> [T * G, B, V]; padding changes nothing."""
        x = self.dropout(self.embed(self.scaled(x, lengths)))[:, :, None] + self.place  # [B, T, G, E]
        steps = nn.utils.rnn.pack_padded_sequence(
            x.flatten(1, 2), lengths.cpu() * self.slots, batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(steps)[0], batch_first=True)
        return self.map(self.dropout(y)).log_softmax(-1).transpose(0, 1)


def make_head(
    kind: str, mean: Tensor, scale: Tensor, *, slots: int, labels: int, context: int, seed: int
) -> SlotHead | LSTMHead:
    """A head of GRIDS with first weights by `seed`; `context` is the linear head's."""
    if kind == "bilstm":
        return LSTMHead(mean, scale, slots, labels, seed)
    return SlotHead(mean, scale, slots, labels, context, seed)


@dataclass
class Clips:
    """What the head is trained and tested on: frames as the source stores them, and labels 1..V-1."""

    frames: list[np.ndarray]
    expand: Callable[[np.ndarray], np.ndarray]
    """One clip's stored frames to float32 [T, F]."""

    labels: list[list[int]]
    slots: int
    frame_rate: float = 2.5

    def fits(self, i: int) -> bool:
        """Whether clip i has enough positions for its labels: one each, and a blank between equal neighbours."""
        own = self.labels[i]
        return 0 < len(own) + sum(a == b for a, b in itertools.pairwise(own)) <= len(self.frames[i]) * self.slots

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Padded frames [B, T, F] and lengths [B] in frames."""
        parts = [torch.from_numpy(self.expand(self.frames[i])) for i in rows]
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
    total, squares, count = 0.0, 0.0, 0
    for i in rows:
        x = clips.expand(clips.frames[i]).astype(np.float64)
        total, squares, count = total + x.sum(0), squares + (x * x).sum(0), count + len(x)
    mean = np.asarray(total) / count
    deviation = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0.0))
    scale = 1.0 / np.maximum(deviation, MIN_SCALE) / math.sqrt(len(mean))
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(scale.astype(np.float32))


def train(
    clips: Clips,
    train_rows: Rows,
    dev_rows: Rows,
    *,
    kind: str = "linear",
    size: int,
    context: int,
    epochs: int,
    lr: float,
    decay: float,
    seed: int,
    device: str,
) -> tuple[Head, float]:
    """Trains a head by AdamW with a falling rate; returns the epoch's weights with the least CTC loss on dev, and that loss.

    `size` is V. There are `epochs` passes, or fewer where they would make more than MOST_UPDATES updates, and at least one. The
    order of the batches and the first weights come from `seed`.
    """
    rows = [int(i) for i in train_rows if clips.fits(int(i))]
    checks = [int(i) for i in dev_rows if clips.fits(int(i))]
    head = make_head(kind, *moments(clips, rows), slots=clips.slots, labels=size, context=context, seed=seed).to(device)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
    share = sum(len(clips.frames[i]) for i in rows) / clips.frame_rate / UPDATES
    batches = clips.batches(rows, min(max(share, LEAST_SECONDS), MOST_SECONDS))
    epochs = min(epochs, max(1, MOST_UPDATES // len(batches)))
    rng = np.random.default_rng([seed, 6])
    best, state = math.inf, copy.deepcopy(head.state_dict())
    step, steps = 0, epochs * len(batches)
    for _ in range(epochs):
        head.train()
        for k in rng.permutation(len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            loss = ctc_loss(head, clips, batches[k], device) / len(batches[k])
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


def ctc_loss(head: Head, clips: Clips, rows: Rows, device: str) -> Tensor:
    """Sum over `rows` of each clip's CTC loss divided by its number of labels."""
    x, lengths = clips.batch(rows)
    target = torch.tensor([u for i in rows for u in clips.labels[i]])
    sizes = torch.tensor([len(clips.labels[i]) for i in rows])
    log_probs = head(x.to(device), lengths.to(device))
    losses = F.ctc_loss(
        log_probs, target.to(device), (lengths * clips.slots).to(device), sizes.to(device), BLANK, reduction="none"
    )
    return (losses / sizes.to(device)).sum()


@torch.no_grad()
def evaluate(head: Head, clips: Clips, rows: Rows, device: str) -> float:
    """Mean CTC loss per label of `rows`."""
    head.eval()
    total = sum(float(ctc_loss(head, clips, batch, device)) for batch in clips.batches(rows))
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


def collapse(path: Sequence[int]) -> list[int]:
    """The labels of a CTC path: repeats merged, then blanks dropped."""
    return [u for k, u in enumerate(path) if u != BLANK and (k == 0 or u != path[k - 1])]
