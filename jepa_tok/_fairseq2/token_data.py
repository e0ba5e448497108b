"""Family `jepa_tok_tokens`: folders of parquet token shards and the splits that a speech LM is trained and judged on.

Opening reads lengths and ids of utterances alone; tokens are read when a reader (token_reader.py) asks for them. Nothing
passes fairseq2's native pipeline.

    B clips of a batch   T frames   G tokens of a frame
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import numpy as np
from fairseq2.device import Device, SupportsDeviceTransfer
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from jepa_tok.errors import CorpusError, JepaTokError

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

    from jepa_tok.corpus.schema import ShardMetadata, TokenRow

TOKENS_FAMILY = "jepa_tok_tokens"


@dataclass(kw_only=True)
class TokenDatasetConfig(Validatable):
    """Which shards to read, and which of their rows are for training and for validation."""

    shards: list[str] = field(default_factory=list)
    """Folders written by `jepa-tok tokenize`, or single shards; all of one tokenizer."""

    valid_shards: list[str] = field(default_factory=list)
    """The same for validation; where empty, rows of `shards` whose `split_column` is `valid_split`."""

    split_column: str = "split"
    """Column by which rows are chosen."""

    train_split: str | None = None
    """Value of `split_column` for training; where not given, `train` if `valid_split` is, else all rows."""

    valid_split: str | None = None
    """Value of `split_column` for validation; with `valid_shards`, all their rows where not given."""

    def validate(self) -> ValidationResult:
        """Called by fairseq2."""
        result = ValidationResult()
        if self.train_split is not None and self.train_split == self.valid_split and not self.valid_shards:
            result.add_error(f"`train_split` and `valid_split` must differ, but both are '{self.valid_split}'.")
        return result


class Piece(NamedTuple):
    """A clip, or a part of one that is longer than the model can see."""

    row: int
    """Number of the row in its split."""
    first: int
    """First frame of the piece in its row."""
    frames: int
    """T"""
    cut_after: bool
    """Whether the row goes on behind the piece."""


@dataclass
class TokenBatch(SupportsDeviceTransfer):
    """Clips padded on the right."""

    ids: Tensor
    """int64 [B, T, G], 0 past a clip's length."""
    lengths: Tensor
    """int64 [B], in frames."""
    cut_before: Tensor
    """bool [B]: whether frames of the same row came before."""
    cut_after: Tensor
    """bool [B]: whether the row goes on."""
    num_frames: int
    """Sum of `lengths`, known without asking a device."""
    names: list[str] = field(default_factory=list)
    """Utterance ids."""

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        for name in ("ids", "lengths", "cut_before", "cut_after"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=non_blocking))

    def __repr__(self) -> str:
        return f"TokenBatch({list(self.ids.shape)}, {self.num_frames} frames, {self.names})"


@final
class TokenDataset:
    """Token shards of one tokenizer and the splits that a recipe asks for."""

    def __init__(self, config: TokenDatasetConfig) -> None:
        """Raises CorpusError for damaged or missing shards, mixed tokenizers, and a split without rows."""
        if not config.shards:
            raise CorpusError("`dataset.config_overrides.shards` must name folders of token shards, but is empty.")
        self.config = config
        self.metadata, files = _open(config.shards)
        valid_files = files
        if config.valid_shards:
            other, valid_files = _open(config.valid_shards)
            _same(other, self.metadata, config.valid_shards[0], config.shards[0])
        column = config.split_column
        train_split = config.train_split
        if train_split is None and config.valid_split is not None and not config.valid_shards:
            train_split = "train"  # not "all but validation": rows of a test split must not be trained on
        self.train = TokenSplit("train", files, self.metadata, column, keep=train_split)
        self.valid: TokenSplit | None = None
        if config.valid_shards or config.valid_split is not None:
            self.valid = TokenSplit("valid", valid_files, self.metadata, column, keep=config.valid_split)

    @property
    def tokenizer(self) -> str:
        """Hash of the tokenizer."""
        return self.metadata.hash


class TokenSplit:
    """Rows of some shards: lengths in memory, ids read when asked for."""

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        metadata: ShardMetadata,
        column: str,
        *,
        keep: str | None = None,
    ) -> None:
        import pyarrow.parquet as pq

        self.name, self.metadata, self.files = name, metadata, list(files)
        self._keep: list[np.ndarray] = []  # a file's chosen rows, as positions in it
        lengths: list[np.ndarray] = []
        digest = sha256(metadata.hash.encode())
        for file in self.files:
            schema = pq.read_schema(file)
            chosen = column in schema.names
            if not chosen and keep is not None:
                raise CorpusError(
                    f"{file}: rows of {name} are those whose `{column}` is '{keep}', but there is no such column."
                )
            table = pq.read_table(file, columns=["id", "n_frames"] + ([column] if chosen else []))
            rows = np.arange(table.num_rows)
            if keep is not None:
                values = [None if v is None else str(v) for v in table.column(column).to_pylist()]
                rows = np.array([i for i in rows if values[i] == keep], int)
            frames = table.column("n_frames").to_numpy()[rows].astype(np.int64)
            self._keep.append(rows)
            lengths.append(frames)
            ids = table.column("id").to_pylist()
            digest.update("\n".join(f"{ids[i]} {n}" for i, n in zip(rows, frames)).encode() + b"\n")
        self.lengths = np.concatenate(lengths)
        self.first_row = np.cumsum([0, *map(len, lengths)])
        self.fingerprint = digest.hexdigest()[:16]
        if not len(self.lengths):
            value = "" if keep is None else f" with `{column}` '{keep}'"
            raise CorpusError(f"{self.files[0].parent}: the {name} split must have rows{value}, but has none.")

    @property
    def num_frames(self) -> int:
        """Frames of all rows."""
        return int(self.lengths.sum())

    def pieces(self, file: int, max_frames: int) -> list[Piece]:
        """The rows of a file, those longer than `max_frames` in parts of near equal length, in order."""
        pieces = []
        for row in range(self.first_row[file], self.first_row[file + 1]):
            frames = int(self.lengths[row])
            parts = -(-frames // max_frames)
            edges = [frames * i // parts for i in range(parts + 1)]
            pieces += [Piece(row, a, b - a, b < frames) for a, b in pairwise(edges)]
        return pieces

    def rows(self, file: int) -> Iterator[TokenRow]:
        """The chosen rows of a file, in order; the shard reader checks each."""
        from jepa_tok.corpus.shards import read_shards

        chosen = set(self._keep[file].tolist())
        return (row for i, row in enumerate(read_shards(self.files[file])) if i in chosen)

    def read(self, file: int) -> dict[int, tuple[str, np.ndarray]]:
        """Row number -> id and tokens [T, G] of the chosen rows of a file, two bytes a token where they fit."""
        kind = np.uint16 if max(self.metadata.vocab_sizes) <= 2**16 else np.int64
        first = int(self.first_row[file])
        return {first + i: (row.id, row.ids.numpy().astype(kind)) for i, row in enumerate(self.rows(file))}

    def __iter__(self) -> Iterator[TokenRow]:
        """All rows in order."""
        for file in range(len(self.files)):
            yield from self.rows(file)


def _open(paths: Sequence[str]) -> tuple[ShardMetadata, list[Path]]:
    """The shard files of some folders, and what they have in common."""
    from jepa_tok.corpus.shards import find_shards, read_metadata

    files: list[Path] = []
    metadata: ShardMetadata | None = None
    for path in paths:
        other = read_metadata(path)
        metadata = other if metadata is None else metadata
        _same(other, metadata, path, paths[0])
        files += find_shards(path)
    assert metadata is not None  # callers give at least one path
    return metadata, files


def _same(given: ShardMetadata, wanted: ShardMetadata, path: str, first: str) -> None:
    if given != wanted:
        raise CorpusError(
            f"{path}: all shards must be of one tokenizer, but these are of {given.hash} and those of {first} of {wanted.hash}."
        )


def open_tokens(config: TokenDatasetConfig) -> TokenDataset:
    """Opener of the family; what a user did wrong becomes RecipeError, which fairseq2 prints as one line."""
    try:
        return TokenDataset(config)
    except JepaTokError as e:
        raise RecipeError(str(e)) from None


def register_tokens(container: DependencyContainer) -> None:
    """Registers the family."""
    from fairseq2.composition import register_dataset_family

    register_dataset_family(container, TOKENS_FAMILY, TokenDataset, TokenDatasetConfig, opener=open_tokens)
