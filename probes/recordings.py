"""Which sound is it? A file by its content, a stretch of one by where it lies: what the parts of a split must not share.

A copy under another name has the same content. The same recording encoded anew has not, and is not found.
"""

from __future__ import annotations

import math
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable
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

    @classmethod
    def of(cls, path: str, start: object, end: object) -> Recording:
        """That of labels, whose columns `start` and `end` may be missing, or be another's that hold no numbers."""
        return cls(path, _number(start, 0.0), _number(end, math.inf))

    @property
    def audio(self) -> str:
        """The same for files of the same content; the path where there is no such file (URLs, members of archives)."""
        return file_key(self.path)[1] or self.path

    def __str__(self) -> str:
        whole = self.start == 0.0 and math.isinf(self.end)
        return f"'{self.path}'" + ("" if whole else f" from {self.start:g} to {self.end:g} s")


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
        audio = other.audio
        before = bisect_left(self._starts.get(audio, ()), other.end - TOLERANCE)
        if not before:
            return None
        latest = self._latest[audio][before - 1]
        return latest if latest.end > other.start + TOLERANCE else None


def _later(a: Recording, b: Recording) -> Recording:
    """The one that ends last."""
    return b if b.end > a.end else a


def recording(u: Utterance) -> Recording:
    """That of an utterance."""
    return Recording.of(u.path, u.start, u.end)


def recordings(data: ProbeData) -> list[Recording | None]:
    """That of each row; None where its audio is not known."""
    return [Recording.of(r["path"], r.get("start"), r.get("end")) if r.get("path") else None for r in data.info]


def file_key(path: str) -> tuple[int | None, str]:
    """Bytes of a local file and the hash of its content; -1 and none for what is no file of its own (a URL, a member of an archive),
    None and none where it is missing."""
    if is_url(path) or "#" in path:
        return -1, ""
    try:
        found = os.stat(path)
    except OSError:
        return None, ""
    try:
        return found.st_size, _hash(path, found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else ""
    except OSError:  # it may not be read: reading it for its codes will say so
        return found.st_size, ""


@cache
def _hash(path: str, size: int, changed: int) -> str:
    """Kept for a file as it is: a suite asks for it once a cell."""
    return content_hash(path)
