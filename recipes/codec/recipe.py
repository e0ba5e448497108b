"""Stage 2 as a fairseq2 recipe."""

from __future__ import annotations

from functools import partial

import numpy as np
from fairseq2.assets import AssetStore
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from torch import nn
from typing_extensions import override

from jepa_tok import SpeechTokenizer
from jepa_tok._fairseq2.checkpoint import ENCODER_FAMILY, RunCheckpoint, difference, find_checkpoint, part_of
from jepa_tok._fairseq2.speech_data import SpeechDataset, Utterance
from jepa_tok._fairseq2.speech_reader import create_readers
from jepa_tok.errors import JepaTokError
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.training_config import JepaConfig
from recipes.codec.config import CodecRecipeConfig, EncoderSection
from recipes.common import check_score
from tasks.codec.calibrate import calibrate_quantiser, fit_mel_head
from tasks.codec.fit_pitch import PITCH_SECONDS, fit_pitch
from tasks.codec.metrics import CODEC_METRICS, LOSSES, computed_losses
from tasks.codec.samples import SampleWriter
from tasks.codec.unit import CodecEvalUnit, CodecTrainUnit
from tasks.speech import register_metrics, sample_waves


class CodecRecipe(Recipe):
    """Trains generator and discriminators on the tokens of a stage 1 encoder."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_metrics(container, CODEC_METRICS)

    @override
    def setup_model(self, context: RecipeContext, model: nn.Module, newly_initialized: bool) -> nn.Module:
        assert isinstance(model, Codec)
        if newly_initialized:
            config = context.get_config_as(CodecRecipeConfig)
            if config.tokenizer is not None:
                load_tokenizer(model, config.tokenizer)
            else:
                load_encoder(model, config.encoder, context.asset_store)
            # Rank 0's weights are broadcast when the model is wrapped, so one rank calibrates for all.
            if context.gangs.root.rank == 0:
                fit_before_training(model, config, context.get_dataset_as(SpeechDataset).train)
            model.sync_average()
        model.freeze()  # fairseq2 has just turned on all gradients
        model.train()
        return model

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(CodecRecipeConfig)
        dataset = context.get_dataset_as(SpeechDataset)
        # Data first: what is wrong with it should be told before a model is built.
        train_reader, valid_reader = create_readers(
            dataset,
            config.dataset,
            context.gangs,
            seed=config.common.seed,
            accumulate=config.trainer.grad_accumulation.num_batches,
        )
        base = context.get_model_as(Codec)
        if config.synthesis_start > 1 and base.mel_head is None:
            raise RecipeError(
                f"`synthesis_start` must be 0 without a mel head (`model.config_overrides.mel_head_stage`), but is {config.synthesis_start} instead."
            )
        context.get_optimizer().register_step_post_hook(lambda *_: base.update_average())
        train_unit = CodecTrainUnit(
            context.get_data_parallel_model(),
            base.config,
            seed=config.common.seed,
            rank=context.gangs.dp.rank,
            augment=config.augment,
            discriminator_start=config.gan.discriminator_start,
            adversarial_start=config.gan.adversarial_start,
            synthesis_start=config.synthesis_start,
        )
        context.get_optimizer().register_step_post_hook(train_unit.finite)
        if valid_reader is None:
            return context.create_trainer(train_unit, train_reader)
        score = config.regime.score_metric
        check_score(config.regime, set(LOSSES) - set(computed_losses(base.config, training=False, synthesis=True)))
        # An event file has one writer, so all samples are of clips that rank 0 validates.
        ids = valid_reader.ids if context.gangs.root.rank == 0 else []
        picks = np.linspace(0, len(ids) - 1, min(config.samples.num_clips, len(ids))).round().astype(int)
        recorded = config.common.metric_recorders.tensorboard.enabled
        samples = SampleWriter(
            context.output_dir / "samples",
            context.output_dir / "tb" / "samples" if recorded else None,
            {ids[i] for i in picks},
        )
        valid_unit = CodecEvalUnit(base, samples, config.synthesis_start, score)
        return context.create_trainer(train_unit, train_reader, [valid_unit], [valid_reader])

    @override
    def has_static_autograd_graph(self, context: RecipeContext) -> bool:
        # Before the waveform and the discriminators come in, parameters get no gradient, which DDP has to be told.
        config = context.get_config_as(CodecRecipeConfig)
        return max(config.gan.discriminator_start, config.synthesis_start) <= 1

    @property
    @override
    def config_kls(self) -> type[object]:
        return CodecRecipeConfig


def fit_before_training(codec: Codec, config: CodecRecipeConfig, utterances: list[Utterance]) -> None:
    """Sets what is not learnt in training to the latents and the speech of training clips: the quantiser's bound, the pitch networks, a mel head."""
    fresh, frames, crop = config.tokenizer is None, config.calibration_frames, config.dataset.crop_seconds
    waves = partial(sample_waves, utterances, np.random.default_rng([config.common.seed, 4]))
    if config.new_pitch:
        codec.generator.forget_pitch()
    if frames and (fresh or config.calibrate_below):
        calibrate_quantiser(codec.encoder, codec.fsq, waves(crop), frames, None if fresh else config.calibrate_below)
    if codec.encoder.pitch is not None and (fresh or not codec.generator.hears_pitch):
        if config.pitch_steps:  # after the quantiser: the networks are fitted to a bound of their own
            fit_pitch(codec, waves(PITCH_SECONDS), config.pitch_steps, config.common.seed)
        else:
            log.warning(
                "`pitch_steps` is 0, but the pitch networks of this model are new: the last tokens of a frame will tell little of the pitch. Leave it at its default."
            )
    if frames and not fresh:
        fit_mel_head(codec, waves(crop), 10 * frames)


def load_encoder(codec: Codec, section: EncoderSection, asset_store: AssetStore) -> None:
    """Puts a stage 1 encoder into `codec`; RecipeError, in one line, where it is missing or of another shape."""
    if section.random:
        log.warning("`encoder.random` is set: the encoder stays as initialised.")
        return
    if section.path is None and section.name is None:
        raise RecipeError(
            "`encoder.path` must name the folder of a stage 1 run (`python -m recipes.jepa`), but is missing; `encoder.random=true` goes without."
        )
    try:
        run = (
            find_checkpoint(section.path, section.step) if section.path else _find_card(section.name or "", asset_store)
        )
        config: JepaConfig = run.config_as(ENCODER_FAMILY, JepaConfig)
        found = difference(codec.config.tokenizer.encoder, config.encoder)
        if found is not None:
            raise RecipeError(
                f"the encoder of '{run.folder}' must be that of `model.arch`, but differs in {found}; take the arch it was trained with."
            )
        state = run.state(lambda: Jepa(config))
    except JepaTokError as ex:
        raise RecipeError(f"`encoder`: {ex}") from None
    codec.encoder.load_state_dict(part_of(state, "encoder" if section.weights == "online" else "target_encoder"))
    log.info("Encoder loaded: {} weights of {}.", section.weights, run.folder)


def load_tokenizer(codec: Codec, source: str) -> None:
    """Puts encoder, quantiser and generator of a tokenizer into `codec`; RecipeError where it is missing or of another shape."""
    try:
        tokenizer = SpeechTokenizer.from_pretrained(source)
        for part in ("encoder", "quantizer", "generator"):
            ours, theirs = getattr(codec.config.tokenizer, part), getattr(tokenizer.config, part)
            found = difference(ours, theirs)
            if found is not None:
                raise RecipeError(
                    f"the {part} of the tokenizer '{source}' must be that of `model.arch`, but differs in {found}; take the arch it was trained with."
                )
    except JepaTokError as ex:
        raise RecipeError(f"`tokenizer`: {ex}") from None
    for part in ("encoder", "fsq", "generator"):
        getattr(codec, part).load_state_dict(getattr(tokenizer, part).state_dict())
    log.info("Tokenizer loaded: {} ({}).", source, tokenizer.hash)


def _find_card(name: str, asset_store: AssetStore) -> RunCheckpoint:
    card = asset_store.maybe_retrieve_card(name)
    if card is None:
        raise RecipeError(f"`encoder.name` must be a known model, but is '{name}' instead; see `python -m fairseq2.assets list`.")  # fmt: skip
    field = card.maybe_get_field("checkpoint")
    if field is None:
        raise RecipeError(f"`encoder.name` must be a trained model, but the card '{name}' has no `checkpoint`.")
    return find_checkpoint(field.as_uri().to_path())
