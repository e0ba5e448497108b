"""Neural codecs of `transformers`: EnCodec, DAC, Mimi and X-Codec (like SpeechTokenizer, it quantises HuBERT's features too).

SPEC is `NAME[:[REPO][@SETTING]]`: REPO a repository in the local Hugging Face cache or a folder, the published one by default;
SETTING the number of codebooks, for `encodec` and `xcodec` a bandwidth in kbit/s that the model knows.

    S samples   T = ceil(S / hop) frames   D codebooks   F features
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_tok.adapters.base import Adapter, fingerprint_of
from jepa_tok.adapters.hub_models import load_model, split_argument
from jepa_tok.errors import AdapterError
from jepa_tok.inference import exact_inference


class Codec(Adapter):
    """What the codecs share; a subclass names its model and calls the model's own methods."""

    kind: ClassVar[str]
    repo: ClassVar[str]
    setting: ClassVar[str]
    """By default; empty for all codebooks."""

    hop: int
    books: int
    """Codebooks that are used."""

    def __init__(self, argument: str = "") -> None:
        title = type(self).__name__.lower()
        repo, setting = split_argument(argument, self.repo)
        self.name = f"{title}:{argument}" if argument else title
        self.model: Any = load_model(title, self.kind, repo)
        try:
            self.configure(self.model.config, setting or self.setting)
        except ValueError as error:
            raise AdapterError(f"'{self.name}' must be {error}.") from None
        self.frame_rate = self.sample_rate / self.hop  # configs round it up
        self.radices = (int(self.model.config.codebook_size),) * self.books

    @abstractmethod
    def configure(self, config: Any, setting: str) -> None:
        """Sets `sample_rate`, `hop` and `books`; raises ValueError, saying what must be, for what the model is not or has not."""

    @abstractmethod
    def embed(self, wave: Tensor) -> Tensor | None:
        """Wave [1, 1, S] -> [1, F, T] before quantising; None where the model does not show it."""

    @abstractmethod
    def quantize(self, wave: Tensor) -> Tensor:
        """Wave [1, 1, S] -> codes [1, D, T]."""

    @abstractmethod
    def dequantize(self, codes: Tensor) -> Tensor:
        """Codes [1, D, T] -> [1, F, T]."""

    @cached_property
    def fingerprint(self) -> str:
        """Over the model's class and weights and the number of codebooks."""
        return fingerprint_of(self.kind, self.books, self.model.state_dict())

    def encode(self, wave: Tensor) -> np.ndarray:
        """One index of each codebook [T, D]."""
        with exact_inference(self.model, self.model.device):
            return self.quantize(self._padded(wave))[0].T.cpu().numpy().astype(self.code_dtype)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """What the codebooks' vectors sum to [T, F]."""
        with exact_inference(self.model, self.model.device):
            indices = torch.from_numpy(codes.astype(np.int64).T)[None].to(self.model.device)
            return self.dequantize(indices)[0].T.float().cpu().numpy()

    def latents(self, wave: Tensor) -> np.ndarray | None:
        """The encoder's output [T, F]."""
        with exact_inference(self.model, self.model.device):
            z = self.embed(self._padded(wave))
            return None if z is None else z[0].T.float().cpu().numpy()

    def to(self, device: str) -> None:
        """Moves the weights."""
        self.model.to(device)

    def _padded(self, wave: Tensor) -> Tensor:
        # Silence up to whole frames, so that all have ceil(S / hop): DAC and X-Codec drop a rest.
        return F.pad(wave, (0, -len(wave) % self.hop))[None, None].to(self.model.device)


def _count(setting: str, most: int) -> int:
    """Codebooks that a setting asks for, all for an empty one."""
    if setting and not (setting.isdecimal() and 1 <= int(setting) <= most):
        raise ValueError(f"given 1 to {most} codebooks, as its model has them")
    return int(setting or most)


def _bandwidth(setting: str, known: list[float]) -> float:
    """kbit/s that a setting asks for."""
    if setting not in {f"{b:g}" for b in known}:
        raise ValueError(f"given a bandwidth of its model, one of {', '.join(f'{b:g}' for b in known)} kbit/s")
    return float(setting)


class Encodec(Codec):
    """EnCodec (arXiv 2210.13438), mono at 24 kHz: 75 Hz, two codebooks of 1,024 at 1.5 kbit/s."""

    kind, repo, setting = "EncodecModel", "facebook/encodec_24khz", "1.5"

    def configure(self, config: Any, setting: str) -> None:
        if config.audio_channels != 1 or config.normalize or config.chunk_length is not None:
            raise ValueError("a mono model without chunks and loudness scales, as encodec_24khz is")
        self.sample_rate, self.hop = config.sampling_rate, config.hop_length
        self.bandwidth = _bandwidth(setting, config.target_bandwidths)
        self.books = self.model.quantizer.get_num_quantizers_for_bandwidth(self.bandwidth)

    def embed(self, wave: Tensor) -> Tensor:
        return self.model.encoder(wave)

    def quantize(self, wave: Tensor) -> Tensor:
        return self.model.encode(wave, bandwidth=self.bandwidth).audio_codes[0]

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))


class Dac(Codec):
    """Descript Audio Codec (arXiv 2306.06546) at 24 kHz: 75 Hz, 32 codebooks of 1,024, 24 kbit/s."""

    kind, repo, setting = "DacModel", "descript/dac_24khz", ""

    def configure(self, config: Any, setting: str) -> None:
        self.sample_rate, self.hop = config.sampling_rate, config.hop_length
        self.books = _count(setting, config.n_codebooks)

    def embed(self, wave: Tensor) -> Tensor:
        return self.model.encoder(wave)

    def quantize(self, wave: Tensor) -> Tensor:
        return self.model.encode(wave, n_quantizers=self.books).audio_codes

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes)[0]


class Mimi(Codec):
    """Mimi (arXiv 2410.00037): 12.5 Hz, eight codebooks of 2,048, 1.1 kbit/s; WavLM taught the first."""

    kind, repo, setting = "MimiModel", "kyutai/mimi", "8"

    def configure(self, config: Any, setting: str) -> None:
        self.sample_rate, self.hop = config.sampling_rate, round(config.sampling_rate / config.frame_rate)
        self.books = _count(setting, config.num_quantizers)

    def embed(self, wave: Tensor) -> Tensor:
        h = self.model.encoder_transformer(self.model.encoder(wave).transpose(1, 2))[0]
        return self.model.downsample(h.transpose(1, 2))

    def quantize(self, wave: Tensor) -> Tensor:
        return self.model.encode(wave, num_quantizers=self.books).audio_codes

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes)


class Xcodec(Codec):
    """X-Codec (arXiv 2408.17175), 16 kHz: 50 Hz, two codebooks of 1,024 at 1 kbit/s, over HuBERT's features and its own."""

    kind, repo, setting = "XcodecModel", "hf-audio/xcodec-hubert-librispeech", "1"

    def configure(self, config: Any, setting: str) -> None:
        self.sample_rate, self.hop = config.sample_rate, config.hop_length
        self.bandwidth = _bandwidth(setting, config.target_bandwidths)
        self.books = self.model.quantizer.get_num_quantizers_for_bandwidth(self.bandwidth)

    def embed(self, wave: Tensor) -> None:
        return None

    def quantize(self, wave: Tensor) -> Tensor:
        return self.model.encode(wave, bandwidth=self.bandwidth).audio_codes

    def dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))
