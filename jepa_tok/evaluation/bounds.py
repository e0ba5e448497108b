"""The systems of the table: the tokenizer, and what its figures are read against.

    tokens      the tokenizer: encode, decode
    latents     its decoder on latents that were bounded but not rounded: what the bits cost
    original    the clip itself: the best that each metric gives, and what the recogniser does at best
    codec2      Codec2 at 700, 1300 and 2400 bit/s
    opus        Opus at 6 kbit/s
    griffinlim  80 mels of the original turned to sound by Griffin and Lim's iteration: what a mel decoder without learning gives
    other       another utterance, of another speaker where there is one: the floor of each metric

S samples   T frames   D code dimensions
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from jepa_tok.clips import decode_clips
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import AudioError, ConfigError
from jepa_tok.evaluation.codecs import Codec2, Opus, delay_of, shift
from jepa_tok.inference import exact_inference
from jepa_tok.tokens import Tokens

CALIBRATION = 8
"""Utterances on which a codec's delay is measured."""


@dataclass
class Output:
    """What a system gives for an utterance."""

    wave: Tensor
    """float32 [S], as long as the original."""

    tokens: Tokens | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Time that its parts took."""


class System(ABC):
    """Base of all: makes [S] of [S] at the tokenizer's rate."""

    label: str
    bit_rate: float | None = None
    """Bits per second, nominal; None where it has none."""

    delay: float | None = None
    """Seconds that were taken away; None where there are none by construction."""

    def missing(self) -> str | None:
        """Why it cannot be had here, or None."""
        return None

    def calibrate(self, waves: Sequence[Tensor]) -> None:  # noqa: B027  (most have nothing to learn)
        """Hears a few waves before the first utterance."""

    @abstractmethod
    def __call__(self, wave: Tensor, index: int) -> Output:
        """Resynthesis of `wave`, the clip of utterance `index`."""


class TokensSystem(System):
    """The tokenizer that is judged."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.label = f"`{tokenizer.config.name}` tokens"
        self.bit_rate = nominal_bit_rate(tokenizer)

    def calibrate(self, waves: Sequence[Tensor]) -> None:
        self.tokenizer.decode(self.tokenizer.encode(waves[0]))  # what a first call builds is not timed

    def __call__(self, wave: Tensor, index: int) -> Output:
        began = time.perf_counter()
        tokens = self.tokenizer.encode(wave)
        encoded = time.perf_counter()
        made = self.tokenizer.decode(tokens)
        return Output(made, tokens, {"encode": encoded - began, "decode": time.perf_counter() - encoded})


class LatentsSystem(System):
    """The tokenizer without rounding."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.label = f"`{tokenizer.config.name}` latents, unquantised"

    def __call__(self, wave: Tensor, index: int) -> Output:
        t = self.tokenizer
        z = t.latents(wave)  # [T, D]
        with exact_inference(t, t.device):
            blocks = [b.clone() for _, b in decode_clips(t.generator, [z], t.fsq.bound, t.config.window, None)]
        return Output(torch.cat(blocks)[: len(wave)])


class OriginalSystem(System):
    """The clip itself."""

    label = "original"

    def __call__(self, wave: Tensor, index: int) -> Output:
        return Output(wave)


class CodecSystem(System):
    """A codec with its delay taken away."""

    def __init__(self, codec: Codec2 | Opus, sample_rate: int) -> None:
        self.codec, self.sample_rate = codec, sample_rate
        self.label, self.bit_rate = codec.label, codec.bit_rate

    def missing(self) -> str | None:
        return self.codec.missing()

    def calibrate(self, waves: Sequence[Tensor]) -> None:
        rate = self.sample_rate
        self.delay = statistics.median_low([delay_of(w, self.codec(w, rate), rate) for w in waves])

    def __call__(self, wave: Tensor, index: int) -> Output:
        made = self.codec(wave, self.sample_rate)
        return Output(shift(made, self.delay or 0.0, self.sample_rate, len(wave)))


class GriffinLimSystem(System):
    """Mel inversion (Griffin and Lim, 1984, DOI 10.1109/TASSP.1984.1164317; fast, Perraudin et al., 2013; librosa's)."""

    label = "Griffin-Lim, 80 mels"
    MELS, SIZE, ITERATIONS = 80, 1024, 32

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate

    def missing(self) -> str | None:
        return None if find_spec("librosa") else "not available: pip install librosa"

    def __call__(self, wave: Tensor, index: int) -> Output:
        import librosa

        rate, size, hop = self.sample_rate, self.SIZE, self.sample_rate // 100
        mel = librosa.feature.melspectrogram(
            y=wave.numpy(), sr=rate, n_fft=size, hop_length=hop, n_mels=self.MELS, power=1.0
        )
        magnitude = librosa.feature.inverse.mel_to_stft(mel, sr=rate, n_fft=size, power=1.0)
        made = librosa.griffinlim(
            magnitude,
            n_iter=self.ITERATIONS,
            hop_length=hop,
            n_fft=size,
            length=len(wave),
            random_state=0,
        )
        return Output(torch.from_numpy(made).float())


class OtherSystem(System):
    """The next utterance of another speaker, or where all are of one the next; cut, or repeated, to the clip's length."""

    label = "another utterance"

    def __init__(self, utterances: Sequence[Utterance], sample_rate: int) -> None:
        self.utterances, self.sample_rate = utterances, sample_rate

    def missing(self) -> str | None:
        return None if len(self.utterances) > 1 else "not available: there is no other utterance"

    def __call__(self, wave: Tensor, index: int) -> Output:
        order = [*self.utterances[index + 1 :], *self.utterances[:index]]
        own = self.utterances[index].info.get("speaker")
        other = next((u for u in order if u.info.get("speaker") != own), order[0])
        heard = load_utterance(other, self.sample_rate)
        if not len(heard):
            raise AudioError(f"'{other.id}' must have samples, but has none.")
        return Output(heard.repeat(-(-len(wave) // len(heard)))[: len(wave)])


def nominal_bit_rate(tokenizer: Any) -> float:
    """Bits per second of audio that its codes can hold: frames a second times the logarithms of the levels."""
    radices = torch.tensor(tokenizer.config.quantizer.radices, dtype=torch.float64)
    return tokenizer.frame_rate * float(radices.log2().sum())


Make = Callable[[Any, Sequence[Utterance]], list[System]]

BOUNDS: dict[str, Make] = {
    "latents": lambda tokenizer, _: [LatentsSystem(tokenizer)],
    "original": lambda tokenizer, _: [OriginalSystem()],
    "codec2": lambda tokenizer, _: [
        CodecSystem(Codec2(mode, rate), tokenizer.sample_rate)
        for mode, rate in (("700C", 700.0), ("1300", 1300.0), ("2400", 2400.0))
    ],
    "opus": lambda tokenizer, _: [CodecSystem(Opus(6000.0), tokenizer.sample_rate)],
    "griffinlim": lambda tokenizer, _: [GriffinLimSystem(tokenizer.sample_rate)],
    "other": lambda tokenizer, utterances: [OtherSystem(utterances, tokenizer.sample_rate)],
}
"""What may stand beside the tokenizer, in the order of the table."""


def choose_systems(tokenizer: Any, utterances: Sequence[Utterance], names: Sequence[str] | None) -> list[System]:
    """The tokenizer, then the bounds of these names, all of them for None; raises ConfigError for an unknown one."""
    for name in names or ():
        if name not in BOUNDS:
            raise ConfigError(f"`bounds` must be among {', '.join(BOUNDS)}, but is '{name}' instead.")
    chosen = BOUNDS if names is None else names
    made = [system for name in BOUNDS if name in chosen for system in BOUNDS[name](tokenizer, utterances)]
    return [TokensSystem(tokenizer), *made]
