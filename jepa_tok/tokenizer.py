"""`SpeechTokenizer`: speech to tokens and back, the contract that everything else in this package leans on.

    B clips   S samples   T frames   D code dimensions   G tokens of a frame

encode: audio -> mono at 24 kHz -> encoder -> z [T, D] -> FSQ codes [T, D] -> packed ids [T, G], with T = ceil(S / 9600).
decode: ids -> codes -> values -> generator -> T * 9600 samples, cut to the S that travels with the tokens.

The same clip gives the same ids whatever else is in the call: clips run one at a time unless `batch_seconds` asks for
padded batches, which hide padding from every layer but may differ in the last bit of a float, and so, once in thousands of
frames, in an id. Clips longer than a window of the config run window by window, in bounded memory (`windows`). Whatever the caller has set (training mode, gradients, autocast, TF32), both run in evaluation and
inference mode, at the precision of the weights; quantising and packing are float32 and int64 always.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from jepa_tok import hub, packing
from jepa_tok.audio import AudioFile, prepare_wave
from jepa_tok.clips import Heard, decode_clips, encode_clips, read_ahead
from jepa_tok.config import TokenizerConfig
from jepa_tok.errors import AudioError, ConfigError, JepaTokError, TokenError
from jepa_tok.inference import exact_inference, usual_defaults
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.fsq import FSQ
from jepa_tok.models.generator import Generator
from jepa_tok.presets import tokenizer_config
from jepa_tok.seeding import seeded
from jepa_tok.streaming import StreamingSession
from jepa_tok.tokens import Tokens


class SpeechTokenizer(nn.Module):
    """Encoder, quantiser and generator with their config; made by `from_config`, `from_pretrained` or `from_modules`.

        tokenizer = SpeechTokenizer.from_pretrained("exp/tokenizer")
        tokens = tokenizer.encode(load_audio("speech.flac"))
        wave = tokenizer.decode(tokens)

    A module like any other: `.to(device, dtype)`, `.state_dict()`, `.parameters()`.
    """

    encoder: Encoder
    fsq: FSQ
    generator: Generator

    def __init__(self, config: TokenizerConfig, encoder: Encoder, fsq: FSQ, generator: Generator) -> None:
        super().__init__()
        config.check()
        self.config = copy.deepcopy(config)
        self.encoder = encoder
        self.fsq = fsq
        self.generator = generator
        self._hash: tuple[Any, str] | None = None

    # --- making, loading, saving

    @classmethod
    def from_config(cls, config: str | TokenizerConfig | Mapping[str, Any], seed: int = 0) -> SpeechTokenizer:
        """An untrained tokenizer: a preset's name, a config, or a config as a nested dict.

        The same seed gives the same weights; the global random state is left as it was. Raises ConfigError for an unknown
        name, fields that contradict each other, or a seed that torch does not take.
        """
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not -(2**63) <= int(seed) < 2**64:
            raise ConfigError(f"`seed` must be a whole number of at most 64 bits, but is {seed!r} instead.")
        if isinstance(config, str):
            config = tokenizer_config(config)
        elif isinstance(config, Mapping):
            config = hub.parse_config(config)
        elif not isinstance(config, TokenizerConfig):
            raise ConfigError(
                f"`config` must be a preset's name, a TokenizerConfig or a dict, but is {type(config).__name__} instead."
            )
        with seeded(int(seed)):
            return cls._build(config, "cpu")

    @classmethod
    def from_pretrained(cls, name_or_folder: str | os.PathLike[str]) -> SpeechTokenizer:
        """The tokenizer saved in a folder, or a packaged one by its name; on the CPU, in evaluation mode.

        A folder that is there comes before a packaged tokenizer of the same name (`hub.find_pretrained`). Nothing is downloaded.
        Raises ConfigError where the folder is missing, or its config or weights are not those of one tokenizer.
        """
        folder = hub.read_folder(name_or_folder)
        tokenizer = cls._build(folder.config, "meta")  # nothing is allocated or drawn for weights that are read anyway
        hub.check_tensors(tokenizer.state_dict(), folder.tensors, folder.path / hub.WEIGHTS_FILE)
        tokenizer.load_state_dict(folder.tensors, assign=True)
        return tokenizer

    @classmethod
    def from_modules(cls, config: TokenizerConfig, encoder: Encoder, fsq: FSQ, generator: Generator) -> SpeechTokenizer:
        """A tokenizer around existing modules, for example those of a codec in training; they are shared, not copied."""
        return cls(config, encoder, fsq, generator)

    def save_pretrained(self, folder: str | os.PathLike[str], compact: bool = False) -> Path:
        """Writes `config.json` and `model.safetensors`; the folder appears whole or not at all.

        `compact` writes a quarter of the size, with weights rounded to int8 (`jepa_tok.compact`): what `from_pretrained` loads of
        it is a tokenizer of its own, with another hash and about one in two hundred codes changed. Measure that one.

        An existing tokenizer's files are replaced; any other folder with files in it is refused with a ConfigError, as are
        weights of which no compact form can be made.
        """
        return hub.write_folder(folder, self.config, self.state_dict(), compact)

    @classmethod
    def _build(cls, config: TokenizerConfig, device: str) -> SpeechTokenizer:
        config.check()
        with usual_defaults(device):
            return cls(config, Encoder(config.encoder), FSQ(config.quantizer), Generator(config.generator)).eval()

    # --- what a language model needs to know

    @property
    def sample_rate(self) -> int:
        """Samples per second that are encoded and decoded."""
        return self.config.encoder.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.config.encoder.frame_rate

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return self.config.encoder.hop

    @property
    def num_groups(self) -> int:
        """Tokens of a frame (G)."""
        return self.config.quantizer.num_groups

    @property
    def vocab_sizes(self) -> list[int]:
        """Number of ids of each of the G tokens of a frame."""
        return self.config.quantizer.vocab_sizes

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the encoder's weights; quantising is float32 whatever it is."""
        return next(self.encoder.parameters()).dtype

    @property
    def hash(self) -> str:
        """16 hex digits that name config and weights, the same on every device and in every folder.

        Computed once and again when weights change (writing through `.data` goes unnoticed: it leaves no trace).
        """
        # Asked for with every clip, so this walks the modules' own dictionaries: state_dict() takes as long as a short clip.
        tensors = [
            t for m in self.modules() for own in (m._parameters, m._buffers) for t in own.values() if t is not None
        ]
        versions = [(t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
        key = (repr(self.config), versions)
        if self._hash is None or self._hash[0] != key:
            self._hash = (key, hub.tokenizer_hash(self.config, self.state_dict(keep_vars=True)))
        return self._hash[1]

    def num_frames(self, num_samples: int) -> int:
        """Frames of a clip: ceil(S / hop)."""
        return -(-num_samples // self.hop)

    def tokens(self, ids: Any, num_samples: int | None = None) -> Tokens:
        """Tokens of this tokenizer from bare ids [T, G], for example of a language model; whole frames unless told.

        Raises TokenError for ids out of range, a wrong shape, or a `num_samples` that does not make T frames.
        """
        ids = packing.as_integers(ids, "ids")
        if num_samples is None:
            num_samples = max(ids.shape[0], 1) * self.hop
        quantizer = self.config.quantizer
        made = Tokens(ids, num_samples, tuple(quantizer.radices), quantizer.group_size, self.sample_rate, self.hash)
        self._check_tokens(made, "tokens", check=True)
        return made

    # --- speech to tokens

    @overload
    def encode(
        self, wave: list[Tensor], sample_rate: int | None = ..., *, batch_seconds: float | None = ...
    ) -> list[Tokens]: ...
    @overload
    def encode(
        self,
        wave: Tensor | np.ndarray | str | os.PathLike[str],
        sample_rate: int | None = ...,
        *,
        batch_seconds: float | None = ...,
    ) -> Tokens: ...
    @overload
    def encode(self, wave: Any, sample_rate: int | None = ..., *, batch_seconds: float | None = ...) -> Any: ...

    def encode(self, wave: Any, sample_rate: int | None = None, *, batch_seconds: float | None = None) -> Any:
        """Speech to tokens: one clip to `Tokens`, a list of clips to a list of them in the same order.

        A clip is a tensor or array [S] or [C, S] (channels are averaged: clips are batched as a list, not as an axis), a
        list of floats, the path of a file, or an `AudioFile`. `sample_rate` is that of the samples given, this tokenizer's
        own (24 kHz) if None; files know theirs. With `batch_seconds`, clips are padded into batches of up to that many
        seconds: faster on a GPU, and equal but for the last bits of a float.

        Raises AudioError, in a list naming the clip, where `prepare_wave` or `load_audio` refuse it.
        """

        def pack(heard: Heard) -> list[Tensor]:
            return [self.fsq.pack(self.fsq.quantize(heard.latents))]

        results, single = self._encode(wave, sample_rate, batch_seconds, pack)
        quantizer, name = self.config.quantizer, self.hash
        made = [
            Tokens(ids, n, tuple(quantizer.radices), quantizer.group_size, self.sample_rate, name)
            for (ids,), n in results
        ]
        return made[0] if single else made

    def latents(self, wave: Any, sample_rate: int | None = None, *, batch_seconds: float | None = None) -> Any:
        """z before quantisation, float32 [T, D] on the CPU, of one clip or of each of a list (as `encode`)."""
        results, single = self._encode(wave, sample_rate, batch_seconds, lambda heard: [heard.latents.float()])
        made = [z for (z,), _ in results]
        return made[0] if single else made

    def gates(self, wave: Any, sample_rate: int | None = None) -> Any:
        """The DAAM gate of each stage, float32 [L of that stage] on the CPU, of one clip or of each of a list.

        An empty list for a config without DAAM.
        """
        results, single = self._encode(wave, sample_rate, None, lambda heard: [g.float() for g in heard.gates])
        made = [gates for gates, _ in results]
        return made[0] if single else made

    def _encode(
        self,
        wave: Any,
        sample_rate: int | None,
        batch_seconds: float | None,
        finish: Callable[[Heard], list[Tensor]],
    ) -> tuple[list[tuple[list[Tensor], int]], bool]:
        """Runs the encoder; `finish` makes what is kept of a run of frames. Per clip: that, end to end, and its samples."""
        clips, single = self._clips(wave, sample_rate)
        runs: dict[int, dict[int, list[Tensor]]] = {}
        samples: dict[int, int] = {}
        with exact_inference(self, self.device):
            for heard in encode_clips(self.encoder, clips, self.config.window, batch_seconds):
                if not bool(heard.latents.isfinite().all()):
                    raise JepaTokError(
                        f"{_name(heard.clip, single)} must have finite latents, but the encoder in {_dtype(self.dtype)} gave others; "
                        "try float32, or look for a training run that diverged."
                    )
                runs.setdefault(heard.clip, {})[heard.first] = [x.cpu() for x in finish(heard)]
                samples[heard.clip] = max(heard.samples, samples.get(heard.clip, 0))
        # Joined here, outside inference mode: an embedding layer in training may take these tensors.
        made = []
        for clip in range(len(runs)):
            parts = [runs[clip][first] for first in sorted(runs[clip])]
            made.append(([torch.cat(part) for part in zip(*parts)], samples[clip]))
        return made, single

    def _clips(self, wave: Any, sample_rate: int | None) -> tuple[Iterator[Iterable[Tensor]], bool]:
        """The clips of a call as blocks of samples, prepared as they are taken, and whether it was one alone."""
        rate = self.sample_rate if sample_rate is None else sample_rate
        single = not isinstance(wave, (list, tuple)) or (len(wave) > 0 and isinstance(wave[0], (int, float, np.number)))
        if single and isinstance(wave, (Iterator, Mapping, set)):
            raise AudioError(f"audio must be one clip or a list of clips, but is {type(wave).__name__} instead.")

        def prepare(index: int, clip: Any) -> Iterable[Tensor]:
            if isinstance(clip, (str, os.PathLike)):
                clip = AudioFile(clip, self.sample_rate)
            if not isinstance(clip, AudioFile):
                return [prepare_wave(clip, rate, self.sample_rate, name=_name(index, single))]
            if sample_rate is not None:
                raise AudioError(f"'{clip.name}' knows its sample rate; leave `sample_rate` out for files.")
            if clip.sample_rate != self.sample_rate:
                raise AudioError(
                    f"'{clip.name}' must be read at {self.sample_rate} Hz, but is at {clip.sample_rate} instead."
                )
            return read_ahead(clip)

        return (prepare(i, clip) for i, clip in enumerate([wave] if single else wave)), single

    # --- tokens to speech

    @overload
    def decode(self, tokens: Tokens, *, check: bool = ..., batch_seconds: float | None = ...) -> Tensor: ...
    @overload
    def decode(self, tokens: list[Tokens], *, check: bool = ..., batch_seconds: float | None = ...) -> list[Tensor]: ...

    def decode(self, tokens: Any, *, check: bool = True, batch_seconds: float | None = None) -> Any:
        """Tokens to speech: float32 [num_samples] on the CPU, or a list of them in the same order.

        Raises TokenError for tokens of another layout, and of another tokenizer unless `check` is False (a decoder that was
        tuned further, or weights in another dtype, still decode its tokens).
        """
        single = isinstance(tokens, Tokens)
        if not single and not isinstance(tokens, (list, tuple)):
            raise TokenError(
                f"`tokens` must be Tokens or a list of them, but is {type(tokens).__name__} instead; `tokenizer.tokens(ids)` makes them of bare ids."
            )
        clips: list[Any] = [tokens] if single else list(tokens)
        names = ["tokens" if single else f"tokens {index} of the list" for index in range(len(clips))]
        for name, clip in zip(names, clips):
            self._check_tokens(clip, name, check)
        blocks: list[list[Tensor]] = [[] for _ in clips]
        for index, block in self._decode(clips, names, batch_seconds):
            blocks[index].append(block)
        made = [torch.cat(parts) for parts in blocks]
        return made[0] if single else made

    def decode_blocks(
        self, tokens: Tokens, *, check: bool = True, batch_seconds: float | None = None
    ) -> Iterator[Tensor]:
        """As `decode` of one clip, but its samples come in blocks [s] as they are made: an hour needs no more memory than a minute.

        save_audio("long.wav", tokenizer.decode_blocks(tokens))
        """
        self._check_tokens(tokens, "tokens", check)
        return (block for _, block in self._decode([tokens], ["tokens"], batch_seconds))

    def _decode(
        self, clips: list[Tokens], names: list[str], batch_seconds: float | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Runs the generator: (index of a clip, its next samples), each clip's in order and num_samples in all."""
        left = [clip.num_samples for clip in clips]

        def values(ids: Tensor) -> Tensor:
            return self.fsq.dequantize(self.fsq.unpack(ids))

        made = decode_clips(self.generator, (clip.ids for clip in clips), values, self.config.window, batch_seconds)
        while True:
            with exact_inference(self, self.device):  # left before a block is handed out
                index, block = next(made, (-1, torch.zeros(0)))
            if index < 0:
                return
            if not bool(block.isfinite().all()):
                raise JepaTokError(
                    f"{names[index]} must decode to finite audio, but the generator in {_dtype(self.dtype)} gave others; "
                    "try float32, or look for a training run that diverged."
                )
            block = block[: left[index]]
            left[index] -= block.shape[0]
            if block.shape[0]:  # a causal generator's last samples may all lie behind the clip's end
                yield index, block.clone()  # an ordinary tensor, of its own memory

    # --- both at once

    def streaming(self, sample_rate: int | None = None) -> StreamingSession:
        """A stream that gives tokens as someone speaks, and speech as tokens come: see `StreamingSession`.

        `sample_rate` is that of the samples that will come, this tokenizer's own if None. Raises ConfigError for a tokenizer
        whose encoder is not causal (`small-causal` is).
        """
        return StreamingSession(self, sample_rate)

    def _check_tokens(self, tokens: Any, name: str, check: bool) -> None:
        """Raises TokenError where `tokens` cannot be decoded here."""
        if not isinstance(tokens, Tokens):
            raise TokenError(
                f"{name} must be Tokens, but is {type(tokens).__name__} instead; `tokenizer.tokens(ids)` makes them of bare ids."
            )
        tokens.check_layout(self.config, name)
        if check and tokens.tokenizer and tokens.tokenizer != self.hash:
            raise TokenError(
                f"{name} must be of tokenizer {self.hash}, but is of {tokens.tokenizer} instead; `check=False` decodes it all the same."
            )

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.parameters())
        return f"SpeechTokenizer('{self.config.name}', {self.frame_rate:g} Hz x {self.num_groups} tokens, {size:,} parameters, {self.device})"


def _name(index: int, single: bool) -> str:
    return "audio" if single else f"clip {index} of the list"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
