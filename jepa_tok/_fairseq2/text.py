"""Family `jepa_tok_spm`: sentencepiece text tokenizers on the `sentencepiece` wheel, portable across torch releases.

fairseq2's own reader passes tensors through its native library, which is tied to one torch release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from fairseq2.data.tokenizers import TokenDecoder, TokenEncoder, Tokenizer, TokenizerModelError, VocabularyInfo
from fairseq2.device import Device
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

SPM_FAMILY = "jepa_tok_spm"


@dataclass(kw_only=True)
class SpmConfig:
    """A sentencepiece model has all it needs in its file; whether BOS and EOS are added is ours to say."""

    add_bos: bool = False
    add_eos: bool = False


@final
class SpmEncoder(TokenEncoder):
    """Text to ids, int64."""

    def __init__(self, model: Any, prefix: Sequence[int], suffix: Sequence[int], device: Device | None) -> None:
        self._model, self._prefix, self._suffix, self._device = model, list(prefix), list(suffix), device

    @override
    def __call__(self, text: str) -> Tensor:
        return torch.tensor(self._prefix + self._model.encode(text) + self._suffix, device=self._device)

    @override
    def encode_as_tokens(self, text: str) -> list[str]:
        return [self._model.id_to_piece(int(i)) for i in self(text)]

    @property
    @override
    def prefix_indices(self) -> Tensor | None:
        return torch.tensor(self._prefix, device=self._device) if self._prefix else None

    @property
    @override
    def suffix_indices(self) -> Tensor | None:
        return torch.tensor(self._suffix, device=self._device) if self._suffix else None


@final
class SpmDecoder(TokenDecoder):
    """Ids to text; control symbols vanish."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @override
    def __call__(self, token_indices: Tensor) -> str:
        return self._model.decode(token_indices.tolist())

    @override
    def decode_from_tokens(self, tokens: Sequence[str]) -> str:
        return self._model.decode_pieces(list(tokens))


@final
class SpmTokenizer(Tokenizer):
    """A sentencepiece model as fairseq2 sees it."""

    def __init__(self, model: Any, config: SpmConfig) -> None:
        self._model = model
        self._prefix = [model.bos_id()] if config.add_bos else []
        self._suffix = [model.eos_id()] if config.add_eos else []

    @override
    def create_encoder(
        self,
        *,
        task: str | None = None,
        lang: str | None = None,
        mode: str | None = None,
        device: Device | None = None,
        pin_memory: bool = False,
    ) -> TokenEncoder:
        for name, value in (("task", task), ("lang", lang), ("mode", mode)):
            if value is not None:
                raise ValueError(f"`{name}` must be `None`, but is '{value}' instead.")
        return SpmEncoder(self._model, self._prefix, self._suffix, device)

    @override
    def create_raw_encoder(self, *, device: Device | None = None, pin_memory: bool = False) -> TokenEncoder:
        return SpmEncoder(self._model, [], [], device)

    @override
    def create_decoder(self, *, skip_special_tokens: bool = False) -> TokenDecoder:
        return SpmDecoder(self._model)

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        def index(value: int) -> int | None:
            return value if value >= 0 else None

        model = self._model
        return VocabularyInfo(
            size=model.get_piece_size(),
            unk_idx=index(model.unk_id()),
            bos_idx=index(model.bos_id()),
            eos_idx=index(model.eos_id()),
            pad_idx=index(model.pad_id()),
        )


def load_spm(path: Path, config: SpmConfig) -> SpmTokenizer:
    """Reads a `.model` file; raises TokenizerModelError where it is none or lacks a symbol that is asked for."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load(str(path))
    except (RuntimeError, OSError) as e:
        raise TokenizerModelError(path, f"{path} is not a readable sentencepiece model.") from e
    for asked, name, found in (("add_bos", "BOS", model.bos_id()), ("add_eos", "EOS", model.eos_id())):
        if getattr(config, asked) and found < 0:
            raise TokenizerModelError(path, f"{path} has no {name} symbol, but `{asked}` asks for one.")
    return SpmTokenizer(model, config)


def register_spm(container: DependencyContainer) -> None:
    """Registers the family."""
    from fairseq2.composition import register_tokenizer_family

    register_tokenizer_family(container, SPM_FAMILY, SpmTokenizer, SpmConfig, loader=load_spm)
