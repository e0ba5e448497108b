"""Utterances to tokens: clips of like length in a batch, the next batch read while one is encoded, bad files handed back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.manifest import Utterance
from jepa_tok.errors import AudioError, CorpusError

if TYPE_CHECKING:
    from jepa_tok.tokens import Tokens

OVERSHOOT = 0.5
"""Seconds by which a segment may end after its recording, as in Kaldi's extract-segments; it is cut there."""

READ_AHEAD = 60.0
"""Seconds of audio that are read at a time where clips are encoded one by one."""


def encode_utterances(
    utterances: Sequence[Utterance], tokenizer: Any, batch_seconds: float | None = None, workers: int = 2
) -> Iterator[tuple[int, Tokens | AudioError]]:
    """Index and tokens of each utterance, shortest first; a bad file gives the AudioError in place of tokens.

    Clips are encoded one at a time, or with `batch_seconds` in padded batches of up to that many seconds (see
    SpeechTokenizer.encode). While one group is encoded, `workers` threads read the next.
    """
    from jepa_tok.audio import load_audio

    if batch_seconds is not None and batch_seconds <= 0:
        raise CorpusError(f"`batch_seconds` must be greater than 0, but is {batch_seconds} instead.")
    rate = tokenizer.sample_rate

    def load(u: Utterance) -> Any:
        try:
            wave = load_audio(u.path, rate, start=u.start, end=u.end)
            if u.end is not None and u.end - (u.start or 0.0) - len(wave) / rate > OVERSHOOT:
                raise AudioError(
                    f"'{u.path}' must last to the segment's end ({u.end} s) within {OVERSHOOT} s, but does not."
                )
            return wave
        except AudioError as e:
            return e

    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            batches = make_batches(list(pool.map(_seconds, utterances)), batch_seconds or READ_AHEAD)
            ahead: list[Future[Any]] = []
            for number in range(len(batches) + 1):
                waiting, ahead = ahead, []
                if number < len(batches):
                    ahead = [pool.submit(load, utterances[i]) for i in batches[number]]
                if not number:
                    continue
                loaded = list(zip(batches[number - 1], [f.result() for f in waiting]))
                good = [(i, wave) for i, wave in loaded if not isinstance(wave, AudioError)]
                yield from ((i, error) for i, error in loaded if isinstance(error, AudioError))
                if good:
                    tokens = tokenizer.encode([wave for _, wave in good], sample_rate=rate, batch_seconds=batch_seconds)
                    yield from zip([i for i, _ in good], tokens, strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _seconds(u: Utterance) -> float:
    # Only decides who shares a batch, so a file that cannot be opened is left for `load_audio` to refuse.
    import soundfile

    if u.end is not None:
        return u.end - (u.start or 0.0)
    with contextlib.suppress(soundfile.SoundFileError, OSError, RuntimeError):
        return soundfile.info(u.path).duration - (u.start or 0.0)
    return 0.0


def make_batches(seconds: Sequence[float], batch_seconds: float) -> list[list[int]]:
    """Indices by length; longest times size of a batch stays within the bound, but for a clip longer than the bound."""
    batches: list[list[int]] = []
    for i in sorted(range(len(seconds)), key=lambda i: (seconds[i], i)):
        if batches and (len(batches[-1]) + 1) * seconds[i] <= batch_seconds:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
