"""Token shards: parquet files that pyarrow, polars, pandas and `datasets` read as they are.

    T frames   G tokens of a frame   one row an utterance

| column     | type                | what                                                                              |
|------------|---------------------|-----------------------------------------------------------------------------------|
| id         | string              | the utterance's id                                                                |
| tokens     | list<uint16>        | T * G ids, row-major: token g of frame t is at t * G + g (uint32 or int64 where a |
|            |                     | tokenizer's vocabularies are wider)                                               |
| n_frames   | int32               | T                                                                                 |
| n_samples  | int64               | samples of the clip at the tokenizer's rate; T = ceil(n_samples / hop)            |
| all others | string, int64,      | columns of the manifest, one type a column in all shards: whole numbers, numbers, |
|            | double or bool      | truth values; a column that mixes types, or holds lists, becomes text             |

The schema's metadata has the key `jepa_tok`: JSON with format, hash of the tokenizer, num_groups, vocab_sizes, radices,
group_size, frame_rate and sample_rate. Shards hold no dates and no speeds: the same corpus
gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.schema import RESERVED, ShardMetadata, TokenRow, column_types, from_table, to_table
from jepa_tok.errors import CorpusError

if TYPE_CHECKING:
    from jepa_tok.tokens import Tokens

CORPUS_FILE = "corpus.json"
CORPUS_FORMAT = "jepa-tok-corpus/1"


# Writing --------------------------------------------------------------------------------------------------------------


def shard_path(folder: str | os.PathLike[str], index: int) -> Path:
    """Path of shard `index`."""
    return Path(folder) / f"tokens-{index:05d}.parquet"


def write_shard(
    path: str | os.PathLike[str],
    rows: Sequence[TokenRow],
    metadata: ShardMetadata,
    columns: Mapping[str, str] | None = None,
) -> None:
    """Writes one shard, whole or not at all: to `path`.tmp, synced, then renamed.

    `columns` are the types of the columns carried through, by default those of these rows. Raises CorpusError for a row
    that `read_shards` would refuse.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    columns = column_types(row.info for row in rows) if columns is None else columns
    table = to_table(rows, metadata, columns, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        # A dictionary only costs where nearly all values differ.
        repeated = [name for name, kind in columns.items() if kind == "string"]
        pq.write_table(table, file, compression="zstd", use_dictionary=repeated)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class TokenShardWriter:
    """Writes rows into `tokens-00000.parquet`, `tokens-00001.parquet`, ... of a folder; a context manager.

        with TokenShardWriter("out", tokenizer) as writer:
            writer.add("utt1", tokenizer.encode(wave, sample_rate=16000), speaker="ann")

    Column types are those of the first shard's rows unless `columns` gives them. To tokenize files, `tokenize_corpus`
    is the better tool: it resumes. Raises CorpusError where the folder holds shards already.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tokenizer: Any,
        *,
        rows_per_shard: int = 500,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.metadata = tokenizer if isinstance(tokenizer, ShardMetadata) else ShardMetadata.of(tokenizer)
        self.rows_per_shard = rows_per_shard
        self.columns = columns
        self.num_shards = 0
        self._rows: list[TokenRow] = []
        self._ids: set[str] = set()
        if rows_per_shard < 1:
            raise CorpusError(f"`rows_per_shard` must be at least 1, but is {rows_per_shard} instead.")
        if any(self.folder.glob("tokens-*.parquet")):
            raise CorpusError(f"{self.folder}: the folder holds token shards already; take another.")

    def add(self, id: str, tokens: Tokens, **info: Any) -> None:
        """Adds one utterance; raises CorpusError for an id twice or tokens of another tokenizer."""
        if id in self._ids:
            raise CorpusError(f"`id` must be unique, but '{id}' was added before.")
        if tokens.tokenizer and tokens.tokenizer != self.metadata.hash:
            raise CorpusError(
                f"'{id}': tokens must be of tokenizer {self.metadata.hash}, but are of {tokens.tokenizer}."
            )
        self._ids.add(id)
        self._rows.append(TokenRow(id, tokens.ids, tokens.num_samples, info))
        if len(self._rows) == self.rows_per_shard:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last shard."""
        if self._rows:
            if self.columns is None:
                self.columns = column_types(row.info for row in self._rows)
            write_shard(shard_path(self.folder, self.num_shards), self._rows, self.metadata, self.columns)
            self.num_shards += 1
            self._rows = []

    def __enter__(self) -> TokenShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()


# Reading --------------------------------------------------------------------------------------------------------------


def find_shards(path: str | os.PathLike[str]) -> list[Path]:
    """The shard files of a folder in order, or the one file that `path` is.

    Raises CorpusError where there are none, or where the folder's corpus.json says that more are to come.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder.")
    shards = sorted(path.glob("tokens-*.parquet"))
    if (path / CORPUS_FILE).exists():
        state = read_state(path)
        if state["state"] != "done" or state["num_shards"] != len(shards):
            raise CorpusError(
                f"{path}: the corpus is not whole: {len(shards)} of {state['num_shards']} shards; rerun its tokenization."
            )
    if not shards:
        raise CorpusError(f"{path}: the folder must hold token shards (tokens-*.parquet), but holds none.")
    return shards


def read_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The corpus.json of a tokenized corpus: `state` is `running` or `done`; raises CorpusError where it is broken."""
    path = Path(folder) / CORPUS_FILE
    try:
        state = json.loads(path.read_bytes())
        if state["format"] != CORPUS_FORMAT:
            raise CorpusError(f"{path}: the format must be {CORPUS_FORMAT}, but is {state['format']} instead.")
        if state["state"] not in ("running", "done") or not isinstance(state["num_shards"], int):
            raise ValueError("unknown state")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CorpusError(f"{path}: not the corpus.json of a tokenized corpus: {_one_line(e)}.") from None
    return state


def read_metadata(path: str | os.PathLike[str]) -> ShardMetadata:
    """The metadata of a shard, or of a folder's shards, which must be of one tokenizer (else CorpusError)."""
    shards = find_shards(path)
    first = _metadata(open_shard(shards[0]), str(shards[0]))
    for shard in shards[1:]:
        other = _metadata(open_shard(shard), str(shard))
        if other != first:
            raise CorpusError(
                f"{shard}: made by tokenizer {other.hash}, but {shards[0].name} by {first.hash}; keep them apart."
            )
    return first


def read_shards(path: str | os.PathLike[str]) -> Iterator[TokenRow]:
    """The rows of a shard or of a folder of shards, in order, each checked.

    Metadata of all shards is checked at once, rows as they come. Raises CorpusError, with shard and row, where a length
    is not n_frames * G, a token is out of its vocabulary's range, or n_frames is not ceil(n_samples / hop).
    """
    metadata = read_metadata(path)
    return _read(find_shards(path), metadata)


def _read(shards: list[Path], metadata: ShardMetadata) -> Iterator[TokenRow]:
    import pyarrow as pa

    for shard in shards:
        file, first = open_shard(shard), 0
        try:
            for batch in file.iter_batches(batch_size=1024):
                yield from from_table(pa.Table.from_batches([batch]), metadata, str(shard), first)
                first += batch.num_rows
        except (pa.ArrowException, OSError) as e:
            raise CorpusError(f"{shard}: the shard is damaged: {_one_line(e)}.") from None


def open_shard(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`; raises CorpusError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as e:
        raise CorpusError(
            f"{path}: not a readable parquet file: {_one_line(e)}; delete it and run `jepa-tok tokenize` again to make it anew."
        ) from None


def _metadata(file: Any, name: str) -> ShardMetadata:
    text = (file.schema_arrow.metadata or {}).get(b"jepa_tok")
    if text is None:
        raise CorpusError(f"{name}: not a token shard: its schema has no `jepa_tok` metadata.")
    import pyarrow as pa

    schema = file.schema_arrow
    for column in RESERVED:
        if column not in schema.names:
            raise CorpusError(f"{name}: not a token shard: it has no column `{column}`.")
    tokens = schema.field("tokens").type
    if not pa.types.is_list(tokens) or not pa.types.is_integer(tokens.value_type):
        raise CorpusError(f"{name}: the column `tokens` must be lists of integers, but is {tokens} instead.")
    return ShardMetadata.from_json(text, name)


def _one_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
