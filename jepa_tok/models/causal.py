"""How causal layers see the past: zeros before a clip's beginning and, in a stream, the steps that came before.

    B clips   L steps at the rate of the layer

A layer that looks back puts earlier steps before its input with `look_back`. For a whole clip these are zeros; in a stream,
where a clip comes in pieces, they are what the `StreamState` kept of the last piece. The layers know no other difference:
one forward pass serves training, whole clips and streams.
"""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from jepa_tok.config import EncoderConfig, GeneratorConfig


class StreamState:
    """What the layers of one causal model keep between the pieces of a stream: a fixed number of steps each."""

    def __init__(self) -> None:
        self._past: dict[Hashable, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that are kept; the same from the first piece on."""
        return sum(past.nbytes for past in self._past.values())

    def past(self, key: Hashable) -> Tensor | None:
        """What was kept under `key`; None at the beginning of the stream."""
        return self._past.get(key)

    def keep(self, key: Hashable, past: Tensor) -> None:
        """Keeps `past` until the next piece; no gradient reaches back over pieces."""
        self._past[key] = past.detach().clone()  # a view would hold the whole piece


def look_back(x: Tensor, context: int, state: StreamState | None, key: Hashable, dim: int = -1) -> Tensor:
    """Puts the `context` steps before x in front of it: [..., L, ...] -> [..., context + L, ...].

    :param state: Of the stream that x is a piece of; None if x is a whole clip.
    :param key: Tells what looks back; one for each place in the model.
    :param dim: The axis of time.
    """
    past = None if state is None else state.past(key)
    if past is None:
        shape = list(x.shape)
        shape[dim] = context
        past = x.new_zeros(shape)
    x = torch.cat([past, x], dim)
    if state is not None:
        state.keep(key, x.narrow(dim, x.shape[dim] - context, context))
    return x


def context_steps(config: EncoderConfig | GeneratorConfig, hop: int) -> int | None:
    """Earlier steps, of `hop` samples each, that attention and DAAM statistics see; None if they see the whole clip."""
    return max(1, round(config.lookback * config.sample_rate / hop)) if config.causal else None
