"""Metrics of stage 1 and their display names."""

from __future__ import annotations

from jepa_tok.training_config import JepaConfig
from tasks.speech import SPEECH_METRICS, float_metric

TERMS = ("prediction_loss", "anchor_loss", "variance_loss", "covariance_loss")
"""Fields of `JepaOutput` whose weighted sum is the loss."""


def computed_terms(config: JepaConfig) -> list[str]:
    """Those of `TERMS` that a model computes; the others are 0 in its output, which says nothing."""
    regularised = config.is_regularised
    on = {"anchor_loss": config.anchor.is_on, "variance_loss": regularised, "covariance_loss": regularised}
    return [name for name in TERMS if on.get(name, True)]


def validation_loss(config: JepaConfig) -> str:
    """Name of the weighted sum in validation. The anchor is left out of it, since its weight falls: sums with it would not compare over steps."""
    return "unanchored_loss" if config.anchor.is_on else "jepa_loss"


COLLAPSE = (
    "std_mean",
    "std_min",
    "effective_rank",
    "between_clip_share",
    "code_usage",
    "code_usage_min",
    "dead_dims",
)

READERS = (
    "reader_mel_r2",
    "reader_mel_r2_init",
    "reader_speaker",
    "reader_speaker_init",
    "reader_speaker_chance",
    "cluster_entropy",
)
"""What there is only with enough clips, speakers, an anchor."""

JEPA_METRICS = [
    float_metric("jepa_loss", "Loss", 100),
    float_metric("unanchored_loss", "Loss without Anchor", 100),
    float_metric("prediction_loss", "Prediction Loss", 101),
    float_metric("anchor_loss", "Anchor Loss", 102),
    float_metric("anchor_weight", "Anchor Weight", 103),
    float_metric("variance_loss", "Variance Loss", 104),
    float_metric("covariance_loss", "Covariance Loss", 105),
    float_metric("target_decay", "Target Decay", 106),
    float_metric("prediction_r2", "Prediction R2", 110, higher_better=True),
    float_metric("between_clip_share", "Between-Clip Share", 120, higher_better=True),
    float_metric("effective_rank", "Effective Rank", 121, higher_better=True),
    float_metric("std_mean", "Std Mean", 122),
    float_metric("std_min", "Std Min", 123),
    float_metric("code_usage", "Code Usage", 124, higher_better=True),
    float_metric("code_usage_min", "Code Usage (least used dimension)", 125, higher_better=True),
    float_metric("dead_dims", "Dead Dimensions", 126),
    float_metric("cluster_entropy", "Cluster Entropy", 127, higher_better=True),
    float_metric("reader_mel_r2", "Reader Mel R2", 130, higher_better=True),
    float_metric("reader_mel_r2_init", "Reader Mel R2 (random encoder)", 131),
    float_metric("reader_speaker", "Reader Speaker Accuracy", 132, higher_better=True),
    float_metric("reader_speaker_init", "Reader Speaker Accuracy (random encoder)", 133),
    float_metric("reader_speaker_chance", "Reader Speaker Accuracy (chance)", 134),
    *SPEECH_METRICS,
]
