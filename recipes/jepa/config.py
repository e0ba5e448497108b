"""Configuration of stage 1; the defaults are the paper's run (arXiv 2512.07168, section 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fairseq2.recipe.config import (
    AdamWConfig,
    CommonSection,
    GangSection,
    LRSchedulerSection,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
)
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from jepa_tok._fairseq2.checkpoint import ENCODER_FAMILY
from jepa_tok._fairseq2.speech_data import SpeechDatasetSection
from recipes.common import check_warmup, constant_lr, default_common, default_regime
from tasks.augment import AugmentSection


@dataclass(kw_only=True)
class AnchorSection(Validatable):
    """Mel anchor, where the architecture has one (`base`, `small`, `tiny`; not `paper`)."""

    start_weight: float = 1.0
    """Weight of the anchor's loss at the first step."""

    end_weight: float = 1.0
    """Weight at the end of training. A run whose weight fell to .01 ended at an effective rank of 1.8 (docs/results/h100.md)."""

    num_steps: int | None = None
    """Steps from the one to the other; null means `regime.num_steps`."""

    fit_frames: int = 50_000
    """Sub-frames of 20 ms that the mixture is fitted on."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("start_weight", "end_weight"):
            if getattr(self, name) < 0.0:
                result.add_error(f"`{name}` must be at least 0, but is {getattr(self, name)} instead.")
        return result


@dataclass(kw_only=True)
class TargetSection(Validatable):
    """How closely the target encoder follows; its first decay is `model.config_overrides.target_decay`."""

    end_decay: float | None = None
    """Decay at the end of training, reached on half a cosine (1.0 in BYOL, arXiv 2006.07733); null keeps the first (paper)."""

    num_steps: int | None = None
    """Steps from the one to the other; null means `regime.num_steps`."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.end_decay is not None and not 0.0 <= self.end_decay <= 1.0:
            result.add_error(f"`end_decay` must lie in [0, 1], but is {self.end_decay} instead.")
        return result


@dataclass(kw_only=True)
class MonitorSection:
    """Collapse monitor of the validation."""

    bound: Literal["tanh", "norm"] = "norm"
    """How z is quantised for the code usage entries."""

    min_between_clip_share: float = 0.01
    """Below this share of variance between clips at the same frame, z is said to have collapsed."""

    min_effective_rank: float = 1.5
    """Below this effective rank, z is said to have collapsed. Anchored encoders that read well have had 2 in their first hundred steps."""

    stop_on_collapse: bool = False
    """Whether a collapse ends the run instead of being logged as a warning."""


@dataclass(kw_only=True)
class JepaRecipeConfig(Validatable):
    """Everything of a stage 1 run."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=ENCODER_FAMILY, arch="paper"))

    dataset: SpeechDatasetSection = field(default_factory=SpeechDatasetSection)

    augment: AugmentSection = field(default_factory=AugmentSection)

    anchor: AnchorSection = field(default_factory=AnchorSection)

    target: TargetSection = field(default_factory=TargetSection)

    monitor: MonitorSection = field(default_factory=MonitorSection)

    gang: GangSection = field(default_factory=GangSection)

    trainer: TrainerSection = field(default_factory=TrainerSection)

    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(config=AdamWConfig(lr=1.5e-4, betas=(0.8, 0.99), weight_decay=1e-3))
    )

    lr_scheduler: LRSchedulerSection = field(default_factory=constant_lr)

    regime: RegimeSection = field(default_factory=lambda: default_regime(24_000))

    common: CommonSection = field(default_factory=default_common)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.anchor.num_steps is None and self.regime.num_steps is None:
            result.add_error("`anchor.num_steps` must be given when `regime.num_steps` is not.")
        if self.target.end_decay is not None and self.target.num_steps is None and self.regime.num_steps is None:
            result.add_error("`target.num_steps` must be given when `regime.num_steps` is not.")
        check_warmup(result, self.lr_scheduler, self.regime)
        for name, only in (("version", "v2"), ("granularity", "layer")):
            given = getattr(self.trainer.fsdp, name)
            if self.trainer.data_parallelism == "fsdp" and given != only:
                result.add_error(f"`trainer.fsdp.{name}` must be '{only}', but is '{given}' instead.")
        return result
