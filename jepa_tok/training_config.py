"""Configurations of what trains a tokenizer: stage 1 (`JepaConfig`) and stage 2 (`CodecConfig`). As in `config.py`,
defaults are the paper's (arXiv 2512.07168, sections 3 and 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from jepa_tok.config import EncoderConfig, TokenizerConfig
from jepa_tok.errors import ConfigError


@dataclass(kw_only=True)
class PredictorConfig:
    """JEPA predictor: 1x1 up, then Conformer, 1x1, Conformer, 1x1 down (paper, section 3.1)."""

    dim: int = 256
    layers: int = 2
    heads: int = 16


@dataclass(kw_only=True)
class MaskConfig:
    """Masks over frames (paper, section 3.1; the ratio is met exactly)."""

    place: Literal["feature", "input"] = "feature"
    """`feature`: a mask token replaces z before the predictor (paper). `input`: the encoder never hears masked frames."""

    ratio: float = 0.5
    """Share of a clip's frames that is masked."""

    law: Literal["spans", "blocks"] = "spans"
    """`spans`: of random length, until the ratio is met (paper). `blocks`: a fixed number of blocks of equal length."""

    min_span: int = 2
    """Shortest span, in frames."""

    max_span_fraction: float = 0.25
    """Longest span, as a share of the clip's frames."""

    blocks: int = 4
    """How many `blocks` (I-JEPA predicts four, arXiv 2301.08243)."""


@dataclass(kw_only=True)
class AnchorConfig:
    """Anchor against collapse: what a frame has to tell of the log-mels of its sub-frames."""

    kind: Literal["posteriors", "features"] = "posteriors"
    """`posteriors` of a frozen diagonal mixture on log-mels (arXiv 2602.09040); `features`: the log-mels themselves."""

    clusters: int = 0
    """Components of the mixture; with 0, `posteriors` are off (paper)."""

    subframes: int = 20
    """Sub-frames of a frame; 20 are 20 ms each."""

    n_mels: int = 40
    """Mel filters of the features."""

    @property
    def is_on(self) -> bool:
        """Whether there is an anchor."""
        return self.kind == "features" or self.clusters > 0


@dataclass(kw_only=True)
class JepaConfig:
    """Stage 1: online encoder, EMA target, predictor, masks, anchor."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    anchor: AnchorConfig = field(default_factory=AnchorConfig)

    target_decay: float = 0.996
    """EMA decay of the target encoder (tau)."""

    target_norm: Literal["none", "layer", "clip"] = "none"
    """`layer`: each target frame is normalised over its dimensions before the loss. `clip`: each dimension over the clip's
    frames (data2vec, arXiv 2202.03555), so that what all frames share is no part of the task."""

    prediction_weight: float = 1.0
    """Weight of the error on masked frames; 0 leaves anchor and regularisation alone, for comparison."""

    variance_weight: float = 0.0
    """Weight of the penalty on dimensions of z that deviate by less than 1 (VICReg, arXiv 2105.04906); 0: none (paper)."""

    covariance_weight: float = 0.0
    """Weight of the penalty on dimensions of z that vary together; 0: none (paper)."""

    @property
    def is_regularised(self) -> bool:
        """Whether variance or covariance of z enter the loss."""
        return self.variance_weight > 0.0 or self.covariance_weight > 0.0

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        self.encoder.check()
        if not 0.0 <= self.mask.ratio <= 1.0:
            raise ConfigError(f"mask `ratio` must lie in [0, 1], but is {self.mask.ratio} instead.")
        for name in ("min_span", "blocks"):
            if getattr(self.mask, name) < 1:
                raise ConfigError(f"mask `{name}` must be at least 1, but is {getattr(self.mask, name)} instead.")
        for name in ("prediction_weight", "variance_weight", "covariance_weight"):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"`{name}` must be at least 0, but is {getattr(self, name)} instead.")
        if self.anchor.is_on and self.encoder.hop % self.anchor.subframes:
            raise ConfigError(
                f"anchor `subframes` must divide the hop ({self.encoder.hop}), but is {self.anchor.subframes} instead."
            )


@dataclass(kw_only=True)
class DiscriminatorConfig:
    """MPD (HiFi-GAN) and MSD (MelGAN-style) discriminators; `width` scales their channels."""

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    scales: int = 3
    width: float = 1.0


@dataclass(kw_only=True)
class CodecConfig:
    """Stage 2: the tokenizer, the discriminators and the weights of the losses (paper, section 3.4)."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    freeze_encoder: bool = True
    """Whether encoder and quantiser stay as they are (the paper's code); its text fine-tunes the encoder: `false`."""

    average_decay: float = 0.0
    """Decay of a moving average of all that trains but the discriminators; the tokenizer is made of it. 0: none (paper)."""

    stft_ffts: list[int] = field(default_factory=lambda: [2048, 1024, 512, 256, 128])
    """FFT sizes of the multi-resolution STFT loss; hops are a quarter."""

    mel_ffts: list[int] = field(default_factory=lambda: [2048, 1024, 512, 256])
    """FFT sizes of the multi-scale mel loss; hops are a quarter, filters a sixteenth."""

    l1_weight: float = 1.0
    stft_weight: float = 2.0
    """0 leaves it out of training; validation always measures it."""

    mel_weight: float = 0.0
    """Weight of the multi-scale mel loss; 0 leaves it out (paper)."""

    loudness_weight: float = 0.0
    """Weight of the loss in loudness (`models/loudness.py`); 0 leaves it out (paper)."""

    adversarial_weight: float = 0.1
    """Weight of (LSGAN + feature matching)."""

    adversarial_seconds: float = 0.0
    """The discriminators judge a random segment of this length of each clip, while encoder and generator have all of it
    for context; 0: the whole clip (paper)."""

    generator_seconds: float = 0.0
    """The generator decodes a random segment of about this length of each clip, in whole frames, and all losses of sound are of it, while the
    encoder hears all of the clip; 0: the whole clip (paper)."""

    usage_weight: float = 0.0
    """Fine-tuned encoders: weight of the penalty on dimensions whose bounded values are not spread evenly over the levels."""

    mel_head_stage: int = 0
    """Stages of the generator below the mel head, which tells the log-mels from the steps there; 0: no such head (paper)."""

    mel_head_weight: float = 4.0
    """Weight of the mel head's error."""

    mel_head_exponent: float = 0.0
    """Of a mel's magnitude, by which its error counts there: 0 for all the same, .46 for about what is heard."""

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        self.tokenizer.check()
        stages = len(self.tokenizer.generator.strides)
        if not 0 <= self.mel_head_stage <= stages:
            raise ConfigError(f"`mel_head_stage` must lie in [0, {stages}], but is {self.mel_head_stage} instead.")
        if not 0.0 <= self.average_decay < 1.0:
            raise ConfigError(f"`average_decay` must lie in [0, 1), but is {self.average_decay} instead.")
        for name in (
            "l1_weight",
            "stft_weight",
            "mel_weight",
            "loudness_weight",
            "adversarial_weight",
            "adversarial_seconds",
            "generator_seconds",
            "usage_weight",
            "mel_head_weight",
            "mel_head_exponent",
        ):
            if getattr(self, name) < 0.0:
                raise ConfigError(f"`{name}` must be at least 0, but is {getattr(self, name)} instead.")
        if 0.0 < self.generator_seconds * self.tokenizer.encoder.frame_rate < 0.5:
            raise ConfigError(
                f"`generator_seconds` must be a frame ({1.0 / self.tokenizer.encoder.frame_rate:g} s) or more, or 0, but is "
                f"{self.generator_seconds} instead."
            )
