"""Metrics of stage 2 and their display names."""

from __future__ import annotations

from jepa_tok.training_config import CodecConfig
from tasks.speech import SPEECH_METRICS, float_metric

RECONSTRUCTION = ("l1", "stft", "mel", "loudness", "mel_head", "pitch", "voicing")
"""Fields of `CodecOutput` that are recorded in training and in validation."""

LOSSES = ("generator_loss", "discriminator_loss", *RECONSTRUCTION, "usage", "adversarial", "feature_matching")
"""Fields of `CodecOutput` that are recorded in training."""


def computed_losses(
    config: CodecConfig, *, training: bool, synthesis: bool, disc: bool = False, adversarial: bool = False
) -> list[str]:
    """Those of `LOSSES` that `Codec` computes when it is called so; the others are 0 in its output, which says nothing."""
    pitch = config.tokenizer.generator.pitch_dims > 0
    on = {
        "generator_loss": training,
        "discriminator_loss": synthesis and disc,
        "l1": synthesis,
        "stft": synthesis and (config.stft_weight > 0.0 or not training),
        "mel": synthesis and config.mel_weight > 0.0,
        "loudness": synthesis and config.loudness_weight > 0.0,
        "mel_head": config.mel_head_stage > 0,
        "pitch": pitch,
        "voicing": pitch,
        "usage": config.usage_weight > 0.0,
        "adversarial": synthesis and adversarial,
        "feature_matching": synthesis and adversarial,
    }
    return [name for name in LOSSES if on[name]]


CODES = ("code_usage", "code_usage_min", "dead_dims", "between_clip_share", "effective_rank")

CODEC_METRICS = [
    float_metric("generator_loss", "Generator Loss", 200),
    float_metric("discriminator_loss", "Discriminator Loss", 201),
    float_metric("l1", "L1", 202),
    float_metric("stft", "STFT Loss", 203),
    float_metric("mel", "Mel Loss (nats)", 204),
    float_metric("loudness", "Loudness Loss", 205),
    float_metric("mel_head", "Mel Head (nats)", 206),
    float_metric("pitch", "Pitch Error (nats)", 207),
    float_metric("voicing", "Voicing (nats)", 208),
    float_metric("usage", "Usage Penalty", 209),
    float_metric("adversarial", "Adversarial Loss", 210),
    float_metric("feature_matching", "Feature Matching", 211),
    float_metric("code_usage", "Code Usage", 220, higher_better=True),
    float_metric("code_usage_min", "Code Usage (least used dimension)", 221, higher_better=True),
    float_metric("dead_dims", "Dead Dimensions", 222),
    float_metric("between_clip_share", "Between-Clip Share", 223, higher_better=True),
    float_metric("effective_rank", "Effective Rank", 224, higher_better=True),
    *SPEECH_METRICS,
]
