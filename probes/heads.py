"""The CTC heads of the ASR probe: `linear`, one matrix from the digits of a frame and its neighbours to every slot's labels, and
`bilstm` over the slots.

    B clips   T frames   F inputs of a frame   D codes of a frame   G slots of a frame   V labels, the blank among them   P = T * G positions

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

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.seeding import seeded

LSTM_UNITS, LSTM_LAYERS, LSTM_DROPOUT = 256, 2, 0.2


class FrameMap(nn.Module):
    """The affine map of each frame and its `context` neighbours on each side; frames outside a clip count as the mean frame.

    :param mean: [F], and `scale` [F]: what is taken off an input, and what it is multiplied by then.
    """

    def __init__(self, mean: Tensor, scale: Tensor, outputs: int, context: int = 0) -> None:
        super().__init__()
        self.context = context
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter(torch.empty(2 * context + 1, len(mean), outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Inputs [B, T, F], or columns of one-hot inputs that are 1, int64 [B, T, D]; frames in each clip [B] -> [B, T, outputs]."""
        inside = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]  # [B, T, 1]
        if x.is_floating_point():
            return F.linear(
                self._windows((x - self.mean) * self.scale * inside), self.weight.flatten(0, 1).T, self.bias
            )
        # Rows of the matrix instead of products with zeros: a code's holds what it adds to its own frame and to the neighbours, and a
        # row of zeros more is for what is outside.
        width, reach = len(self.mean), 2 * self.context + 1
        table = (self.weight * self.scale[:, None]).transpose(0, 1).flatten(1)  # [F, reach * outputs]
        table = F.pad(table, (0, 0, 0, 1))
        codes = F.pad(torch.where(inside, x, width), (0, 0, self.context, self.context), value=width)
        rows = F.embedding_bag(codes.flatten(0, 1), table, mode="sum").view(*codes.shape[:2], reach, -1)
        mean = torch.einsum("f,kfo->ko", self.mean * self.scale, self.weight)
        return _SumOverNeighbours.apply(rows) - self._windows(inside.to(rows.dtype)) @ mean + self.bias

    def _windows(self, x: Tensor) -> Tensor:
        """[B, T, X] -> [B, T, (2 context + 1) X]: frames t - context to t + context side by side."""
        padded = F.pad(x, (0, 0, self.context, self.context))
        return torch.cat([padded[:, i : i + x.shape[1]] for i in range(2 * self.context + 1)], dim=-1)


class _SumOverNeighbours(torch.autograd.Function):
    """[B, T + K - 1, K, X] -> [B, T, X]: y[:, t] is the sum over k of x[:, t + k, k]. Autograd by slices would make a tensor of the input's
    size for each k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return _diagonals(x).sum(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        found = gradients[0].new_zeros(ctx.shape)
        _diagonals(found).copy_(gradients[0][:, :, None])
        return found


def _diagonals(x: Tensor) -> Tensor:
    """View [B, T, K, X] of a contiguous [B, T + K - 1, K, X]: element (t, k) is (t + k, k) there."""
    batch, frames, reach, size = x.shape
    own, frame, block, one = x.stride()
    return x.as_strided((batch, frames - reach + 1, reach, size), (own, frame, frame + block, one))


class SlotHead(nn.Module):
    """The head `linear`: linear before the softmax."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int, labels: int, context: int, seed: int) -> None:
        super().__init__()
        self.slots, self.labels = slots, labels
        self.map = FrameMap(mean, scale, slots * labels, context)
        nn.init.normal_(self.map.weight, 0.0, 0.01, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames as `FrameMap` takes them -> log-probabilities [T * G, B, V]"""
        logits = self.map(x, lengths).unflatten(-1, (self.slots, self.labels)).flatten(1, 2)  # [B, T * G, V]
        return logits.log_softmax(-1).transpose(0, 1)


class LSTMHead(nn.Module):
    """The head `bilstm`."""

    def __init__(self, mean: Tensor, scale: Tensor, slots: int, labels: int, seed: int) -> None:
        super().__init__()
        self.slots = slots
        with seeded(seed):
            # The scale leaves a frame a length of one; LSTMs start best from units of about one.
            self.embed = FrameMap(mean, scale, LSTM_UNITS)
            nn.init.normal_(self.embed.weight)
            self.place = nn.Parameter(torch.randn(slots, LSTM_UNITS))
            self.lstm = nn.LSTM(
                LSTM_UNITS, LSTM_UNITS, LSTM_LAYERS, batch_first=True, bidirectional=True, dropout=LSTM_DROPOUT
            )
            self.dropout = nn.Dropout(LSTM_DROPOUT)
            self.map = nn.Linear(2 * LSTM_UNITS, labels)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Frames as `FrameMap` takes them -> log-probabilities [T * G, B, V]; padding changes nothing."""
        y = self.dropout(self.embed(x, lengths))[:, :, None] + self.place  # [B, T, G, E]
        steps = nn.utils.rnn.pack_padded_sequence(
            y.flatten(1, 2), lengths.cpu() * self.slots, batch_first=True, enforce_sorted=False
        )
        y, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(steps)[0], batch_first=True)
        return self.map(self.dropout(y)).log_softmax(-1).transpose(0, 1)


Head = SlotHead | LSTMHead


def make_head(kind: str, mean: Tensor, scale: Tensor, *, slots: int, labels: int, context: int, seed: int) -> Head:
    """`linear` or `bilstm` with first weights by `seed`; `context` is the linear head's."""
    if kind == "bilstm":
        return LSTMHead(mean, scale, slots, labels, seed)
    return SlotHead(mean, scale, slots, labels, context, seed)
