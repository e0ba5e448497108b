"""Configuration of the LM recipe; the defaults train the `base` arch on a GPU with 80 GB, in bf16."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import (
    AdamWConfig,
    CommonSection,
    CosineAnnealingLRConfig,
    DatasetSection,
    GangSection,
    LRSchedulerSection,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TrainerSection,
)

from jepa_tok._fairseq2.lm import LM_FAMILY
from jepa_tok._fairseq2.token_data import TOKENS_FAMILY
from recipes.common import default_common, patient_gang


@dataclass(kw_only=True)
class LMDatasetSection(DatasetSection):
    """Which token shards (`config_overrides.shards`, `.valid_split`, ...), and how they become batches."""

    family: str | None = TOKENS_FAMILY

    max_frames: int | None = None
    """Longest clip in frames, longer ones are cut; what the model can see and a batch can hold where not given."""

    batch_frames: int = 3200
    """Frames of a batch on one GPU, padding included; 3,200 are 60,800 tokens, 21 minutes of audio."""

    window_frames: int = 10_000_000
    """Frames that are shuffled together and held in memory (two bytes a token: 380 MB)."""

    seed: int | None = None
    """Of the order of clips; `common.seed` where not given."""


@dataclass(kw_only=True)
class LMRecipeConfig:
    """The paper trains no language model; these values are the usual ones of its size class."""

    model: ModelSection = field(default_factory=lambda: ModelSection(family=LM_FAMILY, arch="base"))

    dataset: LMDatasetSection = field(default_factory=LMDatasetSection)

    # Rank 0 counts the baselines over all shards.
    gang: GangSection = field(default_factory=patient_gang)

    trainer: TrainerSection = field(default_factory=lambda: TrainerSection(max_grad_norm=1.0))

    optimizer: OptimizerSection = field(
        default_factory=lambda: OptimizerSection(config=AdamWConfig(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1))
    )

    lr_scheduler: LRSchedulerSection = field(
        default_factory=lambda: LRSchedulerSection(
            config=CosineAnnealingLRConfig(num_warmup_steps=2000, final_lr_scale=0.1)
        )
    )

    regime: RegimeSection = field(
        default_factory=lambda: RegimeSection(
            num_steps=50_000,
            validate_every_n_steps=1000,
            checkpoint_every_n_steps=1000,
            keep_last_n_checkpoints=2,
            keep_best_n_checkpoints=1,
            score_metric="bits_per_second",
            publish_metrics_every_n_steps=50,
        )
    )

    common: CommonSection = field(default_factory=default_common)

    baselines: bool = True
    """Whether unigram and bigram baselines are counted before training (needs validation rows)."""
