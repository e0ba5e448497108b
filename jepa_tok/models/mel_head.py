"""Mel head: the log-mels of the input, read off the steps inside the generator by one linear layer (deep supervision, arXiv 1409.5185).

What a decoder must learn first, which sound stands where in a frame, needs no waveform to be judged. A step of the
generator's low-rate stages answers for the log-mels of its own span; so the encoder, the quantiser and these stages
train without the stages above them, the spectra of the losses, and their gradients, which is most of a step's price.

    B clips   S samples   C channels   L steps at the rate of the stage   W mel windows of a step   M mel filters
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa_tok.config import EncoderConfig, GeneratorConfig
from jepa_tok.models.layers import ChannelNorm, sequence_mask
from jepa_tok.models.logmel import LogMel
from jepa_tok.models.losses import masked_mean

WINDOW_SECONDS = 0.01
"""Hop between mel windows, at most."""

N_FFT, N_MELS = 1024, 128
"""Window in samples, and filters: those of the `mel` front."""


class MelHead(nn.Module):
    """Norm and a linear layer from a step to W windows of M log-mels; trains with stage 2 and is not part of the tokenizer.

    :param config: The generator's.
    :param stage: How many of its stages lie below, at least 1.
    :param exponent: Of a mel's magnitude, by which its error counts: 0 for all the same; .46 for what it adds to loudness, which
        grows with the .23th power of power (Zwicker). Most windows of read speech hold noise of the room in most mels, which nobody hears.
    """

    def __init__(self, config: GeneratorConfig, stage: int, exponent: float = 0.0) -> None:
        super().__init__()
        self.exponent = exponent
        span = config.head_hop * math.prod(config.strides[stage:])  # samples of a step
        self.windows = math.ceil(span / (WINDOW_SECONDS * config.sample_rate))
        while span % self.windows:
            self.windows += 1
        self.logmel = LogMel(config.sample_rate, N_FFT, span // self.windows, N_MELS)
        self.norm = ChannelNorm(config.channels[stage - 1])
        self.out = nn.Conv1d(config.channels[stage - 1], self.windows * N_MELS, 1)
        nn.init.trunc_normal_(self.out.weight, std=self.out.in_channels**-0.5)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> log-mels [B, L * W, M] in the units of `LogMel`, float32."""
        return self.out(self.norm(x)).float().transpose(1, 2).unflatten(-1, (self.windows, N_MELS)).flatten(1, 2)

    @torch.no_grad()
    def fit(self, x: Tensor, logmel: Tensor, ridge: float = 1e-3) -> None:
        """Sets the layer to the least-squares answer, so that a trained generator is not shaken by an untrained head.

        :param x: Steps [N, C].
        :param logmel: What is to be told of each, [N, W * M], in the units of `LogMel`.
        :param ridge: Added to the covariance of the normed steps, as a share of its mean diagonal.
        """
        h = self.norm(x[:, :, None])[:, :, 0].double()
        y = logmel.double()
        mean_h, mean_y = h.mean(0), y.mean(0)
        h, y = h - mean_h, y - mean_y
        covariance = h.T @ h
        covariance.diagonal().add_(ridge * covariance.diagonal().mean() + 1e-9)
        weight = torch.linalg.solve(covariance, h.T @ y).T  # [W * M, C]
        assert self.out.bias is not None
        self.out.weight.copy_(weight[:, :, None])
        self.out.bias.copy_(mean_y - weight @ mean_h)

    def loss(self, x: Tensor, wave: Tensor, lengths: Tensor | None, heard: Tensor | None = None) -> Tensor:
        """Mean absolute error of the log-mels in nats, over the windows of all clips; the weights of a clip's errors have mean 1.

        :param x: [B, C, L], of clips [B, S].
        :param wave: [B, S], zero outside each clip.
        :param lengths: Samples of each clip [B]; None if each has S.
        :param heard: Log-mels that the encoder has made of `wave`, where `same_windows`: they need not be made again.
        :returns: Float32 scalar.
        """
        if heard is None:
            with torch.no_grad():
                heard = self.logmel(wave)  # [B, ceil(S / hop), M]
        error = (self(x)[:, : heard.shape[1]] - heard).abs() * LogMel.DEVIATION  # [B, L, M]
        own = None if lengths is None else sequence_mask(-(-lengths // self.logmel.hop), heard.shape[1])
        if self.exponent:
            weights = (self.exponent * LogMel.DEVIATION * heard).exp()
            weights = weights if own is None else weights * own[..., None]
            windows = heard.shape[1] if own is None else own.sum(1)[:, None, None]
            error = error * weights * (windows * heard.shape[2] / weights.sum((1, 2), keepdim=True))
        return masked_mean(error, own)

    def same_windows(self, config: EncoderConfig) -> bool:
        """Whether the encoder's `mel` front makes the log-mels that this head answers for."""
        ours = (self.logmel.sample_rate, self.logmel.hop, N_FFT, N_MELS)
        theirs = (config.sample_rate, config.front_hop, config.n_fft, config.n_mels)
        return config.front == "mel" and not config.causal and ours == theirs
