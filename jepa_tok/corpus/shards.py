"""Token shards: parquet files that pyarrow, polars, pandas, `datasets` and fairseq2 read as they are.

    T frames   G tokens of a frame   one row an utterance

A folder's shards are named by number and content, `tokens-00000.0123456789abcdef.parquet`: the 16 hex digits begin the
SHA-256 of the file's bytes, so that a damaged shard contradicts its name, and what is made twice has one name. A shard without
rows, as all its files were skipped, ends in `.empty` instead: `datasets` opens no parquet file without rows.

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
gives the same bytes (with the same pyarrow).

Other readers take the files, `OUT/tokens-*.parquet` (fairseq2's: the list of them, and `drop_null=False` where columns have
gaps), since corpus.json and skipped.jsonl stand beside them.

Folders and files may be URLs that fsspec knows (see jepa_tok.files).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.schema import RESERVED, ShardMetadata, TokenRow, column_types, from_table, to_table
from jepa_tok.corpus.utterance import check_there, one_line
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, atomic_writer, glob_in, is_url, write_text

if TYPE_CHECKING:
    from jepa_tok.tokens import Tokens

CORPUS_FILE = "corpus.json"
CORPUS_FORMAT = "jepa-tok-corpus/1"

EMPTY = ".empty"
"""Suffix of a parquet shard without rows, which readers of `*.parquet` are not to meet."""

_HASH_DIGITS = 16
_NAME = re.compile(rf"tokens-([0-9]{{5,}})\.([0-9a-f]{{{_HASH_DIGITS}}})\.(?:parquet|empty)")


# Writing --------------------------------------------------------------------------------------------------------------


def write_shard(
    path: str | os.PathLike[str],
    rows: Sequence[TokenRow],
    metadata: ShardMetadata,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """Writes one shard to the file `path`, whole or not at all, and returns it.

    `columns` are the types of the columns carried through, by default those of these rows. Raises CorpusError for a row
    that `read_shards` would refuse, and where the file cannot be written.
    """
    return _write(as_path(path), _encode(rows, metadata, columns, str(path)))


def write_numbered_shard(
    folder: str | os.PathLike[str],
    index: int,
    rows: Sequence[TokenRow],
    metadata: ShardMetadata,
    columns: Mapping[str, str] | None = None,
) -> Path:
    """As `write_shard`, to shard `index` of `folder`, named by its content, and as EMPTY without rows; returns the file."""
    data = _encode(rows, metadata, columns, f"{folder}, shard {index}")
    name = f"tokens-{index:05d}.{_digits(hashlib.sha256(data))}"
    return _write(as_path(folder) / (name + (".parquet" if rows else EMPTY)), data)


def _encode(
    rows: Sequence[TokenRow], metadata: ShardMetadata, columns: Mapping[str, str] | None, name: str
) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = column_types(row.info for row in rows) if columns is None else columns
    table = to_table(rows, metadata, columns, name)
    # A dictionary only costs where nearly all values differ.
    repeated = [column for column, kind in columns.items() if kind == "string"]
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=repeated)
    return memoryview(buffer.getvalue())


def _write(path: Path, data: memoryview) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(data)
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what stops writing (a full disk, no permission, a lost connection) into a CorpusError about `path`."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as e:
        # Remote file systems raise errors of their own kinds, so for URLs all count.
        if not (isinstance(e, OSError) or is_url(path)):
            raise
        raise CorpusError(
            f"{path}: cannot be written: {one_line(e)}; mend that and run the same command again."
        ) from None


class TokenShardWriter:
    """Writes rows into the numbered shards of a folder; a context manager.

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
        self.folder = as_path(folder)
        self.metadata = tokenizer if isinstance(tokenizer, ShardMetadata) else ShardMetadata.of(tokenizer)
        self.rows_per_shard = rows_per_shard
        self.columns = columns
        self.num_shards = 0
        self._rows: list[TokenRow] = []
        self._ids: set[str] = set()
        if rows_per_shard < 1:
            raise CorpusError(f"`rows_per_shard` must be at least 1, but is {rows_per_shard} instead.")
        if shard_files(self.folder):
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
            write_numbered_shard(self.folder, self.num_shards, self._rows, self.metadata, self.columns)
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
    """The shard files of a folder in order, but for those without rows, or the one file that `path` is.

    Raises CorpusError where there are none, where two have one number, or where the folder's corpus.json says that more
    are to come.
    """
    path = as_path(path)
    if path.is_file():
        return [path]
    check_there(path)
    numbered = list_shards(path)
    others = [file for file in shard_files(path) if file.suffix != EMPTY and not _NAME.fullmatch(file.name)]
    shards = [*numbered.values(), *others]
    if (path / CORPUS_FILE).exists():
        state = read_state(path)
        if state["state"] != "done" or state["num_shards"] != len(shards):
            raise CorpusError(
                f"{path}: the corpus is not whole: {len(shards)} of {state['num_shards']} shards; rerun its tokenization."
            )
    shards = [file for file in shards if file.suffix != EMPTY]
    if not shards:
        raise CorpusError(f"{path}: the folder must hold token shards (tokens-*.parquet), but holds none.")
    return shards


def shard_files(folder: Path) -> list[Path]:
    """All that has a shard's name in a folder, with rows or without, in order of names."""
    return sorted(file for file in glob_in(folder, "tokens-*") if file.suffix in (".parquet", EMPTY))


def list_shards(folder: str | os.PathLike[str]) -> dict[int, Path]:
    """The shards of a folder that are named by number and content, in order of their numbers; those without rows, too.

    Raises CorpusError where two files have one number: two machines made it, and not with the same result.
    """
    found: dict[int, Path] = {}
    for path in shard_files(as_path(folder)):
        if match := _NAME.fullmatch(path.name):
            other = found.setdefault(int(match[1]), path)
            if other != path:
                raise CorpusError(
                    f"{path.parent}: each shard must be one file, but shard {int(match[1])} is both {min(path.name, other.name)} and "
                    f"{max(path.name, other.name)}; delete both and run the same `jepa-tok tokenize` command again."
                )
    return dict(sorted(found.items()))


def content_hash(path: str | os.PathLike[str]) -> str:
    """The 16 hex digits that the bytes of the file `path` earn it, as they stand in a shard's name."""
    sha = hashlib.sha256()
    with as_path(path).open("rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return _digits(sha)


def named_hash(path: str | os.PathLike[str]) -> str | None:
    """The content hash in the name of a shard; None where the file is not named by number and content."""
    match = _NAME.fullmatch(as_path(path).name)
    return match[2] if match else None


def _digits(sha: Any) -> str:
    return sha.hexdigest()[:_HASH_DIGITS]


def read_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The corpus.json of a tokenized corpus: `state` is `running` or `done`; raises CorpusError where it is broken."""
    path = as_path(folder) / CORPUS_FILE
    broken = f"{path}: must be the corpus.json of a tokenized corpus, but "
    mend = "put it back as it was, or tokenize with --overwrite"
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as e:
        raise CorpusError(f"{broken}is not: {one_line(e)}; {mend}.") from None
    if not isinstance(state, dict) or "format" not in state:
        raise CorpusError(f"{broken}holds something else; {mend}.")
    if state["format"] != CORPUS_FORMAT:
        raise CorpusError(f"{path}: the format must be {CORPUS_FORMAT}, but is {state['format']} instead.")
    rules = {
        "state": lambda value: value in ("running", "done"),
        "num_shards": lambda value: type(value) is int and value >= 0,
        # One that is running has none yet.
        "shards": lambda value: "shards" not in state or (isinstance(value, list) and all(map(_is_listed, value))),
    }
    for key, holds in rules.items():
        if not holds(state.get(key)):
            raise CorpusError(f"{broken}its `{key}` is {str(state.get(key))[:60]}; {mend}.")
    if "shards" in state and len(state["shards"]) != state["num_shards"]:
        raise CorpusError(f"{broken}its `shards` are {len(state['shards'])} of {state['num_shards']}; {mend}.")
    return state


def write_state(folder: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """The inverse of `read_state`; raises CorpusError where the file cannot be written."""
    path = as_path(folder) / CORPUS_FILE
    with writing(path):
        write_text(path, json.dumps({"format": CORPUS_FORMAT, **state}, indent=1, ensure_ascii=False) + "\n")


def _is_listed(shard: Any) -> bool:
    return isinstance(shard, dict) and isinstance(shard.get("file"), str) and isinstance(shard.get("rows"), int)


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
            raise CorpusError(f"{shard}: the shard is damaged: {one_line(e)}.") from None


def open_shard(path: Path) -> Any:
    """A `pyarrow.parquet.ParquetFile`; raises CorpusError where it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path.open("rb") if is_url(path) else path)
    except (pa.ArrowException, OSError) as e:
        raise CorpusError(f"{path}: not a readable parquet file: {one_line(e)}.") from None


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
