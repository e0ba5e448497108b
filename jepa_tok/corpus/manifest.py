"""Where a corpus comes from: manifests, Kaldi data folders, folders of audio, parquet and tar shards, all as one list.

Every utterance has an id (unique in its corpus) and the path of its audio, perhaps with the start and end of a segment;
whatever else the source knows (speaker, text, emotion, split, ...) is carried along in `info`.

- JSONL: one object a line with `id` and `path`; `start` and `end` (seconds) cut a segment; `null` means absent.
- TSV: a header row, then one row an utterance, no quoting. Cells are strings but for `start`, `end`, `duration_s` and
  `sample_rate`, so that a speaker called 007 stays 007; an empty cell means absent.
- Kaldi data folder: see `jepa_tok.corpus.kaldi`.
- Folder of audio, of parquet files or of tar shards: see `jepa_tok.corpus.folder`, `.parquet` and `.tar`.

Sources and the paths in them may be URLs; paths are absolute, or relative to the manifest's own folder. Nothing is skipped in
silence: a row that breaks a rule is a CorpusError that names the file and the line, or a `Refused` where the caller asks.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jepa_tok.corpus.utterance import (
    Refuse,
    Refused,
    Unique,
    Utterance,
    absolute,
    check_id,
    check_path,
    check_segment,
    check_there,
    fail,
    one_line,
    read_lines,
    reading,
    refused,
    short,
)
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, is_url, without_query, write_text

NUMERIC_COLUMNS = {"start": float, "end": float, "duration_s": float, "sample_rate": int}
"""TSV columns that are read as numbers."""

Entry = tuple[str, Utterance]
"""An utterance and its place: file and line, member or row."""


def iter_corpus(
    source: str | os.PathLike[str], *, allow_pipes: bool = False, refuse: Refuse = fail
) -> Iterator[tuple[str, Utterance]]:
    """Place and utterance of each row of `source`, in its own order (folders: sorted by id), in little memory.

    Each row is checked, but for an id that is there twice. A row that breaks a rule goes to `refuse`, by default a
    CorpusError. `allow_pipes` lets a Kaldi wav.scp name commands, which are run when their audio is read. Raises CorpusError
    where `source` is missing, of no known kind, or cannot be read.
    """
    text = os.fspath(source)
    path = as_path(text)
    with reading(text):
        # A URL with a suffix is a file: to ask a server costs a request, and not all can tell.
        suffix = path.suffix if not is_url(text) else as_path(without_query(text)).suffix
        is_folder = path.is_dir() if not is_url(text) else not suffix
        is_pattern = "{" in text and not is_folder and not path.exists()
        if not is_pattern:
            check_there(path)
    if is_folder:
        from jepa_tok.corpus.folder import read_folder

        return read_folder(path, allow_pipes, refuse)
    if suffix == ".jsonl":
        return _read_jsonl(path, refuse)
    if suffix == ".tsv":
        return _read_tsv(path, refuse)
    if suffix in (".parquet", ".tar"):
        from jepa_tok.corpus.parquet import read_parquet
        from jepa_tok.corpus.tar import expand_braces, read_tars

        files = [as_path(name) for name in expand_braces(text)] if is_pattern else [path]
        return read_parquet(files, refuse) if suffix == ".parquet" else read_tars(files, refuse)
    hint = (
        "; unpack it, compressed archives cannot be read in place"
        if re.search(r"\.(tgz|tar\.\w+)$", without_query(text))
        else ""
    )
    raise CorpusError(
        f"{source}: a corpus must be a .jsonl or .tsv manifest, .parquet or .tar files, a Kaldi data folder or a folder of audio{hint}."
    )


def read_corpus(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    where: str | Iterable[str] | None = None,
    allow_pipes: bool = False,
) -> list[Utterance]:
    """The utterances of `source` in its own order (folders: sorted by id).

    `split` is short for `where="split=..."`. `where` holds conditions "column=value": several on one column mean any of
    the values, those on different columns must all hold. Raises CorpusError where the source breaks its format, is
    empty, has an id twice, or has nothing left after the conditions.
    """
    ids = Unique()

    def entries() -> Iterator[Entry]:
        for place, u in iter_corpus(source, allow_pipes=allow_pipes):
            ids.check(u.id, place)
            yield place, u

    return [u for _, u in select(entries(), str(source), conditions(split, where))]


def check_entries(utterances: Iterable[Utterance], name: str, refuse: Refuse = fail) -> Iterator[Entry]:
    """Utterances from elsewhere as `iter_corpus` gives those of a source, each checked."""
    for number, u in enumerate(utterances):
        place = f"{name}, utterance {number}"
        try:
            check_id(u.id, place)
            check_path(u.path, place)
            check_segment(u.start, u.end, place)
            check_values(u.info, place)
        except CorpusError as error:
            refuse(refused(place, error, u.id, u.path))
            continue
        yield place, u


# Conditions -----------------------------------------------------------------------------------------------------------


def conditions(split: str | None, where: str | Iterable[str] | None) -> list[str]:
    """What `split` and `where` of `read_corpus` ask for, as a list of "column=value"."""
    wanted = [where] if isinstance(where, str) else list(where or ())
    return wanted if split is None else [*wanted, f"split={split}"]


def select(
    entries: Iterable[Entry], name: str, wanted: Sequence[str], refused: Sequence[Refused] = ()
) -> Iterator[Entry]:
    """The entries that meet all conditions ("column=value", compared as text), as they come.

    Raises CorpusError for a malformed condition, and at the end for a column that no utterance has or when nothing is left.
    `refused` are the rows that readers have left out by then: they tell why there is no other.
    """
    values: dict[str, set[str]] = {}
    for condition in wanted:
        column, sign, value = condition.partition("=")
        if not sign or not column:
            raise CorpusError(f"`where` must be column=value (such as split=train), but is '{condition}' instead.")
        values.setdefault(column, set()).add(value)

    count = kept = 0
    columns: set[str] = set()
    for place, u in entries:
        count += 1
        columns.update(u.info)
        if all(_as_text(u.id if c == "id" else u.info.get(c)) in allowed for c, allowed in values.items()):
            kept += 1
            yield place, u

    if not count and refused:
        raise CorpusError(f"{name}: none of {len(refused)} rows can be used; the first: {refused[0].reason}")
    if not count:
        raise CorpusError(f"{name}: the corpus must have at least one utterance, but is empty.")
    for column in values:
        if column != "id" and column not in columns:
            raise CorpusError(
                f"{name}: `where` names the column '{column}', but there are only: {', '.join(['id', *sorted(columns)])}."
            )
    if not kept:
        raise CorpusError(f"{name}: none of the {count} utterances meets {' '.join(wanted)}.")


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Manifests ------------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, refuse: Refuse) -> Iterator[Entry]:
    folder = as_path(without_query(path)).parent
    for number, line in read_lines(path, refuse):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        row: dict[str, Any] = {}
        try:
            row = parse_object(line, place)
            utterance = _utterance(row, place, folder)
        except CorpusError as error:
            refuse(_refused_row(place, error, row))
            continue
        yield place, utterance


def parse_object(text: str, place: str) -> dict[str, Any]:
    """A JSON object; raises CorpusError, with `place`, for anything else."""

    def no_number(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        row = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as e:
        raise CorpusError(f"{place}: must be a JSON object: {one_line(e)}.") from None
    if not isinstance(row, dict):
        raise CorpusError(f"{place}: must be a JSON object, but is {text[:40]!r} instead.")
    return row


def _read_tsv(path: Path, refuse: Refuse) -> Iterator[Entry]:
    columns: list[str] = []
    folder = as_path(without_query(path)).parent
    for number, line in read_lines(path, refuse):
        place = f"{path}:{number}"
        cells = line.split("\t")
        if not columns:
            columns = cells
            if "id" not in columns or "path" not in columns or len(set(columns)) != len(columns) or "" in columns:
                raise CorpusError(
                    f"{place}: the header must name each column once, `id` and `path` among them, but is {columns}."
                )
            continue
        if not line:
            continue
        row: dict[str, Any] = {c: v for c, v in zip(columns, cells) if v != ""}
        try:
            if len(cells) != len(columns):
                raise CorpusError(
                    f"{place}: the row must have {len(columns)} cells as the header, but has {len(cells)}."
                )
            utterance = _utterance(row | _numbers(row, place), place, folder)
        except CorpusError as error:
            refuse(_refused_row(place, error, row))
            continue
        yield place, utterance


def _numbers(row: dict[str, str], place: str) -> dict[str, float]:
    found = {}
    for column, kind in NUMERIC_COLUMNS.items():
        if column in row:
            try:
                found[column] = kind(row[column])
            except ValueError:
                raise CorpusError(f"{place}: `{column}` must be a number, but is '{row[column]}' instead.") from None
    return found


def _utterance(row: dict[str, Any], place: str, folder: Path) -> Utterance:
    row = {k: v for k, v in row.items() if v is not None}
    for name in ("id", "path"):
        if name not in row:
            raise CorpusError(f"{place}: the row must have `{name}`, but has only: {', '.join(row) or 'nothing'}.")
    if isinstance(row["id"], int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    for name in ("id", "path"):
        if not isinstance(row[name], str):
            raise CorpusError(f"{place}: `{name}` must be a string, but is {row[name]!r} instead.")
    id, path = check_id(row.pop("id"), place), check_path(row.pop("path"), place)
    for name in ("start", "end"):
        if name in row and (isinstance(row[name], bool) or not isinstance(row[name], (int, float))):
            raise CorpusError(f"{place}: `{name}` must be a number (seconds), but is {row[name]!r} instead.")
    check_values(row, place)
    start, end = (_seconds(row.pop(name, None)) for name in ("start", "end"))
    check_segment(start, end, place)
    return Utterance(id, absolute(path, folder), start, end, row)


def _seconds(value: float | None) -> float | None:
    try:
        return None if value is None else float(value)
    except OverflowError:  # whole numbers of JSON have no bound
        return math.inf


def check_values(row: dict[str, Any], place: str) -> None:
    """Raises CorpusError where a column is not what JSON has, holds a number that is not finite, or text that is not UTF-8."""
    for name, value in row.items():
        for part in (name, value):
            try:
                if rule := _broken_rule(part):
                    raise CorpusError(f"{place}: `{short(name)[1:-1]}` must be {rule}, but is {short(part)} instead.")
            except RecursionError:
                raise CorpusError(f"{place}: `{short(name)[1:-1]}` must not be nested so deeply.") from None


_SURROGATES = re.compile("[\ud800-\udfff]")


def _broken_rule(value: Any) -> str:
    if isinstance(value, str):
        # Escapes can smuggle them in, and no file could hold them.
        return "free of halves of surrogate pairs" if _SURROGATES.search(value) else ""
    if isinstance(value, (list, dict)):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next(filter(None, map(_broken_rule, parts)), "")
    if isinstance(value, float):
        return "" if math.isfinite(value) else "finite"
    return "" if value is None or isinstance(value, int) else "text, a number, a truth value, a list or a dict of such"


def _refused_row(place: str, error: CorpusError, row: Any) -> Refused:
    row = row if isinstance(row, dict) else {}
    return refused(place, error, row.get("id"), row.get("path"))


def write_manifest(utterances: Iterable[Utterance], path: str | os.PathLike[str]) -> None:
    """Writes a .jsonl or .tsv manifest that `read_corpus` reads back; paths below its folder become relative.

    TSV keeps only text: numbers and the like are read back as strings, but for the columns the module names. Raises
    CorpusError for a value that TSV cannot hold (tab, line break, empty), for audio that is not a file of its own, and for
    other suffixes.
    """
    path = as_path(path)
    folder = str(path.parent) if is_url(path) else os.path.abspath(path.parent)
    rows = []
    for u in utterances:
        if u.part is not None:
            raise CorpusError(
                f"'{u.id}': a manifest names files, but '{u.path}' is none of its own; write it to one first."
            )
        full = u.path if is_url(u.path) else os.path.abspath(u.path)
        inside = full.startswith(folder.rstrip("/") + "/")
        row: dict[str, Any] = {"id": u.id, "path": full[len(folder.rstrip("/")) + 1 :] if inside else u.path}
        row.update({k: v for k, v in (("start", u.start), ("end", u.end)) if v is not None})
        rows.append(row | u.info)

    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif path.suffix == ".tsv":
        columns = list(dict.fromkeys(["id", "path", *(c for row in rows for c in row)]))
        for cell in (*columns, *(c for row in rows for c in row.values())):
            if re.search("[\t\r\n]", _as_text(cell)) or _as_text(cell) == "":
                raise CorpusError(f"{path}: TSV cannot hold empty values, tabs or line breaks; write .jsonl instead.")
        lines = [columns, *([_as_text(row.get(c)) for c in columns] for row in rows)]
        text = "".join("\t".join(line) + "\n" for line in lines)
    else:
        raise CorpusError(f"{path}: a manifest must end in .jsonl or .tsv.")
    write_text(path, text)
