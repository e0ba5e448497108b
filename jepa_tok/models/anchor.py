"""Anchors: each frame answers, by one linear layer, for the log-mels of each of its sub-frames.

A published JEPA loss can be met by an encoder that ignores its input; an anchor ties z to the sound. Two kinds: `posteriors`
of a frozen mixture (clustering-anchored JEPA, arXiv 2602.09040; here a frame of 400 ms answers for each of its 20 ms sub-frames, since
one cluster for 400 ms of speech says too little), and the `features` themselves, which teach from the first steps on where
clusters are met too seldom.

    B clips   S samples   T frames   P sub-frames per frame   M mel filters   K components   D latent dimensions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.config import EncoderConfig
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.logmel import LogMel
from jepa_tok.training_config import AnchorConfig


def make_anchor(config: AnchorConfig, encoder: EncoderConfig) -> MelPosteriors | MelFeatures | None:
    """The anchor that `config` asks for; None where it is off."""
    if config.kind == "features":
        return MelFeatures(config, encoder)
    return MelPosteriors(config, encoder) if config.clusters else None


class SubframeAnchor(nn.Module):
    """Log-mels of the sub-frames, and a linear layer from a frame to `outputs` values for each of them."""

    def __init__(self, config: AnchorConfig, encoder: EncoderConfig, outputs: int) -> None:
        super().__init__()
        self.config = config
        self.outputs = outputs
        self.sub_hop = encoder.hop // config.subframes
        self.logmel = LogMel(encoder.sample_rate, encoder.n_fft, self.sub_hop, config.n_mels)
        self.head = nn.Linear(encoder.latent_dim, config.subframes * outputs)
        nn.init.trunc_normal_(self.head.weight, std=encoder.latent_dim**-0.5)
        nn.init.zeros_(self.head.bias)

    def features(self, wave: Tensor) -> Tensor:
        """[B, S] -> log-mels [B, ceil(S / sub-hop), M], float32, of about unit range for speech."""
        return self.logmel(wave)

    def own_features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels [B, L, M] of the clips, silence behind them, and which sub-frames [B, L] are theirs."""
        with torch.autocast(wave.device.type, enabled=False):
            features = self.features(wave * sequence_mask(lengths, wave.shape[-1]))
        return features, sequence_mask(-(-lengths // self.sub_hop), features.shape[1])

    def answer(self, latents: Tensor) -> Tensor:
        """Frames [B, T, D] -> values of their sub-frames [B, T * P, outputs], float32."""
        clips, frames, _ = latents.shape
        return self.head(latents).float().view(clips, frames * self.config.subframes, self.outputs)


class MelFeatures(SubframeAnchor):
    """Predicts the sub-frames' log-mels themselves."""

    def __init__(self, config: AnchorConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder, config.n_mels)

    def forward(self, latents: Tensor, wave: Tensor, lengths: Tensor) -> Tensor:
        """Mean squared error of the log-mels over the sub-frames of all clips, in the units of `LogMel` (a deviation is about 1).

        :param latents: Frames [B, T, D], masked and visible alike.
        :param wave: The whole clips [B, S], nothing masked.
        :param lengths: Samples of each clip [B].
        """
        features, real = self.own_features(wave, lengths)
        error = (self.answer(latents)[:, : features.shape[1]] - features).square().mean(-1)  # [B, L]
        return (error * real).sum() / real.sum()


class MelPosteriors(SubframeAnchor):
    """Predicts the posteriors of a frozen diagonal Gaussian mixture on the sub-frames' log-mels."""

    means: Tensor
    precisions: Tensor
    log_weights: Tensor
    fitted: Tensor

    def __init__(self, config: AnchorConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder, config.clusters)
        self.register_buffer("means", torch.zeros(config.clusters, config.n_mels))
        self.register_buffer("precisions", torch.ones(config.clusters, config.n_mels))
        self.register_buffer("log_weights", torch.full((config.clusters,), -math.log(config.clusters)))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @property
    def is_fitted(self) -> bool:
        """Whether `set_mixture` was called, now or before the checkpoint was written."""
        return bool(self.fitted)

    def set_mixture(self, means: Tensor, variances: Tensor, weights: Tensor) -> None:
        """Takes over a mixture fitted elsewhere: means [K, M], variances [K, M], weights [K]."""
        self.means.copy_(means)
        self.precisions.copy_(variances.reciprocal())
        self.log_weights.copy_(weights.log())
        self.fitted.fill_(True)

    @torch.no_grad()
    def posteriors(self, features: Tensor) -> Tensor:
        """[..., M] -> posterior of each component [..., K], float32."""
        means, precisions = self.means.float(), self.precisions.float()
        # (x - m)' P (x - m) expanded, so that no [..., K, M] tensor is made.
        distance = features.square() @ precisions.T - 2.0 * features @ (means * precisions).T
        distance = distance + (means.square() * precisions).sum(1)
        return torch.softmax(self.log_weights.float() + 0.5 * precisions.log().sum(1) - 0.5 * distance, dim=-1)

    def predict(self, latents: Tensor) -> Tensor:
        """Frames [B, T, D] -> log-posteriors of their sub-frames [B, T * P, K], float32."""
        return self.answer(latents).log_softmax(-1)

    def forward(self, latents: Tensor, wave: Tensor, lengths: Tensor) -> Tensor:
        """KL(posterior of each sub-frame || its prediction), mean over the sub-frames of all clips, in nats.

        :param latents: Frames [B, T, D], masked and visible alike.
        :param wave: The whole clips [B, S], nothing masked.
        :param lengths: Samples of each clip [B].
        """
        features, real = self.own_features(wave, lengths)
        with torch.autocast(latents.device.type, enabled=False):
            target = self.posteriors(features)  # [B, L, K]
        divergence = F.kl_div(self.predict(latents)[:, : target.shape[1]], target, reduction="none").sum(-1)  # [B, L]
        return (divergence * real).sum() / real.sum()
