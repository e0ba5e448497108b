"""Parquet files with audio in them, as Hugging Face's `datasets` writes them: a column of {bytes, path}, and others.

- Audio: the column `audio`, or else the only one that is a struct with binary `bytes`; a binary column `audio` will do. A
  sampling rate beside the bytes is not looked at: the bytes tell theirs. Bytes are read when they are encoded, a few rows at a
  time, whatever the size of row groups. Where they are null, as `Dataset.to_parquet` leaves those of files, the `path` beside
  them names the file, as in a manifest: absolute, a URL, or relative to the parquet file.
- Id: the column `id` or `utt_id`; else the column `file`, or the `path` beside the bytes, without suffix (and without
  folders where it is absolute); else `FILE/ROW`, the file's name without suffix and the row's number from 0.
- All other columns but binary ones pass through; null and NaN mean absent, dates become text, and class labels of
  `datasets` their names. Where there is no column `split`, a file named `NAME-00000-of-00009` gives it.
"""

from __future__ import annotations

import functools
import json
import math
import os
import posixpath
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.audio_source import Cell
from jepa_tok.corpus.manifest import check_values
from jepa_tok.corpus.utterance import Refuse, Utterance, check_id, check_path, one_line, refused
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, is_url, without_query

if TYPE_CHECKING:
    import pyarrow as pa

ID_COLUMNS = ("id", "utt_id")

CELLS = 16
"""Rows of audio that are read at a time."""


def read_parquet(paths: Iterable[Path], refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    """Place and utterance of each row of parquet files, in order; a file that is damaged is refused from there on.

    Raises CorpusError for a file that has no column of audio bytes.
    """
    import pyarrow as pa

    for path in paths:
        name = str(path) if is_url(path) else os.path.abspath(path)
        rows = _read_file(name, refuse)
        while True:
            try:
                found = next(rows, None)
            except CorpusError:
                raise
            except Exception as error:
                if not (isinstance(error, (pa.ArrowException, OSError, UnicodeDecodeError)) or is_url(name)):
                    raise
                refuse(refused(name, f"{name}: not a parquet file that can be read: {one_line(error)}.", path=name))
                break
            if found is None:
                break
            yield found


def _read_file(name: str, refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    with _open(name) as file:
        schema = file.schema_arrow
        audio, cells = _audio_column(schema, name)
        wanted = [field.name for field in schema if field.name != audio and not _has_binary(field.type)]
        labels = _class_labels(schema)
        beside = [f"{audio}.path"] if cells != audio and _has_path(schema.field(audio).type) else []
        stem = posixpath.basename(without_query(name)).removesuffix(".parquet")
        split = re.fullmatch(r"(.+)-\d{5}-of-\d{5}", stem)
        defaults = {"split": split[1]} if split and "split" not in wanted else {}
        number = 0
        for group in range(file.num_row_groups):
            in_group = 0
            for row in _rows(file, group, [*wanted, *beside]):
                place = f"{name}#{number}"
                within = row.pop(audio, None)
                part = Cell(name, cells, group, in_group, (within or {}).get("path") or None)
                number, in_group = number + 1, in_group + 1
                id: Any = ""
                try:
                    info = defaults | _columns(row, labels)
                    id = _id(info, within, stem, number - 1)
                    if not isinstance(id, str):
                        raise CorpusError(f"{place}: `id` must be a string or a whole number, but is {id!r} instead.")
                    check_id(id, place)
                    check_values(info, place)
                    utterance = Utterance(id, check_path(place, place), info=info, part=part)
                except CorpusError as error:
                    refuse(refused(place, error, id, place))
                    continue
                yield place, utterance


def _rows(file: Any, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:  # audio alone, of which nothing is read here
        yield from ({} for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(row_groups=[group], columns=columns, batch_size=1024):
        yield from batch.to_pylist()


def _audio_column(schema: pa.Schema, name: str) -> tuple[str, str]:
    """The column that holds audio, and the one of bytes in it."""
    import pyarrow.types as is_type

    def is_binary(kind: Any) -> bool:
        return is_type.is_binary(kind) or is_type.is_large_binary(kind)

    structs = [
        field.name
        for field in schema
        if is_type.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and (is_binary(field.type.field("bytes").type) or is_type.is_null(field.type.field("bytes").type))
    ]
    if "audio" in structs or len(structs) == 1:
        column = "audio" if "audio" in structs else structs[0]
        return column, f"{column}.bytes"
    if "audio" in schema.names and is_binary(schema.field("audio").type):
        return "audio", "audio"
    found = ", ".join(f"{field.name} ({field.type})"[:60] for field in schema)
    raise CorpusError(
        f"{name}: a parquet file must have a column `audio` of bytes, or of structs with `bytes`, but has only: {found}."
    )


def _has_path(struct: Any) -> bool:
    return struct.get_field_index("path") >= 0


def _has_binary(kind: Any) -> bool:
    import pyarrow.types as is_type

    if is_type.is_binary(kind) or is_type.is_large_binary(kind) or is_type.is_fixed_size_binary(kind):
        return True
    return any(_has_binary(kind.field(i).type) for i in range(kind.num_fields))


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of each column that holds their numbers, from the metadata that `datasets` writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {k: v["names"] for k, v in features.items() if isinstance(v, dict) and v.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _columns(row: dict[str, Any], labels: dict[str, list[str]]) -> dict[str, Any]:
    info = {}
    for column, value in row.items():
        names = labels.get(column)
        if names is not None and isinstance(value, int) and 0 <= value < len(names):
            value = names[value]
        value = _plain(value)
        if value is not None:
            info[column] = value
    return info


def _plain(value: Any) -> Any:
    """A value as JSON has it; NaN, which pandas writes for what is missing, as None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, (str, bool, int, float)) else str(value)


def _id(info: dict[str, Any], within: Any, stem: str, row: int) -> Any:
    """The id of a row; takes the column that holds it out of `info`."""
    for column in ID_COLUMNS:
        if column in info:
            id = info.pop(column)
            return str(id) if isinstance(id, int) and not isinstance(id, bool) else id
    path = info.get("file") or (within or {}).get("path")
    if not path or not isinstance(path, str):
        return f"{stem}/{row}"
    return os.path.splitext(posixpath.basename(path) if posixpath.isabs(path) or is_url(path) else path)[0]


# Bytes ----------------------------------------------------------------------------------------------------------------


def read_cell(cell: Cell) -> bytes | None:
    """The bytes of a cell; rows that follow each other are read from the file once."""
    return _cursor(cell.file, cell.column, cell.group, _version(cell.file)).read(cell.row)


def _version(file: str) -> tuple[int, ...]:
    """What differs where a file on a local disk was replaced; files behind URLs are taken to stay as they are."""
    if is_url(file):
        return ()
    found = os.stat(file)
    return found.st_mtime_ns, found.st_size, found.st_ino


@functools.lru_cache(maxsize=4)
def _cursor(file: str, column: str, group: int, version: tuple[int, ...]) -> _Cursor:
    return _Cursor(file, column, group)


class _Cursor:
    """Reads the cells of a row group in order, a few at a time; going back by more than a few starts anew."""

    def __init__(self, file: str, column: str, group: int) -> None:
        self._name, self._column, self._group = file, column, group
        self._lock = threading.Lock()
        self._file: Any = None
        self._start()

    def read(self, row: int) -> bytes | None:
        with self._lock:
            if self._file is None or (self._held and row < self._held[0][0]):
                self._start()
            try:
                while row >= self._end:
                    values = next(self._batches).column(0)
                    self._held.append((self._end, values if values.type.num_fields == 0 else values.field("bytes")))
                    self._end += len(values)
            except BaseException:
                self._file = None  # batches end with the first read that fails: the next row opens the file again
                raise
            return next(values[row - first] for first, values in reversed(self._held) if row >= first).as_py()

    def _start(self) -> None:
        self._file = self._file or _open(self._name)
        self._batches = self._file.iter_batches(CELLS, row_groups=[self._group], columns=[self._column])
        self._held: deque[tuple[int, Any]] = deque(maxlen=2)  # two: threads may ask a little out of order
        self._end = 0


def _open(name: str) -> Any:
    import pyarrow.parquet as pq

    # Through a small buffer: a row group may be larger than memory.
    return pq.ParquetFile(as_path(name).open("rb") if is_url(name) else name, buffer_size=2**20, pre_buffer=False)
