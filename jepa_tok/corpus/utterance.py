"""An utterance, the rules it must keep, and what becomes of a row that breaks them; shared by all readers of corpora."""

from __future__ import annotations

import contextlib
import io
import math
import os
import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, is_url

if TYPE_CHECKING:
    from jepa_tok.corpus.audio_source import Cell, Command, Slice

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
"""Suffixes that make a file audio in a folder or an archive; a manifest may name any file."""

MAX_ID, MAX_ID_PART = 1000, 200
"""Bytes of an id and of each part between slashes: with a suffix it must still be the name of a file."""

MAX_LINE = 2**24
"""Bytes of a line of a manifest; what is longer is no manifest."""

# Control characters, line separators and halves of surrogate pairs: they break line-based formats and UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


LONGEST = 1e12
"""Seconds above which a length is a slip; sums of lengths below stay finite, which a progress bar needs."""


@dataclass
class Utterance:
    """One clip of a corpus."""

    id: str
    """Unique in its corpus, and the name of a file that decoding may write: see `check_id`."""

    path: str
    """Absolute path or URL of the audio; in an archive or table, that of the file, `#` and the member or row."""

    start: float | None = None
    """Where the clip starts in the audio, in seconds; None is its beginning."""

    end: float | None = None
    """Where the clip ends in the audio, in seconds; None is its end."""

    info: dict[str, Any] = field(default_factory=dict)
    """All other columns; absent values are absent keys."""

    part: Slice | Cell | Command | None = None
    """Where the audio is if it is not a file of its own; `jepa_tok.corpus.audio_source.open_audio` opens either."""


def manifest_seconds(u: Utterance) -> float | None:
    """How long the manifest says the clip is; None where it does not, or says what no clip lasts."""
    told = u.info.get("duration_s") if u.end is None else u.end
    if isinstance(told, bool) or not isinstance(told, (int, float)) or not 0 <= told <= LONGEST:
        return None
    return told - (u.start or 0.0)


class Refused(NamedTuple):
    """A row of a corpus that broke a rule."""

    place: str
    """File and line, member or row."""

    id: str
    """As far as it is known."""

    path: str
    """As far as it is known."""

    reason: str
    """One line, which names the place."""


Refuse = Callable[[Refused], None]
"""What a reader calls with a row that it leaves out; it goes on with the next when that returns."""


def fail(row: Refused) -> None:
    """The usual `Refuse`: the first bad row is a CorpusError."""
    raise CorpusError(row.reason)


def refused(place: str, error: CorpusError | str, id: Any = "", path: Any = "") -> Refused:
    """A row that was refused; `id` and `path`, whatever they are, become text that can be written."""

    def text(value: Any) -> str:
        value = value if isinstance(value, str) else "" if value is None else repr(value)
        return value[: 2 * MAX_ID].encode("utf-8", "backslashreplace").decode("utf-8")

    return Refused(place, text(id), text(path), text(str(error)))


# Rules ----------------------------------------------------------------------------------------------------------------


def check_id(id: str, place: str) -> str:
    """`id` itself; raises CorpusError, with `place`, unless it can be written in any format and name a file.

    It must not be empty, nor begin or end with a space, nor hold control characters; its parts between slashes must be
    names, which `..`, `.` and the empty string are not; and it must not be too long for a file system.
    """
    if not id or id != id.strip():
        raise CorpusError(
            f"{place}: `id` must not be empty, nor start or end with a space, but is {short(id)} instead."
        )
    if _UNSAFE.search(id):
        raise CorpusError(f"{place}: `id` must be free of control characters, but is {short(id)} instead.")
    parts = id.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise CorpusError(
            f"{place}: `id` must be a name, or names joined by single slashes, none of them '.' or '..', but is {short(id)} instead."
        )
    if len(id.encode()) > MAX_ID or any(len(part.encode()) > MAX_ID_PART for part in parts):
        raise CorpusError(
            f"{place}: `id` must have at most {MAX_ID} bytes, {MAX_ID_PART} between slashes, so that it can name a file, "
            f"but is {short(id)} instead."
        )
    return id


def check_path(path: str, place: str) -> str:
    """`path` itself; raises CorpusError, with `place`, where it is empty or unsafe."""
    if not path or _UNSAFE.search(path):
        raise CorpusError(f"{place}: `path` must be a path free of control characters, but is {short(path)} instead.")
    if is_url(path) and "::" in path:
        # Chains such as filecache:: write to the disk of the reader.
        raise CorpusError(f"{place}: `path` must be a path or a plain URL, but is {short(path)} instead.")
    return path


def check_segment(start: float | None, end: float | None, place: str) -> None:
    """Raises CorpusError unless 0 <= start < end, in seconds."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise CorpusError(f"{place}: `{name}` must be seconds from 0 up, but is {value} instead.")
    if end is not None and end <= (start or 0.0):
        raise CorpusError(f"{place}: `end` must be greater than `start` ({start or 0.0}), but is {end} instead.")


class Unique:
    """Checks each id once, and remembers where it was first seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def check(self, id: str, place: str) -> str:
        """`id` itself; raises CorpusError at `place` where `check_id` does, or where it is taken."""
        check_id(id, place)
        if id in self._seen:
            raise CorpusError(taken(id, place, self._seen[id]))
        self._seen[id] = place
        return id


def taken(id: str, place: str, first: str) -> str:
    """The message about an id that is there twice."""
    return f"{place}: `id` must be unique, but '{id}' is taken already by {first}."


def short(value: Any) -> str:
    """A value in a message: what Python writes for it, the middle left out where it is long."""
    text = value if isinstance(value, str) else repr(value)
    text = text if len(text) <= 80 else text[:60] + "..." + text[-12:]
    return repr(text) if isinstance(value, str) else text


# Files ----------------------------------------------------------------------------------------------------------------


def absolute(path: str, folder: str | os.PathLike[str]) -> str:
    """`path`, taken relative to `folder` (which may be a URL) unless it is absolute or a URL; links stay as they are."""
    if is_url(path):
        return path
    if is_url(folder) and not os.path.isabs(path):
        protocol, _, below = str(folder).partition("://")
        return f"{protocol}://{posixpath.normpath(posixpath.join(below, path))}"
    return os.path.abspath(path if is_url(folder) else os.path.join(folder, as_path(path)))


def read_lines(path: Path, refuse: Refuse = fail) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines of a UTF-8 file, split at line feeds alone: text may hold U+2028 and the like.

    A line that is not UTF-8 is refused; raises CorpusError where the file cannot be read or has a line without end.
    """
    # Remote files know no lines of bounded length; those on disk are buffered either way.
    with (
        reading(str(path)),
        io.BufferedReader(path.open("rb", buffering=0) if not is_url(path) else path.open("rb")) as file,
    ):
        for number in range(1, 2**62):
            raw = file.readline(MAX_LINE + 1)
            if not raw:
                return
            place = f"{path}:{number}"
            if len(raw) > MAX_LINE:
                raise CorpusError(f"{place}: a line must have at most {MAX_LINE} bytes; is this text?")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                refuse(refused(place, f"{place}: the line must be UTF-8, but is not."))
                continue
            yield number, line.rstrip("\n").removesuffix("\r")


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """A block that does nothing but read the file `name`: its I/O errors become a CorpusError."""
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:
        # Remote file systems raise errors of their own kinds, so for URLs all count.
        if not (isinstance(error, OSError) or is_url(name)):
            raise
        raise CorpusError(f"{name}: cannot be read: {one_line(error)}.") from None


def check_there(path: Path) -> None:
    """Raises CorpusError where nothing is at `path`: that there is no such file, or what its server said in place of an answer."""
    if path.exists():
        return
    why: BaseException | None = None
    if is_url(path):  # `exists` of a server that cannot be reached, or refuses, is False
        remote: Any = path
        try:
            remote.fs.info(remote.path)
        except Exception as error:
            why = _cause(error)
    if why is None or isinstance(why, FileNotFoundError) or getattr(why, "status", None) == 404:
        raise CorpusError(f"{path}: no such file or folder.")
    raise CorpusError(f"{path}: cannot be read: {one_line(why)}.")


def _cause(error: BaseException) -> BaseException:
    # fsspec calls whatever goes wrong with a URL a missing file, named by the URL alone; the cause tells more.
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def one_line(error: BaseException) -> str:
    """What an exception says, as one line without a full stop."""
    error = _cause(error)
    text = getattr(error, "strerror", None) or str(error)
    if not text:
        text = "its file system cannot do that" if isinstance(error, NotImplementedError) else type(error).__name__
    return " ".join(str(text).split()).rstrip(".")
