"""The LM recipe: what the shards say shapes the model; baselines are counted once; then fairseq2 trains."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import CosineAnnealingLRConfig, ModelSection
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from jepa_tok._fairseq2.lm import SpeechLM
from jepa_tok._fairseq2.token_data import TokenDataset
from jepa_tok._fairseq2.token_reader import TokenReader
from jepa_tok.corpus.schema import ShardMetadata
from jepa_tok.errors import JepaTokError
from jepa_tok.files import write_text
from recipes.lm.config import LMRecipeConfig
from tasks.lm import METRICS, LMEvalUnit, LMTrainUnit, fit_baselines
from tasks.speech import register_metrics


@final
class LMRecipe(Recipe):
    """Trains `jepa_tok_lm` on `jepa_tok_tokens`."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_metrics(container, METRICS)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(LMRecipeConfig)
        _check_schedule(config)
        data = context.get_dataset_as(TokenDataset)
        _remember_data(context, data)
        _shape_model(context, data.metadata)
        model = context.get_model_as(SpeechLM)
        _check_model(model, data.metadata)

        gangs = context.gangs
        max_frames = config.dataset.max_frames or min(model.config.max_frames, config.dataset.batch_frames)
        if max_frames > model.config.max_frames:
            raise RecipeError(
                f"`dataset.max_frames` must be at most what the model can see ({model.config.max_frames}), but is {max_frames} instead."
            )

        def reader(split: Any, train: bool) -> TokenReader:
            return TokenReader(
                split,
                max_frames=max_frames,
                batch_frames=config.dataset.batch_frames,
                train=train,
                rank=gangs.dp.rank,
                world_size=gangs.dp.size,
                num_accumulate=config.trainer.grad_accumulation.num_batches if train else 1,
                seed=config.common.seed if config.dataset.seed is None else config.dataset.seed,
                window_frames=config.dataset.window_frames,
            )

        rate = data.metadata.frame_rate
        unit = LMTrainUnit(context.get_data_parallel_model(), rate)
        if data.valid is None:
            log.warning("No validation: neither `valid_shards` nor `valid_split` is given.")
            return context.create_trainer(unit, reader(data.train, True))
        baselines = _baselines(context, data) if config.baselines else None
        # The bare model: ranks may have unequal numbers of validation batches, so nothing may be synchronised.
        valid_unit = LMEvalUnit(model, rate, data.metadata.num_groups, baselines)
        return context.create_trainer(unit, reader(data.train, True), [valid_unit], [reader(data.valid, False)])

    @property
    @override
    def config_kls(self) -> type[object]:
        return LMRecipeConfig


def _check_schedule(config: LMRecipeConfig) -> None:
    schedule, steps = config.lr_scheduler.config, config.regime.num_steps
    if isinstance(schedule, CosineAnnealingLRConfig) and steps is not None and schedule.num_warmup_steps >= steps:
        raise RecipeError(
            f"`lr_scheduler.config.num_warmup_steps` must be below `regime.num_steps` ({steps}), but is {schedule.num_warmup_steps} instead."
        )
    if config.dataset.batch_frames < 1 or config.dataset.window_frames < 1:
        raise RecipeError("`dataset.batch_frames` and `dataset.window_frames` must be at least 1.")


def _fields(metadata: ShardMetadata) -> dict[str, Any]:
    return {
        "radices": list(metadata.radices),
        "group_size": metadata.group_size,
        "frame_rate": metadata.frame_rate,
        "sample_rate": metadata.sample_rate,
        "tokenizer": metadata.hash,
    }


def _remember_data(context: RecipeContext, data: TokenDataset) -> None:
    """OUT/data.json names the tokenizer and the shards; a run cannot be continued on tokens of another tokenizer."""
    file = context.output_dir / "data.json"
    if file.exists():
        before = json.loads(file.read_text())["tokenizer"]
        if before != data.tokenizer:
            raise RecipeError(
                f"{context.output_dir}: the run was started on tokens of tokenizer {before}, but these are of {data.tokenizer}; take another output folder."
            )
    elif context.gangs.root.rank == 0:
        splits = {s.name: s for s in (data.train, data.valid) if s is not None}
        given = {name: {"rows": len(s.lengths), "frames": s.num_frames, "digest": s.fingerprint} for name, s in splits.items()}  # fmt: skip
        record = _fields(data.metadata) | {"dataset": asdict(data.config)} | given
        write_text(file, json.dumps(record, indent=1) + "\n")
    context.gangs.root.barrier()


def _shape_model(context: RecipeContext, metadata: ShardMetadata) -> None:
    """A new model takes radices, group size, rates and hash from the shards, unless the user gave others."""
    section = context.resolver.resolve(ModelSection)
    if section.name is None and section.path is None:
        given = section.config_overrides
        section.config_overrides = _fields(metadata) | (given if isinstance(given, dict) else {})


def _check_model(model: SpeechLM, metadata: ShardMetadata) -> None:
    for name, value in _fields(metadata).items():
        if getattr(model.config, name) != value:
            raise RecipeError(
                f"The model's `{name}` must be that of the token shards ({value}), but is {getattr(model.config, name)}."
            )


def _baselines(context: RecipeContext, data: TokenDataset) -> dict[str, Any]:
    """Counted by rank 0 at the first start, read from OUT/baselines.json at every other."""
    assert data.valid is not None
    digest = {"train": data.train.fingerprint, "valid": data.valid.fingerprint}
    file = context.output_dir / "baselines.json"
    if file.exists():
        baselines = json.loads(file.read_text())
        if baselines.get("digest") == digest:
            return baselines
    if context.gangs.root.rank != 0:
        return {}  # only rank 0 reports
    log.info("Counting unigram and bigram baselines.")
    try:
        baselines = {"digest": digest, **fit_baselines(data.train, data.valid, data.metadata)}
    except JepaTokError as e:
        raise RecipeError(str(e)) from None
    write_text(file, json.dumps(baselines, indent=1) + "\n")
    rates = {
        name: v["bits_per_second"] for name, v in baselines.items() if isinstance(v, dict) and "bits_per_second" in v
    }
    log.info("Baselines in bits per second of audio: {}", ", ".join(f"{n} {v:.1f}" for n, v in rates.items()))
    return baselines
