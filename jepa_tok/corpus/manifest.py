"""Where a corpus comes from: JSONL and TSV manifests, Kaldi data folders and folders of audio, all as one list.

Every utterance has an id (unique in its corpus) and the path of its audio, perhaps with the start and end of a segment;
whatever else the manifest knows (speaker, text, emotion, split, ...) is carried along in `info`.

- JSONL: one object a line with `id` and `path`; `start` and `end` (seconds) cut a segment; `null` means absent.
- TSV: a header row, then one row an utterance, no quoting. Cells are strings but for `start`, `end`, `duration_s` and
  `sample_rate`, so that a speaker called 007 stays 007; an empty cell means absent.
- Kaldi data folder: see `jepa_tok.corpus.kaldi`.
- Folder of audio: every audio file below it; the id is its path within the folder without suffix, `/` kept
  (`spk1/book2/0003`), so ids mirror the tree; names that start with a dot are passed over.

Paths are absolute, or relative to the manifest's own folder. Nothing is skipped in silence: a row that breaks a rule is
a CorpusError that names the file and the line.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_tok.errors import CorpusError

AUDIO_SUFFIXES = frozenset(
    [
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
        ".sph",
        ".nist",
        ".voc",
    ]
)
"""Suffixes that make a file audio when a folder is searched; a manifest may name any file."""

NUMERIC_COLUMNS = {"start": float, "end": float, "duration_s": float, "sample_rate": int}
"""TSV columns that are read as numbers."""

# Control characters, line separators and halves of surrogate pairs: they break line-based formats and UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Utterance:
    """One clip of a corpus."""

    id: str
    """Unique in its corpus; free of control characters."""

    path: str
    """Absolute path of the audio file."""

    start: float | None = None
    """Where the clip starts in the file, in seconds; None is its beginning."""

    end: float | None = None
    """Where the clip ends in the file, in seconds; None is its end."""

    info: dict[str, Any] = field(default_factory=dict)
    """All other columns; absent values are absent keys."""


def read_corpus(
    source: str | os.PathLike[str], *, split: str | None = None, where: str | Iterable[str] | None = None
) -> list[Utterance]:
    """The utterances of `source` in its own order (a folder of audio: sorted by id).

    `split` is short for `where="split=..."`. `where` holds conditions "column=value": several on one column mean any of
    the values, those on different columns must all hold. Raises CorpusError where the source breaks its format, is
    empty, has an id twice, or has nothing left after the conditions.
    """
    source = Path(source)
    if source.is_dir():
        if (source / "wav.scp").exists():
            from jepa_tok.corpus.kaldi import read_kaldi

            utterances = read_kaldi(source)
        else:
            utterances = _read_folder(source)
    elif not source.exists():
        raise CorpusError(f"{source}: no such file or folder.")
    elif source.suffix == ".jsonl":
        utterances = list(_read_jsonl(source))
    elif source.suffix == ".tsv":
        utterances = list(_read_tsv(source))
    else:
        raise CorpusError(
            f"{source}: a corpus must be a .jsonl or .tsv manifest, a Kaldi data folder or a folder of audio."
        )
    return _select(utterances, str(source), split, where)


def check_corpus(
    utterances: Iterable[Utterance], name: str, *, split: str | None = None, where: str | Iterable[str] | None = None
) -> list[Utterance]:
    """Utterances from elsewhere, held to the rules of `read_corpus`; `name` stands for them in messages."""
    utterances, ids = list(utterances), Unique()
    for number, u in enumerate(utterances):
        ids.check(u.id, f"{name}, utterance {number}")
        check_segment(u.start, u.end, f"{name}, utterance {number}")
    return _select(utterances, name, split, where)


def _select(
    utterances: list[Utterance], name: str, split: str | None, where: str | Iterable[str] | None
) -> list[Utterance]:
    if not utterances:
        raise CorpusError(f"{name}: the corpus must have at least one utterance, but is empty.")
    conditions = [where] if isinstance(where, str) else list(where or ())
    if split is not None:
        conditions.append(f"split={split}")
    return filter_corpus(utterances, conditions, name) if conditions else utterances


def filter_corpus(utterances: Sequence[Utterance], conditions: Iterable[str], name: str = "corpus") -> list[Utterance]:
    """The utterances that meet all `conditions` ("column=value"); values are compared as text.

    Raises CorpusError for a malformed condition, a column that no utterance has, or when nothing is left.
    """
    wanted: dict[str, set[str]] = {}
    for condition in conditions:
        column, sign, value = condition.partition("=")
        if not sign or not column:
            raise CorpusError(f"`where` must be column=value (such as split=train), but is '{condition}' instead.")
        wanted.setdefault(column, set()).add(value)

    for column in wanted:
        if column != "id" and not any(column in u.info for u in utterances):
            known = sorted({c for u in utterances for c in u.info})
            raise CorpusError(f"{name}: `where` names the column '{column}', but there are only: {', '.join(known)}.")

    def meets(u: Utterance) -> bool:
        return all(_as_text(u.id if c == "id" else u.info.get(c)) in values for c, values in wanted.items())

    kept = [u for u in utterances if meets(u)]
    if not kept:
        raise CorpusError(f"{name}: none of the {len(utterances)} utterances meets {' '.join(conditions)}.")
    return kept


def write_manifest(utterances: Iterable[Utterance], path: str | os.PathLike[str]) -> None:
    """Writes a .jsonl or .tsv manifest that `read_corpus` reads back; paths below its folder become relative.

    TSV keeps only text: numbers and the like are read back as strings, but for the columns the module names. Raises
    CorpusError for a value that TSV cannot hold (tab, line break, empty) and for other suffixes.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    rows = []
    for u in utterances:
        inside = os.path.abspath(u.path).startswith(folder.rstrip(os.sep) + os.sep)
        row: dict[str, Any] = {"id": u.id, "path": os.path.relpath(u.path, folder) if inside else u.path}
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
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(text.encode("utf-8"))
    os.replace(temporary, path)


# Shared by the readers ------------------------------------------------------------------------------------------------


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines of a UTF-8 file, split at line feeds alone: text may hold U+2028 and the like."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise CorpusError(f"{path}:{number}: the line must be UTF-8, but is not.") from None
                yield number, line.rstrip("\n").removesuffix("\r")
    except OSError as e:
        raise CorpusError(f"{path}: cannot be read: {e.strerror or e}.") from None


class Unique:
    """Checks each id once, and remembers where it was first seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def check(self, id: str, place: str) -> str:
        """`id` itself; raises CorpusError at `place` where it is empty, unsafe or taken."""
        if not id or id != id.strip():
            raise CorpusError(f"{place}: `id` must not be empty, nor start or end with a space, but is {id!r} instead.")
        if _UNSAFE.search(id):
            raise CorpusError(f"{place}: `id` must be free of control characters, but is {id!r} instead.")
        if id in self._seen:
            raise CorpusError(f"{place}: `id` must be unique, but '{id}' is taken already by {self._seen[id]}.")
        self._seen[id] = place
        return id


def check_segment(start: float | None, end: float | None, place: str) -> None:
    """Raises CorpusError unless 0 <= start < end, in seconds."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise CorpusError(f"{place}: `{name}` must be seconds from 0 up, but is {value} instead.")
    if end is not None and end <= (start or 0.0):
        raise CorpusError(f"{place}: `end` must be greater than `start` ({start or 0.0}), but is {end} instead.")


def absolute(path: str, folder: Path) -> str:
    """`path`, taken relative to `folder` unless it is absolute; links are left as they are."""
    return os.path.abspath(os.path.join(folder, path))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _utterance(row: dict[str, Any], place: str, folder: Path, ids: Unique) -> Utterance:
    row = {k: v for k, v in row.items() if v is not None}
    for name in ("id", "path"):
        if name not in row:
            raise CorpusError(f"{place}: the row must have `{name}`, but has only: {', '.join(row) or 'nothing'}.")
    if isinstance(row["id"], int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    for name in ("id", "path"):
        if not isinstance(row[name], str):
            raise CorpusError(f"{place}: `{name}` must be a string, but is {row[name]!r} instead.")
    id, path = ids.check(row.pop("id"), place), row.pop("path")
    if not path or _UNSAFE.search(path):
        raise CorpusError(f"{place}: `path` must be a path free of control characters, but is {path!r} instead.")
    for name in ("start", "end"):
        if name in row and (isinstance(row[name], bool) or not isinstance(row[name], (int, float))):
            raise CorpusError(f"{place}: `{name}` must be a number (seconds), but is {row[name]!r} instead.")
    for name, value in row.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise CorpusError(f"{place}: `{name}` must be finite, but is {value} instead.")
    start, end = (None if row.get(name) is None else float(row[name]) for name in ("start", "end"))
    check_segment(start, end, place)
    info = {k: v for k, v in row.items() if k not in ("start", "end")}
    return Utterance(id, absolute(path, folder), start, end, info)


# Readers --------------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path) -> Iterator[Utterance]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    ids = Unique()
    for number, line in read_lines(path):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line, parse_constant=refuse)
            # Escapes can smuggle in halves of surrogate pairs, which no UTF-8 file can hold.
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as e:
            raise CorpusError(f"{place}: the line must be a JSON object: {e}.") from None
        if not isinstance(row, dict):
            raise CorpusError(f"{place}: the line must be a JSON object, but is {line[:40]!r} instead.")
        yield _utterance(row, place, path.parent, ids)


def _read_tsv(path: Path) -> Iterator[Utterance]:
    ids = Unique()
    columns: list[str] = []
    for number, line in read_lines(path):
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
        if len(cells) != len(columns):
            raise CorpusError(f"{place}: the row must have {len(columns)} cells as the header, but has {len(cells)}.")
        row: dict[str, Any] = {c: v for c, v in zip(columns, cells) if v != ""}
        for column, kind in NUMERIC_COLUMNS.items():
            if column in row:
                try:
                    row[column] = kind(row[column])
                except ValueError:
                    raise CorpusError(
                        f"{place}: `{column}` must be a number, but is '{row[column]}' instead."
                    ) from None
        yield _utterance(row, place, path.parent, ids)


def _read_folder(folder: Path) -> list[Utterance]:
    ids = Unique()
    found: dict[str, Path] = {}
    visited = set()  # links to folders are followed, but a loop of them is walked once

    def fail(error: OSError) -> None:
        raise CorpusError(f"{error.filename}: cannot be listed: {error.strerror}.")

    for root, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and path.suffix.lower() in AUDIO_SUFFIXES:
                # The full name is the place, so that a.wav beside a.flac is reported with both.
                found[ids.check(path.relative_to(folder).with_suffix("").as_posix(), str(path))] = path
    if not found:
        raise CorpusError(f"{folder}: the folder must hold audio files, a wav.scp or both, but holds neither.")
    return [Utterance(id, os.path.abspath(found[id])) for id in sorted(found)]
