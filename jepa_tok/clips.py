"""Clips of any length through encoder and generator: cut into windows, batched, or heard as a stream where models are causal.

    B pieces of a batch   S samples   T frames   D code dimensions   G tokens of a frame   L steps of any kind

Run under `inference.exact_inference`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from jepa_tok.config import WindowConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.encoder import Encoder, EncoderOutput
from jepa_tok.models.generator import Generator
from jepa_tok.models.stream import StreamDecoder, StreamEncoder
from jepa_tok.windows import Joiner, Window, cut_frames, cut_samples

T = TypeVar("T")

POOL = 16
"""Batches' worth of pieces that are sorted by length together."""


@dataclass
class Piece:
    """What is run at once: a window of a clip."""

    clip: int
    window: Window
    content: Tensor
    """Samples [s], or ids [t, G]."""

    rest: Iterator[Tensor] | None = None
    """What follows where the clip runs as a stream, in order; None for a window that runs by itself."""

    @property
    def length(self) -> int:
        """Steps of the content."""
        return self.content.shape[0]


@dataclass
class Heard:
    """What the encoder gives for a run of a clip's frames."""

    clip: int
    first: int
    """Index of the run's first frame in its clip."""

    samples: int
    """Samples of the clip up to the run's end, or a little further: all of them in its last run."""

    latents: Tensor
    """[t, D]"""

    gates: list[Tensor]
    """DAAM gate of each stage over those frames, [steps of that stage]."""


# Speech to latents ----------------------------------------------------------------------------------------------------


def encode_clips(
    encoder: Encoder, clips: Iterable[Iterable[Tensor]], config: WindowConfig, batch_seconds: float | None
) -> Iterator[Heard]:
    """Encodes clips that come as blocks of samples [s]; runs come in any order.

    Window by window, in padded batches. A causal encoder hears clips as streams, frame by frame, and needs no windows; with
    `batch_seconds`, clips of up to a window go into batches all the same.
    """
    size, context = config.frames(encoder.config.frame_rate)
    hop, causal = encoder.config.hop, encoder.config.causal

    def pieces() -> Iterator[Piece]:
        for clip, blocks in enumerate(clips):
            cut = cut_samples(blocks, size, 0 if causal else context, hop)
            if not causal:
                yield from (Piece(clip, window, wave) for window, wave in cut)
                continue
            window, wave = next(cut)
            rest = [wave for _, wave in itertools.islice(cut, 1)]
            streamed = bool(rest) or batch_seconds is None
            yield Piece(clip, window, wave, itertools.chain(rest, (w for _, w in cut)) if streamed else None)

    for batch in padded_batches(pieces(), batch_seconds, encoder.config.sample_rate):
        if batch[0].rest is None:
            yield from _hear(encoder, batch)
        else:
            yield from _hear_stream(encoder, batch[0], batch[0].rest)


def _hear(encoder: Encoder, batch: list[Piece]) -> Iterator[Heard]:
    """A padded batch of windows."""
    hop, strides, device = encoder.config.hop, encoder.config.strides, next(encoder.parameters()).device
    lengths = torch.tensor([piece.length for piece in batch], device=device)
    padded = nn.utils.rnn.pad_sequence([piece.content for piece in batch], batch_first=True).to(device)  # [B, S]
    out = encoder(padded, lengths, return_gates=True)
    for i, piece in enumerate(batch):
        window, kept, gates = piece.window, piece.window.kept, []
        for stage, gate in enumerate(out.gates or []):
            steps = math.prod(strides[stage + 1 :])  # of a frame
            own = gate[i, : -(-piece.length * steps // hop)]
            gates.append(own[kept.start * steps : kept.stop * steps])
        yield Heard(piece.clip, window.first, window.start * hop + piece.length, out.latents[i, kept], gates)


def _hear_stream(encoder: Encoder, piece: Piece, rest: Iterator[Tensor]) -> Iterator[Heard]:
    """A whole clip, as it comes."""
    stream, frames, samples = StreamEncoder(encoder), 0, 0

    def run(out: EncoderOutput) -> Heard:
        nonlocal frames
        first, frames = frames, frames + out.latents.shape[1]
        return Heard(piece.clip, first, samples, out.latents[0], [gate[0] for gate in out.gates or []])

    for wave in itertools.chain([piece.content], rest):
        samples += wave.shape[0]
        yield run(stream.hear(wave))
    if samples % encoder.config.hop:
        yield run(stream.hear(torch.zeros(0), last=True))


# Latents to speech ----------------------------------------------------------------------------------------------------


def decode_clips(
    generator: Generator,
    clips: Iterable[Tensor],
    values: Callable[[Tensor], Tensor],
    config: WindowConfig,
    batch_seconds: float | None,
) -> Iterator[tuple[int, Tensor]]:
    """Decodes clips of ids [T, G]: (clip, its next samples [s]), float32 on the CPU, in order and T * hop in all.

    Window by window, in padded batches, or as streams (see `encode_clips`). `values` turns ids [B, T, G] into latents
    [B, T, D].
    """
    rate, hop = generator.config.sample_rate, generator.hop
    size, context = config.frames(rate / hop)
    joiners: dict[int, Joiner] = {}

    def pieces() -> Iterator[Piece]:
        for clip, ids in enumerate(clips):
            if generator.config.causal:
                first, *rest = ids.split(size)
                streamed = bool(rest) or batch_seconds is None
                yield Piece(clip, Window.whole(len(first)), first, iter(rest) if streamed else None)
            else:
                for window in cut_frames(ids.shape[0], size, context):
                    yield Piece(clip, window, ids[window.start : window.start + window.size])

    for batch in padded_batches(pieces(), batch_seconds, rate / hop):
        if batch[0].rest is not None:
            yield from _speak_stream(generator, batch[0], batch[0].rest, values)
            continue
        for piece, wave in zip(batch, _speak(generator, batch, values)):
            joiner = joiners.setdefault(piece.clip, Joiner(hop, round(config.fade * rate)))
            yield from ((piece.clip, settled) for settled in joiner.add(piece.window, wave))
            if joiner.done:
                del joiners[piece.clip]


def _speak(generator: Generator, batch: list[Piece], values: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """A padded batch of windows: the wave [size * hop] of each."""
    device = next(generator.parameters()).device
    lengths = torch.tensor([piece.length for piece in batch], device=device)
    padded = nn.utils.rnn.pad_sequence([piece.content for piece in batch], batch_first=True).to(device)  # [B, T, G]
    waves = generator(values(padded), lengths)  # [B, T * hop]
    return [wave[: piece.length * generator.hop].float().cpu() for piece, wave in zip(batch, waves)]


def _speak_stream(
    generator: Generator, piece: Piece, rest: Iterator[Tensor], values: Callable[[Tensor], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """A whole clip, as it is made."""
    stream, device = StreamDecoder(generator), next(generator.parameters()).device
    for ids in itertools.chain([piece.content], rest):
        yield piece.clip, stream.push(values(ids[None].to(device))[0])
    yield piece.clip, stream.finish()


# Both -----------------------------------------------------------------------------------------------------------------


def padded_batches(pieces: Iterable[Piece], seconds: float | None, rate: float) -> Iterator[list[Piece]]:
    """Groups pieces so that a padded group holds at most `seconds` at `rate` steps a second.

    A piece longer than that is a group of its own, as is a stream, and with `seconds` None each is. Pieces of like length go
    together; a bounded number is held at a time. Raises ConfigError for `seconds` that is not a positive number.
    """
    if seconds is None:
        yield from ([piece] for piece in pieces)
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ConfigError(f"`batch_seconds` must be a positive number, but is {seconds!r} instead.")
    limit = seconds * rate
    pool: list[Piece] = []
    size = 0
    for piece in pieces:
        if piece.rest is not None:  # at once: it holds what it is read from
            yield [piece]
            continue
        pool.append(piece)
        size += piece.length
        if size > POOL * limit:
            yield from split_by_length(pool, lambda piece: piece.length, limit)
            pool, size = [], 0
    yield from split_by_length(pool, lambda piece: piece.length, limit)


def split_by_length(items: Iterable[T], length: Callable[[T], float], limit: float) -> Iterator[list[T]]:
    """Items in groups of like length whose longest times their number is within `limit`, but for a longer one by itself."""
    batch: list[T] = []
    for item in sorted(items, key=length):  # those of one length stay in their order
        if batch and (len(batch) + 1) * length(item) > limit:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each fetched by another thread while the one before is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, iterator, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
