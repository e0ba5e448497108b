"""Utterances to tokens: audio is read ahead by other threads, clips of like length share a batch, bad files are handed back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.audio_source import end_commands, open_audio
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import AudioError, CorpusError

if TYPE_CHECKING:
    from torch import Tensor

    from jepa_tok.tokens import Tokens

OVERSHOOT = 0.5
"""Seconds by which a segment may end after its recording, as in Kaldi's extract-segments; it is cut there."""

READERS = 2
"""Threads that read audio, where not told."""

LONG = 600.0
"""Seconds above which a clip is not held in memory, but read while it is encoded."""

READ_AHEAD = 300.0
"""Seconds of audio that are read ahead, at least."""

POOL = 8
"""Batches' worth of clips that are sorted by length together."""


def encode_utterances(
    utterances: Sequence[Utterance], tokenizer: Any, batch_seconds: float | None = None, workers: int = READERS
) -> Generator[tuple[int, Tokens | AudioError], None, None]:
    """Index and tokens of each utterance; a bad file gives the AudioError in place of tokens.

    Clips are encoded one at a time in their order, or with `batch_seconds` in padded batches of up to that many seconds (see
    SpeechTokenizer.encode), drawn from a run of clips that comes to eight of them. `workers` threads read, decode and resample
    ahead, in order and no further than memory for `READ_AHEAD` seconds or one such run allows, whatever the files are.
    """
    if batch_seconds is not None and batch_seconds <= 0:
        raise CorpusError(f"`batch_seconds` must be greater than 0, but is {batch_seconds} instead.")
    rate = tokenizer.sample_rate
    pool_seconds = 0.0 if batch_seconds is None else POOL * batch_seconds

    with _Reader(utterances, rate, max(1, workers), max(READ_AHEAD, pool_seconds)) as clips:
        pool: dict[int, Tensor] = {}
        seconds = 0.0
        for i, clip in enumerate(clips):
            if isinstance(clip, AudioError):
                yield i, clip
            elif clip is None:
                yield i, _encode_long(utterances[i], tokenizer, batch_seconds)
            else:
                pool[i] = clip
                seconds += len(clip) / rate
                if seconds > pool_seconds:
                    yield from _encode_pool(pool, tokenizer, batch_seconds)
                    pool, seconds = {}, 0.0
        yield from _encode_pool(pool, tokenizer, batch_seconds)


def _encode_pool(pool: dict[int, Tensor], tokenizer: Any, batch_seconds: float | None) -> Iterator[tuple[int, Tokens]]:
    from jepa_tok.clips import split_by_length

    rate = tokenizer.sample_rate
    for batch in split_by_length(list(pool), lambda i: len(pool[i]) / rate, batch_seconds or 0.0):
        waves = [pool.pop(i) for i in batch]
        tokens = tokenizer.encode(waves, sample_rate=rate, batch_seconds=batch_seconds)
        yield from zip(batch, tokens, strict=True)


def _encode_long(u: Utterance, tokenizer: Any, batch_seconds: float | None) -> Tokens | AudioError:
    from jepa_tok.audio import AudioFile

    rate = tokenizer.sample_rate
    try:
        with open_audio(u) as source:
            clip = AudioFile(source, rate, start=u.start, end=u.end)
            (tokens,) = tokenizer.encode([clip], sample_rate=None, batch_seconds=batch_seconds)
        _check_end(u, tokens.num_samples / rate)
        return tokens
    except AudioError as error:
        return error


# Reading ahead --------------------------------------------------------------------------------------------------------


class _Reader:
    """The clips of utterances in order, read by threads: wave [S], None for one longer than LONG, or the AudioError.

    What the threads hold is counted as they read it, done or not. At the bound they wait, but for the one whose clip is due:
    without it nothing would go on. So no more is held than the bound, the clip that is due, and a block for each thread (twice a
    clip while its blocks are joined).
    """

    def __init__(self, utterances: Sequence[Utterance], rate: int, workers: int, seconds: float) -> None:
        self._utterances, self._rate, self._limit = utterances, rate, round(seconds * rate)
        self._changed = threading.Condition()
        self._next = 0  # index that is read next
        self._due = 0  # index that is given next
        self._ready: dict[int, Any] = {}
        self._held: dict[int, int] = {}  # samples of each clip that is ready or being read
        self._total = 0  # of them all
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(min(workers, len(utterances)))]

    def __enter__(self) -> _Reader:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C as likely as not: to start a thread is to wait for it
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # They end with their block; a process that ends before them can crash in the libraries they are in. A command may have
        # been about to start, so that its thread is asked more than once.
        deadline = time.monotonic() + 2.0
        while (alive := [t for t in self._threads if t.is_alive()]) and time.monotonic() < deadline:
            end_commands(alive)
            alive[0].join(timeout=0.05)

    def __iter__(self) -> Iterator[Tensor | AudioError | None]:
        for i in range(len(self._utterances)):
            with self._changed:
                self._due = i
                self._changed.notify_all()
                while i not in self._ready:
                    self._changed.wait()
                clip = self._ready.pop(i)
                self._total -= self._held.pop(i, 0)
                self._changed.notify_all()
            if isinstance(clip, BaseException) and not isinstance(clip, AudioError):
                raise clip  # a fault of ours, not of the file
            yield clip

    def _work(self) -> None:
        while True:
            with self._changed:
                # Bad files weigh nothing, so their number is bounded too.
                while not self._closed and (self._total >= self._limit or len(self._ready) >= 10_000):
                    self._changed.wait()
                i, self._next = self._next, self._next + 1
                if self._closed or i >= len(self._utterances):
                    return
            try:
                clip: Any = load_clip(self._utterances[i], self._rate, lambda samples: self._hold(i, samples))  # noqa: B023
            except BaseException as error:
                clip = error
            with self._changed:
                self._ready[i] = clip
                if clip is None or isinstance(clip, BaseException):
                    self._total -= self._held.pop(i, 0)
                self._changed.notify_all()

    def _hold(self, i: int, samples: int) -> None:
        """Counts samples that were read of clip `i`, and waits until there is room for more."""
        with self._changed:
            self._held[i] = self._held.get(i, 0) + samples
            self._total += samples
            while self._total >= self._limit and i != self._due and not self._closed:
                self._changed.wait()
            if self._closed:
                raise InterruptedError("nobody waits for the clip any more")


def load_clip(u: Utterance, rate: int, hold: Callable[[int], None] = lambda samples: None) -> Tensor | None:
    """Mono float32 [S] of an utterance, or None if it is longer than LONG; raises AudioError for a bad file.

    `hold` is told the samples of each block that is held from then on.
    """
    import torch

    from jepa_tok.audio import AudioFile

    blocks, size = [], 0
    with open_audio(u) as source:
        for block in AudioFile(source, rate, start=u.start, end=u.end):
            blocks.append(block)
            size += len(block)
            if size > LONG * rate:
                return None
            hold(len(block))
    _check_end(u, size / rate)
    return torch.cat(blocks)


def _check_end(u: Utterance, seconds: float) -> None:
    if u.end is not None and u.end - (u.start or 0.0) - seconds > OVERSHOOT:
        raise AudioError(f"'{u.path}' must last to the segment's end ({u.end} s) within {OVERSHOOT} s, but does not.")
