"""Generator: latent frames to a waveform (paper, section 3.4; HiFi-GAN, arXiv 2010.05646; Vocos, arXiv 2306.00814).

    B clips   T frames   D latent dimensions   C channels   L steps at the rate of a stage   S samples   N = n_fft

A 1x1 projection, upsampling stages that mirror the encoder's strides, and a head that ends at the sample rate: either a
convolution at 24 kHz (paper) or an inverse STFT, which spends nothing per sample. Lengths go all the way: a clip decodes
to the same samples alone and padded in a batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa_tok.config import GeneratorConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.causal import StreamState, context_steps, look_back
from jepa_tok.models.conformer import ConformerBlock
from jepa_tok.models.daam import DaamGate
from jepa_tok.models.layers import (
    ChannelNorm,
    ConvNeXtBlock,
    HifiGanResBlock,
    SnakeBeta,
    TimeConv,
    apply_mask,
    init_weights,
    sequence_mask,
)
from jepa_tok.models.source import PitchDecoder
from jepa_tok.models.stft import istft

MAX_LOG_MAGNITUDE = math.log(100.0)
"""Ceiling of the `istft` head's log-magnitudes: exp() of an untrained layer must not reach infinity (Vocos)."""

MEAN_LOG_MAGNITUDE, LOG_MAGNITUDE_SCALE, PHASE_SCALE = -3.0, 5.0, math.pi
"""Units of the `istft` head's layer: magnitudes start at the level of read speech, and a step of the optimizer moves them,
and the phase in half turns, as far as their ranges ask for. Without these units (0, 1, 1), 200 steps of AdamW on one clip
end at about three times the log-mel error."""

CONFORMER_KERNEL = 15
"""Depthwise kernel of the Conformer blocks in `stage_conformers`, in steps."""


class Generator(nn.Module):
    """Projection, upsampling stages, head.

    :param config: Shapes; its defaults are the paper's generator of 69,291,649 parameters.
    :raises ConfigError: Fields of `config` contradict each other.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        config.check()
        _check(config)
        self.config = config
        self.project = nn.Conv1d(config.latent_dim, config.input_channels, 1)
        widths = [config.input_channels, *config.channels]
        self.stages = nn.ModuleList(UpStage(config, i, widths[i], widths[i + 1]) for i in range(len(config.strides)))
        self.head: nn.Module
        if config.head == "istft":
            self.head = IstftHead(widths[-1], config.n_fft, config.head_hop, harmonic=config.pitch_dims > 0)
        else:
            self.head = WaveHead(widths[-1], config.causal)
        self.pitch = PitchDecoder(config) if config.pitch_dims else None
        # std 0.02 is the paper's; through a deep stack without its weights' training it fades, so `convnext` is scaled.
        init_weights(self, "trunc_normal" if config.block == "mrf" else "scaled")
        if isinstance(self.head, IstftHead):
            self.head.soften()

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.config.hop

    @property
    def hears_pitch(self) -> bool:
        """Whether anything but the source is made of the pitch dimensions; not in a tokenizer that `grow` gave them to."""
        return self.config.pitch_dims > 0 and bool(self.project.weight[:, -self.config.pitch_dims :].any())

    @torch.no_grad()
    def forget_pitch(self) -> None:
        """Leaves the pitch dimensions to the source alone: what was learnt from them is no longer there."""
        if self.config.pitch_dims:
            self.project.weight[:, -self.config.pitch_dims :] = 0.0

    def forward(self, latents: Tensor, lengths: Tensor | None = None, state: StreamState | None = None) -> Tensor:
        """Decodes latent frames.

        :param latents: [B, T, D], any float dtype; values from `FSQ` lie in (-1, 1).
        :param lengths: Frames of each clip [B]; None if each has T.
        :param state: Of the streams that `latents` continue (causal generators).
        :returns: wave [B, T * hop] float32, zero from lengths * hop on. `wave` head: in (-1, 1); `istft` head: unbounded. In
            a stream it comes `config.delay` samples late: a stream's first samples are silence before its beginning.
        """
        x, mask = self.begin(latents, lengths)
        source = self.source(latents, mask, state)
        x, mask = self.upsample(x, mask, state=state)
        return self.head(x, mask, state, source)

    def begin(self, latents: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Latents [B, T, D] -> projected [B, C, T], and which steps [B, T] are the clips' own (None: all)."""
        x = latents.transpose(1, 2).to(self.project.weight.dtype)  # [B, D, T]
        mask = None if lengths is None else sequence_mask(lengths.to(x.device), x.shape[-1])
        return apply_mask(self.project(x), mask), mask

    def upsample(
        self, x: Tensor, mask: Tensor | None, start: int = 0, end: int | None = None, state: StreamState | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Stages `start` to `end` (all that follow if None): [B, C, L], [B, L] -> [B, C', L'], [B, L']."""
        for stage in list(self.stages)[start:end]:
            x, mask = stage(x, mask, state)
        return x, mask

    def source(
        self, latents: Tensor, mask: Tensor | None, state: StreamState | None = None, pitch: Tensor | None = None
    ) -> Tensor | None:
        """Spectrum of the harmonic source that latents [B, T, D] (mask [B, T]) tell, [B, N / 2 + 1, steps of the head]; None without `pitch_dims`.

        :param pitch: As of `PitchDecoder.source`.
        """
        return None if self.pitch is None else self.pitch.source(latents, mask, state, pitch)


class UpStage(nn.Module):
    """SnakeBeta, transposed convolution, residual blocks, optionally Conformer blocks and a DAAM gate.

    The transposed convolution has kernel 2s and padding s // 2; for odd s it yields one step too many, which is cut, so
    that L steps become exactly s * L and step i stays above its own s steps. Causal, its 2s taps begin there: output steps
    see the step above them and the one before.
    """

    def __init__(self, config: GeneratorConfig, index: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = config.strides[index]
        self.act = SnakeBeta(in_channels)
        self.causal = config.causal
        padding = 0 if config.causal else self.stride // 2
        self.up = nn.ConvTranspose1d(in_channels, out_channels, 2 * self.stride, stride=self.stride, padding=padding)
        context = context_steps(config, config.hop // math.prod(config.strides[: index + 1]))
        self.blocks = nn.ModuleList(
            Mrf(out_channels, config.kernels, config.dilations, config.causal)
            if config.block == "mrf"
            else ConvNeXtBlock(out_channels, config.expansion, causal=config.causal)
            for _ in range(config.blocks[index])
        )
        self.conformers = nn.ModuleList(
            ConformerBlock(out_channels, config.conformer_heads, CONFORMER_KERNEL, "step", dropout=0.0, context=context)
            for _ in range(config.stage_conformers[index])
        )
        self.gate = DaamGate(out_channels, context=context) if config.daam else None

    def forward(self, x: Tensor, mask: Tensor | None, state: StreamState | None = None) -> tuple[Tensor, Tensor | None]:
        """[B, C, L], [B, L] -> [B, C', s * L], [B, s * L]; steps outside the mask are zero."""
        start, size = 0, x.shape[-1] * self.stride
        x = apply_mask(self.act(x), mask)
        if self.causal:
            x, start = look_back(x, 1, state, self), self.stride
        x = self.up(x)[..., start : start + size]
        mask = None if mask is None else mask.repeat_interleave(self.stride, dim=1)
        x = apply_mask(x, mask)
        for block in self.blocks:
            x = block(x, mask, state)
        if len(self.conformers):
            h = x.transpose(1, 2)
            for conformer in self.conformers:
                h = conformer(h, mask, state)
            x = h.transpose(1, 2)
        if self.gate is not None:
            x, _ = self.gate(x, mask, state)
        return x, mask


class Mrf(nn.Module):
    """Multi-receptive-field fusion: the mean of residual blocks of several kernels (HiFi-GAN, section 2.2)."""

    def __init__(self, channels: int, kernels: list[int], dilations: list[int], causal: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(HifiGanResBlock(channels, kernel, dilations, causal) for kernel in kernels)

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        total = self.branches[0](x, mask, state)
        for branch in list(self.branches)[1:]:
            total = total + branch(x, mask, state)
        return total / len(self.branches)


class WaveHead(nn.Module):
    """Conv1d k7 to one channel, tanh (HiFi-GAN)."""

    def __init__(self, channels: int, causal: bool = False) -> None:
        super().__init__()
        self.out = TimeConv(channels, 1, 7, causal=causal)

    def forward(
        self, x: Tensor, mask: Tensor | None, state: StreamState | None = None, source: Tensor | None = None
    ) -> Tensor:
        """[B, C, S] -> [B, S] float32; there is no `source`."""
        wave = torch.tanh(self.out(apply_mask(x, mask), state).float()).squeeze(1)
        return wave if mask is None else wave * mask


class IstftHead(nn.Module):
    """Magnitude and phase of a spectrogram from each step, inverse STFT (Vocos, section 3).

    One dense product per step takes the place of all layers at 24 kHz. The phase is the angle of an unconstrained
    number through its cosine and sine, so that it wraps by itself. With a harmonic source, the spectrum of a voiced
    step is in part the source's: one magnitude for both, and a share for each bin. So the source is heard from the first step on; a gain
    of its own began too faint to be learnt beside a head that was trained without it.
    """

    def __init__(self, channels: int, n_fft: int, hop: int, harmonic: bool = False) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.norm = ChannelNorm(channels)
        self.out = nn.Conv1d(channels, n_fft + 2, 1)
        self.share = nn.Conv1d(channels, n_fft // 2 + 1, 1) if harmonic else None

    @torch.no_grad()
    def soften(self) -> None:
        """Takes LOG_MAGNITUDE_SCALE out of the initial weights: magnitudes at the start spread by a factor of e, no more."""
        self.out.weight[: self.n_fft // 2 + 1] /= LOG_MAGNITUDE_SCALE

    def forward(
        self, x: Tensor, mask: Tensor | None, state: StreamState | None = None, source: Tensor | None = None
    ) -> Tensor:
        """[B, C, L] and the spectrum of a source, complex [B, N / 2 + 1, L] -> [B, L * hop] float32."""
        # Nothing below is on autocast's list of what may run in half precision: from .float() on, all is float32.
        x = self.norm(x)
        log_magnitude, phase = self.out(x).float().chunk(2, dim=1)  # [B, N / 2 + 1, L] each
        log_magnitude = MEAN_LOG_MAGNITUDE + LOG_MAGNITUDE_SCALE * log_magnitude
        magnitude = log_magnitude.clamp_max(MAX_LOG_MAGNITUDE).exp()
        phase = PHASE_SCALE * phase
        real, imaginary = phase.cos(), phase.sin()
        if self.share is not None and source is not None:
            share = torch.sigmoid(self.share(x).float())
            loudness = (
                source.abs().square().mean(1, keepdim=True).sqrt().clamp_max(1.0)
            )  # [B, 1, L], 0 where it is silent
            rest = 1.0 - share * loudness
            real, imaginary = rest * real + share * source.real, rest * imaginary + share * source.imag
        spectrum = torch.complex(magnitude * real, magnitude * imaginary)
        return istft(spectrum, self.n_fft, self.hop, mask, state)


def _check(config: GeneratorConfig) -> None:
    """Rules that only the modules here know."""
    if config.head == "istft" and (config.n_fft % 2 or config.n_fft < 2 * config.head_hop):
        raise ConfigError(
            f"generator `n_fft` must be even and at least twice `head_hop` ({config.head_hop}), but is {config.n_fft} instead."
        )
    if any(kernel % 2 == 0 for kernel in config.kernels):
        raise ConfigError(f"generator `kernels` must be odd, but are {config.kernels} instead.")
    for i, (width, layers) in enumerate(zip(config.channels, config.stage_conformers)):
        if layers and width % config.conformer_heads:
            raise ConfigError(
                f"generator `channels[{i}]` must be a multiple of `conformer_heads` ({config.conformer_heads}), but is {width} instead."
            )
