"""Streams: tokens while someone speaks, and speech while tokens come, for tokenizers whose models are causal.

S samples   T frames   G tokens of a frame
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from jepa_tok import packing
from jepa_tok.audio import Resampler, check_rate, mix_down
from jepa_tok.errors import AudioError, JepaTokError, TokenError
from jepa_tok.inference import exact_inference
from jepa_tok.models.stream import StreamDecoder, StreamEncoder
from jepa_tok.tokens import Tokens

if TYPE_CHECKING:
    from jepa_tok.tokenizer import SpeechTokenizer


class StreamingSession:
    """One stream of speech to tokens and, beside it, of tokens to speech; made by `SpeechTokenizer.streaming`.

        with tokenizer.streaming(sample_rate=16_000) as stream:
            for chunk in microphone:
                ids = stream.push(chunk)  # [t, G]: a frame for each 400 ms that are complete
                speaker.play(stream.decode(ids))
            ids = stream.finish()  # the last frame, which may be partial
            tokens = stream.tokens
            speaker.play(stream.decode(ids, tokens.num_samples))  # cut where the clip ends
            speaker.play(stream.flush())

    The ids are those that `encode` gives for the whole clip, whatever the sizes of the chunks. Encoding and decoding know
    nothing of each other: ids to decode may come from a language model.

    :param tokenizer: Its encoder must be causal, and for `decode` its generator.
    :param sample_rate: That of the chunks; the tokenizer's own if None.
    :raises ConfigError: The encoder is not causal.
    :raises AudioError: `sample_rate` is not a whole number from 4 to 192 kHz.
    """

    def __init__(self, tokenizer: SpeechTokenizer, sample_rate: int | None = None) -> None:
        rate = tokenizer.sample_rate if sample_rate is None else sample_rate
        self.tokenizer = tokenizer
        self._resampler = Resampler(check_rate(rate, "the stream"), tokenizer.sample_rate)
        self._encoder = StreamEncoder(tokenizer.encoder)
        self._decoder: StreamDecoder | None = None
        self._spoken = 0  # frames of the clip that is decoded
        self._ended = False  # whether its length was told
        self._ids: list[Tensor] = []
        self._taken = 0  # samples, as they came
        self._num_samples = 0  # at the tokenizer's rate
        self._finished = self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed = True

    def push(self, chunk: Any) -> Tensor:
        """The next samples, any number of them -> ids int64 [t, G] of the frames that they complete, t >= 0.

        `chunk` is what `encode` takes as samples: a tensor, array or list [S] or [C, S], floats in [-1, 1] or integers; an
        empty one is fine. Raises AudioError, and leaves the stream as it was, for what `mix_down` refuses.
        """
        self._check_hearing()
        if _is_empty(chunk):
            return self._hear(torch.zeros(0))
        wave = mix_down(chunk, "the stream", self._taken)
        self._taken += wave.shape[0]
        return self._hear(self._resampler.push(wave))

    def finish(self) -> Tensor:
        """Ends the clip: ids int64 [t, G] of its last frames, of which the very last may be partial."""
        self._check_hearing()
        self._finished = True
        return self._hear(self._resampler.finish(), last=True)

    @property
    def tokens(self) -> Tokens:
        """All tokens of the clip; raises JepaTokError before `finish`, AudioError if the clip had no samples."""
        if not self._finished:
            raise JepaTokError("the stream must be finished before its `tokens` are taken; call `finish` first.")
        if not self._num_samples:
            raise AudioError("the stream must have at least one sample, but has none.")
        return self.tokenizer.tokens(torch.cat(self._ids), self._num_samples)

    def decode(self, ids: Any, num_samples: int | None = None) -> Tensor:
        """The next frames' ids [t, G], t >= 0 -> the samples float32 [n] that they settle, at the tokenizer's rate.

        The wave comes `config.generator.delay` samples late; `flush` gives the rest. With the clip's last frames may come its
        length `num_samples`, where the wave then ends; else it ends with the last frame, at T * hop. Raises ConfigError for a
        generator that is not causal, and TokenError, leaving the stream as it was, for ids out of range or of a wrong shape,
        and for a length that does not end in these frames.
        """
        self._check_open()
        if self._ended:
            raise JepaTokError("no frames must follow those that came with `num_samples`; call `flush` first.")
        ids = packing.as_integers(ids, "ids")
        groups = self.tokenizer.num_groups
        if ids.ndim != 2 or ids.shape[1] != groups:
            raise TokenError(f"`ids` must have shape [T, {groups}], but has {list(ids.shape)} instead.")
        if num_samples is not None and (isinstance(num_samples, bool) or not hasattr(num_samples, "__index__")):
            raise TokenError(f"`num_samples` must be an integer, but is {num_samples!r} instead.")
        hop, frames = self.tokenizer.hop, self._spoken + ids.shape[0]
        excess = 0 if num_samples is None else frames * hop - num_samples
        if not 0 <= excess < (hop if ids.shape[0] else 1):
            raise TokenError(
                f"`num_samples` must end in the frames that it comes with, of {frames} in all, but is {num_samples}."
            )
        if self._decoder is None:
            self._decoder = StreamDecoder(self.tokenizer.generator)
        fsq = self.tokenizer.fsq
        with exact_inference(self.tokenizer, self.tokenizer.device):
            wave = self._decoder.push(fsq.dequantize(fsq.unpack(ids)), excess)
        self._spoken, self._ended = frames, num_samples is not None
        return self._finite(wave, "decode to finite audio", "generator").clone()

    def flush(self) -> Tensor:
        """Ends the decoded clip: its last samples [n], so that all are `num_samples`, or T * hop where `decode` was not told.

        The next `decode` begins another clip.
        """
        self._check_open()
        decoder, self._decoder = self._decoder, None
        self._spoken, self._ended = 0, False
        if decoder is None:
            return torch.zeros(0)
        with exact_inference(self.tokenizer, self.tokenizer.device):
            wave = decoder.finish()
        return self._finite(wave, "decode to finite audio", "generator").clone()

    @property
    def state_bytes(self) -> int:
        """Memory of the layers' states, which does not grow; beside them the ids alone are kept, for `tokens`."""
        return self._encoder.state.nbytes + (0 if self._decoder is None else self._decoder.state.nbytes)

    def _hear(self, wave: Tensor, last: bool = False) -> Tensor:
        """Samples [s] at the tokenizer's rate -> ids [t, G]."""
        self._num_samples += wave.shape[0]
        if wave.shape[0] < self._encoder.missing and not last:  # setting up inference costs more than such a chunk
            self._encoder.push(wave)
            return torch.zeros(0, self.tokenizer.num_groups, dtype=torch.int64)
        fsq = self.tokenizer.fsq
        with exact_inference(self.tokenizer, self.tokenizer.device):
            latents = self._encoder.hear(wave, last).latents[0]
            ids = fsq.pack(fsq.quantize(self._finite(latents, "have finite latents", "encoder"))).cpu()
        ids = ids.clone()  # outside inference mode: an embedding layer in training may take it
        self._ids.append(ids)
        return ids

    def _finite(self, values: Tensor, what: str, model: str) -> Tensor:
        if not bool(values.isfinite().all()):
            dtype = str(self.tokenizer.dtype).removeprefix("torch.")
            raise JepaTokError(
                f"the stream must {what}, but the {model} in {dtype} gave others; "
                "try float32, or look for a training run that diverged."
            )
        return values

    def _check_open(self) -> None:
        if self._closed:
            raise JepaTokError("the stream must be open, but its `with` block has ended; begin another.")

    def _check_hearing(self) -> None:
        self._check_open()
        if self._finished:
            raise JepaTokError("the stream must not be finished before more audio comes, but it is; begin another.")


def _is_empty(chunk: Any) -> bool:
    """Whether a chunk is samples, none of them."""
    if isinstance(chunk, Tensor):
        return chunk.numel() == 0 and chunk.ndim in (1, 2)
    try:
        array = np.asarray(chunk)
    except (ValueError, TypeError):
        return False  # `mix_down` says why
    return array.size == 0 and array.ndim in (1, 2)
