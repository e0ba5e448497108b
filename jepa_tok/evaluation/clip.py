"""`Clip`: a wave with what was computed from it once, for all metrics that ask.

S samples
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from jepa_tok.audio import resample

T = TypeVar("T")


class Clip:
    """A mono wave and what is known of it."""

    def __init__(self, wave: Tensor, sample_rate: int, text: str | None = None) -> None:
        self.wave = wave
        """float32 [S] on the CPU."""

        self.sample_rate = sample_rate
        self.text = text
        """What is said; None where nobody wrote it down."""

        self._made: dict[Any, Any] = {}

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.wave.shape[0] / self.sample_rate

    def at(self, sample_rate: int) -> np.ndarray:
        """The samples at another rate, float32 [ceil(S * sample_rate / own)], clipped to [-1, 1]."""
        return self.once(
            ("at", sample_rate), lambda _: resample(self.wave, self.sample_rate, sample_rate).clamp(-1.0, 1.0).numpy()
        )

    def once(self, key: Any, make: Callable[[Clip], T]) -> T:
        """What `make` gives for this clip: called for the first request of `key`, remembered for the others."""
        if key not in self._made:
            self._made[key] = make(self)
        return self._made[key]
