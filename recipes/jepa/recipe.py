"""Stage 1 as a fairseq2 recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from torch import nn
from typing_extensions import override

from jepa_tok._fairseq2.speech_data import SpeechDataset
from jepa_tok._fairseq2.speech_reader import create_readers
from jepa_tok.corpus.manifest import Utterance
from jepa_tok.models.anchor import MelPosteriors
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.jepa import Jepa
from jepa_tok.monitor import stage_amplitudes
from recipes.common import check_score
from recipes.jepa.config import JepaRecipeConfig
from tasks.jepa.anchor import fit_anchor
from tasks.jepa.metrics import JEPA_METRICS, TERMS, computed_terms, validation_loss
from tasks.jepa.unit import JepaEvalUnit, JepaTrainUnit
from tasks.speech import register_metrics, sample_waves


class JepaRecipe(Recipe):
    """Pretrains the encoder; the EMA target follows it after each optimizer step."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_metrics(container, JEPA_METRICS)

    @override
    def setup_model(self, context: RecipeContext, model: nn.Module, newly_initialized: bool) -> nn.Module:
        assert isinstance(model, Jepa)
        model.freeze()  # fairseq2 has just turned on all gradients
        model.train()
        if not newly_initialized:
            return model
        model.sync_target()
        # Rank 0's weights and buffers are broadcast when the model is wrapped, so one rank fits for all.
        if context.gangs.root.rank == 0:
            config = context.get_config_as(JepaRecipeConfig)
            clips = context.get_dataset_as(SpeechDataset).train
            seed, crop = config.common.seed, config.dataset.crop_seconds
            log_amplitudes(model.encoder, clips, seed, crop)
            if isinstance(model.anchor, MelPosteriors):
                fit_anchor(model.anchor, clips, frames=config.anchor.fit_frames, seed=seed, crop_seconds=crop)
        return model

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(JepaRecipeConfig)
        # Data first: what is wrong with it should be told before a model is built.
        train_reader, valid_reader = create_readers(
            context.get_dataset_as(SpeechDataset),
            config.dataset,
            context.gangs,
            seed=config.common.seed,
            accumulate=config.trainer.grad_accumulation.num_batches,
        )
        base = context.get_model_as(Jepa)

        train_unit = JepaTrainUnit(
            context.get_data_parallel_model(),
            base,
            seed=config.common.seed,
            rank=context.gangs.dp.rank,
            augment=config.augment,
            anchor_steps=config.anchor.num_steps or config.regime.num_steps or 1,
            anchor_start=config.anchor.start_weight,
            anchor_end=config.anchor.end_weight,
            decay_end=config.target.end_decay,
            decay_steps=config.target.num_steps or config.regime.num_steps or 1,
        )

        # The hook runs once after each real update; under FSDP2 both encoders' shards line up.
        def follow(*_: Any) -> None:
            base.update_target(train_unit.target_decay)

        context.get_optimizer().register_step_post_hook(follow)
        context.get_optimizer().register_step_post_hook(train_unit.finite)
        if valid_reader is None:
            return context.create_trainer(train_unit, train_reader)
        sums = {"jepa_loss", "unanchored_loss"} - {validation_loss(base.config)}
        check_score(config.regime, sums | set(TERMS) - set(computed_terms(base.config)))
        monitor = config.monitor
        eval_unit = JepaEvalUnit(
            base,
            bound=monitor.bound,
            min_share=monitor.min_between_clip_share,
            min_rank=monitor.min_effective_rank,
            stop=monitor.stop_on_collapse,
            speakers=valid_reader.speakers,
            seed=config.common.seed,
        )
        return context.create_trainer(train_unit, train_reader, [eval_unit], [valid_reader])

    @property
    @override
    def config_kls(self) -> type[object]:
        return JepaRecipeConfig


def log_amplitudes(encoder: Encoder, utterances: list[Utterance], seed: int, crop_seconds: float) -> None:
    """Tells what of a training clip's signal reaches each stage of the encoder; nothing where no clip can be read."""
    wave = next(sample_waves(utterances, np.random.default_rng([seed, 5]), crop_seconds), None)
    if wave is None:
        return
    encoder.eval()
    amplitudes = stage_amplitudes(encoder, wave[None].to(next(encoder.parameters()).device))
    encoder.train()
    stages = ", ".join(f"{x:.3g}" for x in amplitudes[:-1])
    log.info("Amplitudes at initialisation: stages {}; z {:.3g}.", stages, amplitudes[-1])
