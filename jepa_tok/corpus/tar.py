"""Tar shards as WebDataset has them: members `KEY.flac`, `KEY.json`, `KEY.txt`, ... that follow each other are an utterance.

| member                             | what becomes of it                                                           |
|------------------------------------|------------------------------------------------------------------------------|
| an audio suffix                    | the audio, read in place by offset and size when it is encoded               |
| `.json`                            | an object: its values are columns; `id`, if it has one, is the utterance's id |
| `.txt`, `.cls`                     | columns `text` and `cls`; `KEY.speaker.txt` is a column `speaker`             |
| any other                          | left alone, never unpickled                                                  |

The id is otherwise the key: the member's name up to the first dot of its last part. Names of which that part starts with a
dot or `__` are passed over, as by WebDataset. No member is ever written to disk. Compressed archives have no offsets to read
from, so they are refused.

WebDataset: https://github.com/webdataset/webdataset
"""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jepa_tok.corpus.audio_source import Slice
from jepa_tok.corpus.manifest import check_values, parse_object
from jepa_tok.corpus.utterance import (
    AUDIO_SUFFIXES,
    MAX_LINE,
    Refuse,
    Utterance,
    check_id,
    check_path,
    one_line,
    reading,
    refused,
)
from jepa_tok.errors import CorpusError
from jepa_tok.files import is_url

MAX_NAMES = 100_000
"""Shards that braces may stand for; every one must be there, so that more is a slip of the finger."""


def read_tars(paths: Iterable[Path], refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    """Place and utterance of each key of tar shards, in order; an archive that is damaged is refused from there on."""
    for path in paths:
        name = str(path) if is_url(path) else os.path.abspath(path)
        try:
            with reading(name):
                file: Any = path.open("rb")
        except CorpusError as error:
            refuse(refused(name, error, path=name))
            continue
        with file:
            for key, members in itertools.groupby(_members(file, name, refuse), lambda found: found[0]):
                place = f"{name}#{key}"
                id: Any = key
                try:
                    audio, info = _sort(file, place, [(suffix, member) for _, suffix, member in members])
                    id = info.pop("id", key)
                    id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
                    if not isinstance(id, str):
                        raise CorpusError(f"{place}: `id` must be a string, but is {id!r} instead.")
                    check_id(id, place)
                    check_values(info, place)
                    where = check_path(f"{name}#{audio.name}", place)
                except CorpusError as error:
                    refuse(refused(place, error, id, name))
                    continue
                yield place, Utterance(id, where, info=info, part=Slice(name, audio.offset_data, audio.size))


def _members(file: BinaryIO, name: str, refuse: Refuse) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix (lower case) and member of each file in an archive."""
    count = 0
    try:
        with reading(name):
            archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  (closes nothing: the file is the caller's)
    except (tarfile.TarError, CorpusError) as error:
        refuse(refused(name, f"{name}: not a tar archive that can be read: {one_line(error)}.", path=name))
        return
    while True:
        try:
            with reading(name):
                member = archive.next()
                if member is None and _is_damaged(file, archive.offset):
                    raise tarfile.ReadError("no header where one must be")
        except (tarfile.TarError, CorpusError) as error:
            why = f"{name}: the archive is cut short or damaged after {count} members: {one_line(error)}."
            refuse(refused(name, why, path=name))
            return
        if member is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        count += 1
        full = member.name.removeprefix("./")
        folder, base = os.path.split(full)
        if member.isdir() or base.startswith((".", "__")):
            continue
        stem, _, suffix = base.partition(".")
        yield os.path.join(folder, stem), suffix.lower(), member


def _is_damaged(file: BinaryIO, offset: int) -> bool:
    """Whether an archive that `tarfile` takes for ended at `offset` has something else there than zeros or its end."""
    file.seek(offset)
    return any(file.read(tarfile.BLOCKSIZE))


def _sort(
    file: BinaryIO, place: str, members: list[tuple[str, tarfile.TarInfo]]
) -> tuple[tarfile.TarInfo, dict[str, Any]]:
    """The audio of a key, and the columns that its other members hold."""
    info: dict[str, Any] = {}
    audio: list[tarfile.TarInfo] = []
    for suffix, member in members:
        last = "." + suffix.rpartition(".")[2]
        wanted = last in AUDIO_SUFFIXES or last in (".json", ".txt", ".cls")
        if wanted and (not member.isreg() or member.issparse()):
            raise CorpusError(f"{place}: the member '{member.name}' must be a plain file, but is a link or the like.")
        if last in AUDIO_SUFFIXES:
            audio.append(member)
        elif last == ".json":
            info |= {k: v for k, v in parse_object(_text(file, member, place), place).items() if v is not None}
        elif wanted:
            column = suffix.rpartition(".")[0] or {".txt": "text", ".cls": "cls"}[last]
            text = _text(file, member, place).strip()
            info[column] = int(text) if last == ".cls" and re.fullmatch(r"-?\d{1,18}", text) else text
    if len(audio) != 1:
        names = ", ".join(m.name for m in audio or [m for _, m in members][:3])
        raise CorpusError(f"{place}: the key must have one member of audio, but has {len(audio)} ({names}).")
    return audio[0], info


def _text(file: BinaryIO, member: tarfile.TarInfo, place: str) -> str:
    if member.size > MAX_LINE:
        raise CorpusError(
            f"{place}: the member '{member.name}' must have at most {MAX_LINE} bytes, but has {member.size}."
        )
    try:
        with reading(place):
            file.seek(member.offset_data)
            return file.read(member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorpusError(f"{place}: the member '{member.name}' must be UTF-8, but is not.") from None


def expand_braces(pattern: str) -> list[str]:
    """`shard-{000..010}.tar` as the names it stands for, as a shell does.

    Raises CorpusError for other braces, and for more than MAX_NAMES names.
    """
    head, _, rest = pattern.partition("{")
    if not rest:
        return [pattern]
    span, _, tail = rest.partition("}")
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", span)
    if not ends or int(ends[1]) > int(ends[2]):
        raise CorpusError(f"{pattern}: braces must hold a range of numbers, such as {{000..010}}, but hold '{span}'.")
    width = len(ends[1]) if ends[1].startswith("0") else 0
    numbers, endings = range(int(ends[1]), int(ends[2]) + 1), expand_braces(tail)
    if len(numbers) * len(endings) > MAX_NAMES:
        raise CorpusError(
            f"{pattern}: braces must stand for at most {MAX_NAMES} names; name a folder of shards instead."
        )
    return [f"{head}{number:0{width}d}{end}" for number in numbers for end in endings]
