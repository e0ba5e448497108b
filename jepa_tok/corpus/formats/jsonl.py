"""JSONL: one object a line, readable by everything.

    {"id": "utt1", "tokens": [10023, 5, ...], "n_frames": 2, "n_samples": 19195, "speaker": "ann"}

`tokens` is flat: token g of frame t is at t * G + g. NaN and infinities in a column of numbers are written as the texts
"NaN", "Infinity" and "-Infinity", which JSON's numbers lack; an absent value is an absent key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from jepa_tok.corpus.formats.common import (
    ExportInfo,
    json_values,
    make_row,
    parse_values,
    read_json_lines,
    require_files,
)
from jepa_tok.corpus.schema import RESERVED, ShardMetadata, TokenRow
from jepa_tok.errors import CorpusError

TOKENS_FILE = "tokens.jsonl"


class Writer:
    """OUT/tokens.jsonl."""

    dtype = None

    def __init__(self, folder: Path, metadata: ShardMetadata, columns: Mapping[str, str], rows_per_shard: int) -> None:
        self._file = (folder / TOKENS_FILE).open("w", encoding="utf-8", newline="\n")

    def add(self, row: TokenRow) -> None:
        """See RowWriter."""
        own = {"id": row.id, "tokens": row.ids.flatten().tolist(), "n_frames": row.ids.shape[0]}
        line = {**own, "n_samples": row.num_samples, **json_values(row.info)}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """See RowWriter."""
        self._file.close()


def read_rows(folder: Path, info: ExportInfo) -> Iterator[TokenRow]:
    """See RowReader."""
    require_files(folder, TOKENS_FILE)
    for place, line in read_json_lines(folder / TOKENS_FILE):
        for name in RESERVED:
            if name not in line:
                raise CorpusError(f"{place}: the line must have `{name}`, but has not.")
        id, flat, frames, samples = (line.pop(name) for name in RESERVED)
        row = make_row(id, flat, samples, parse_values(line, info.columns, place), info.metadata, place)
        if row.ids.shape[0] != frames:
            raise CorpusError(
                f"{place}: `n_frames` must be {row.ids.shape[0]} for so many tokens, but is {frames!r} instead."
            )
        yield row
