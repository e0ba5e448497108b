"""One id space for the G tokens of a frame, and the same as a tokenizer for Hugging Face models.

    T frames   G tokens of a frame

A language model of `transformers` wants one stream of ids from one vocabulary, but id 5 of group 0 and id 5 of group 1 mean
different things. Here each group has a range of its own: special tokens first, then group 0, group 1, ...

    id = offset[g] + token,  offset[g] = first_id + specials + vocab_sizes[0] + ... + vocab_sizes[g - 1]

docs/vocabulary.md has a worked example, and what to do where so many ids are too many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_tok.errors import ConfigError, TokenError
from jepa_tok.files import as_path, write_text
from jepa_tok.packing import as_integers, check_range

SPECIALS = ("<pad>", "<bos>", "<eos>")
"""Padding, beginning and end of an utterance. There is none for unknown tokens: there are no unknown tokens."""

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of `specials` and of the tokens of all groups, from `first_id` on."""

    vocab_sizes: tuple[int, ...]
    """Tokens of each of the G groups."""

    specials: tuple[str, ...] = SPECIALS
    """Names of the special tokens, in the order of their ids; none where a text model's own serve."""

    first_id: int = 0
    """The first id: 0, or the size of the text vocabulary that these ids are put behind."""

    tokenizer: str = ""
    """Hash of the speech tokenizer."""

    def __post_init__(self) -> None:
        if not self.vocab_sizes or min(self.vocab_sizes) < 1:
            raise TokenError(f"`vocab_sizes` must be at least 1 each, but are {list(self.vocab_sizes)} instead.")
        if self.first_id < 0:
            raise TokenError(f"`first_id` must be at least 0, but is {self.first_id} instead.")
        for name in self.specials:
            if not name or any(c.isspace() for c in name) or self.specials.count(name) > 1:
                raise TokenError(f"`specials` must differ, without blanks, but one is {name!r}.")

    @classmethod
    def of(cls, tokenizer: Any, *, specials: Sequence[str] = SPECIALS, first_id: int = 0) -> Vocabulary:
        """The vocabulary of a SpeechTokenizer or of the ShardMetadata of its tokens."""
        return cls(tuple(tokenizer.vocab_sizes), tuple(specials), first_id, tokenizer.hash)

    @property
    def num_groups(self) -> int:
        """G"""
        return len(self.vocab_sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Id of token 0 of each of the G groups."""
        start = self.first_id + len(self.specials)
        return tuple(start + sum(self.vocab_sizes[:g]) for g in range(self.num_groups))

    def __len__(self) -> int:
        """Number of ids; with `first_id` added, the rows that an embedding needs."""
        return len(self.specials) + sum(self.vocab_sizes)

    # --- ids

    def special(self, name: str) -> int:
        """Id of a special token; raises TokenError where there is none of that name."""
        if name not in self.specials:
            raise TokenError(f"`{name}` must be one of the special tokens {list(self.specials)}, but is not.")
        return self.first_id + self.specials.index(name)

    def encode(self, tokens: Any) -> Tensor:
        """Tokens [T, G] to ids, int64 [T * G]; raises TokenError for a wrong shape or a token out of range."""
        values = as_integers(tokens, "tokens")
        if values.ndim != 2 or values.shape[1] != self.num_groups:
            raise TokenError(f"`tokens` must have shape [T, {self.num_groups}], but has {list(values.shape)} instead.")
        check_range(values, self.vocab_sizes, "tokens")
        return (values + torch.tensor(self.offsets, device=values.device)).flatten()

    def decode(self, ids: Any) -> Tensor:
        """Ids [N] to tokens, int64 [T, G]: the inverse of `encode`.

        Special tokens before the first frame and after the last are passed over. Raises TokenError, with the position, for an
        id of another group than the position's, a special token between, an id of no group, and a last frame that is not whole.
        """
        values = as_integers(ids, "ids")
        if values.ndim != 1:
            raise TokenError(f"`ids` must have shape [N], but has {list(values.shape)} instead.")
        first = self.first_id
        speech = ((values < first) | (values >= first + len(self.specials))).nonzero().flatten()
        start, end = (int(speech[0]), int(speech[-1]) + 1) if len(speech) else (0, 0)
        groups = torch.arange(end - start, device=values.device) % self.num_groups
        offsets, sizes = (torch.tensor(v, device=values.device) for v in (self.offsets, self.vocab_sizes))
        tokens = values[start:end] - offsets[groups]
        bad = ((tokens < 0) | (tokens >= sizes[groups])).nonzero().flatten()
        if len(bad):
            at = start + int(bad[0])
            g = int(groups[bad[0]])
            raise TokenError(
                f"`ids[{at}]` must be of group {g} ({self.offsets[g]}..{self.offsets[g] + self.vocab_sizes[g] - 1}), "
                f"but is {int(values[at])}: {self._what(int(values[at]))}."
            )
        if (end - start) % self.num_groups:
            raise TokenError(
                f"`ids` must hold whole frames of {self.num_groups}, but has {end - start} ids of tokens; cut the last "
                f"{(end - start) % self.num_groups}."
            )
        return tokens.reshape(-1, self.num_groups)

    def _what(self, id: int) -> str:
        at = id - self.first_id
        if 0 <= at < len(self.specials):
            return f"the special token {self.specials[at]}"
        if 0 <= at < len(self):
            return f"an id of group {int(np.searchsorted(self.offsets, id, side='right')) - 1}"
        return f"not in {self.first_id}..{self.first_id + len(self) - 1}"

    # --- names, as a Hugging Face tokenizer reads and writes them

    def name(self, group: int, token: int) -> str:
        """Name of a token: `<g03_10023>` is token 10023 of group 3."""
        return f"<g{group:02d}_{token}>"

    def names(self) -> Iterator[str]:
        """All names in the order of their ids."""
        yield from self.specials
        for group, size in enumerate(self.vocab_sizes):
            for token in range(size):
                yield self.name(group, token)

    def to_text(self, tokens: Any) -> str:
        """Tokens [T, G] as names with blanks between, what the Hugging Face tokenizer encodes."""
        values = as_integers(tokens, "tokens")
        self.encode(values)  # checks
        return " ".join(self.name(g, t) for frame in values.tolist() for g, t in enumerate(frame))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which AutoTokenizer.from_pretrained and `tokenizers` load.

        Raises ConfigError where `first_id` is not 0 (a tokenizer.json must start at 0), where `folder` is a file or holds another
        tokenizer's files, and where it cannot be written.
        """
        folder = as_path(folder)
        if self.first_id:
            raise ConfigError(f"`first_id` must be 0 for a {TOKENIZER_FILE}, but is {self.first_id} instead.")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"'{folder}' must be a folder, but is a file.")
        config = folder / CONFIG_FILE
        if (folder / TOKENIZER_FILE).exists() and not (config.exists() and '"jepa_tok"' in config.read_text("utf-8")):
            raise ConfigError(f"'{folder}' holds the {TOKENIZER_FILE} of another tokenizer; take another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / TOKENIZER_FILE, json.dumps(self._tokenizer_json(), separators=(",", ":")) + "\n")
            write_text(config, json.dumps(self._tokenizer_config(), indent=1) + "\n")
        except OSError as e:
            raise ConfigError(f"'{folder}' cannot be written: {e.strerror or e}.") from None
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Vocabulary:
        """The vocabulary that `save_pretrained` wrote; raises ConfigError where the folder holds none."""
        path = as_path(folder) / CONFIG_FILE
        try:
            given = json.loads(path.read_bytes())["jepa_tok"]
            return cls(tuple(given["vocab_sizes"]), tuple(given["specials"]), 0, str(given["tokenizer"]))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"'{path}' must be the file that a vocabulary was saved to, but is not: {e!r}.") from None

    def _tokenizer_json(self) -> dict[str, Any]:
        added = [
            {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, name in enumerate(self.specials)
        ]  # fmt: skip
        # Names are split at blanks and at their brackets, so that text without blanks between them is read too.
        split = {"type": "Split", "pattern": {"Regex": "<[^<>]*>"}, "behavior": "Isolated", "invert": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]},
            "post_processor": None,
            "decoder": None,
            # The name of the unknown token is required, but not in the vocabulary: unknown names are errors.
            "model": {"type": "WordLevel", "vocab": {n: i for i, n in enumerate(self.names())}, "unk_token": "<unk>"},
        }

    def _tokenizer_config(self) -> dict[str, Any]:
        roles = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            # Else it gives token_type_ids too, which Llama's `generate` refuses and GPT-2 adds an embedding for.
            "model_input_names": ["input_ids", "attention_mask"],
            **{role: name for role, name in roles.items() if name in self.specials},
            "jepa_tok": {"tokenizer": self.tokenizer, "vocab_sizes": self.vocab_sizes, "specials": self.specials},
        }
