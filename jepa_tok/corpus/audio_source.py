"""The bytes of an utterance's audio: a file, a URL, a member of a tar, a cell of a parquet file, or a command's output.

`open_audio` opens any of them for `jepa_tok.audio`, and turns whatever goes wrong into an AudioError. Only regular files are
opened: a pipe or a device would be waited for without end.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from jepa_tok.corpus.utterance import Utterance, absolute, check_path, one_line
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import as_path, is_url, without_query

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 2**26
"""Bytes up to which audio that is not a file of its own is read in one go."""

COMMAND_SECONDS = 600
"""After which a command of a Kaldi wav.scp is ended."""


class Slice(NamedTuple):
    """Bytes [offset, offset + size) of a file or URL, read in place; up to its end if `size` is None."""

    file: str
    offset: int
    size: int | None


class Cell(NamedTuple):
    """A value of the binary column `column` of a parquet file or URL."""

    file: str
    column: str
    group: int
    """Index of the row group."""
    row: int
    """Index of the row in its group."""
    path: str | None = None
    """What stands beside the value: where it is null, its audio is this file, absolute or relative to the parquet file."""


class Command(NamedTuple):
    """What a shell command writes to its standard output."""

    line: str


Part = Slice | Cell | Command


def part_to_json(part: Part | None) -> str | None:
    """A part as text; None as None."""
    return None if part is None else json.dumps([type(part).__name__, *part])


def part_from_json(text: str | None) -> Part | None:
    """Inverse of `part_to_json`."""
    if text is None:
        return None
    name, *values = json.loads(text)
    return {"Slice": Slice, "Cell": Cell, "Command": Command}[name](*values)


def audio_file(utterance: Utterance) -> str | None:
    """Path or URL of the file that an utterance's audio is, or is in; None where a command makes it."""
    part = utterance.part
    return utterance.path if part is None else None if isinstance(part, Command) else part.file


def load_utterance(
    utterance: Utterance, sample_rate: int, *, start: float | None = None, end: float | None = None
) -> Tensor:
    """`load_audio` of an utterance's audio, wherever that is: mono float32 [S], its whole segment unless told a part."""
    from jepa_tok.audio import load_audio

    with open_audio(utterance) as source:
        return load_audio(
            source,
            sample_rate,
            start=utterance.start if start is None else start,
            end=utterance.end if end is None else end,
        )


@contextlib.contextmanager
def open_audio(utterance: Utterance, *, in_place: bool = False) -> Iterator[str | BinaryIO]:
    """A path or an open binary file that `load_audio` reads, closed at the end of the block.

    With `in_place`, of an archive's member no more is read than is asked for: right for a header, slower for all of it.
    Raises AudioError, naming the audio, where it is missing, not a regular file, or cannot be read, be it while the block
    runs (libsndfile takes a failing read for the end of the file).
    """
    path, part = utterance.path, utterance.part
    if part is None and not is_url(path):
        _check_regular(path)
        yield path
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_open(path, part or Slice(path, 0, None), in_place))
        except AudioError:
            raise
        except Exception as error:  # file systems and pyarrow raise errors of their own kinds
            raise _unreadable(path, error) from None
        try:
            yield file
        except AudioError:
            if failure := _failure(file):
                raise _unreadable(path, failure) from None
            raise
        if failure := _failure(file):
            raise _unreadable(path, failure)


def _unreadable(path: str, error: BaseException) -> AudioError:
    return AudioError(f"'{path}' must be an audio file, but cannot be read: {one_line(error)}.")


def _failure(file: Any) -> Exception | None:
    return getattr(getattr(file, "raw", None), "error", None)


def _check_regular(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise AudioError(f"'{path}' must be an audio file, but cannot be opened: {one_line(error)}.") from None
    if stat.S_ISDIR(mode):
        raise AudioError(f"'{path}' must be an audio file, but is a folder instead.")
    if not stat.S_ISREG(mode):
        raise AudioError(f"'{path}' must be an audio file, but is a pipe, a socket or a device instead.")


def _open(path: str, part: Part, in_place: bool) -> BinaryIO:
    if isinstance(part, Command):
        return _run(part.line, path)
    if isinstance(part, Cell):
        from jepa_tok.corpus.parquet import read_cell

        data = read_cell(part)
        return _Bytes(data, path) if data is not None else _open_named(path, part, in_place)
    if not is_url(part.file):
        _check_regular(part.file)
    elif part.offset == 0 and part.size is None:
        remote: Any = as_path(part.file)
        if (remote.fs.size(remote.path) or 0) <= SMALL:  # in one request, which any server answers
            return _Bytes(remote.fs.cat_file(remote.path), path)
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(as_path(part.file).open("rb"))
        length = file.seek(0, os.SEEK_END) - part.offset
        size = _riff_size(file, part.offset, length) if part.size is None and part.offset else part.size
        size = length if size is None else size
        if length < size:
            raise AudioError(f"'{path}' is cut short: {size} bytes are promised, but {max(length, 0)} are there.")
        if size <= SMALL and not in_place:
            file.seek(part.offset)
            return _Bytes(file.read(size), path)
        stack.pop_all()
        return io.BufferedReader(_Window(file, part.offset, size, path))  # type: ignore[return-value]


def _open_named(path: str, cell: Cell, in_place: bool) -> BinaryIO:
    """The file that a cell without bytes names, under the rules of paths in manifests; raises AudioError where none is there."""
    why = f"'{path}' must hold the bytes of an audio file, but is null"
    if cell.path is None:
        raise AudioError(f"{why}, and has no path.")
    try:
        file = absolute(check_path(cell.path, path), os.path.dirname(without_query(cell.file)))
        is_there = as_path(file).exists()
    except CorpusError as error:
        raise AudioError(str(error)) from None
    if not is_there:
        raise AudioError(
            f"{why}, and no file is at its path '{file}'; embed the files before `to_parquet` (dataset.with_format('arrow')"
            ".map(datasets.table.embed_table_storage, batched=True)), or take what `push_to_hub` writes."
        )
    return _open(file, Slice(file, 0, None), in_place)


def _riff_size(file: BinaryIO, offset: int, length: int) -> int:
    """Bytes of a RIFF file that begins at `offset` of an archive: its header tells; else all up to the archive's end."""
    file.seek(offset)
    head = file.read(8)
    told = int.from_bytes(head[4:], "little") + 8
    return min(told, length) if head[:4] == b"RIFF" else length


class _Bytes(io.BytesIO):
    """Bytes with the name that messages call them by."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.name = name


class _Window(io.RawIOBase):
    """Bytes [offset, offset + size) of a file as a file; a read that fails is the end, and its error is kept."""

    def __init__(self, file: BinaryIO, offset: int, size: int, name: str) -> None:
        self.name = name
        self.error: Exception | None = None
        self._file, self._offset, self._size, self._at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        try:
            self._file.seek(self._offset + self._at)
            data = self._file.read(max(0, min(len(buffer), self._size - self._at)))
        except Exception as error:  # called by C code, which could not pass it on
            self.error, data = error, b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


_running: dict[int | None, subprocess.Popen[bytes]] = {}
"""Commands that run, by the thread that waits for each."""


def end_commands(threads: Iterable[threading.Thread]) -> None:
    """Ends the commands that these threads wait for: they run in sessions of their own, which Ctrl-C does not reach."""
    for thread in threads:
        process = _running.get(thread.ident)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _run(line: str, name: str) -> BinaryIO:
    """What a command writes, in a temporary file; raises AudioError where it fails, is silent or takes too long."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryFile())
        err = stack.enter_context(tempfile.TemporaryFile())
        shell = ["bash", "-o", "pipefail"] if shutil.which("bash") else ["sh"]
        # A session of its own, so that all that it starts can be ended with it.
        process = subprocess.Popen(
            [*shell, "-c", line], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        _running[threading.get_ident()] = process
        try:
            status = process.wait(COMMAND_SECONDS)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself meanwhile
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AudioError(f"'{name}' must give audio within {COMMAND_SECONDS} s, but does not.") from None
        finally:
            del _running[threading.get_ident()]
        if status:
            err.seek(max(0, err.seek(0, os.SEEK_END) - 4096))
            said = " ".join(err.read().decode("utf-8", "replace").split())[-300:]
            raise AudioError(f"'{name}' must end with status 0, but gave {status}: {said or 'no message'}.")
        size = out.seek(0, os.SEEK_END)
        if not size:
            raise AudioError(f"'{name}' must write audio, but wrote nothing.")
        err.close()
        stack.pop_all()
        return io.BufferedReader(_Window(out, 0, size, name))  # type: ignore[return-value]
