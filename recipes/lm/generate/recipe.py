"""The generation recipe: checks that model and tokenizer belong together, collects prompts, samples, writes WAVs."""

from __future__ import annotations

import math
from typing import final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from jepa_tok._fairseq2.lm import SpeechLM
from jepa_tok._fairseq2.lm_layers import LogitFilter
from jepa_tok.errors import JepaTokError
from jepa_tok.tokenizer import SpeechTokenizer
from recipes.lm.generate.config import LMGenerateConfig
from tasks.lm.generate import GENERATION_METRICS, LMGeneratorUnit
from tasks.lm.prompts import PromptReader, prompts_of_audio, prompts_of_shards
from tasks.speech import register_metrics


@final
class LMGenerateRecipe(Recipe):
    """Continues spoken prompts with a trained `jepa_tok_lm`."""

    @override
    def register(self, container: DependencyContainer) -> None:
        register_metrics(container, GENERATION_METRICS)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(LMGenerateConfig)
        if not config.tokenizer:
            raise RecipeError("`tokenizer` must name a tokenizer's folder, but is empty.")
        if bool(config.prompts.audio) == bool(config.prompts.tokens):
            raise RecipeError("Either `prompts.audio` or `prompts.tokens` must be given, and not both.")
        model = context.get_model_as(SpeechLM)
        try:
            tokenizer = SpeechTokenizer.from_pretrained(config.tokenizer).to(context.device)
            _check_pair(model, tokenizer)
            if config.prompts.audio:
                prompts = prompts_of_audio(
                    config.prompts.audio, tokenizer, config.prompts.seconds, config.prompts.split, config.prompts.limit
                )
            else:
                prompts = prompts_of_shards(
                    config.prompts.tokens, tokenizer, config.prompts.seconds, config.prompts.split, config.prompts.limit
                )
        except JepaTokError as e:
            raise RecipeError(str(e)) from None

        sampling, rate = config.sampling, tokenizer.frame_rate
        max_frames = max(1, math.floor(sampling.max_seconds * rate))
        longest = max(len(p.ids) for p in prompts)
        if longest + max_frames > model.config.max_frames:
            raise RecipeError(
                f"Prompt and continuation must fit into the {model.config.max_frames / rate:g} s that the model can see, but take {(longest + max_frames) / rate:g} s; lower `sampling.max_seconds` or `prompts.seconds`."
            )
        unit = LMGeneratorUnit(
            model,
            tokenizer,
            context.output_dir / "audio",
            context.gangs,
            max_frames=max_frames,
            min_frames=min(max_frames, math.ceil(sampling.min_seconds * rate)),
            filter_=LogitFilter(sampling.temperature, sampling.top_k, sampling.top_p),
            seed=sampling.seed,
        )
        gangs = context.gangs
        reader = PromptReader(prompts, sampling.num_samples, sampling.batch_size, gangs.dp.rank, gangs.dp.size)
        return context.create_generator(unit, reader)

    @property
    @override
    def config_kls(self) -> type[object]:
        return LMGenerateConfig


def _check_pair(model: SpeechLM, tokenizer: SpeechTokenizer) -> None:
    if model.config.tokenizer != tokenizer.hash:
        raise RecipeError(
            f"The tokenizer must be the one whose tokens the model was trained on ({model.config.tokenizer}), but is {tokenizer.hash}."
        )
    if list(tokenizer.config.quantizer.radices) != model.config.radices:
        raise RecipeError("The tokenizer's radices must be the model's, but differ.")
