"""Mel anchor: each frame predicts which cluster of a frozen mixture each of its sub-frames belongs to.

A published JEPA loss can be met by an encoder that ignores its input; the anchor ties z to the sound. Idea and weights:
clustering-anchored JEPA, arXiv 2602.09040; here a frame of 400 ms answers for each of its 20 ms sub-frames, since one
cluster for 400 ms of speech says too little.

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


class MelAnchor(nn.Module):
    """Frozen diagonal Gaussian mixture on log-mels, and the linear head that predicts its posteriors from z."""

    means: Tensor
    precisions: Tensor
    log_weights: Tensor
    fitted: Tensor

    def __init__(self, config: AnchorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.sub_hop = encoder.hop // config.subframes
        self.logmel = LogMel(encoder.sample_rate, encoder.n_fft, self.sub_hop, config.n_mels)
        self.head = nn.Linear(encoder.latent_dim, config.subframes * config.clusters)
        nn.init.trunc_normal_(self.head.weight, std=encoder.latent_dim**-0.5)
        nn.init.zeros_(self.head.bias)
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

    def features(self, wave: Tensor) -> Tensor:
        """[B, S] -> log-mels [B, ceil(S / sub-hop), M]."""
        return self.logmel(wave)

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
        clips, frames, _ = latents.shape
        logits = self.head(latents).float().view(clips, frames * self.config.subframes, self.config.clusters)
        return logits.log_softmax(-1)

    def forward(self, latents: Tensor, wave: Tensor, lengths: Tensor) -> Tensor:
        """KL(posterior of each sub-frame || its prediction), mean over the sub-frames of all clips, in nats.

        :param latents: Frames [B, T, D], masked and visible alike.
        :param wave: The whole clips [B, S], nothing masked.
        :param lengths: Samples of each clip [B].
        """
        with torch.autocast(latents.device.type, enabled=False):
            target = self.posteriors(self.features(wave * sequence_mask(lengths, wave.shape[-1])))  # [B, L, K]
        steps = target.shape[1]
        divergence = F.kl_div(self.predict(latents)[:, :steps], target, reduction="none").sum(-1)  # [B, L]
        real = sequence_mask(-(-lengths // self.sub_hop), steps)
        return (divergence * real).sum() / real.sum()
