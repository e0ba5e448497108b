"""Model families of stage 1 and stage 2, with their hooks for FSDP2, activation checkpointing and compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from fairseq2.composition import register_model_family
from fairseq2.models.utils.ac import apply_layerwise_ac
from fairseq2.models.utils.fsdp import apply_layerwise_fsdp
from fairseq2.nn.fsdp import FSDPWrapper
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from torch import nn
from torch.distributed.fsdp import fully_shard

from jepa_tok._fairseq2.checkpoint import CODEC_FAMILY, ENCODER_FAMILY
from jepa_tok.errors import ConfigError
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.regions import block_lists, compile_regions
from jepa_tok.presets import PRESETS, codec_config, jepa_config
from jepa_tok.training_config import CodecConfig, JepaConfig


def register_models(container: DependencyContainer) -> None:
    """Registers both families with one architecture for each preset."""
    # supports_meta: modules hold raw parameters and their own initialisation, so every rank builds the model and rank 0's
    # weights are broadcast; models of this size can afford it.
    register_model_family(
        container,
        ENCODER_FAMILY,
        kls=Jepa,
        config_kls=JepaConfig,
        factory=create_jepa,
        supports_meta=False,
        compiler=compile_regions,
        fsdp_applier=apply_fsdp,
        layerwise_ac_applier=apply_ac,
    )
    # No FSDP: discriminators run through `functional_call` (DDP is what stage 2 is trained with).
    register_model_family(
        container,
        CODEC_FAMILY,
        kls=Codec,
        config_kls=CodecConfig,
        factory=create_codec,
        supports_meta=False,
        compiler=compile_regions,
        layerwise_ac_applier=apply_ac,
    )
    _register_archs(container, JepaConfig, jepa_config)
    _register_archs(container, CodecConfig, codec_config)


def _register_archs(container: DependencyContainer, kls: type, make: Callable[[str], Any]) -> None:
    arch: ConfigRegistrar[Any] = ConfigRegistrar(container, kls)
    for name in PRESETS:
        arch(name)(partial(make, name))


def create_jepa(config: JepaConfig) -> Jepa:
    """Builds stage 1; RecipeError, in one line, where the configuration contradicts itself."""
    try:
        return Jepa(config)
    except ConfigError as ex:
        raise RecipeError(f"`model.config_overrides`: {ex}") from None


def create_codec(config: CodecConfig) -> Codec:
    """Builds stage 2; RecipeError, in one line, where the configuration contradicts itself."""
    try:
        config.tokenizer.check()
        return Codec(config)
    except ConfigError as ex:
        raise RecipeError(f"`model.config_overrides`: {ex}") from None


def layer_stacks(model: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of layers that FSDP2 shards: stages and Conformers.

    Student and teacher get the same treatment, so that their shards line up for the EMA.
    """
    for name in ("encoder", "target_encoder", "predictor"):
        part = getattr(model, name, None)
        for stack in ("stages", "conformers"):
            layers = getattr(part, stack, None)
            if isinstance(layers, nn.ModuleList) and len(layers):
                yield layers


def apply_fsdp(model: nn.Module, granularity: str, wrapper: FSDPWrapper) -> nn.Module:
    """Shards stages and Conformer blocks one by one, and what is left as one group (`layer`).

    Whole encoders (`stack`) cannot be: their output is no plain tensor, so FSDP2 would not know when their backward pass
    begins. FSDP2 cannot shard scalars, so each becomes a vector of one; PyTorch loads such a vector into a scalar again.
    """
    if granularity != "layer":
        raise RecipeError(f"`trainer.fsdp.granularity` must be 'layer', but is '{granularity}' instead.")
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.ndim == 0:
                setattr(module, name, nn.Parameter(p.detach().reshape(1), requires_grad=p.requires_grad))
    for stack in layer_stacks(model):
        apply_layerwise_fsdp(stack, wrapper)
    model = wrapper(model, reshard_after_forward=False)
    # With bf16 weights FSDP2 casts what the root is called with, too: of the audio, 8 bits would be left. The front and the
    # anchor take it in float32, as in DDP and in the tokenizer.
    state = fully_shard.state(model)  # type: ignore[attr-defined]
    state._mp_policy = replace(state._mp_policy, cast_forward_inputs=False)
    return model


def apply_ac(model: nn.Module, every_nth_layer: int) -> nn.Module:
    """Recomputes every nth residual and Conformer block in the backward pass.

    Not whole stages: the first alone, recomputed, holds more than half of what all keep.
    """
    for blocks in list(block_lists(model)):
        apply_layerwise_ac(blocks, every_nth_layer)
    return model
