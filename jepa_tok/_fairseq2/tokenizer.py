"""Tokenizers as models of fairseq2: the family `jepa_tok_tokenizer`, and a card for each packaged one.

    from fairseq2.models.hub import load_model

    tokenizer = load_model("jepa_tok_tokenizer_NAME")   # a SpeechTokenizer: the weights of SpeechTokenizer.from_pretrained("NAME")

A tokenizer folder of your own is loaded by a card of this family whose `model_config` is the `config` of its config.json and whose
`checkpoint` is its model.safetensors, full or compact.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from fairseq2.composition import register_in_memory_assets, register_model_family
from fairseq2.data_type import set_dtype
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer

from jepa_tok import hub
from jepa_tok.compact import expand
from jepa_tok.config import TokenizerConfig
from jepa_tok.config_dict import to_dict
from jepa_tok.errors import ConfigError
from jepa_tok.presets import PRESETS, tokenizer_config
from jepa_tok.tokenizer import SpeechTokenizer

TOKENIZER_FAMILY = "jepa_tok_tokenizer"


def register_tokenizers(container: DependencyContainer) -> None:
    """Registers the family, an architecture for each preset, and the packaged tokenizers' cards."""
    register_model_family(
        container,
        TOKENIZER_FAMILY,
        kls=SpeechTokenizer,
        config_kls=TokenizerConfig,
        factory=create_tokenizer,
        supports_meta=False,  # as the other families (models.py)
        state_dict_converter=convert_state,
    )
    arch: ConfigRegistrar[Any] = ConfigRegistrar(container, TokenizerConfig)
    for name in PRESETS:
        arch(name)(partial(tokenizer_config, name))
    register_in_memory_assets(container, "package:jepa_tok.checkpoints", packaged_cards())


def packaged_cards() -> list[dict[str, object]]:
    """A card for each packaged tokenizer, made of its own config.json: it cannot tell of another model."""
    cards: list[dict[str, object]] = []
    for name in hub.list_pretrained():
        folder = hub.CHECKPOINTS / name
        cards.append(
            {
                "name": f"{TOKENIZER_FAMILY}_{name}",
                "model_family": TOKENIZER_FAMILY,
                "model_config": to_dict(hub.read_config(folder)),
                "checkpoint": str(folder / hub.WEIGHTS_FILE),
            }
        )
    return cards


def create_tokenizer(config: TokenizerConfig) -> SpeechTokenizer:
    """Builds a tokenizer on the device and in the dtype that fairseq2 asks for (its quantiser stays in float32)."""
    wanted = torch.empty(())
    try:
        with set_dtype(torch.float32):  # windows and filters are computed in float32, then rounded
            return SpeechTokenizer.from_config(config).to(wanted.device, wanted.dtype)
    except ConfigError as ex:
        raise RecipeError(f"`model.config_overrides`: {ex}") from None


def convert_state(state_dict: dict[str, object], config: TokenizerConfig) -> dict[str, object]:
    """Weights of model.safetensors by the model's names, whichever way they are stored."""
    return dict(expand(state_dict))  # type: ignore[arg-type]
