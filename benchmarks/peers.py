"""One face for our tokenizers, neural codecs of `transformers` and any adapter, so that each is measured by the same code.

    B clips   S samples   T frames   K codes of a frame

`encode` takes a list of clips [S] and runs them as one padded batch, as the codec's own API offers it; `decode` is its inverse. Peers
have random weights of the published configurations: cost and the effect of padding are those of the architecture, and nothing
has to be downloaded. Their codebooks, which `transformers` leaves empty, are filled with latents of the clips at hand:
with empty ones every code would be 0 and no difference would show.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.flops import count
from jepa_tok import SpeechTokenizer
from jepa_tok.adapters import Adapter, make_adapter
from jepa_tok.audio import resample
from jepa_tok.errors import JepaTokError
from jepa_tok.hub import find_pretrained
from jepa_tok.models import layers
from jepa_tok.models.encoder import WaveFront
from jepa_tok.models.layers import HifiGanResBlock, TimeConv, apply_mask
from jepa_tok.presets import PRESETS
from jepa_tok.seeding import seeded


class Codec(ABC):
    """What is measured."""

    name: str
    frame_rate: float
    codes_per_frame: int
    bits_per_second: float
    weights: str
    """Where they come from."""

    model: nn.Module

    casts = False
    """Whether it is measured in bf16, too."""

    @abstractmethod
    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """Clips [S] at 24 kHz, as one padded batch -> codes [T, K] of each."""

    @abstractmethod
    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        """Codes [T, K] of clips of one length, as one batch -> waves [S]."""

    def to(self, dtype: torch.dtype) -> None:
        """Casts the weights."""
        self.model.to(dtype)

    def parameters(self) -> int:
        """Of encoder, quantiser and decoder."""
        return sum(p.numel() for p in self.model.parameters())

    def gflop(self, call: Callable[[], Any]) -> float:
        """GFLOP of a call: convolutions, dense products, attention, LSTMs."""
        lstm = 0.0

        def add(module: nn.LSTM, inputs: tuple[Tensor, ...], _: Any) -> None:
            nonlocal lstm
            steps = inputs[0].shape[0] * inputs[0].shape[1]
            lstm += 2.0 * steps * sum(p.numel() for name, p in module.named_parameters() if "weight" in name)

        hooks = [m.register_forward_hook(add) for m in self.model.modules() if isinstance(m, nn.LSTM)]
        try:
            return (count(self.model, call)[""] + lstm) / 1e9
        finally:
            for hook in hooks:
                hook.remove()


# Ours -----------------------------------------------------------------------------------------------------------------


class Ours(Codec):
    """A tokenizer of this package, through `encode` and `decode` of its public API."""

    casts = True

    def __init__(self, name: str, tokenizer: SpeechTokenizer, weights: str) -> None:
        self.name, self.weights, self.model = name, weights, tokenizer
        self.tokenizer = tokenizer
        self.frame_rate = tokenizer.frame_rate
        self.codes_per_frame = tokenizer.config.quantizer.dim
        self.bits_per_second = self.frame_rate * sum(math.log2(n) for n in tokenizer.vocab_sizes)

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """One clip alone, or all of them in one batch; a clip longer than a window gives several rows of it."""
        together = None if len(waves) == 1 else math.inf
        return [tokens.codes for tokens in self.tokenizer.encode(waves, batch_seconds=together)]

    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        """As `encode`."""
        together = None if len(codes) == 1 else math.inf
        tokens = [self.tokenizer.tokens(self.tokenizer.fsq.pack(c)) for c in codes]
        return self.tokenizer.decode(tokens, batch_seconds=together)


def plain_block(self: HifiGanResBlock, x: Tensor, mask: Tensor | None = None, state: Any = None) -> Tensor:
    """`HifiGanResBlock.forward` as it is usually written: each layer a module call that makes a new tensor, every tap paid."""
    for dilated, plain in zip(self.dilated, self.plain):
        h = dilated(apply_mask(F.leaky_relu(x, 0.1), mask))
        x = x + plain(apply_mask(F.leaky_relu(h, 0.1), mask))
    return apply_mask(x, mask)


def skipping_block(
    self: HifiGanResBlock, x: Tensor, mask: Tensor | None = None, state: Any = None, last: bool = False
) -> Tensor:
    """`plain_block` without the taps that only see padding; with `last` on channels-last tensors."""
    x = x[:, :, None]  # [B, C, 1, L]
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    real = None if mask is None else mask[:, None]
    for dilated, plain in zip(self.dilated, self.plain):
        assert isinstance(dilated, TimeConv) and isinstance(plain, TimeConv)
        h = layers.dilated_conv(apply_mask(F.leaky_relu(x, 0.1), real), dilated)
        x = x + layers.dilated_conv(apply_mask(F.leaky_relu(h, 0.1), real), plain)
    return apply_mask(x, real)[:, :, 0]


def skipping_block_last(self: HifiGanResBlock, x: Tensor, mask: Tensor | None = None, state: Any = None) -> Tensor:
    """`skipping_block`, channels last."""
    return skipping_block(self, x, mask, state, last=True)


def plain_factors(self: WaveFront, wave: Tensor) -> tuple[Tensor, Tensor]:
    """`WaveFront.factors` that makes the front's output, which the first stage's convolution then takes as it is."""
    x = self(wave, None, None)
    return x, torch.eye(x.shape[1], dtype=x.dtype)


class Port(Ours):
    """A tokenizer whose front and residual blocks run as another implementation of the same layers would."""

    def __init__(self, name: str, tokenizer: SpeechTokenizer, weights: str, block: Callable[..., Tensor]) -> None:
        super().__init__(name, tokenizer, weights)
        self.block = block

    @contextmanager
    def _ported(self) -> Iterator[None]:
        with patch.object(HifiGanResBlock, "forward", self.block), patch.object(WaveFront, "factors", plain_factors):
            yield

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """As `Ours.encode`."""
        with self._ported():
            return super().encode(waves)

    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        """As `Ours.decode`."""
        with self._ported():
            return super().decode(codes)


# Peers ----------------------------------------------------------------------------------------------------------------


class Peer(Codec):
    """A codec of `transformers`, mono at 24 kHz."""

    weights = "random"

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """Zeros behind the shorter clips, and the padding mask where the API has one."""
        with torch.inference_mode():
            padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)[:, None]  # [B, 1, S]
            mask = nn.utils.rnn.pad_sequence([torch.ones(len(w), dtype=torch.bool) for w in waves], batch_first=True)
            codes = self.batch_codes(padded.to(next(self.model.parameters()).dtype), mask[:, None])  # [B, K, T]
            frames = [-(-len(wave) // round(24_000 / self.frame_rate)) for wave in waves]
            return [c[:, :n].T for c, n in zip(codes, frames)]

    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        """As `encode`."""
        with torch.inference_mode():
            return list(self.batch_waves(torch.stack(codes).transpose(1, 2)).squeeze(1))

    @abstractmethod
    def batch_codes(self, padded: Tensor, mask: Tensor) -> Tensor:
        """[B, 1, S] and the mask of its own samples -> [B, K, T]."""

    @abstractmethod
    def batch_waves(self, codes: Tensor) -> Tensor:
        """[B, K, T] -> [B, 1, S]."""


class Encodec(Peer):
    """EnCodec 24 kHz at 1.5 kbit/s: two codebooks at 75 Hz (arXiv 2210.13438)."""

    name, frame_rate, codes_per_frame, bits_per_second = "encodec", 75.0, 2, 1500.0

    def __init__(self, waves: list[Tensor]) -> None:
        from transformers import EncodecConfig, EncodecModel

        self.model = EncodecModel(EncodecConfig()).eval()
        for module in list(self.model.modules()):  # weight norm folded, as who cares for speed does
            if nn.utils.parametrize.is_parametrized(module):
                nn.utils.parametrize.remove_parametrizations(module, "weight")
        books = [layer.codebook for layer in self.model.quantizer.layers[: self.codes_per_frame]]
        wave = torch.cat(waves)[None, None]
        with torch.no_grad():
            _spread(self.model.encoder.layers[-1].conv, self.model.encoder(wave))
            _fill([(books, self.model.encoder(wave))], "embed")

    def batch_codes(self, padded: Tensor, mask: Tensor) -> Tensor:
        """The model multiplies the samples by the mask; no other layer sees it."""
        return self.model.encode(padded, mask, bandwidth=1.5).audio_codes[0]

    def batch_waves(self, codes: Tensor) -> Tensor:
        """One chunk without a scale, as this model has it."""
        return self.model.decode(codes[None], [None]).audio_values


class Mimi(Peer):
    """Mimi with 8 codebooks: 12.5 Hz, 1.1 kbit/s (arXiv 2410.00037)."""

    name, frame_rate, codes_per_frame, bits_per_second = "mimi", 12.5, 8, 1100.0

    def __init__(self, waves: list[Tensor]) -> None:
        from transformers import MimiConfig, MimiModel

        self.model = model = MimiModel(MimiConfig()).eval()
        with torch.no_grad():
            h = model.encoder_transformer(model.encoder(torch.cat(waves)[None, None]).transpose(1, 2))[0]
            h = model.downsample(h.transpose(1, 2))
            split = [
                model.quantizer.semantic_residual_vector_quantizer,
                model.quantizer.acoustic_residual_vector_quantizer,
            ]
            for q in split:
                _spread(q.input_proj, q.input_proj(h))
            groups = [([layer.codebook for layer in q.layers], q.input_proj(h)) for q in split]
            _fill([(groups[0][0], groups[0][1]), (groups[1][0][: self.codes_per_frame - 1], groups[1][1])], "embed_sum")

    def batch_codes(self, padded: Tensor, mask: Tensor) -> Tensor:
        """The mask is accepted and has no effect on codes (transformers 4.57)."""
        return self.model.encode(padded, mask, num_quantizers=self.codes_per_frame).audio_codes

    def batch_waves(self, codes: Tensor) -> Tensor:
        """[B, K, T] -> [B, 1, S]."""
        return self.model.decode(codes).audio_values


class Dac(Peer):
    """Descript Audio Codec 24 kHz, all 32 codebooks at 75 Hz, 24 kbit/s (arXiv 2306.06546)."""

    name, frame_rate, codes_per_frame, bits_per_second = "dac", 75.0, 32, 24_000.0

    def __init__(self, waves: list[Tensor]) -> None:
        from transformers import DacConfig, DacModel

        config = DacConfig(
            sampling_rate=24_000, downsampling_ratios=[2, 4, 5, 8], n_codebooks=self.codes_per_frame,
            codebook_dim=8, decoder_hidden_size=1536,
        )  # fmt: skip
        self.model = DacModel(config).eval()
        with torch.no_grad():  # transformers' std of 0.02 lets the sound fade to nothing on its way through the encoder
            for module in self.model.encoder.modules():
                if isinstance(module, nn.Conv1d):
                    nn.init.kaiming_normal_(module.weight)
            _spread(self.model.encoder.conv2, self.model.encoder(torch.cat(waves)[None, None]))

    def batch_codes(self, padded: Tensor, mask: Tensor) -> Tensor:
        """`encode` has no mask."""
        return self.model.encode(padded).audio_codes

    def batch_waves(self, codes: Tensor) -> Tensor:
        """[B, K, T] -> [B, 1, S]."""
        return self.model.decode(audio_codes=codes).audio_values[:, None]


class Adapted(Codec):
    """Any tokenizer behind `jepa_tok.adapters`, for what its codes depend on: one clip after the other, since adapters have no batches."""

    def __init__(self, adapter: Adapter, waves: list[Tensor]) -> None:
        self.adapter, self.model = adapter, nn.Module()
        self.name, self.frame_rate, self.bits_per_second = adapter.name, adapter.frame_rate, adapter.bits_per_second
        self.codes_per_frame = len(adapter.radices)
        adapter.fit(self._heard(wave) for wave in waves)
        self.weights = adapter.fingerprint

    def _heard(self, wave: Tensor) -> Tensor:
        return resample(wave, 24_000, self.adapter.sample_rate)

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """Clips [S] at 24 kHz -> codes [T, K] of each."""
        return [torch.from_numpy(self.adapter.encode(self._heard(wave)).astype("int64")) for wave in waves]

    def decode(self, codes: list[Tensor]) -> list[Tensor]:
        """JepaTokError: adapters encode alone."""
        raise JepaTokError(f"`{self.name}` must decode to be timed, but adapters only encode.")

    def to(self, dtype: Any) -> None:
        """A device; adapters keep their precision."""
        if not isinstance(dtype, torch.dtype):
            self.adapter.to(dtype)


def _spread(last: nn.Conv1d, latents: Tensor) -> None:
    """Scales and shifts what `last` makes, latents [1, D, N], to a mean of zero and a standard deviation of one on average.

    Random weights may give latents that hardly leave their mean: distances to codebook entries would then differ by less
    than float32 resolves, and codes change by chance. A trained encoder's latents are centred.
    """
    scale = 1.0 / latents.std(-1).mean()
    bias = torch.zeros(latents.shape[1]) if last.bias is None else last.bias
    last.bias = nn.Parameter((bias - latents.mean((0, 2))) * scale)
    last.weight.mul_(scale)


def _fill(groups: list[tuple[list[Any], Tensor]], buffer: str) -> None:
    """Fills residual codebooks with random latents [1, D, N], each further one with what the ones before leave over."""
    draw = torch.Generator().manual_seed(0)
    for books, latents in groups:
        rest = latents[0].T.clone()  # [N, D]
        for book in books:
            rows = torch.randint(len(rest), (book.codebook_size,), generator=draw)
            spread = 0.1 * rest.std(0) * torch.randn(book.codebook_size, rest.shape[1], generator=draw)
            getattr(book, buffer).copy_(rest[rows] + spread)
            rest = rest - book.decode(book.encode(rest[None]))[0]


PEERS: dict[str, Callable[[list[Tensor]], Codec]] = {"encodec": Encodec, "mimi": Mimi, "dac": Dac}

BLOCKS: dict[str, Callable[..., Tensor]] = {"naive": plain_block, "taps": skipping_block, "last": skipping_block_last}
"""Ports of `paper`, as in `paper-naive`."""


def make_codec(name: str, waves: list[Tensor]) -> Codec:
    """A peer, a preset with random weights, a preset's port (`paper-naive`), a tokenizer's folder or name, or an adapter (`melkm`).

    Untrained quantisers are calibrated on the clips, as stage 2 does: their levels are used evenly.
    """
    if name in PEERS:
        with seeded(0):
            return PEERS[name](waves)
    preset, _, block = name.rpartition("-")
    port = BLOCKS.get(block) if preset in PRESETS else None
    source = name if port is None else preset
    if source not in PRESETS:
        if not Path(name).is_dir() and not find_pretrained(name):
            return Adapted(make_adapter(name), waves)
        tokenizer = SpeechTokenizer.from_pretrained(name)
        return Ours(name, tokenizer, f"trained, {tokenizer.hash}")
    tokenizer = SpeechTokenizer.from_config(source)
    tokenizer.fsq.calibrate(torch.cat([tokenizer.latents(wave) for wave in waves]))
    return Ours(name, tokenizer, "random") if port is None else Port(name, tokenizer, "random", port)
