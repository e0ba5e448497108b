"""Configuration of the generation recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.config import CommonSection, GangSection, GeneratorSection, ReferenceModelSection
from fairseq2.utils.validation import Validatable, ValidationResult

from recipes.common import default_common


@dataclass(kw_only=True)
class PromptSection(Validatable):
    """What is to be continued: audio, or rows of token shards."""

    audio: list[str] = field(default_factory=list)
    """Audio files, folders of audio, or manifests."""

    tokens: list[str] = field(default_factory=list)
    """Folders of token shards, or single shards."""

    split: str | None = None
    """Value of the column `split` of manifest or shard rows; null takes every row."""

    limit: int | None = 8
    """Prompts to take, from the first; null takes all."""

    seconds: float = 3.0
    """Length of a prompt, in whole frames; shorter clips are taken whole."""

    def validate(self) -> ValidationResult:
        """Called by fairseq2."""
        result = ValidationResult()
        if self.seconds <= 0:
            result.add_error(f"`seconds` must be greater than 0, but is {self.seconds} instead.")
        if self.limit is not None and self.limit < 1:
            result.add_error(f"`limit` must be at least 1, but is {self.limit} instead.")
        return result


@dataclass(kw_only=True)
class SamplingSection(Validatable):
    """How tokens are drawn; with a factorised head the filters apply to each digit, with a full one to each token."""

    max_seconds: float = 10.0
    """Longest continuation."""

    min_seconds: float = 0.4
    """The clip cannot end before that."""

    num_samples: int = 1
    """Continuations of each prompt."""

    temperature: float = 0.9
    """Of tokens; the end is drawn with the model's own probability. 0 takes the likeliest of both."""

    top_k: int = 0
    """Candidates kept; 0 keeps all."""

    top_p: float = 1.0
    """Mass of the likeliest candidates kept."""

    seed: int = 2
    """A continuation depends on this, the prompt's id and the sample's number alone, not on batches or ranks."""

    batch_size: int = 16
    """Continuations made at once."""

    def validate(self) -> ValidationResult:
        """Called by fairseq2."""
        result = ValidationResult()
        if self.max_seconds <= 0 or self.min_seconds < 0 or self.temperature < 0 or self.top_k < 0 or self.seed < 0:
            result.add_error(
                "`max_seconds` must be above 0; `min_seconds`, `temperature`, `top_k` and `seed` must not be negative."
            )
        if self.num_samples < 1 or self.batch_size < 1:
            result.add_error("`num_samples` and `batch_size` must be at least 1.")
        if not 0.0 < self.top_p <= 1.0:
            result.add_error(f"`top_p` must lie in (0, 1], but is {self.top_p} instead.")
        return result


@dataclass(kw_only=True)
class LMGenerateConfig(Validatable):
    """`common.assets.prev_checkpoint_dir` names the LM run's `checkpoints` folder; or `model` names another model."""

    model: ReferenceModelSection = field(default_factory=lambda: ReferenceModelSection(name="last_checkpoint"))

    tokenizer: str = ""
    """Folder or name of the speech tokenizer whose tokens the model speaks."""

    prompts: PromptSection = field(default_factory=PromptSection)

    sampling: SamplingSection = field(default_factory=SamplingSection)

    generator: GeneratorSection = field(default_factory=GeneratorSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=default_common)

    def validate(self) -> ValidationResult:
        """Called by fairseq2."""
        result = ValidationResult()
        folder = self.common.assets.prev_checkpoint_dir
        if folder is not None and not (Path(folder) / "model.yaml").exists():
            result.add_error(
                f"`common.assets.prev_checkpoint_dir` must be the `checkpoints` folder of a run of recipes.lm, but '{folder}' holds no model.yaml."
            )
        return result
