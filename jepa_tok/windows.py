"""Long clips as overlapping windows: which frames each window hears, which of them it gives, and how waveforms are joined.

    W frames of a window   C frames of context   T frames of a clip

Window k hears frames [k * (W - 2C), k * (W - 2C) + W) and gives all but C on either side; the first gives its beginning too,
and the last, the first that reaches the clip's end, its end. So each frame is given once, its place in the windows
depends on the clip's beginning alone, and what is further away than a window does not touch it. The rule needs no look at
the clip's length: a window is cut as soon as one sample behind it is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Frames [start, start + size) of a clip are heard, of which [first, last) are given."""

    index: int
    """Of the window in its clip."""

    start: int
    size: int
    first: int
    last: int

    @classmethod
    def whole(cls, num_frames: int) -> Window:
        """The window of a clip that needs no other."""
        return cls(0, 0, num_frames, 0, num_frames)

    @property
    def kept(self) -> slice:
        """The frames that are given, counted from the window's start."""
        return slice(self.first - self.start, self.last - self.start)


def cut_frames(num_frames: int, size: int, context: int) -> Iterator[Window]:
    """The windows of a clip of T frames; one, that gives all, where T <= `size`."""
    step = size - 2 * context
    for index in range(max(1, -(-(num_frames - 2 * context) // step))):
        start = index * step
        end = min(start + size, num_frames)
        first = start + context if index else 0
        yield Window(index, start, end - start, first, num_frames if end == num_frames else end - context)


def cut_samples(blocks: Iterable[Tensor], size: int, context: int, hop: int) -> Iterator[tuple[Window, Tensor]]:
    """The windows of a clip that comes in blocks [s] of any size, each with its samples; little more than one is held.

    A clip's last frame may be partial: its samples are those that there are.
    """
    step = size - 2 * context
    held: list[Tensor] = []
    length = index = 0

    def window(last: bool) -> tuple[Window, Tensor]:
        heard = torch.cat(held) if len(held) > 1 else held[0]
        frames = -(-length // hop) if last else size
        start = index * step
        kept = start + frames if last else start + frames - context
        return Window(index, start, frames, start + context if index else 0, kept), heard

    for block in blocks:
        held.append(block)
        length += block.shape[0]
        while length > size * hop:
            made, heard = window(last=False)
            yield made, heard[: size * hop]
            held, length, index = [heard[step * hop :]], length - step * hop, index + 1
    if length:
        yield window(last=True)


class Joiner:
    """Joins the waveforms of a clip's windows, with a linear cross-fade where two meet."""

    def __init__(self, hop: int, fade: int) -> None:
        """`fade`: samples of the cross-fade, at most twice the windows' context, and what a window gives."""
        self.hop, self.before = hop, fade // 2
        self.fade = 2 * self.before
        self._waiting: dict[int, tuple[Window, Tensor]] = {}
        self._next = 0  # index of the window that is due
        self._end = 0  # samples of the clip that are settled
        self._tail: Tensor | None = None  # [fade], what the last window says of the samples after those

    def add(self, window: Window, wave: Tensor) -> Iterator[Tensor]:
        """Takes a window's wave [size * hop], in any order; gives what is settled of the clip by it, in order."""
        self._waiting[window.index] = window, wave
        while self._next in self._waiting:
            yield self._join(*self._waiting.pop(self._next))
            self._next += 1

    @property
    def done(self) -> bool:
        """Whether the clip's last window has been joined."""
        return self._tail is None and self._next > 0

    def _join(self, window: Window, wave: Tensor) -> Tensor:
        offset = window.start * self.hop
        start = self._end - offset
        head = wave[:0]
        if self._tail is not None:
            weight = (torch.arange(self.fade, dtype=wave.dtype, device=wave.device) + 0.5) / max(self.fade, 1)
            head = self._tail + weight * (wave[start : start + self.fade] - self._tail)
            start += self.fade
        self._tail, end = None, wave.shape[0]
        if window.last < window.start + window.size:  # not the clip's last
            end = window.last * self.hop - offset - self.before
            self._tail = wave[end : end + self.fade]
        self._end = offset + end
        return torch.cat([head, wave[start:end]])
