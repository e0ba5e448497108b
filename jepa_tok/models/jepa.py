"""Stage 1: joint-embedding predictive architecture on latent frames (paper, section 3.1).

An online encoder and an EMA copy of it (the target) hear the clip; a predictor completes the masked frames; the loss is the
mean squared error to the target's frames. Where masking takes place (`feature` or `input`) and whether a mel anchor holds z
to the sound is configuration; the published objective is `feature` without anchor.

    B clips   S samples   T frames   D latent dimensions
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from jepa_tok.config import EncoderConfig
from jepa_tok.models.anchor import make_anchor
from jepa_tok.models.conformer import ConformerBlock
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.layers import init_weights, sequence_mask
from jepa_tok.models.masking import sample_mask
from jepa_tok.models.vicreg import variance_covariance
from jepa_tok.training_config import JepaConfig, PredictorConfig


@dataclass
class JepaOutput:
    """Losses (scalars, float32) and frames of one batch."""

    loss: Tensor
    """The terms below, each times its weight."""

    prediction_loss: Tensor
    """Mean squared error over masked frames and dimensions."""

    anchor_loss: Tensor
    """Of the anchor's kind: KL in nats per sub-frame, or squared error; 0 without anchor."""

    variance_loss: Tensor
    """VICReg's variance term of z; 0 without regularisation."""

    covariance_loss: Tensor
    """VICReg's covariance term of z; 0 without regularisation."""

    latents: Tensor
    """Frames of the online encoder [B, T, D]."""

    targets: Tensor
    """Frames of the target encoder [B, T, D], normalised as the config says."""

    predictions: Tensor
    """Frames of the predictor [B, T, D]."""

    frame_lengths: Tensor
    """Frames of each clip [B]."""

    def prediction_errors(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Of each clip [B], over its frames under `mask` [B, T]: squared error of the prediction, and of the clip's mean target."""
        valid = sequence_mask(self.frame_lengths, mask.shape[1])
        scored = (mask & valid)[..., None]
        mean = clip_mean(self.targets, valid)
        error, deviation = (self.predictions - self.targets).square(), (self.targets - mean).square()
        return (error * scored).sum((1, 2)), (deviation * scored).sum((1, 2))


class Predictor(nn.Module):
    """1x1 up, GELU, Conformer, then (1x1, GELU, Conformer) for each further layer, 1x1 down."""

    def __init__(self, config: PredictorConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.up = nn.ModuleList(
            nn.Linear(config.dim if i else encoder.latent_dim, config.dim) for i in range(config.layers)
        )
        self.conformers = nn.ModuleList(
            ConformerBlock(config.dim, config.heads, encoder.conformer_kernel, encoder.conformer_norm, encoder.dropout)
            for _ in range(config.layers)
        )
        self.down = nn.Linear(config.dim, encoder.latent_dim)
        init_weights(self, encoder.init)

    def forward(self, z: Tensor, valid: Tensor) -> Tensor:
        """[B, T, D], valid [B, T] -> [B, T, D]."""
        for up, conformer in zip(self.up, self.conformers):
            z = conformer(F.gelu(up(z)), valid)
        return self.down(z)


class Jepa(nn.Module):
    """Online encoder, target encoder, predictor and, by config, the mel anchor."""

    def __init__(self, config: JepaConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.predictor = Predictor(config.predictor, config.encoder)
        self.mask_token = nn.Parameter(torch.empty(config.encoder.latent_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.mask_embedding: nn.Parameter | None = None
        if config.mask.place == "input":
            # Not zeros: steps of zeros meet norms whose gradient there is 1 / sqrt(eps), stage after stage; the first step's
            # gradient would be 1e15, and Adam's second moments would hold the weights still for long.
            self.mask_embedding = nn.Parameter(torch.randn(config.encoder.front_channels))
        self.anchor = make_anchor(config.anchor, config.encoder)
        self.target_encoder = copy.deepcopy(self.encoder)
        self.freeze().train()

    def freeze(self) -> Self:
        """Takes the gradient from the target and the pitch network, which stage 2 fits; to be called again by who turns all on."""
        self.target_encoder.requires_grad_(False)
        if self.encoder.pitch is not None:
            self.encoder.pitch.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's, but the target stays in eval mode: dropout would move what is to be predicted."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    def sample_mask(self, lengths: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the mask of a batch: frames [B] -> bool [B, T], True where masked."""
        return sample_mask(lengths, self.config.mask, generator)

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor,
        mask: Tensor,
        anchor_weight: float = 0.0,
        clean: Tensor | None = None,
    ) -> JepaOutput:
        """Predicts the target's masked frames.

        :param wave: Samples in [-1, 1], [B, S].
        :param lengths: Samples of each clip [B].
        :param mask: Bool [B, T] from `sample_mask`.
        :param anchor_weight: Weight of the anchor's loss.
        :param clean: What target and anchor hear [B, S], where `wave` is a noisy version of it; None: `wave`.
        """
        clean = wave if clean is None else clean
        at_input = self.mask_embedding is not None
        online = self.encoder(wave, lengths, mask=mask if at_input else None, mask_embedding=self.mask_embedding)
        z, valid = online.latents, sequence_mask(online.lengths, online.latents.shape[1])
        with torch.no_grad():
            targets = self.target_encoder(clean, lengths).latents.float()
            if self.config.target_norm == "layer":
                targets = F.layer_norm(targets, targets.shape[-1:])
            elif self.config.target_norm == "clip":
                targets = normalise_over_clip(targets, valid)

        token = self.mask_token.to(z.dtype)
        # Masked at the input, z still holds what the encoder made of the context: the token only says where.
        hidden = z + token if at_input else token.expand_as(z)
        predictions = self.predictor(torch.where(mask[..., None], hidden, z), valid).float()

        scored = (mask & valid)[..., None]
        count = (scored.sum() * z.shape[-1]).clamp_min(1)
        prediction_loss = ((predictions - targets).square() * scored).sum() / count
        anchor_loss = prediction_loss.new_zeros(())
        if self.anchor is not None:
            anchor_loss = self.anchor(z, clean, lengths)
        variance_loss = covariance_loss = prediction_loss.new_zeros(())
        if self.config.is_regularised:
            variance_loss, covariance_loss = variance_covariance(z, valid)
        loss = (
            self.config.prediction_weight * prediction_loss
            + anchor_weight * anchor_loss
            + self.config.variance_weight * variance_loss
            + self.config.covariance_weight * covariance_loss
        )
        return JepaOutput(
            loss, prediction_loss, anchor_loss, variance_loss, covariance_loss, z, targets, predictions, online.lengths
        )

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copies the online encoder into the target, as at initialisation."""
        self.update_target(decay=0.0)

    @torch.no_grad()
    def update_target(self, decay: float | None = None) -> None:
        """One EMA step, target <- decay * target + (1 - decay) * online, after each optimizer step (paper, section 3.1).

        Works on float32 master weights; in half precision steps of (1 - decay) would round to nothing.
        """
        decay = self.config.target_decay if decay is None else decay
        # All at once: hundreds of small launches would take a tenth of a GPU's step.
        targets = [_own_shard(p) for p in self.target_encoder.parameters()]
        onlines = [_own_shard(p).to(t.dtype) for p, t in zip(self.encoder.parameters(), targets)]
        torch._foreach_lerp_(targets, onlines, 1.0 - decay)


def normalise_over_clip(targets: Tensor, valid: Tensor) -> Tensor:
    """[B, T, D] with each dimension at mean 0 and variance 1 over a clip's frames valid [B, T]; one frame becomes zeros."""
    centred = (targets - clip_mean(targets, valid)) * valid[..., None]
    return centred * (clip_mean(centred.square(), valid) + 1e-5).rsqrt()


def clip_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values [B, T, D] over each clip's frames valid [B, T]: [B, 1, D]."""
    real = valid[..., None]
    return (values * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)


def _own_shard(parameter: Tensor) -> Tensor:
    """What this rank holds of a parameter, by reference; under FSDP2 those of encoder and target line up."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter.detach()
