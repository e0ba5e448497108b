"""Which sound is it? A file by its content, a stretch of one by where it lies: what the parts of a split must not share.

A copy under another name has the same content. The same recording encoded anew has not, and is not found.
"""

from __future__ import annotations

import math
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from jepa_tok.corpus.shards import content_hash
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.files import is_url
from probes.data import ProbeData

TOLERANCE = 0.02
"""Seconds that stretches of one file may share: ends of segments are rounded."""


@dataclass(frozen=True)
class Recording:
    """A stretch of sound; `start` and `end` in seconds, 0 and infinity where it is all of the file."""

    path: str
    start: float
    end: float
    audio: str
    """The same for files of the same content among those that were identified together."""

    def __str__(self) -> str:
        whole = self.start == 0.0 and math.isinf(self.end)
        return f"'{self.path}'" + ("" if whole else f" from {self.start:g} to {self.end:g} s")


def identify(rows: Iterable[tuple[str | None, object, object]]) -> list[Recording | None]:
    """The recordings of rows of path, start and end; None where there is no path.

    A copy has the size of its original, so that only files of one size are read and hashed. `start` and `end` may be missing, or be
    columns of another's that hold no numbers: then it is all of the file.
    """
    table = list(rows)
    paths = {str(path) for path, _, _ in table if path}
    same_size: dict[int, list[str]] = {}
    for path in sorted(paths):
        same_size.setdefault(_size(path), []).append(path)
    audio = {path: path for path in paths}
    for size, alike in same_size.items():
        if size > 0 and len(alike) > 1:
            audio |= {path: file_key(path)[1] or path for path in alike}
    return [
        Recording(str(path), _number(start, 0.0), _number(end, math.inf), audio[str(path)]) if path else None
        for path, start, end in table
    ]


def recordings(data: ProbeData) -> list[Recording | None]:
    """That of each row; None where its audio is not known."""
    return identify((row.get("path"), row.get("start"), row.get("end")) for row in data.info)


def of_utterances(*corpora: Sequence[Utterance]) -> list[list[Recording]]:
    """Those of each of several lists of utterances, identified together."""
    found = identify((u.path, u.start, u.end) for corpus in corpora for u in corpus)
    known = iter([r for r in found if r is not None])
    return [[next(known) for _ in corpus] for corpus in corpora]


def _number(value: object, other: float) -> float:
    try:
        found = float(str(value))
    except ValueError:
        return other
    return other if math.isnan(found) else found


class Recordings:
    """Some recordings, to be asked which of them another one shares sound with."""

    def __init__(self, found: Iterable[Recording]) -> None:
        spans: dict[str, list[Recording]] = {}
        for recording in sorted(found, key=lambda r: r.start):
            spans.setdefault(recording.audio, []).append(recording)
        self._starts = {audio: [r.start for r in own] for audio, own in spans.items()}
        # A long stretch may reach over shorter ones that begin later.
        self._latest = {audio: list(accumulate(own, _later)) for audio, own in spans.items()}

    def sharing(self, other: Recording) -> Recording | None:
        """One that lies on the same sound for more than TOLERANCE; None where none does."""
        before = bisect_left(self._starts.get(other.audio, ()), other.end - TOLERANCE)
        if not before:
            return None
        latest = self._latest[other.audio][before - 1]
        return latest if latest.end > other.start + TOLERANCE else None


def shared(found: Iterable[Recording]) -> tuple[Recording, Recording] | None:
    """Two of them that lie on the same sound for more than TOLERANCE; None where no two do."""
    latest: dict[str, Recording] = {}
    for recording in sorted(found, key=lambda r: r.start):
        before = latest.get(recording.audio)
        if before is not None and before.end > recording.start + TOLERANCE:
            return before, recording
        latest[recording.audio] = recording if before is None else _later(before, recording)
    return None


def _later(a: Recording, b: Recording) -> Recording:
    """The one that ends last."""
    return b if b.end > a.end else a


def file_key(path: str) -> tuple[int | None, str]:
    """Bytes of a local file and the hash of its content; -1 and none for a URL, None and none where there is no such file."""
    size = _size(path)
    if size < 0:
        return (-1, "") if is_url(path) else (None, "")
    try:
        found = os.stat(path)
        return size, _hash(path, size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else ""
    except OSError:  # it may not be read: reading it for its codes will say so
        return size, ""


def _size(path: str) -> int:
    """Bytes of a local file; -1 where there is none."""
    if is_url(path):
        return -1
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # a null byte is a ValueError
        return -1


@cache
def _hash(path: str, size: int, changed: int) -> str:
    """Kept for a file as it is: a suite asks for it several times."""
    return content_hash(path)
