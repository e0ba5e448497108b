"""Discriminators: multi-period (HiFi-GAN, arXiv 2010.05646, section 2.3) and multi-scale (MelGAN, arXiv 1910.06711).

    B clips   S samples   P period   C channels   L steps at the rate of a layer   W columns (P for multi-period, else 1)

Each judges a wave at several rates and gives, for each layer, a feature map with the number of its steps that belong to
each clip. Behind a clip's end every map is zero, as the padding of a convolution is: a clip is judged the same alone and
padded in a batch, and losses can leave the padding out. Parameters at full width: 41,092,165 and 16,913,859.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.errors import ConfigError
from jepa_tok.models.layers import sequence_mask
from jepa_tok.training_config import DiscriminatorConfig

SLOPE = 0.1
"""Slope of every leaky ReLU below zero."""


@dataclass(frozen=True)
class Feature:
    """Output of one layer for a batch."""

    values: Tensor
    """[B, C, L, W], zero on steps past a clip's own."""

    lengths: Tensor | None
    """Steps of each clip [B]; None if each has L."""


class Discriminator(nn.Module):
    """All sub-discriminators: one for each period, one for each scale.

    :param config: Periods, scales and width; its defaults are the paper's.
    :raises ConfigError: `width` or `scales` is out of range.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        few = config.scales < 0 or config.scales + len(config.periods) == 0
        if config.width <= 0 or few or min(config.periods, default=1) < 1:
            raise ConfigError(
                "discriminator `width` and `periods` must be positive and there must be a period or a scale, but "
                f"`width` is {config.width}, `periods` {config.periods} and `scales` {config.scales} instead."
            )
        self.periods = nn.ModuleList(PeriodDiscriminator(period, config.width) for period in config.periods)
        self.scales = nn.ModuleList(ScaleDiscriminator(config.width) for _ in range(config.scales))
        self.pool = nn.AvgPool1d(4, 2, padding=2)
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d)):
                # Scaled for the leaky ReLUs (arXiv 1502.01852). At torch's default a sixth of the variance is left by each layer: logits
                # are their biases, and hundreds of steps pass at chance.
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, wave: Tensor, lengths: Tensor | None = None) -> list[list[Feature]]:
        """Judges waves.

        :param wave: [B, S]; samples past a clip's length must be zero.
        :param lengths: Samples of each clip [B]; None if each has S.
        :returns: For each sub-discriminator the feature maps of its layers, of which the last is the logits (C = 1).
        """
        maps = [period(wave, lengths) for period in self.periods]
        for i, scale in enumerate(self.scales):
            if i:
                wave = self.pool(wave[:, None]).squeeze(1)
                lengths = None if lengths is None else lengths // 2 + 1
                wave = wave if lengths is None else wave * sequence_mask(lengths, wave.shape[1])
            maps.append(scale(wave, lengths))
        return maps


class PeriodDiscriminator(nn.Module):
    """Sees the wave as P columns, each of every P-th sample, and convolves along the columns alone."""

    def __init__(self, period: int, width: float) -> None:
        super().__init__()
        self.period = period
        channels = [1, *(max(1, round(c * width)) for c in (32, 128, 512, 1024, 1024))]
        strides = [3, 3, 3, 3, 1]
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], (5, 1), stride=(strides[i], 1), padding=(2, 0)) for i in range(5)
        )
        self.post = nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, wave: Tensor, lengths: Tensor | None) -> list[Feature]:
        """[B, S] -> feature maps [B, C, L, P]."""
        rows = math.ceil(wave.shape[1] / self.period)
        # Zeros fill the last row. (HiFi-GAN mirrors the end of the tensor, which is not the end of each clip.)
        x = F.pad(wave, (0, rows * self.period - wave.shape[1])).unflatten(1, (rows, self.period))[:, None]
        if lengths is not None:
            lengths = (lengths + self.period - 1) // self.period
        return _run(x, lengths, self.layers, self.post)


class ScaleDiscriminator(nn.Module):
    """Grouped strided convolutions of wide kernels on the wave."""

    def __init__(self, width: float) -> None:
        super().__init__()
        base = max(1, round(16 * width))
        channels = [1] + [base * m for m in (1, 4, 16, 64, 64, 64)]
        kernels, strides = [15, 41, 41, 41, 41, 5], [1, 4, 4, 4, 4, 1]
        # 4 input channels a group, at any width: 4, 16, 64 and 256 groups at full width.
        groups = [1, *(math.gcd(c, max(1, c // 4)) for c in channels[1:5]), 1]
        self.layers = nn.ModuleList(
            nn.Conv1d(channels[i], channels[i + 1], k, stride=strides[i], padding=k // 2, groups=groups[i])
            for i, k in enumerate(kernels)
        )
        self.post = nn.Conv1d(channels[-1], 1, 3, padding=1)

    def forward(self, wave: Tensor, lengths: Tensor | None) -> list[Feature]:
        """[B, S] -> feature maps [B, C, L, 1]."""
        maps = _run(wave[:, None], lengths, self.layers, self.post)
        return [Feature(m.values[..., None], m.lengths) for m in maps]


def _run(x: Tensor, lengths: Tensor | None, layers: nn.ModuleList, post: nn.Module) -> list[Feature]:
    """Feature maps of `layers` and `post` on x [B, 1, L, ...]; steps past a clip's own are zeroed after each layer."""
    maps = []
    for i, layer in enumerate([*layers, post]):
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        x = layer(x)
        if i < len(layers):
            x = F.leaky_relu(x, SLOPE)
        if lengths is not None:
            lengths = _conv_length(lengths, layer)
            mask = sequence_mask(lengths, x.shape[2])  # biases would fill the padding
            x = x * mask.view(x.shape[0], 1, -1, *[1] * (x.dim() - 3)).to(x.dtype)
        maps.append(Feature(x, lengths))
    return maps


def _conv_length(lengths: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Steps that `conv` makes of `lengths` steps, along its first dimension."""
    padding = conv.padding[0]
    assert isinstance(padding, int)
    return (lengths + 2 * padding - conv.kernel_size[0]) // conv.stride[0] + 1
