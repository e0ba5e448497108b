"""Kaldi data folders: wav.scp, and where they are there segments, text, utt2spk, utt2gender and spk2gender.

See https://kaldi-asr.org/doc/data_prep.html. An entry of wav.scp is a path, a WAV in an archive (`wav.ark:1234`), or, where
the caller allows it, a pipe (`sox a.mp3 -t wav - |`): a command, which is run when the audio is read. Relative paths are
taken from the data folder, or, as in Kaldi itself, from the working directory where only that exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from jepa_tok.corpus.audio_source import Command, Slice
from jepa_tok.corpus.scratch import Scratch
from jepa_tok.corpus.utterance import (
    Refuse,
    Utterance,
    absolute,
    check_id,
    check_path,
    check_segment,
    read_lines,
    refused,
    taken,
)
from jepa_tok.errors import CorpusError
from jepa_tok.files import is_url

LABELS = {"text": "text", "utt2spk": "speaker", "utt2gender": "gender"}
"""Files of a data folder that label utterances, and the columns they become."""


def read_kaldi(folder: Path, allow_pipes: bool, refuse: Refuse) -> Iterator[tuple[str, Utterance]]:
    """Place and utterance of each line of `segments`, or else of `wav.scp`, with its labels.

    Refuses pipes unless `allow_pipes`, malformed lines, segments of unknown recordings, and labels of unknown utterances.
    """
    tables = _Tables(folder, refuse)
    labels = {name: column for name, column in LABELS.items() if tables.load(name, empty=name == "text")}
    genders = tables.load("spk2gender")
    has_segments = (folder / "segments").exists()
    if has_segments:
        tables.load("wav.scp")

    for id, value, place in _lines(folder / ("segments" if has_segments else "wav.scp"), refuse):
        tables.add_utterance(id)
        try:
            check_id(id, place)
            utterance = Utterance(id, "")
            if has_segments:
                recording, utterance.start, utterance.end = _segment(id, value, place)
                found = tables.find("wav.scp", recording)
                if found is None:
                    raise CorpusError(
                        f"{place}: the recording '{recording}' must be in {folder / 'wav.scp'}, but is not."
                    )
                value, place_of_audio = found
            else:
                place_of_audio = place
            utterance.path, utterance.part = _audio(value, place_of_audio, folder, allow_pipes)
        except CorpusError as error:
            refuse(refused(place, error, id, value))
            continue
        for name, column in labels.items():
            if label := tables.find(name, id):
                utterance.info[column] = label[0]
        if genders and (gender := tables.find("spk2gender", utterance.info.get("speaker", ""))):
            utterance.info.setdefault("gender", gender[0])
        yield place, utterance

    for name in labels:
        for id, place in tables.unknown(name):
            why = f"{place}: the utterance '{id}' has no audio; run Kaldi's utils/fix_data_dir.sh on {folder}."
            refuse(refused(place, why, id))


def _lines(path: Path, refuse: Refuse, empty: bool = False) -> Iterator[tuple[str, str, str]]:
    # Key, rest of the line and place of each line; an empty rest is allowed in `text` alone.
    for number, line in read_lines(path, refuse):
        place = f"{path}:{number}"
        # Blanks of ASCII only: transcripts may hold U+00A0 or U+3000 as part of their text.
        fields = re.split("[ \t]+", line.strip(" \t"), maxsplit=1)
        if not fields[0]:
            refuse(refused(place, f"{place}: the line must not be empty."))
        elif len(fields) < 2 and not empty:
            refuse(
                refused(place, f"{place}: the line must have an id and a value, but is '{line}' instead.", fields[0])
            )
        else:
            yield fields[0], fields[1] if len(fields) == 2 else "", place


def _segment(id: str, value: str, place: str) -> tuple[str, float, float | None]:
    """Recording, start and end."""
    fields = value.split()
    if len(fields) != 3:
        raise CorpusError(f"{place}: the line must be 'utterance recording start end', but is '{id} {value}' instead.")
    try:
        start, end = float(fields[1]), float(fields[2])
    except ValueError:
        raise CorpusError(f"{place}: start and end must be seconds, but are '{' '.join(fields[1:])}'.") from None
    until = None if end == -1 else end  # Kaldi writes -1 for the end of the recording
    check_segment(start, until, place)
    return fields[0], start, until


def _audio(value: str, place: str, folder: Path, allow_pipes: bool) -> tuple[str, Command | Slice | None]:
    """Path of the audio that an entry of wav.scp names, and where it is if that is no file of its own."""
    check_path(value, place)
    if value.endswith("|"):
        if not allow_pipes:
            raise CorpusError(
                f"{place}: pipes are commands and not run unless allowed; allow them, or write the audio to files and name those."
            )
        return value, Command(value[:-1].strip())
    if value.startswith("|") or value == "-":
        raise CorpusError(f"{place}: the entry must name audio to read, but is '{value}' instead.")
    archive = re.fullmatch(r"(.*\.ark):(\d{1,18})", value)
    if archive:
        file = _absolute(archive[1], folder)
        return f"{file}:{archive[2]}", Slice(file, int(archive[2]), None)
    return _absolute(value, folder), None


def _absolute(path: str, folder: Path) -> str:
    here = absolute(path, folder)
    if is_url(here) or os.path.exists(here) or not os.path.exists(path):
        return here
    return os.path.abspath(path)


class _Tables:
    """Files of key and value looked up by key; kept on disk, so that a corpus of any size takes little memory."""

    def __init__(self, folder: Path, refuse: Refuse) -> None:
        self._folder, self._refuse = folder, refuse
        self._db = Scratch()
        self._db.execute("CREATE TABLE utterances (key TEXT)")

    def load(self, name: str, empty: bool = False) -> bool:
        """Reads a file; False where it is not there."""
        if not (self._folder / name).exists():
            return False
        self._db.execute(f'CREATE TABLE "{name}" (key TEXT, value TEXT, place TEXT)')
        lines = _lines(self._folder / name, self._refuse, empty)
        self._db.insert(f'INSERT INTO "{name}" VALUES (?, ?, ?)', lines)
        self._db.execute(f'CREATE INDEX "keys of {name}" ON "{name}" (key)')
        first = f'SELECT key, min(rowid) AS at FROM "{name}" GROUP BY key HAVING count(*) > 1'
        for key, place, earlier in self._db.rows(
            f'SELECT t.key, t.place, kept.place FROM ({first}) JOIN "{name}" AS t USING (key) '
            f'JOIN "{name}" AS kept ON kept.rowid = at WHERE t.rowid > at ORDER BY t.rowid'
        ):
            self._refuse(refused(place, taken(key, place, earlier), key))
        return True

    def find(self, name: str, key: str) -> tuple[str, str] | None:
        """Value and place of a key where it is first."""
        query = f'SELECT value, place FROM "{name}" WHERE key = ? ORDER BY rowid LIMIT 1'
        found = next(self._db.rows(query, (key,)), None)
        return None if found is None else (found[0], found[1])

    def add_utterance(self, id: str) -> None:
        """Notes that the corpus has it."""
        self._db.execute("INSERT INTO utterances VALUES (?)", (id,))

    def unknown(self, name: str) -> Iterator[tuple[str, str]]:
        """Key and place of each line whose key no utterance has."""
        self._db.execute("CREATE INDEX IF NOT EXISTS ids ON utterances (key)")
        yield from self._db.rows(
            f'SELECT key, place FROM "{name}" WHERE key NOT IN (SELECT key FROM utterances) ORDER BY rowid'
        )
