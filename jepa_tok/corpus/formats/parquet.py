"""Parquet shards, as `jepa-tok tokenize` writes them; see jepa_tok.corpus.shards for columns and metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from jepa_tok.corpus.formats.common import ExportInfo
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.shards import read_shards, write_numbered_shard


class Writer:
    """OUT/tokens-*.parquet."""

    dtype = None

    def __init__(self, folder: Path, metadata: ShardMetadata, columns: Mapping[str, str], rows_per_shard: int) -> None:
        self._folder, self._metadata, self._columns, self._size = folder, metadata, columns, rows_per_shard
        self._rows: list[TokenRow] = []
        self._shards = 0

    def add(self, row: TokenRow) -> None:
        """See RowWriter."""
        self._rows.append(row)
        if len(self._rows) == self._size:
            self.close()

    def close(self) -> None:
        """Writes what was added since the last shard."""
        if self._rows:
            write_numbered_shard(self._folder, self._shards, self._rows, self._metadata, self._columns)
            self._shards += 1
            self._rows = []


def read_rows(folder: Path, info: ExportInfo) -> Iterator[TokenRow]:
    """See RowReader."""
    return read_shards(folder)
