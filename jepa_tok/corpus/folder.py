"""Folders: a Kaldi data folder, or a tree of audio files, of parquet files or of tar shards; never of more than one kind.

A folder with a `wav.scp` is a Kaldi data folder. Any other is searched, with all below it: names that start with a dot are
passed over, and links to folders are followed, but not back to a folder that they are in. What is found decides what it is. The id
of an audio file is its path within the folder without suffix, `/` kept (`spk1/book2/0003`), so ids mirror the tree.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepa_tok.corpus.utterance import (
    AUDIO_SUFFIXES,
    Refuse,
    Utterance,
    check_id,
    check_path,
    reading,
    refused,
)
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, is_url


def read_folder(folder: Path, allow_pipes: bool, refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    """Place and utterance of each row of a folder, whatever kind it is of, in the order of ids or of shards.

    Raises CorpusError for a folder that cannot be listed, holds nothing to read, or holds files of two kinds.
    """
    with reading(str(folder)):
        is_kaldi = (folder / "wav.scp").exists()
    if is_kaldi:
        from jepa_tok.corpus.kaldi import read_kaldi

        return read_kaldi(folder, allow_pipes, refuse)
    files = _walk(str(folder) if is_url(folder) else os.path.abspath(folder))
    return _read(str(folder), files, refuse)


def check_apart(source: str, out: str | os.PathLike[str]) -> None:
    """Raises CorpusError where tokens in the local folder `out` would be found when the folder `source` is searched again."""
    if is_url(source) or is_url(out) or not os.path.isdir(source) or os.path.exists(os.path.join(source, "wav.scp")):
        return
    within = os.path.relpath(os.path.realpath(as_path(out)), os.path.realpath(source)).split(os.sep)
    if within[0] != os.pardir and not any(part.startswith(".") and part != os.curdir for part in within):
        raise CorpusError(
            f"{out}: the output must be outside of the source, as {source} is searched with all below it, but is "
            f"{'the same folder' if within == [os.curdir] else 'in it'}; take a folder elsewhere."
        )


def _read(folder: str, files: Iterator[tuple[str, str]], refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    first = next(files, None)
    if first is None:
        raise CorpusError(f"{folder}: the folder must hold audio, .parquet or .tar files or a wav.scp, but holds none.")
    kind = _kind(first[0])

    def alike() -> Iterator[tuple[str, str]]:
        yield first
        for name, path in files:
            if _kind(name) != kind:
                raise CorpusError(
                    f"{folder}: the folder must hold one kind of source, but has '{first[0]}' and '{name}'; name the one you mean."
                )
            yield name, path

    if kind == ".parquet":
        from jepa_tok.corpus.parquet import read_parquet

        yield from read_parquet((as_path(path) for _, path in alike()), refuse)
    elif kind == ".tar":
        from jepa_tok.corpus.tar import read_tars

        yield from read_tars((as_path(path) for _, path in alike()), refuse)
    else:
        for name, path in alike():
            id = os.path.splitext(name)[0]
            try:
                check_path(path, path)
                yield path, Utterance(check_id(id, path), path)  # the full name is the place: a.wav beside a.flac
            except CorpusError as error:
                refuse(refused(path, error, id, path))


def _kind(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return "audio" if suffix in AUDIO_SUFFIXES else suffix if suffix in (".parquet", ".tar") else ""


def _walk(folder: str, prefix: str = "", above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Name below the root and path of each file of a known kind, in the order of names without suffix.

    `above` are the real paths of the folders that this one was reached through: to meet one of them again is a loop. Any
    other folder is walked as often as links lead to it, under the name that each gives it.
    """
    if not is_url(folder):
        real = os.path.realpath(folder)
        if real in above:
            return
        above = (*above, real)
    # Ids are in order if each folder's are, with its folders' names ending in the slash that follows them there.
    entries = sorted(
        (name + "/" if is_folder else os.path.splitext(name)[0], name) for name, is_folder in _list(folder)
    )
    for key, name in entries:
        path = posixpath.join(folder, name)
        if key == name + "/":
            yield from _walk(path, prefix + key, above)
        elif _kind(name):
            yield prefix + name, path


def _list(folder: str) -> Iterator[tuple[str, bool]]:
    """Names in a folder and whether they are folders; those with a dot in front are left out."""
    with reading(folder):
        if is_url(folder):
            path: Any = as_path(folder)
            found = [
                (posixpath.basename(f["name"].rstrip("/")), f["type"] == "directory") for f in path.fs.ls(path.path)
            ]
        else:
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.is_dir()) for entry in entries]
    yield from ((name, is_folder) for name, is_folder in found if name and not name.startswith("."))
