"""Encoder: 24 kHz waveform to latent frames, 2.5 a second (paper, section 3.1; layout by config).

    B clips   S samples   C channels   L steps inside the stack   T frames   D latent dimensions

Data flow: front (samples or log-mel) -> strided stages (conv, SnakeBeta, residual blocks, DAAM gate, Conformers) -> 1x1
to D -> Conformers. After every stride s a clip of L steps has ceil(L / s), which chains to T = ceil(S / hop); steps past a
clip's end are zeros everywhere, so padding never reaches a token. Causal, every layer looks back alone, and a frame hears
nothing behind its own last sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.config import EncoderConfig
from jepa_tok.models.causal import StreamState, context_steps, look_back
from jepa_tok.models.conformer import ConformerBlock
from jepa_tok.models.gates import make_gate
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
from jepa_tok.models.logmel import LogMel
from jepa_tok.models.source import PitchEncoder


@dataclass
class EncoderOutput:
    """What the encoder hears in a batch."""

    latents: Tensor
    """[B, T, D], zero past each clip's frames."""

    lengths: Tensor
    """Frames of each clip, int64 [B]."""

    gates: list[Tensor] | None = None
    """DAAM gate of each stage, [B, L of that stage], where asked for."""

    logmel: Tensor | None = None
    """Log-mels [B, L, M] that a `mel` front heard, float32; what stands past a clip's steps means nothing."""


class WaveFront(nn.Module):
    """Fixed gain and Conv1d k7 at the sample rate (paper)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.gain = config.input_gain
        self.conv = TimeConv(1, config.front_channels, 7, causal=config.causal)

    def forward(self, wave: Tensor, mask: Tensor | None, state: StreamState | None) -> Tensor:
        """[B, S], zero outside each clip -> [B, C, S]."""
        x = (self.gain * wave).to(self.conv.weight.dtype)
        return self.conv(x[:, None, :], state)

    def factors(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """The same [B, C, S] as a product: what each sample's outputs are made of [B, k + 1, S], and the basis [C, k + 1].

        These are the k samples around it and a one for the bias. Only for fronts that are not causal.
        """
        x = (self.gain * wave).to(self.conv.weight.dtype)
        taps = self.conv.kernel_size[0]
        x = F.pad(x, (taps // 2, taps // 2)).unfold(-1, taps, 1).transpose(1, 2)  # [B, k, S]
        assert self.conv.bias is not None
        return F.pad(x, (0, 0, 0, 1), value=1.0), torch.cat([self.conv.weight[:, 0], self.conv.bias[:, None]], dim=1)


class MelFront(nn.Module):
    """Log-mel filterbank and Conv1d k3 at `front_hop`: the work of the costliest stages for a hundredth of their price."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.logmel = LogMel(config.sample_rate, config.n_fft, config.front_hop, config.n_mels, config.causal)
        self.conv = TimeConv(config.n_mels, config.front_channels, 3, causal=config.causal)

    def forward(self, wave: Tensor, mask: Tensor | None, state: StreamState | None) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S], zero outside each clip; mask [B, L] of its steps -> [B, C, L], log-mels [B, L, M], and the magnitudes of which
        they are made, [B, L, n_fft / 2 + 1]; L = ceil(S / front_hop)."""
        magnitudes = self.logmel.magnitudes(wave, state)
        logmel = self.logmel.of(magnitudes)
        mel = logmel.to(self.conv.weight.dtype).transpose(1, 2)
        # Padding holds log-silence, where a clip alone meets zeros.
        return self.conv(apply_mask(mel, mask), state), logmel, magnitudes


class StridedConv(nn.Conv1d):
    """Conv of kernel 2s and stride s (kernel 3 at stride 1) that turns L steps into exactly ceil(L / s).

    Causal, step i sees its own s steps and nothing behind them.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, causal: bool = False) -> None:
        kernel = 2 * stride if stride > 1 else 3
        super().__init__(channels_in, channels_out, kernel, stride=stride)
        self.causal = causal
        self.context = kernel - stride if causal else 0  # steps before its own s
        self.left = self.context if causal else max(stride // 2, 1)

    def forward(self, x: Tensor, state: StreamState | None = None, basis: Tensor | None = None) -> Tensor:
        """[B, C, L] -> [B, C', ceil(L / s)]; in a stream, L is a multiple of s but in the last piece.

        With a `basis` [C, R], x is [B, R, L] and stands for basis @ x: where R is small, that product is never made.
        """
        length, kernel, stride, left = x.shape[-1], self.kernel_size[0], self.stride[0], self.left
        steps = -(-length // stride)
        right = (steps - 1) * stride + kernel - length - left
        if self.causal:
            x, left = look_back(x, left, state, self), 0
        weight = self.weight if basis is None else torch.einsum("ock,cr->ork", self.weight, basis)
        return F.conv1d(F.pad(x, (left, right)), weight, self.bias, stride)


class EncoderStage(nn.Module):
    """Strided conv, SnakeBeta, residual blocks, gate, Conformers."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        channels_in = config.channels[index - 1] if index else config.front_channels
        channels = config.channels[index]
        # Norms between stages belong to the `convnext` layout: they hold the amplitude without looking along the clip.
        self.norm = ChannelNorm(channels_in) if config.block == "convnext" and index > 0 else nn.Identity()
        self.conv = StridedConv(channels_in, channels, config.strides[index], config.causal)
        context = context_steps(config, config.front_hop * math.prod(config.strides[: index + 1]))
        self.snake = SnakeBeta(channels)
        self.blocks = nn.ModuleList(
            HifiGanResBlock(channels, 3, [1, 3**i, 5**i], config.causal)
            if config.block == "hifigan"
            else ConvNeXtBlock(channels, config.expansion, causal=config.causal)
            for i in range(config.blocks[index])
        )
        self.gate = make_gate(config, channels, context)
        self.conformers = nn.ModuleList(
            ConformerBlock(
                channels,
                config.conformer_heads,
                config.conformer_kernel,
                config.conformer_norm,
                config.dropout,
                context=context,
            )
            for _ in range(config.stage_conformers[index])
        )

    def forward(
        self,
        x: Tensor,
        mask_in: Tensor | None,
        mask: Tensor | None,
        state: StreamState | None = None,
        basis: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Runs the stage.

        :param x: [B, C, L]; with a `basis` [C, R] its factor [B, R, L] (`StridedConv`; first stage only, which has no norm).
        :param mask_in: Bool [B, L] of the input's own steps; None if all are.
        :param mask: Bool [B, L'] of the output's own steps, L' = ceil(L / s).
        :returns: [B, C', L'] and DAAM's density [B, L'] (None with another gate or none).
        """
        x = self.snake(self.conv(apply_mask(self.norm(x), mask_in), state, basis))
        for block in self.blocks:
            x = block(x, mask, state)
        gate = None
        if self.gate is not None:
            x, gate = self.gate(x, mask, state)
        if len(self.conformers):
            h = x.transpose(1, 2)
            for conformer in self.conformers:
                h = conformer(h, mask, state)
            x = h.transpose(1, 2)
        return x, gate


class Encoder(nn.Module):
    """The whole encoder; see the module's docstring for the data flow."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.front = WaveFront(config) if config.front == "wave" else MelFront(config)
        self.stages = nn.ModuleList(EncoderStage(config, i) for i in range(len(config.strides)))
        self.project = nn.Conv1d(config.channels[-1], config.latent_dim, 1)
        self.conformers = nn.ModuleList(
            ConformerBlock(
                config.latent_dim,
                config.conformer_heads,
                config.conformer_kernel,
                config.conformer_norm,
                config.dropout,
                context=context_steps(config, config.hop),
            )
            for _ in range(config.conformers)
        )
        self.pitch = PitchEncoder(config) if config.pitch_dims else None
        init_weights(self, config.init)

    @property
    def receptive_field(self) -> int | None:
        """Samples, up to its own last one, that a frame depends on; None where it hears the whole clip (not causal)."""
        if not self.config.causal:
            return None
        hop = self.config.front_hop
        total = _steps_back(self.front.conv) * hop
        if isinstance(self.front, MelFront):
            total += self.front.logmel.context
        for stage, stride in zip(self.stages, self.config.strides):
            assert isinstance(stage, EncoderStage)
            total += _steps_back(stage.conv) * hop
            hop *= stride
            total += sum(_steps_back(m) for m in (stage.blocks, stage.gate, stage.conformers) if m is not None) * hop
        total += _steps_back(self.conformers) * hop
        return max(total, 0 if self.pitch is None else self.pitch.tracker.context) + hop

    def num_frames(self, samples: Tensor) -> Tensor:
        """Frames of clips of `samples` samples: ceil(S / hop)."""
        return -(-samples // self.config.hop)

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        mask_embedding: Tensor | None = None,
        return_gates: bool = False,
        state: StreamState | None = None,
    ) -> EncoderOutput:
        """Encodes a batch.

        :param wave: Samples in [-1, 1], [B, S] with S >= 1.
        :param lengths: Samples of each clip, [B]; None if all have S.
        :param mask: Bool [B, T], True where the encoder must not hear: samples under those frames are zeroed, and after
            the front the steps under them become `mask_embedding` (masking at the input).
        :param mask_embedding: [C of the front]; zeros if None.
        :param state: Of the streams that `wave` continues (causal encoders): S is then a multiple of the hop but in the
            last piece.
        """
        clips, size = wave.shape
        if lengths is None:
            lengths = torch.full((clips,), size, dtype=torch.int64, device=wave.device)
        # Masks are needed in every batch, full ones too: a clip then runs the same operations alone and in company.
        wave = wave * sequence_mask(lengths, size)
        hop, rate = self.config.hop, self.config.front_hop
        if mask is not None:
            wave = wave.masked_fill(mask.repeat_interleave(hop, dim=1)[:, :size], 0.0)

        samples = lengths
        lengths = -(-lengths // rate)
        steps = -(-size // rate)
        heard = sequence_mask(lengths, steps)
        basis: Tensor | None = None
        logmel: Tensor | None = None
        magnitudes: Tensor | None = None
        if isinstance(self.front, MelFront):
            x, logmel, magnitudes = self.front(wave, heard, state)  # [B, C, L], [B, L, M], [B, L, F]
        elif mask is None and not self.config.causal:
            # Nothing but a mask stands between the front's conv and the first stage's: 64 channels at 24 kHz, the largest
            # tensor of all, need not be made.
            x, basis = self.front.factors(wave)  # [B, R, L], [C, R]
        else:
            x = self.front(wave, heard, state)  # [B, C, L]
        if mask is not None:
            hidden = mask.repeat_interleave(hop // rate, dim=1)[:, None, :steps]
            fill = x.new_zeros(()) if mask_embedding is None else mask_embedding[:, None].to(x.dtype)
            x = torch.where(hidden, fill, x)

        gates: list[Tensor] = []
        for stage, stride in zip(self.stages, self.config.strides):
            lengths = -(-lengths // stride)
            steps = -(-steps // stride)
            heard_in, heard = heard, sequence_mask(lengths, steps)
            x, gate = stage(x, heard_in, heard, state, basis)
            basis = None
            if return_gates and gate is not None:
                gates.append(gate)

        z = apply_mask(self.project(x), heard).transpose(1, 2)  # [B, T, D]
        for conformer in self.conformers:
            z = conformer(z, heard, state)
        if self.pitch is not None:
            # Both parts normalised, so that what the quantiser normalises of one does not follow the other.
            spectral = z[..., : -self.config.pitch_dims]
            spectral = F.layer_norm(spectral.float(), spectral.shape[-1:]).to(z.dtype)
            pitch = self.pitch(wave, samples, state, magnitudes).to(z.dtype)
            z = torch.cat([spectral, pitch], dim=-1) * heard[..., None]
        return EncoderOutput(z, lengths, gates if return_gates else None, logmel)


def _steps_back(module: nn.Module) -> int:
    """Steps before its own that a step of a causal module's output depends on."""
    return sum(getattr(m, "context", None) or 0 for m in module.modules())
