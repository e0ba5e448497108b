"""Mel head: the log-mels of the input, and on demand its periodicity, read off the steps inside the generator by one linear layer (deep supervision, arXiv 1409.5185).

What a decoder must learn first, which sound stands where in a frame, needs no waveform to be judged. A step of the
generator's low-rate stages answers for the log-mels of its own span; so the encoder, the quantiser and these stages
train without the stages above them, the spectra of the losses, and their gradients, which is most of a step's price.

    B clips   S samples   C channels   L steps at the rate of the stage   W mel windows of a step   M mel filters   K lags
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa_tok.config import EncoderConfig, GeneratorConfig
from jepa_tok.models.layers import ChannelNorm, sequence_mask
from jepa_tok.models.logmel import LogMel
from jepa_tok.models.losses import masked_mean
from jepa_tok.models.pitch import N_LAGS, Periodicity

WINDOW_SECONDS = 0.01
"""Hop between mel windows, at most."""

N_FFT, N_MELS = 1024, 128
"""Window in samples, and filters: those of the `mel` front."""


class MelHead(nn.Module):
    """Norm and a linear layer from a step to W windows of M log-mels (and K lags); trains with stage 2 and is not part of the tokenizer.

    :param config: The generator's.
    :param stage: How many of its stages lie below, at least 1.
    :param pitch: Whether it tells the periodicity at each lag, too.
    """

    def __init__(self, config: GeneratorConfig, stage: int, pitch: bool = False) -> None:
        super().__init__()
        span = config.head_hop * math.prod(config.strides[stage:])  # samples of a step
        self.windows = math.ceil(span / (WINDOW_SECONDS * config.sample_rate))
        while span % self.windows:
            self.windows += 1
        self.logmel = LogMel(config.sample_rate, N_FFT, span // self.windows, N_MELS)
        self.periodicity = Periodicity(config.sample_rate, N_FFT, span // self.windows) if pitch else None
        self.norm = ChannelNorm(config.channels[stage - 1])
        self.out = nn.Conv1d(config.channels[stage - 1], self.windows * (N_MELS + N_LAGS * pitch), 1)
        nn.init.trunc_normal_(self.out.weight, std=self.out.in_channels**-0.5)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, L * W, M or M + K], float32: log-mels in the units of `LogMel`, then periodicities."""
        return self.out(self.norm(x)).float().transpose(1, 2).unflatten(-1, (self.windows, -1)).flatten(1, 2)

    @torch.no_grad()
    def truth(self, wave: Tensor, heard: Tensor | None = None) -> Tensor:
        """What is to be told of a wave [B, S], zero outside each clip: [B, ceil(S / hop), M or M + K].

        :param heard: Log-mels that the encoder has made of `wave`, where `same_windows`: they need not be made again.
        """
        logmel = self.logmel(wave) if heard is None else heard
        return logmel if self.periodicity is None else torch.cat([logmel, self.periodicity(wave)], dim=-1)

    @torch.no_grad()
    def fit(self, x: Tensor, truth: Tensor, ridge: float = 1e-3) -> None:
        """Sets the layer to the least-squares answer, so that a trained generator is not shaken by an untrained head.

        :param x: Steps [N, C].
        :param truth: What is to be told of each, [N, W * M or W * (M + K)].
        :param ridge: Added to the covariance of the normed steps, as a share of its mean diagonal.
        """
        h = self.norm(x[:, :, None])[:, :, 0].double()
        y = truth.double()
        mean_h, mean_y = h.mean(0), y.mean(0)
        h, y = h - mean_h, y - mean_y
        covariance = h.T @ h
        covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-9)
        weight = torch.linalg.solve(covariance, h.T @ y).T  # [W * M, C]
        assert self.out.bias is not None
        self.out.weight.copy_(weight[:, :, None])
        self.out.bias.copy_(mean_y - weight @ mean_h)

    def loss(
        self, x: Tensor, wave: Tensor, lengths: Tensor | None, heard: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Errors over the windows of all clips: mean absolute of the log-mels in nats, mean squared of the periodicities (0 without).

        :param x: [B, C, L], of clips [B, S].
        :param wave: [B, S], zero outside each clip.
        :param lengths: Samples of each clip [B]; None if each has S.
        :param heard: As for `truth`.
        :returns: Two float32 scalars.
        """
        truth = self.truth(wave, heard)
        error = (self(x)[:, : truth.shape[1]] - truth).abs()
        mask = None if lengths is None else sequence_mask(-(-lengths // self.logmel.hop), truth.shape[1])
        mel = masked_mean(error[..., :N_MELS].mean(-1) * LogMel.DEVIATION, mask)
        if self.periodicity is None:
            return mel, torch.zeros_like(mel)
        # Squared: absolute errors are least at the median, and that of a periodicity at most lags is near zero.
        return mel, masked_mean(error[..., N_MELS:].square().mean(-1), mask)

    def same_windows(self, config: EncoderConfig) -> bool:
        """Whether the encoder's `mel` front makes the log-mels that this head answers for."""
        ours = (self.logmel.sample_rate, self.logmel.hop, N_FFT, N_MELS)
        theirs = (config.sample_rate, config.front_hop, config.n_fft, config.n_mels)
        return config.front == "mel" and not config.causal and ours == theirs
