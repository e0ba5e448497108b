"""How a speech LM reads and predicts packed tokens: embeddings and heads, per digit or over whole ids.

A packed token is a number of up to `group_size` digits (packing.py), and each digit is the code of one latent dimension.
`factorised` layers work on digits; no two dimensions share a table, because dimension 3 and dimension 90 mean different
things, while each of the few values of a digit is seen in a large part of all frames. `full` layers know ids alone, one
table for all slots: 16,384 rows of which most are seen rarely.

    B clips   T frames   G tokens of a frame (slots)   K digits of a token   R levels of a digit (the widest)
    C model width   V ids of a token (the widest slot)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TABLE_GAIN = 10.0
"""Factor on tables that are logits themselves. AdamW moves an entry by about the learning rate a step, whatever its
gradient: without a gain, logits of size 1 would take a thousand steps where a network's many weights take a few."""


class DigitLayout:
    """Where digits sit in tokens: place values and radices of the K digits of each slot.

    A short last group is filled up with digits of radix 1, which are always 0 and cost nothing.
    """

    def __init__(self, radices: Sequence[int], group_size: int) -> None:
        groups = [list(radices[i : i + group_size]) for i in range(0, len(radices), group_size)]
        self.num_groups = len(groups)
        self.num_digits = max(map(len, groups))
        self.num_levels = max(radices)
        self.vocab_sizes = [math.prod(g) for g in groups]
        self._radices = [g + [1] * (self.num_digits - len(g)) for g in groups]
        self._weights = [[math.prod(g[k + 1 :]) for k in range(self.num_digits)] for g in self._radices]
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Place values and radices, int64 [G, K] each, on `device`."""
        # Not buffers: models are created on the meta device too, and there values vanish. fairseq2 builds models in a
        # mode that makes even lists of ints float tensors, hence the explicit dtype, here and below.
        if device not in self._tables:
            self._tables[device] = (
                torch.tensor(self._weights, device=device, dtype=torch.int64),
                torch.tensor(self._radices, device=device, dtype=torch.int64),
            )
        return self._tables[device]

    def split(self, ids: Tensor) -> Tensor:
        """ids [..., G] -> digits [..., G, K]."""
        weights, radices = self.tables(ids.device)
        return ids.unsqueeze(-1) // weights % radices

    def join(self, digits: Tensor) -> Tensor:
        """digits [..., G, K] -> ids [..., G]: the inverse of `split`."""
        return (digits * self.tables(digits.device)[0]).sum(-1)

    def split_slot(self, ids: Tensor, slot: int) -> Tensor:
        """ids [...] of one slot -> digits [..., K]."""
        weights, radices = self.tables(ids.device)
        return ids.unsqueeze(-1) // weights[slot] % radices[slot]

    def join_slot(self, digits: Tensor, slot: int) -> Tensor:
        """digits [..., K] -> ids [...] of one slot: the inverse of `split_slot`."""
        return (digits * self.tables(digits.device)[0][slot]).sum(-1)

    def one_hot(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        """digits [..., K] -> [..., K * R]."""
        return F.one_hot(digits, self.num_levels).to(dtype).flatten(-2)

    def allowed(self) -> Tensor:
        """bool [G, K, R], on the CPU: the levels that each digit has."""
        cpu = torch.device("cpu")
        return torch.arange(self.num_levels, device=cpu, dtype=torch.int64) < self.tables(cpu)[1].unsqueeze(-1)


class DigitEmbedding(nn.Module):
    """Sum of one embedding a digit, from a table for each digit of each slot, plus the slot's own."""

    def __init__(self, layout: DigitLayout, dim: int) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(layout.num_groups, layout.num_digits * layout.num_levels, dim))
        self.slot = nn.Parameter(torch.empty(layout.num_groups, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # The sum over digits has the deviation of a llama embedding, dim^-0.5.
        std = self.weight.size(-1) ** -0.5
        _normal(self.weight, std * self.layout.num_digits**-0.5)
        _normal(self.slot, std)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T, G] -> [B, T, G, C]."""
        # A product with one-hot digits rather than a look-up: K * R is small, and its gradient is deterministic on GPUs.
        digits = self.layout.one_hot(self.layout.split(ids), self.weight.dtype)
        return torch.einsum("btgk,gkc->btgc", digits, self.weight) + self.slot

    def step(self, ids: Tensor, slot: int) -> Tensor:
        """ids [B] of one slot -> [B, C]."""
        digits = self.layout.one_hot(self.layout.split_slot(ids, slot), self.weight.dtype)
        return digits @ self.weight[slot] + self.slot[slot]


class IdEmbedding(nn.Module):
    """One embedding an id, shared by all slots, plus the slot's own."""

    def __init__(self, layout: DigitLayout, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max(layout.vocab_sizes), dim))
        self.slot = nn.Parameter(torch.empty(layout.num_groups, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        std = self.weight.size(-1) ** -0.5
        _normal(self.weight, std)
        _normal(self.slot, std)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [B, T, G] -> [B, T, G, C]."""
        return F.embedding(ids, self.weight) + self.slot

    def step(self, ids: Tensor, slot: int) -> Tensor:
        """ids [B] of one slot -> [B, C]."""
        return F.embedding(ids, self.weight) + self.slot[slot]


class DigitHead(nn.Module):
    """K softmaxes of R levels: p(token | h) = product over k of p(digit k | h, digits before k).

    The logits of digit k are linear in h, with weights of the slot's own. With `chain`, rows of two tables are added to
    them: one for each digit before k in the token, which makes the token's probability exact autoregression over its
    digits, and one for each digit of the same slot a frame earlier. [K * R, K * R] entries a slot cost next to nothing,
    and put the bigram models that one would count (tasks/lm/baselines.py) within reach of the first updates. Without
    `chain`, the digits of a token are independent given h.
    """

    allowed: Tensor
    earlier: Tensor

    def __init__(self, layout: DigitLayout, dim: int, *, chain: bool) -> None:
        super().__init__()
        self.layout = layout
        width = layout.num_digits * layout.num_levels
        self.weight = nn.Parameter(torch.empty(layout.num_groups, dim, width))
        self.bias = nn.Parameter(torch.empty(layout.num_groups, width))
        self.within: nn.Parameter | None
        self.before: nn.Parameter | None
        for name in ("within", "before"):
            table = nn.Parameter(torch.empty(layout.num_groups, width, width)) if chain else None
            self.register_parameter(name, table)
        device = self.weight.device
        shape = (layout.num_groups, layout.num_digits, layout.num_levels)
        self.register_buffer("allowed", torch.empty(shape, dtype=torch.bool, device=device), persistent=False)
        self.register_buffer("earlier", torch.empty((width, width), device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _normal(self.weight, 0.1 * self.weight.size(1) ** -0.5)  # starts near the uniform distribution
        for table in (self.bias, self.within, self.before):
            if table is not None:
                nn.init.zeros_(table)
        self.reset_non_persistent_buffers()

    def reset_non_persistent_buffers(self) -> None:
        digit = torch.arange(self.layout.num_digits, device="cpu", dtype=torch.int64)
        digit = digit.repeat_interleave(self.layout.num_levels)
        with torch.no_grad():
            self.allowed.copy_(self.layout.allowed())
            self.earlier.copy_(digit.unsqueeze(1) < digit.unsqueeze(0))  # row: a digit's level; column: a later digit's

    def nll(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden [B, T, G, C], ids [B, T, G] -> nats [B, T, G], float32."""
        digits = self.layout.split(ids)  # [B, T, G, K]
        logits = torch.einsum("btgc,gck->btgk", hidden, self.weight) + TABLE_GAIN * self.bias
        if self.within is not None and self.before is not None:
            known = self.layout.one_hot(digits, hidden.dtype)  # [B, T, G, K * R]
            logits = logits + torch.einsum(
                "btgj,gjk->btgk", known, TABLE_GAIN * self.within * self.earlier.to(known.dtype)
            )
            last = F.pad(known[:, :-1], (0, 0, 0, 0, 1, 0))  # of the frame before; zeros before the first
            logits = logits + torch.einsum("btgj,gjk->btgk", last, TABLE_GAIN * self.before)
        logits = logits.float().unflatten(-1, self.allowed.shape[1:])  # [B, T, G, K, R]
        logits = logits.masked_fill(~self.allowed, -torch.inf)
        chosen = logits.gather(-1, digits.unsqueeze(-1)).squeeze(-1)
        return (logits.logsumexp(-1) - chosen).sum(-1)

    def sample(
        self, hidden: Tensor, last: Tensor | None, slot: int, noise: Tensor, filter_: LogitFilter
    ) -> tuple[Tensor, Tensor]:
        """hidden [B, C], last [B] (the slot's ids a frame earlier, if there is one), noise [B, K] in [0, 1) -> ids [B] of
        the slot and their nats [B] under the unfiltered model."""
        layout = self.layout
        logits = (hidden @ self.weight[slot] + TABLE_GAIN * self.bias[slot]).float()  # [B, K * R]
        if self.before is not None and last is not None:
            known = layout.one_hot(layout.split_slot(last, slot), hidden.dtype)
            logits = logits + (known @ (TABLE_GAIN * self.before[slot])).float()
        within = None if self.within is None else (TABLE_GAIN * self.within[slot] * self.earlier).float()
        nats = torch.zeros(hidden.size(0), device=hidden.device)
        digits = []
        for k in range(layout.num_digits):
            levels = slice(k * layout.num_levels, (k + 1) * layout.num_levels)
            row = logits[:, levels].masked_fill(~self.allowed[slot, k], -torch.inf)
            digit = filter_.pick(row, noise[:, k])
            nats = nats - row.log_softmax(-1).gather(-1, digit.unsqueeze(-1)).squeeze(-1)
            if within is not None:
                logits = logits + within[levels][digit]
            digits.append(digit)
        return layout.join_slot(torch.stack(digits, -1), slot), nats


class IdHead(nn.Module):
    """One softmax over the ids of a slot, with weights that all slots share and a gain of the slot's own."""

    allowed: Tensor

    def __init__(self, layout: DigitLayout, dim: int) -> None:
        super().__init__()
        self.layout = layout
        self.weight = nn.Parameter(torch.empty(dim, max(layout.vocab_sizes)))
        self.gain = nn.Parameter(torch.empty(layout.num_groups, dim))
        shape = (layout.num_groups, max(layout.vocab_sizes))
        self.register_buffer(
            "allowed", torch.empty(shape, dtype=torch.bool, device=self.weight.device), persistent=False
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        _normal(self.weight, 0.1 * self.weight.size(0) ** -0.5)
        nn.init.ones_(self.gain)
        self.reset_non_persistent_buffers()

    def reset_non_persistent_buffers(self) -> None:
        sizes = torch.tensor(self.layout.vocab_sizes, device="cpu", dtype=torch.int64)
        with torch.no_grad():
            self.allowed.copy_(torch.arange(self.allowed.size(1), device="cpu", dtype=torch.int64) < sizes.unsqueeze(1))

    def nll(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden [B, T, G, C], ids [B, T, G] -> nats [B, T, G], float32."""
        logits = ((hidden * self.gain) @ self.weight).float().masked_fill(~self.allowed, -torch.inf)
        chosen = logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        return logits.logsumexp(-1) - chosen

    def sample(
        self, hidden: Tensor, last: Tensor | None, slot: int, noise: Tensor, filter_: LogitFilter
    ) -> tuple[Tensor, Tensor]:
        """As of DigitHead; `last` is not used."""
        logits = ((hidden * self.gain[slot]) @ self.weight).float().masked_fill(~self.allowed[slot], -torch.inf)
        ids = filter_.pick(logits, noise[:, 0])
        return ids, -logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


class LogitFilter:
    """Temperature, top-k and nucleus (arXiv 1904.09751) on a softmax, then inverse-CDF sampling from given noise.

    A factorised head filters each digit, a full head each token. Temperature 0 takes the likeliest.
    """

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p

    def pick(self, logits: Tensor, noise: Tensor) -> Tensor:
        """logits [B, R] (-inf where not allowed), noise [B] in [0, 1) -> index [B]."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        values, order = (logits / self.temperature).sort(dim=-1, descending=True, stable=True)
        probs = values.softmax(-1)
        before = probs.cumsum(-1) - probs
        keep = before < self.top_p  # the smallest set that reaches top_p; the first is always in it
        if self.top_k:
            keep[:, self.top_k :] = False
        probs = probs * keep
        total = probs.cumsum(-1)
        # Noise below 1 times the kept mass falls on a kept entry, whatever the rounding: see the clamp.
        index = torch.searchsorted(total, noise.unsqueeze(-1) * total[:, -1:], right=True)
        last = (probs > 0).sum(-1, keepdim=True) - 1
        return order.gather(-1, torch.minimum(index, last)).squeeze(-1)


def _normal(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, mean=0.0, std=std, a=-3 * std, b=3 * std)
