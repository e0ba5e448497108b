"""Kaldi data folders: wav.scp, and where they are there segments, text, utt2spk, utt2gender and spk2gender.

See https://kaldi-asr.org/doc/data_prep.html. Only plain paths are read from wav.scp: a pipe would run a command that a
data file names, so pipes and archive offsets are refused. Relative paths are taken from the data folder, or, as in Kaldi
itself, from the working directory where only that exists.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from jepa_tok.corpus.manifest import Unique, Utterance, absolute, check_segment, read_lines
from jepa_tok.errors import CorpusError


def read_kaldi(folder: Path) -> list[Utterance]:
    """The utterances of a data folder, in the order of `segments` or else of `wav.scp`.

    Raises CorpusError, with file and line, for pipes, malformed lines, ids twice, and labels of unknown utterances.
    """
    recordings = {id: _plain_path(value, place, folder) for id, value, place in _table(folder / "wav.scp")}
    if (folder / "segments").exists():
        utterances = _read_segments(folder / "segments", recordings)
    else:
        utterances = [Utterance(id, path) for id, path in recordings.items()]

    by_id = {u.id: u for u in utterances}
    for name, column in (("text", "text"), ("utt2spk", "speaker"), ("utt2gender", "gender")):
        if (folder / name).exists():
            for id, value, place in _table(folder / name, empty=name == "text"):
                if id not in by_id:
                    raise CorpusError(
                        f"{place}: the utterance '{id}' has no audio; run Kaldi's utils/fix_data_dir.sh on {folder}."
                    )
                by_id[id].info[column] = value
    if (folder / "spk2gender").exists():
        genders = {speaker: gender for speaker, gender, _ in _table(folder / "spk2gender")}
        for u in utterances:
            if u.info.get("speaker") in genders:
                u.info.setdefault("gender", genders[u.info["speaker"]])
    return utterances


def _table(path: Path, empty: bool = False) -> list[tuple[str, str, str]]:
    # Key, rest of the line and place of each line; an empty rest is allowed in `text` alone.
    rows, ids = [], Unique()
    for number, line in read_lines(path):
        place = f"{path}:{number}"
        # Blanks of ASCII only: transcripts may hold U+00A0 or U+3000 as part of their text.
        fields = re.split("[ \t]+", line.strip(" \t"), maxsplit=1)
        if not fields[0]:
            raise CorpusError(f"{place}: the line must not be empty.")
        if len(fields) < 2 and not empty:
            raise CorpusError(f"{place}: the line must have an id and a value, but is '{line}' instead.")
        rows.append((ids.check(fields[0], place), fields[1] if len(fields) == 2 else "", place))
    return rows


def _plain_path(value: str, place: str, folder: Path) -> str:
    if value.endswith("|") or value.startswith("|"):
        raise CorpusError(f"{place}: pipes are not run; write the audio to files first and name their paths.")
    if re.search(r"\.ark:\d+$", value):
        raise CorpusError(f"{place}: archives are not read; write the audio to files first and name their paths.")
    here = absolute(value, folder)
    return os.path.abspath(value) if not os.path.exists(here) and os.path.exists(value) else here


def _read_segments(path: Path, recordings: dict[str, str]) -> list[Utterance]:
    utterances = []
    for id, value, place in _table(path):
        fields = value.split()
        if len(fields) != 3:
            raise CorpusError(
                f"{place}: the line must be 'utterance recording start end', but is '{id} {value}' instead."
            )
        if fields[0] not in recordings:
            raise CorpusError(
                f"{place}: the recording '{fields[0]}' must be in {path.with_name('wav.scp')}, but is not."
            )
        try:
            start, end = float(fields[1]), float(fields[2])
        except ValueError:
            raise CorpusError(f"{place}: start and end must be seconds, but are '{' '.join(fields[1:])}'.") from None
        until = None if end == -1 else end  # Kaldi writes -1 for the end of the recording
        check_segment(start, until, place)
        utterances.append(Utterance(id, recordings[fields[0]], start, until))
    return utterances
