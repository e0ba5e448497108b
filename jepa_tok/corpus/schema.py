"""What is in a token shard: the metadata of its schema, the types of its columns, and its rows with their checks.

    T frames   G tokens of a frame   D code dimensions

`jepa_tok.corpus.shards` has the table of columns, and writes and reads the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jepa_tok.errors import CorpusError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from torch import Tensor

    from jepa_tok.tokens import Tokens

FORMAT = "jepa-tok-tokens/1"
RESERVED = ("id", "tokens", "n_frames", "n_samples")


@dataclass(frozen=True)
class TokenRow:
    """One utterance of a shard."""

    id: str
    ids: Tensor
    """int64 [T, G]"""
    num_samples: int
    """Samples of the clip at the tokenizer's rate."""
    info: dict[str, Any] = field(default_factory=dict)
    """Columns carried through from the manifest; absent values are absent keys."""


@dataclass(frozen=True)
class ShardMetadata:
    """What a shard knows of the tokenizer that made it."""

    hash: str
    radices: tuple[int, ...]
    """Levels of each of the D dimensions."""
    group_size: int
    """Digits in a token."""
    vocab_sizes: tuple[int, ...]
    """Ids of each of the G tokens of a frame."""
    frame_rate: float
    sample_rate: int
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """Other entries, such as those of a tokenized corpus: shard number, digest of the list, files skipped."""

    @property
    def num_groups(self) -> int:
        """G"""
        return len(self.vocab_sizes)

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate / self.frame_rate)

    @classmethod
    def of(cls, tokenizer: Any, **extra: Any) -> ShardMetadata:
        """Metadata of shards that `tokenizer` (a SpeechTokenizer) makes."""
        quantizer = tokenizer.config.quantizer
        return cls(
            hash=tokenizer.hash,
            radices=tuple(quantizer.radices),
            group_size=quantizer.group_size,
            vocab_sizes=tuple(quantizer.vocab_sizes),
            frame_rate=float(tokenizer.frame_rate),
            sample_rate=int(tokenizer.sample_rate),
            extra=extra,
        )

    def tokens(self, row: TokenRow) -> Tokens:
        """`row` as what SpeechTokenizer.decode takes."""
        from jepa_tok.tokens import Tokens

        return Tokens(row.ids, row.num_samples, self.radices, self.group_size, self.sample_rate, self.hash)

    def to_json(self) -> str:
        """What the schema's metadata holds."""
        own = {
            "format": FORMAT,
            "hash": self.hash,
            "num_groups": self.num_groups,
            "vocab_sizes": self.vocab_sizes,
            "radices": self.radices,
            "group_size": self.group_size,
            "frame_rate": self.frame_rate,
            "sample_rate": self.sample_rate,
        }
        return json.dumps(own | self.extra)

    @classmethod
    def from_json(cls, text: str | bytes, name: str) -> ShardMetadata:
        """Inverse of `to_json`; `name` is the file in error messages."""
        try:
            given = json.loads(text)
            version = given.pop("format")
            if version != FORMAT:
                raise CorpusError(
                    f"{name}: the format must be {FORMAT}, but is {version}; a later jepa-tok may read it."
                )
            groups = given.pop("num_groups")
            metadata = cls(
                hash=str(given.pop("hash")),
                radices=tuple(int(r) for r in given.pop("radices")),
                group_size=int(given.pop("group_size")),
                vocab_sizes=tuple(int(v) for v in given.pop("vocab_sizes")),
                frame_rate=float(given.pop("frame_rate")),
                sample_rate=int(given.pop("sample_rate")),
                extra=given,
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as e:
            raise CorpusError(f"{name}: the `jepa_tok` metadata is broken: {e!r}.") from None
        sizes = [
            math.prod(metadata.radices[i : i + metadata.group_size])
            for i in range(0, len(metadata.radices), max(metadata.group_size, 1))
        ]
        is_rate = 0 < metadata.frame_rate <= metadata.sample_rate  # no NaN either
        is_layout = metadata.group_size >= 1 and metadata.num_groups >= 1 and groups == metadata.num_groups
        if not is_layout or sizes != list(metadata.vocab_sizes) or not is_rate:
            raise CorpusError(f"{name}: the `jepa_tok` metadata contradicts itself.")
        return metadata


# Columns --------------------------------------------------------------------------------------------------------------


def column_types(infos: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Type of each column over all rows, in order of first appearance: string, int64, double or bool.

    Raises CorpusError where a column has the name of one of the shards' own.
    """
    kinds: dict[str, set[str]] = {}
    for info in infos:
        for name, value in info.items():
            if value is not None:
                kinds.setdefault(name, set()).add(_kind(value))
    for name in kinds:
        if name in RESERVED:
            raise CorpusError(f"the column `{name}` has the name of a token shard's own; rename it.")
    return {name: _common(found) for name, found in kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if -(2**53) <= value <= 2**53:
            return "int64"
        return "wide" if -(2**63) <= value < 2**63 else "string"
    return "double" if isinstance(value, float) else "string"


def _common(kinds: set[str]) -> str:
    if kinds <= {"int64", "wide"}:
        return "int64"
    if kinds <= {"int64", "double"}:  # beyond 2^53 a double would lose digits, so that mix becomes text
        return "double"
    return kinds.pop() if len(kinds) == 1 else "string"


def _fit(value: Any, kind: str, place: str) -> Any:
    if value is None or (kind == "string" and isinstance(value, str)):
        return value
    if kind == "string":
        return json.dumps(value, ensure_ascii=False)
    if _common({_kind(value), kind}) != kind:
        raise CorpusError(f"{place} must be {kind}, as in the shards before, but is {value!r} instead.")
    return float(value) if kind == "double" else value


# Rows to a table and back ---------------------------------------------------------------------------------------------


def to_table(rows: Sequence[TokenRow], metadata: ShardMetadata, columns: Mapping[str, str], name: str) -> pa.Table:
    """`rows` as a table, checked as `from_table` checks; `columns` are the types of the columns carried through.

    Raises CorpusError, with `name`, for a row that breaks a rule.
    """
    import pyarrow as pa

    types = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
    widest = max(metadata.vocab_sizes)
    token = pa.uint16() if widest <= 2**16 else pa.uint32() if widest <= 2**32 else pa.int64()
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(token), nullable=False),
            pa.field("n_frames", pa.int32(), nullable=False),
            pa.field("n_samples", pa.int64(), nullable=False),
            *(pa.field(column, types[kind]) for column, kind in columns.items()),
        ],
        metadata={"jepa_tok": metadata.to_json()},
    )
    for number, row in enumerate(rows):
        # What would be refused when read is refused here, before any of it is written.
        place = f"{name}, row {number} ('{row.id}')"
        check_row(row.ids.flatten().numpy(), row.ids.shape[0], row.num_samples, metadata, place)
        unknown = sorted(set(row.info) - set(columns))
        if unknown:
            raise CorpusError(f"{place}: the column `{unknown[0]}` is not among those of the shards.")
    data: dict[str, Any] = {
        "id": [row.id for row in rows],
        "tokens": [row.ids.flatten().numpy() for row in rows],
        "n_frames": [row.ids.shape[0] for row in rows],
        "n_samples": [row.num_samples for row in rows],
    }
    for column, kind in columns.items():
        data[column] = [
            _fit(row.info.get(column), kind, f"{name}, row {number} ('{row.id}'): the column `{column}`")
            for number, row in enumerate(rows)
        ]
    arrays = [pa.array(data[f.name], f.type) if f.name != "tokens" else _lists(data["tokens"], token) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _lists(values: list[Any], token: pa.DataType) -> pa.Array:
    # Through numpy: pyarrow would look at every int of nested lists by itself.
    import numpy as np
    import pyarrow as pa

    offsets = np.cumsum([0, *(len(v) for v in values)]).astype(np.int32)
    flat = pa.array(np.concatenate(values) if values else np.zeros(0, np.int64)).cast(token)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)


def from_table(table: pa.Table, metadata: ShardMetadata, name: str, first: int = 0) -> Iterator[TokenRow]:
    """Inverse of `to_table`; `first` is the number of the first row in messages. Raises CorpusError for a bad row."""
    import numpy as np
    import torch

    ids = table.column("id").to_pylist()
    lists = table.column("tokens").combine_chunks()
    frames, samples = (table.column(c).to_pylist() for c in ("n_frames", "n_samples"))
    others = {c: table.column(c).to_pylist() for c in table.column_names if c not in RESERVED}
    for row in range(table.num_rows):
        place = f"{name}, row {first + row} ('{ids[row]}')"
        if ids[row] is None or not lists[row].is_valid or frames[row] is None or samples[row] is None:
            raise CorpusError(f"{place}: id, tokens, n_frames and n_samples must not be null.")
        flat = lists[row].values.to_numpy(zero_copy_only=False).astype(np.int64)
        check_row(flat, frames[row], samples[row], metadata, place)
        info = {c: values[row] for c, values in others.items() if values[row] is not None}
        yield TokenRow(ids[row], torch.from_numpy(flat.reshape(-1, metadata.num_groups)), samples[row], info)


def check_row(flat: np.ndarray, num_frames: int, num_samples: int, metadata: ShardMetadata, place: str) -> None:
    """Raises CorpusError, with `place`, unless `flat` ([T * G] ids) agrees with its counts and the vocabularies."""
    import numpy as np

    groups, hop = metadata.num_groups, metadata.hop
    if num_frames < 1 or len(flat) != num_frames * groups:
        raise CorpusError(
            f"{place}: `tokens` must have n_frames * {groups} = {num_frames * groups} ids, but has {len(flat)}."
        )
    if num_samples < 1 or -(-num_samples // hop) != num_frames:
        raise CorpusError(
            f"{place}: `n_frames` must be ceil(n_samples / {hop}), but is {num_frames} for {num_samples} samples."
        )
    tokens, sizes = flat.reshape(-1, groups), np.array(metadata.vocab_sizes, np.int64)  # [T, G], [G]
    bad = (tokens < 0) | (tokens >= sizes)
    if bad.any():
        t, g = np.argwhere(bad)[0]
        raise CorpusError(f"{place}: token {g} of frame {t} must be in 0..{sizes[g] - 1}, but is {tokens[t, g]}.")
