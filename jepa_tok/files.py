"""Paths that may be URLs, and files that appear whole or not at all.

A local path is a `pathlib.Path`. A URL of any protocol that fsspec knows (s3, gs, az, hf, memory, ...) is a `upath.UPath`, which
has the same methods, so that the code above does not tell them apart.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import platform
import re
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jepa_tok.errors import CorpusError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+://|^[a-z0-9]+::")


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URL (`protocol://...`) rather than a local path; `file://` and `local://` count as local."""
    text = str(path)
    return bool(_URL.match(text)) and not text.startswith(("file://", "local://"))


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path, or where it is a URL as an object with a Path's methods.

    Raises CorpusError where nothing installed opens URLs of that protocol, where it takes more than a URL, and where a server that
    its file system asks at once cannot be reached.
    """
    if isinstance(path, Path) or hasattr(path, "fs"):
        return path  # type: ignore[return-value]
    text = os.fspath(path)
    if not is_url(text):
        return Path(re.sub(r"^(file|local)://", "", text))
    # It would warn of file systems that it has no class of its own for; those that do not do end in an error.
    warnings.filterwarnings("ignore", "UPath .* filesystem not explicitly implemented", UserWarning)
    from upath import UPath

    try:
        made: Any = UPath(text)
        made.fs  # noqa: B018  (the file system is looked up here)
    except (ImportError, ValueError, KeyError) as error:
        raise CorpusError(f"{text}: nothing that is installed opens URLs of this protocol: {_reason(error)}.") from None
    except (TypeError, AttributeError):
        raise CorpusError(
            f"{text}: a URL must tell all that its file system needs, but this protocol's needs more; name the files in it by another."
        ) from None
    except Exception as error:  # remote file systems raise errors of their own kinds
        raise CorpusError(f"{text}: cannot be read: {_reason(error)}.") from None
    return made


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def without_query(path: str | os.PathLike[str]) -> str:
    """`path` as text; where it is a URL of a web server, without its query, such as the signature of a presigned one."""
    text = str(path)
    return text.partition("?")[0] if text.startswith(("http://", "https://")) else text


def glob_in(folder: Path, pattern: str) -> list[Path]:
    """What `folder` holds by names that match `pattern`, in no order; nothing where there is no such folder.

    `[`, `?` and `*` in the name of the folder itself are no pattern, which for URLs they are to `Path.glob`.
    """
    if not is_url(folder):
        return list(folder.glob(pattern))
    return [p for p in folder.iterdir() if fnmatch.fnmatchcase(p.name, pattern)] if folder.is_dir() else []


def remove(path: Path, missing_ok: bool = False) -> None:
    """Removes one file; as for `glob_in`, a URL is no pattern, which it is to `Path.unlink`."""
    if not is_url(path):
        path.unlink(missing_ok=missing_ok)
    elif not missing_ok or path.exists():
        remote: Any = path
        remote.fs.rm_file(remote.path)


def move(path: Path, target: Path) -> None:
    """Moves one file, in place of `target` where that is there; as for `glob_in`, URLs are no patterns."""
    if not is_url(path):
        path.replace(target)
        return
    target.write_bytes(path.read_bytes())
    remove(path)


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that takes its place at `path` when the block ends, and leaves nothing where it fails.

    On a local disk: written beside it (`temporary_name`), synced, renamed. Object stores show an object only when its upload is complete.
    """
    target = as_path(path)
    if is_url(target):
        import io

        # Held in memory: leaving an upload by an exception would complete it on some stores.
        buffer = io.BytesIO()
        yield buffer
        target.write_bytes(buffer.getvalue())
        return
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path on a local disk, for those who write by name: synced and renamed when the block ends, as `atomic_writer`."""
    target = Path(path)
    temporary = target.with_name(temporary_name(target.name))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def temporary_name(name: str) -> str:
    """`name`.XXXXXXXX.tmp, of this process alone: two that write one file, perhaps on two machines, do not write into each other's."""
    who = zlib.crc32(f"{platform.node()}/{os.getpid()}/{threading.get_ident()}".encode())
    return f"{name}.{who:08x}.tmp"


def final_name(name: str) -> str:
    """Inverse of `temporary_name`; other names stay as they are."""
    return re.sub(r"\.[0-9a-f]{8}\.tmp$", "", name)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, whole or not at all; line feeds stay as they are."""
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def lock_folder(folder: Path, busy: str) -> int | None:
    """Takes a local folder for this process, until the descriptor that it gives is closed or the process ends, however that be.

    None, and no lock, where the system has none (nor do some network file systems). Raises CorpusError with the message
    `busy` where another process has the folder.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CorpusError(busy) from None
    except OSError:
        pass
    return descriptor


def unlock(descriptor: int | None) -> None:
    """Gives a folder free that `lock_folder` took."""
    if descriptor is not None:
        os.close(descriptor)
