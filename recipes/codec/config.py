"""Configuration of stage 2; the defaults are the paper's run (arXiv 2512.07168, sections 3.4 and 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fairseq2.recipe.config import (
    AdamWConfig,
    AdamWGroupConfig,
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

from jepa_tok._fairseq2.checkpoint import CODEC_FAMILY
from jepa_tok._fairseq2.speech_data import SpeechDatasetSection
from recipes.common import check_warmup, constant_lr, default_common, default_regime, patient_gang
from tasks.augment import AugmentSection

DISCRIMINATOR = r"(module\.)?discriminator\."
"""Names of the discriminators' parameters, bare or wrapped by DDP."""


@dataclass(kw_only=True)
class EncoderSection(Validatable):
    """Where the encoder comes from; read at the start of a run only, a resumed run has it in its checkpoint."""

    path: Path | None = None
    """A stage 1 run: its folder, its `checkpoints` folder or one of their `step_N`."""

    step: int | None = None
    """Which step of the run; null means the last."""

    name: str | None = None
    """Instead of `path`: asset card of a stage 1 model."""

    weights: Literal["online", "target"] = "online"
    """The encoder that was trained, or its EMA."""

    random: bool = False
    """Instead of both: leaves the encoder as initialised, for controls."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if (self.path is not None) + (self.name is not None) + self.random > 1:
            result.add_error("`path`, `name` and `random` exclude each other.")
        return result


@dataclass(kw_only=True)
class GanSection(Validatable):
    """When the discriminators come in."""

    discriminator_start: int = 5_000
    """First step in which the discriminators train."""

    adversarial_start: int = 5_000
    """First step in which the generator hears them; later than `discriminator_start` gives them time to learn."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.adversarial_start < self.discriminator_start:
            result.add_error(
                f"`adversarial_start` must be at least `discriminator_start` ({self.discriminator_start}), but is {self.adversarial_start} instead."
            )
        return result


@dataclass(kw_only=True)
class SamplesSection:
    """Validation clips that are written as audio."""

    num_clips: int = 4
    """How many, spread evenly over the validation clips of rank 0, which alone writes to TensorBoard; 0 writes none."""


@dataclass(kw_only=True)
class CodecRecipeConfig(Validatable):
    """Everything of a stage 2 run."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=CODEC_FAMILY, arch="paper"))

    encoder: EncoderSection = field(default_factory=EncoderSection)

    tokenizer: str | None = None
    """Instead of a stage 1 encoder: a whole tokenizer to go on from (a folder, or the name of a packaged one), of the
    architecture in `model`. The discriminators start anew, and the quantiser is not calibrated again."""

    dataset: SpeechDatasetSection = field(
        default_factory=lambda: SpeechDatasetSection(batch_size=16, valid_batch_size=8)
    )

    augment: AugmentSection = field(default_factory=AugmentSection)

    calibration_frames: int = 2_000
    """Latent frames of training clips that the `norm` bound is set to at the start; 0 leaves it as initialised. With `tokenizer`, whose
    bound is set, ten times as many steps that the mel head is fitted on."""

    calibrate_below: float = 0.0
    """With `tokenizer`: dimensions whose codes use less than this share of their entropy on those frames have their bound set anew. What
    was a code of theirs becomes another, which the decoder has to learn; 0 leaves all as they are."""

    pitch_steps: int = 16_000
    """Steps of 256 frames for which the networks that pass the pitch on (`pitch_dims`) are fitted before training, the only training that they
    get. Those of a `tokenizer` stay as they are, but where `recipes.codec.grow` made them, or with `new_pitch`."""

    new_pitch: bool = False
    """With `tokenizer`: its pitch networks are fitted anew, and its decoder begins without what it made of the old ones."""

    synthesis_start: int = 0
    """First step in which a waveform is made. Before it encoder and low-rate stages learn from the mel head alone (`mel_head_stage`
    of the model), at a fraction of a step's price."""

    gan: GanSection = field(default_factory=GanSection)

    samples: SamplesSection = field(default_factory=SamplesSection)

    # Rank 0 calibrates and fits before training, on up to 6.7 hours of audio.
    gang: GangSection = field(default_factory=patient_gang)

    trainer: TrainerSection = field(default_factory=TrainerSection)

    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(
            config=AdamWConfig(
                lr=1.5e-4,
                betas=(0.8, 0.99),
                weight_decay=1e-3,
                groups=[AdamWGroupConfig(params=DISCRIMINATOR, lr=0.75e-4)],
            )
        )
    )

    lr_scheduler: LRSchedulerSection = field(default_factory=constant_lr)

    regime: RegimeSection = field(default_factory=lambda: default_regime(29_000))

    common: CommonSection = field(default_factory=default_common)

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        if self.trainer.data_parallelism != "ddp":
            result.add_error(
                f"`trainer.data_parallelism` must be 'ddp' for stage 2, but is '{self.trainer.data_parallelism}' instead."
            )
        if self.tokenizer is not None and (self.encoder.path or self.encoder.name or self.encoder.random):
            result.add_error("`tokenizer` and `encoder` exclude each other.")
        if self.gan.discriminator_start < self.synthesis_start:
            result.add_error(
                f"`gan.discriminator_start` must be at least `synthesis_start` ({self.synthesis_start}), but is {self.gan.discriminator_start} instead."
            )
        if self.pitch_steps < 0:
            result.add_error(f"`pitch_steps` must be at least 0, but is {self.pitch_steps} instead.")
        if self.new_pitch and (self.tokenizer is None or not self.pitch_steps):
            result.add_error("`new_pitch` must be false without a `tokenizer` and with `pitch_steps` 0.")
        if not 0.0 <= self.calibrate_below <= 1.0:
            result.add_error(f"`calibrate_below` must lie in 0 to 1, but is {self.calibrate_below} instead.")
        check_warmup(result, self.lr_scheduler, self.regime)
        return result
