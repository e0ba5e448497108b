"""What the formats share: metadata.json, how a folder is opened, and values of columns as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jepa_tok.corpus.schema import RESERVED, ShardMetadata, TokenRow, check_row
from jepa_tok.corpus.shards import find_shards, open_shard, read_metadata, read_shards
from jepa_tok.corpus.utterance import check_there, one_line
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, glob_in, is_url

METADATA_FILE = "metadata.json"
EXPORT_FORMAT = "jepa-tok-export/1"
MODULES = {"parquet": "parquet", "bin": "binary", "jsonl": "jsonl", "kaldi": "kaldi", "shar": "shar"}

KINDS: dict[str, Any] = {"string": "", "int64": 0, "double": 0.5, "bool": True}
"""Types of columns, with a value of each."""


# metadata.json --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportInfo:
    """What an exported folder's metadata.json holds."""

    layout: str
    """One of FORMATS."""
    metadata: ShardMetadata
    """The tokenizer's hash, vocabularies and rates."""
    columns: dict[str, str]
    """Type of each column that was carried through: string, int64, double or bool."""
    utterances: int
    frames: int
    samples: int
    """At the tokenizer's rate."""
    dtype: str | None = None
    """numpy's name for the type of tokens.bin; None in other formats."""
    digest: str = ""
    """Of the rows: see `RowsDigest`; empty in exports that were made before it was."""

    def to_json(self) -> str:
        """The text of metadata.json."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {
            "metadata": json.loads(self.metadata.to_json())
        }
        if self.dtype is None:
            del own["dtype"]
        return json.dumps({"format": EXPORT_FORMAT, **own}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: Path) -> ExportInfo:
        """Inverse of `to_json`; raises CorpusError where metadata.json is missing or broken."""
        path = folder / METADATA_FILE
        try:
            given = json.loads(path.read_bytes())
            version = given.pop("format")
            if version != EXPORT_FORMAT:
                raise CorpusError(f"{path}: the format must be {EXPORT_FORMAT}, but is {version} instead.")
            metadata = ShardMetadata.from_json(json.dumps(given.pop("metadata")), str(path))
            info = cls(metadata=metadata, **given)
            counts = (info.utterances, info.frames, info.samples)
            if info.layout not in MODULES or not all(type(n) is int and n >= 0 for n in counts):
                raise ValueError("unknown layout or counts")
            if not set(info.columns.values()) <= set(KINDS):
                raise ValueError("unknown column types")
            if not isinstance(info.digest, str):
                raise ValueError("the digest is no text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise CorpusError(f"{path}: not the {METADATA_FILE} of exported tokens: {one_line(e)}.") from None
        return info


# Opening --------------------------------------------------------------------------------------------------------------


class RowWriter(Protocol):
    """A module's `Writer(folder, metadata, columns, rows_per_shard)`: rows in, files of a new local folder out."""

    dtype: str | None

    def add(self, row: TokenRow) -> None:
        """Writes one row; raises CorpusError where the format cannot hold it."""

    def close(self) -> None:
        """Ends the files."""


RowReader = Callable[[Path, ExportInfo], Iterator[TokenRow]]
"""A module's `read_rows`: the rows of a folder in order; raises CorpusError, with the place, where one breaks a rule."""


def format_module(layout: str) -> Any:
    """The module of a format, with `Writer` and `read_rows`."""
    return importlib.import_module(f"jepa_tok.corpus.formats.{MODULES[layout]}")


@dataclass(frozen=True)
class TokenSource:
    """Tokens on disk in any format, opened but not read."""

    path: Path
    layout: str
    metadata: ShardMetadata
    columns: dict[str, str]
    num_rows: int
    """As the folder or its shards tell."""
    rows: Callable[[], Iterator[TokenRow]]
    """Reads all rows, each checked, in order."""


def open_tokens(path: str | os.PathLike[str]) -> TokenSource:
    """Tokens in any of the formats: an exported folder, a tokenized corpus, a folder of shards or one shard.

    Raises CorpusError where there are none, where their tokenization or upload has not ended, and for shards of several
    tokenizers.
    """
    path = as_path(path)
    check_there(path)
    if path.is_dir() and (path / METADATA_FILE).exists():
        info = ExportInfo.read(path)
        if info.layout != "parquet":
            read_rows: RowReader = format_module(info.layout).read_rows

            def rows() -> Iterator[TokenRow]:
                return whole(read_rows(path, info), info, str(path))

            return TokenSource(path, info.layout, info.metadata, info.columns, info.utterances, rows)
    elif path.is_file() and path.suffix != ".parquet":
        raise CorpusError(f"{path}: tokens must be a folder or a .parquet file, but this is another file.")
    elif path.is_dir() and not glob_in(path, "tokens-*.parquet"):
        raise CorpusError(
            f"{path}: the folder must hold tokens-*.parquet, or be one that `jepa-tok export` wrote "
            f"(with a {METADATA_FILE}), but is neither."
        )
    metadata = read_metadata(path)
    # What concerns one shard alone (its number, the files skipped in it) is not true of another folder's.
    kept = {name: value for name, value in metadata.extra.items() if name == "corpus"}
    columns: dict[str, str] = {}
    total = 0
    for shard in find_shards(path):
        file = open_shard(shard)
        add_columns(columns, file.schema_arrow, str(shard))
        total += file.metadata.num_rows
    return TokenSource(
        path, "parquet", dataclasses.replace(metadata, extra=kept), columns, total, lambda: read_shards(path)
    )


def add_columns(columns: dict[str, str], schema: Any, name: str) -> None:
    """Adds the columns of a shard's schema; raises CorpusError for a type that exports do not hold, or that differs."""
    import pyarrow.types as t

    tests = {"bool": t.is_boolean, "int64": t.is_integer, "double": t.is_floating}
    for field in schema:
        if field.name in RESERVED:
            continue
        kind = next((k for k, test in tests.items() if test(field.type)), None)
        if t.is_string(field.type) or t.is_large_string(field.type) or t.is_null(field.type):
            kind = "string"
        if kind is None or t.is_uint64(field.type):
            raise CorpusError(
                f"{name}: the column `{field.name}` must be string, int64, double or bool, but is {field.type}; "
                "write the shards without it."
            )
        if columns.setdefault(field.name, kind) != kind:
            raise CorpusError(
                f"{name}: the column `{field.name}` must have one type in all shards, but is {kind} here and "
                f"{columns[field.name]} before."
            )


def whole(rows: Iterable[TokenRow], info: ExportInfo, name: str) -> Iterator[TokenRow]:
    """`rows`; raises CorpusError after the last where they are not as many as metadata.json says."""
    count = frames = 0
    for row in rows:
        yield row
        count, frames = count + 1, frames + row.ids.shape[0]
    if (count, frames) != (info.utterances, info.frames):
        raise CorpusError(
            f"{name}: there must be {info.utterances} utterances with {info.frames} frames, as {METADATA_FILE} says, but "
            f"there are {count} with {frames}; export it again."
        )


# Rows and values ------------------------------------------------------------------------------------------------------


class RowsDigest:
    """16 hex digits that name rows with all that is in them, the same in every format and in any order.

    Order is left out since Kaldi's tools sort its files. A flipped bit in tokens that are still in range shows here alone.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, row: TokenRow) -> None:
        """Counts a row in."""
        told = json.dumps([row.id, row.num_samples, row.ids.shape[0], json_values(row.info)], sort_keys=True)
        sha = hashlib.sha256(told.encode())
        sha.update(row.ids.numpy().astype("<i8").tobytes())
        self._sum = (self._sum + int.from_bytes(sha.digest()[:8], "little")) % 2**64

    def hexdigest(self) -> str:
        """Of the rows so far."""
        return f"{self._sum:016x}"


def make_row(
    id: Any, flat: Any, num_samples: Any, info: dict[str, Any], metadata: ShardMetadata, place: str
) -> TokenRow:
    """A row of what a file holds, `flat` as whole numbers [T * G]; raises CorpusError, with `place`, for what breaks a rule."""
    import numpy as np
    import torch

    if not isinstance(id, str):
        raise CorpusError(f"{place}: `id` must be text, but is {id!r} instead.")
    place = f"{place} ('{id}')"
    if type(num_samples) is not int:
        raise CorpusError(f"{place}: `n_samples` must be a whole number, but is {num_samples!r} instead.")
    try:
        ids = np.asarray(flat)
        if ids.dtype.kind not in "iu" or ids.ndim != 1:
            raise ValueError
        ids = ids.astype(np.int64)
    except (ValueError, OverflowError):
        raise CorpusError(f"{place}: `tokens` must be a list of whole numbers, but is not.") from None
    check_row(ids, len(ids) // metadata.num_groups, num_samples, metadata, place)
    return TokenRow(id, torch.from_numpy(ids.reshape(-1, metadata.num_groups)), num_samples, info)


def json_values(info: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a row as JSON can hold them: NaN and infinities become text, as JSON has no such numbers."""
    return {name: _spell(v) if isinstance(v, float) and not math.isfinite(v) else v for name, v in info.items()}


def _spell(value: float) -> str:
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def parse_values(given: Mapping[str, Any], columns: Mapping[str, str], place: str) -> dict[str, Any]:
    """Inverse of `json_values`; raises CorpusError for an unknown column or a value that is not of its column's type."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in columns:
            raise CorpusError(f"{place}: the column `{name}` is not among those that {METADATA_FILE} names.")
        kind = columns[name]
        if value is None:
            continue
        if kind == "double" and (type(value) is int or value in ("NaN", "Infinity", "-Infinity")):
            value = float(value)
        if type(value) is not type(KINDS[kind]) or (kind == "int64" and not -(2**63) <= value < 2**63):
            raise CorpusError(f"{place}: the column `{name}` must be {kind}, but is {value!r} instead.")
        values[name] = value
    return values


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and object of each line; raises CorpusError for a line that is no JSON object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                given = json.loads(line)
            except ValueError as e:
                raise CorpusError(f"{place}: the line must be JSON, but is not: {one_line(e)}.") from None
            if not isinstance(given, dict):
                raise CorpusError(f"{place}: the line must be a JSON object, but is not.")
            yield place, given


def require_files(folder: Path, *names: str) -> None:
    """Raises CorpusError where a file of an exported folder is missing."""
    for name in names:
        if not (folder / name).is_file():
            raise CorpusError(f"{folder / name}: the file is missing; export the tokens again.")


def require_local(folder: Path, what: str) -> None:
    """Raises CorpusError where `folder` is a URL."""
    if is_url(folder):
        raise CorpusError(f"{folder}: {what} must be on a local disk; copy the folder first.")
