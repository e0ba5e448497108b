"""A wider and deeper tokenizer that begins as a trained smaller one (Net2Net, arXiv 1511.05641).

    C channels of the small model   C' of the large one

Each channel is copied to several of the wide model, and whoever reads it reads a share of each copy; shares sum to one, so sums over
channels stay what they were. Copies differ by noise that their shares cancel, or they would learn the same for ever. Norms see copies in
uneven numbers, so the function is kept closely, not exactly. New blocks begin as the identity. A causal model made of one that is
not keeps the taps that look back: a beginning, no more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from jepa_tok.config import TokenizerConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.conformer import ConformerBlock, SelfAttention
from jepa_tok.models.encoder import Encoder, EncoderStage, MelFront, StridedConv
from jepa_tok.models.generator import Generator, IstftHead, UpStage
from jepa_tok.models.layers import ConvNeXtBlock, TimeConv
from jepa_tok.tokenizer import SpeechTokenizer

NOISE = 0.3
"""Deviation of a copy's weights, as a multiple of that of the row they were copied from."""

Dense: TypeAlias = nn.Linear | nn.Conv1d | nn.ConvTranspose1d


@dataclass(frozen=True)
class Widening:
    """Which channel each of the C' is a copy of, int64 [C'], and the share of it that is read from this copy, float32 [C']."""

    source: Tensor
    share: Tensor

    @classmethod
    def same(cls, channels: int) -> Widening:
        """Every channel once."""
        return cls(torch.arange(channels), torch.ones(channels))

    @classmethod
    def draw(cls, channels: int, wide: int, rng: torch.Generator) -> Widening:
        """Every channel about as often; shares are even up to a third, so that readers' weights differ from the start."""
        if wide == channels:
            return cls.same(channels)
        rest = torch.randperm(channels, generator=rng)[: wide % channels]
        source = torch.cat([torch.arange(channels).repeat(wide // channels), rest])
        weight = 1.0 + (2.0 * torch.rand(wide, generator=rng) - 1.0) / 3.0
        return cls(source, weight / torch.zeros(channels).index_add_(0, source, weight)[source])

    def write(self, weight: Tensor, rng: torch.Generator) -> Tensor:
        """Rows of those who make the channels: [C, ...] -> [C', ...], copies with noise that the shares cancel."""
        wide = weight[self.source]
        if len(self.source) == len(weight):
            return wide
        deviation = weight.flatten(1).pow(2).mean(1).sqrt()[self.source]
        noise = NOISE * torch.randn(wide.shape, generator=rng) * _along(deviation, wide, 0)
        mean = torch.zeros_like(weight).index_add_(0, self.source, noise * _along(self.share, wide, 0))
        return wide + noise - mean[self.source]

    def read(self, weight: Tensor, dim: int) -> Tensor:
        """Columns of those who read the channels, along axis `dim`: [.., C, ..] -> [.., C', ..]."""
        wide = weight.index_select(dim, self.source)
        return wide * _along(self.share, wide, dim)

    def copy(self, tensor: Tensor) -> Tensor:
        """Values of each channel: [C, ...] -> [C', ...]."""
        return tensor[self.source]


def _along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """A vector, shaped to be multiplied along axis `dim` of `like`."""
    return values.reshape([-1 if i == dim else 1 for i in range(like.ndim)])


@torch.no_grad()
def grow(small: SpeechTokenizer, config: TokenizerConfig, seed: int = 0) -> SpeechTokenizer:
    """A tokenizer of `config` that speaks about as `small` does.

    :param config: Of at least the widths and depths of `small`, with the same strides, latents, quantiser and kinds of layers.
    :param seed: Of the copies' noise and of the new blocks.
    :raises ConfigError: The two do not fit, or are of another layout than `mel` front, `convnext` blocks and `istft` head.
    """
    _check(small.config, config)
    large = SpeechTokenizer.from_config(config, seed)
    growth = _Growth(torch.Generator().manual_seed(seed))
    growth.encoder(small.encoder, large.encoder)
    growth.generator(small.generator, large.generator)
    large.fsq.load_state_dict(small.fsq.state_dict())
    return large


def _knows_pitch(small: Encoder | Generator, large: Encoder | Generator) -> bool:
    """Whether the pitch networks can be kept: a causal tracker listens elsewhere than one that is not."""
    return small.pitch is not None and small.config.causal == large.config.causal


def _check(small: TokenizerConfig, large: TokenizerConfig) -> None:
    for part, fields in {
        "encoder": ["sample_rate", "front", "front_hop", "n_fft", "n_mels", "strides", "block", "daam", "gate", "num_gaussians",
                    "latent_dim", "conformer_heads", "conformer_norm"],
        "quantizer": ["dim", "levels", "bound", "group_size"],
        "generator": ["sample_rate", "strides", "block", "daam", "conformer_heads", "head", "head_hop", "n_fft"],
    }.items():  # fmt: skip
        for name in fields:
            ours, theirs = (getattr(getattr(c, part), name) for c in (small, large))
            if ours != theirs:
                raise ConfigError(f"{part} `{name}` must be that of the small tokenizer ({ours}), but is {theirs} instead.")  # fmt: skip
    if (large.encoder.front, large.encoder.block, large.generator.block, large.generator.head) != ("mel", "convnext", "convnext", "istft"):  # fmt: skip
        raise ConfigError("only a tokenizer with a `mel` front, `convnext` blocks and an `istft` head can be grown.")
    for part, fields in {
        "encoder": ["front_channels", "channels", "blocks", "expansion", "stage_conformers", "conformers", "pitch_dims"],
        "generator": ["input_channels", "channels", "blocks", "expansion", "stage_conformers", "pitch_dims"],
    }.items():  # fmt: skip
        for name in fields:
            ours, theirs = (getattr(getattr(c, part), name) for c in (small, large))
            pairs = list(zip(ours, theirs)) if isinstance(ours, list) else [(ours, theirs)]
            if "conformers" in name and any(b > a == 0 for a, b in pairs):
                raise ConfigError(f"{part} `{name}` must be 0 where the small tokenizer has none ({ours}), but is {theirs} instead.")  # fmt: skip
            if name == "pitch_dims" and ours not in (0, theirs):
                raise ConfigError(
                    f"{part} `pitch_dims` must be those of the small tokenizer ({ours}), but are {theirs} instead."
                )
            if any(a > b for a, b in pairs):
                raise ConfigError(f"{part} `{name}` must be at least that of the small tokenizer ({ours}), but is {theirs} instead.")  # fmt: skip


class _Growth:
    """Fills the modules of a large model from those of a small one, in the order of the data."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def encoder(self, small: Encoder, large: Encoder) -> None:
        assert isinstance(small.front, MelFront) and isinstance(large.front, MelFront)
        latent = Widening.same(small.config.latent_dim)
        x = self.widening(small.front.conv.out_channels, large.front.conv.out_channels)
        self.conv(small.front.conv, large.front.conv, x, Widening.same(small.config.n_mels))
        for a, b in zip(small.stages, large.stages):
            assert isinstance(a, EncoderStage) and isinstance(b, EncoderStage)
            if not isinstance(a.norm, nn.Identity):
                self.values(a.norm, b.norm, x)
            heard, x = x, self.widening(a.conv.out_channels, b.conv.out_channels)
            self.conv(a.conv, b.conv, x, heard)
            self.values(a.snake, b.snake, x)
            self.blocks(a.blocks, b.blocks, x)
            self.gate(a.gate, b.gate, x)
            self.conformers(a.conformers, b.conformers, x)
        self.conv(small.project, large.project, latent, x)
        self.conformers(small.conformers, large.conformers, latent)
        if _knows_pitch(small, large) and small.pitch is not None and large.pitch is not None:
            large.pitch.load_state_dict(small.pitch.state_dict())

    def generator(self, small: Generator, large: Generator) -> None:
        assert isinstance(small.head, IstftHead) and isinstance(large.head, IstftHead)
        x = self.widening(small.config.input_channels, large.config.input_channels)
        self.conv(small.project, large.project, x, Widening.same(small.config.latent_dim))
        if not _knows_pitch(small, large):
            large.forget_pitch()
        for a, b in zip(small.stages, large.stages):
            assert isinstance(a, UpStage) and isinstance(b, UpStage)
            self.values(a.act, b.act, x)
            heard, x = x, self.widening(a.up.out_channels, b.up.out_channels)
            weight = heard.read(a.up.weight.transpose(0, 1), 1)  # transposed convolutions have [C in, C out, taps]
            b.up.weight.copy_(_taps(x.write(weight, self.rng), a, b).transpose(0, 1))
            self.bias(a.up, b.up, x)
            self.blocks(a.blocks, b.blocks, x)
            self.conformers(a.conformers, b.conformers, x)
            self.gate(a.gate, b.gate, x)
        self.values(small.head.norm, large.head.norm, x)
        self.conv(small.head.out, large.head.out, Widening.same(small.head.out.out_channels), x)
        if small.head.share is not None and large.head.share is not None:
            self.conv(small.head.share, large.head.share, Widening.same(small.head.share.out_channels), x)
        if _knows_pitch(small, large) and small.pitch is not None and large.pitch is not None:
            large.pitch.load_state_dict(small.pitch.state_dict())

    def widening(self, channels: int, wide: int) -> Widening:
        return Widening.draw(channels, wide, self.rng)

    def values(self, small: nn.Module, large: nn.Module, x: Widening) -> None:
        """Norms and activations: parameters of a value for each channel."""
        for a, b in zip(small.parameters(), large.parameters()):
            b.copy_(x.copy(a))

    def conv(self, small: nn.Conv1d | nn.Linear, large: nn.Conv1d | nn.Linear, out: Widening, x: Widening) -> None:
        """Linear layers and convolutions; depthwise ones have an `x` of one channel."""
        large.weight.copy_(_taps(out.write(x.read(small.weight, 1), self.rng), small, large))
        self.bias(small, large, out)

    @staticmethod
    def bias(small: Dense, large: Dense, out: Widening) -> None:
        assert small.bias is not None and large.bias is not None
        large.bias.copy_(out.copy(small.bias))

    def blocks(self, small: nn.ModuleList, large: nn.ModuleList, x: Widening) -> None:
        for i, b in enumerate(large):
            assert isinstance(b, ConvNeXtBlock)
            if i >= len(small):
                nn.init.zeros_(b.scale)
                continue
            a = small[i]
            assert isinstance(a, ConvNeXtBlock)
            inner = self.widening(a.up.out_features, b.up.out_features)
            self.conv(a.depthwise, b.depthwise, x, Widening.same(1))
            self.values(a.norm, b.norm, x)
            self.conv(a.up, b.up, inner, x)
            self.conv(a.down, b.down, x, inner)
            b.scale.copy_(x.copy(a.scale))

    def gate(self, small: nn.Module | None, large: nn.Module | None, x: Widening) -> None:
        """DAAM: one projection that reads the channels; the mixture is the same."""
        if small is None or large is None:
            return
        for (name, a), b in zip(small.named_parameters(), large.parameters()):
            b.copy_(x.read(a, 1) if name == "project.weight" else a)

    def conformers(self, small: nn.ModuleList, large: nn.ModuleList, x: Widening) -> None:
        """A new block adds nothing, and takes over the last norm's scale and shift, which the block before it leaves to it."""
        for i, b in enumerate(large):
            assert isinstance(b, ConformerBlock)
            if i < len(small):
                a = small[i]
                assert isinstance(a, ConformerBlock)
                self._conformer(a, b, x)
                continue
            for silent in (_layer(b.ff1, 4), b.attention.out, b.conv.down, _layer(b.ff2, 4)):
                nn.init.zeros_(silent.weight)
            before = large[i - 1]
            assert isinstance(before, ConformerBlock)
            b.norm_final.load_state_dict(before.norm_final.state_dict())
            before.norm_final.reset_parameters()

    def _conformer(self, a: ConformerBlock, b: ConformerBlock, x: Widening) -> None:
        for ours, theirs in ((a.ff1, b.ff1), (a.ff2, b.ff2)):
            (up, down), (wide_up, wide_down) = ([_layer(ff, i) for i in (1, 4)] for ff in (ours, theirs))
            inner = self.widening(up.out_features, wide_up.out_features)
            self.values(ours[0], theirs[0], x)
            self.conv(up, wide_up, inner, x)
            self.conv(down, wide_down, x, inner)
        self.values(a.norm_attention, b.norm_attention, x)
        self._attention(a.attention, b.attention, x)
        self.values(a.conv.norm_in, b.conv.norm_in, x)
        halves = zip(
            a.conv.up.weight.chunk(2), a.conv.up.bias.chunk(2), b.conv.up.weight.chunk(2), b.conv.up.bias.chunk(2)
        )
        for weight, bias, wide_weight, wide_bias in halves:  # value and gate of the GLU
            wide_weight.copy_(x.write(x.read(weight, 1), self.rng))
            wide_bias.copy_(x.copy(bias))
        self.conv(a.conv.depthwise, b.conv.depthwise, x, Widening.same(1))
        self.values(a.conv.norm_mid, b.conv.norm_mid, x)
        self.conv(a.conv.down, b.conv.down, x, x)
        self.values(a.norm_final, b.norm_final, x)

    def _attention(self, a: SelfAttention, b: SelfAttention, x: Widening) -> None:
        """Heads grow in width; queries and keys share the root of a copy's share, so that their products stay."""
        inner, wide = a.out.in_features // a.heads, b.out.in_features // b.heads
        weight = x.read(a.qkv.weight, 1).unflatten(0, (3, a.heads, inner))
        bias = a.qkv.bias.unflatten(0, (3, a.heads, inner))
        out = a.out.weight.unflatten(1, (a.heads, inner))
        for head in range(a.heads):
            keys, values = self.widening(inner, wide), self.widening(inner, wide)
            root = keys.share.sqrt() * (wide / inner) ** 0.25  # the product is divided by the root of its width
            for part in (0, 1):
                rows = slice((part * a.heads + head) * wide, (part * a.heads + head + 1) * wide)
                b.qkv.weight[rows].copy_(keys.write(weight[part, head], self.rng) * root[:, None])
                b.qkv.bias[rows].copy_(keys.copy(bias[part, head]) * root)
            rows = slice((2 * a.heads + head) * wide, (2 * a.heads + head + 1) * wide)
            b.qkv.weight[rows].copy_(values.write(weight[2, head], self.rng))
            b.qkv.bias[rows].copy_(values.copy(bias[2, head]))
            columns = slice(head * wide, (head + 1) * wide)
            b.out.weight[:, columns].copy_(x.write(values.read(out[:, head], 1), self.rng))
        b.out.bias.copy_(x.copy(a.out.bias))


def _layer(sequence: nn.Sequential, index: int) -> nn.Linear:
    layer = sequence[index]
    assert isinstance(layer, nn.Linear)
    return layer


def _first_tap(module: nn.Module) -> int:
    """Which step the first tap of a convolution meets, counted from its own."""
    if isinstance(module, TimeConv):
        return -(module.kernel_size[0] - 1) if module.causal else -(module.kernel_size[0] // 2)
    if isinstance(module, StridedConv):
        return -module.left
    if isinstance(module, UpStage):
        return 0 if module.causal else -(module.stride // 2)
    return 0


def _taps(weight: Tensor, small: nn.Module, large: nn.Module) -> Tensor:
    """Taps [..., K] of the small module at the places [..., K'] where the large one has them; those it cannot see are left out."""
    if weight.ndim < 3:
        return weight
    conv = large.up if isinstance(large, UpStage) else large
    assert isinstance(conv, (nn.Conv1d, nn.ConvTranspose1d))
    kernel = conv.kernel_size[0]
    shift = _first_tap(small) - _first_tap(large)
    taps = weight.new_zeros(*weight.shape[:-1], kernel)
    for tap in range(weight.shape[-1]):
        if 0 <= tap + shift < kernel:
            taps[..., tap + shift] = weight[..., tap]
    return taps
