"""Codes, latents and log-mels of a corpus on disk: made once, gone on with after an interruption, read as a memory map.

    FOLDER/frames.bin   the frames of all clips end to end, little-endian, [sum of T, W]
    FOLDER/rows.jsonl   a line a clip: id, its number of frames, its number of samples
    FOLDER/cache.json   dtype and W; there only when all clips are
    FOLDER/pooled-*.npz one vector a clip, dense or CSR; the number is that of the protocol that pooled them

A clip counts when its line is whole and its frames are there: frames are written first. The folder's name is the caller's key.
What is broken afterwards is mended when the folder is filled again: leading clips that are whole stay, the others are made anew.

    N utterances   T frames   W values of a frame
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from jepa_tok.corpus.utterance import Utterance, one_line
from jepa_tok.files import atomic_writer, lock_folder, unlock, write_text
from probes.data import ProbeError
from probes.places import writing
from probes.progress import say

FORMAT = "jepa-tok-probe-cache/1"

Make = Callable[[Utterance], tuple[np.ndarray, int]]
"""An utterance's frames [T, W] with T >= 1, and its number of samples."""


@dataclass
class Frames:
    """Frames of N clips, in the order of the corpus; nothing is read before it is asked for."""

    ids: list[str]
    num_samples: list[int]
    starts: np.ndarray
    """int64 [N + 1]: where each clip starts, and the end."""

    data: np.ndarray
    """[sum of T, W], a memory map."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> np.ndarray:
        """Clip i: [T, W], a view."""
        return self.data[self.starts[i] : self.starts[i + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))


def fill(
    folder: Path,
    utterances: Sequence[Utterance],
    make: Make,
    dtype: np.dtype,
    done: Callable[[int], None],
    width: int | None = None,
) -> Frames:
    """The frames of `utterances`, of which only those that `folder` lacks are made; `done` is told how many are there.

    `dtype` is that of the file: values beyond it are an error; `width` is W where it is known. A folder that is cut short, broken or
    of other dtype, W or clips is mended, and a line on stderr says so. Raises CorpusError where another process fills the folder,
    StorageError where it cannot be written, ProbeError where what `make` gives does not fit; what `make` raises goes through, and
    what was made before stays.
    """
    ids = [u.id for u in utterances]
    found = _whole(folder, ids, dtype, width)
    if found is not None:
        done(len(utterances))
        return found
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(
            folder, f"'{folder}' is being filled by another process; wait for it, or give another `--cache`."
        )
    try:
        # Whoever had the lock may have finished it by now.
        found = _whole(folder, ids, dtype, width)
        if found is None:
            with writing(folder):
                rows = _recover(folder, ids, dtype, width)
            done(len(rows))
            _go_on(folder, utterances, make, dtype, rows, done, width)
    finally:
        unlock(lock)
    return found or open_frames(folder, ids)


def _whole(folder: Path, ids: Sequence[str], dtype: np.dtype, width: int | None) -> Frames | None:
    """The frames of a finished folder; None where it is not whole, or of another dtype or W."""
    if not (folder / "cache.json").is_file():
        return None
    try:
        found = open_frames(folder, ids)
    except ProbeError:
        return None
    fits = found.data.dtype == dtype.newbyteorder("<") and width in (None, found.data.shape[1])
    return found if fits else None


def _go_on(
    folder: Path,
    utterances: Sequence[Utterance],
    make: Make,
    dtype: np.dtype,
    rows: list[dict[str, Any]],
    done: Callable[[int], None],
    width: int | None,
) -> None:
    """Makes the clips behind `rows`, appends them, and closes the folder with its cache.json."""
    little = dtype.newbyteorder("<")
    width = rows[0]["width"] if rows else width
    kept = len(rows)
    with writing(folder), contextlib.ExitStack() as files:
        # Unbuffered: what a full disk refused would be written once more on closing.
        frames = files.enter_context((folder / "frames.bin").open("ab", buffering=0))
        lines = files.enter_context((folder / "rows.jsonl").open("ab", buffering=0))
        while len(rows) < len(utterances):
            u = utterances[len(rows)]
            made, samples = _made(make, u)
            if kept and len(rows) == kept and made.ndim == 2 and made.shape[1] != width:
                say(f"'{folder}' has frames of {width} values, not {made.shape[1]}: it is made anew")
                frames.truncate(0)
                lines.truncate(0)
                rows.clear()
                kept, width = 0, None
                continue
            width = _check(made, width, u, dtype)
            _append(frames, np.ascontiguousarray(made, little).tobytes())
            row = {"id": u.id, "frames": len(made), "samples": samples, "width": width, "dtype": little.str}
            _append(lines, (json.dumps(row, ensure_ascii=False) + "\n").encode())
            rows.append(row)
            done(len(rows))
        for file in (frames, lines):
            os.fsync(file.fileno())
        head = {"format": FORMAT, "dtype": little.str, "width": width, "utterances": len(rows)}
        write_text(folder / "cache.json", json.dumps(head) + "\n")


def _made(make: Make, u: Utterance) -> tuple[np.ndarray, int]:
    """What `make` gives; its OSErrors are no fault of the cache's."""
    try:
        return make(u)
    except OSError as error:
        raise ProbeError(f"'{u.id}' ('{u.path}') must be readable, but is not: {one_line(error)}.") from None


def _append(file: FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def open_frames(folder: Path, ids: Sequence[str]) -> Frames:
    """The frames of a finished folder; raises ProbeError where it is not whole, or of other clips than `ids`."""
    try:
        head = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_bytes().splitlines()]
        starts = np.concatenate([[0], np.cumsum([row["frames"] for row in rows], dtype=np.int64)]).astype(np.int64)
        shape = (int(starts[-1]), int(head["width"]))
        data = np.memmap(folder / "frames.bin", np.dtype(head["dtype"]), "r", shape=shape)
        whole = head["format"] == FORMAT and [row["id"] for row in rows] == list(ids)
        whole = whole and (folder / "frames.bin").stat().st_size == data.nbytes
        samples = [int(row["samples"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ProbeError(f"'{folder}' must be a whole cache, but is not ({one_line(error)}); delete it.") from None
    if not whole:
        raise ProbeError(
            f"'{folder}' must hold the clips of this corpus, but holds others, or is cut short; delete it."
        )
    return Frames(list(ids), samples, starts, np.asarray(data))


def pooled(folder: Path, version: int, make: Callable[[], Any] | None = None) -> Any:
    """float32 [N, F], an array or CSR: what `make` gave when it was first asked for; made anew where the file is broken.

    Raises ProbeError where it is not there or broken and cannot be made, StorageError where it cannot be written.
    """
    path = folder / f"pooled-{version}.npz"
    if make is not None and path.exists():
        try:
            return _read_pooled(path)
        except ProbeError:
            say(f"'{path}' is broken: it is made anew")
    if make is not None:
        _write_pooled(path, make())
    return _read_pooled(path)


def _write_pooled(path: Path, x: Any) -> None:
    from scipy import sparse

    with writing(path.parent), atomic_writer(path) as file:
        if sparse.issparse(x):
            np.savez(file, data=x.data, indices=x.indices, indptr=x.indptr, shape=np.array(x.shape))
        else:
            np.savez(file, dense=x)


def _read_pooled(path: Path) -> Any:
    from scipy import sparse

    try:
        with np.load(path, allow_pickle=False) as found:
            if "dense" in found:
                return found["dense"]
            parts = (found["data"], found["indices"], found["indptr"])
            return sparse.csr_array(parts, shape=tuple(found["shape"].tolist()))
    except Exception as error:  # a broken archive raises anything: EOFError, BadZipFile, NotImplementedError, ...
        raise ProbeError(
            f"'{path}' must hold pooled statistics, but does not ({one_line(error)}); delete it."
        ) from None


def _recover(folder: Path, ids: Sequence[str], dtype: np.dtype, width: int | None) -> list[dict[str, Any]]:
    """Rows of what an interrupted run left whole, or of a finished folder that was broken; the rest is cut off.

    None are kept of another dtype or W. What was pooled of a finished folder goes, and a line says so.
    """
    head, lines, frames = folder / "cache.json", folder / "rows.jsonl", folder / "frames.bin"
    little = dtype.newbyteorder("<").str
    rows: list[dict[str, Any]] = []
    there = frames.stat().st_size if frames.exists() else 0
    kept, used = 0, 0
    finished = head.exists()
    of_it = not finished or _dtype(head) in (None, little)
    for line in lines.read_bytes().split(b"\n")[:-1] if of_it and lines.exists() else []:
        try:
            row = json.loads(line)
            sizes = [row[name] for name in ("frames", "width", "samples")]
            fits = row["id"] == ids[len(rows)] and row.get("dtype", little) == little
            fits = fits and all(type(n) is int for n in sizes) and min(sizes[:2]) > 0
            fits = fits and row["width"] == (rows[0]["width"] if rows else width or row["width"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            break
        if not fits or used + sizes[0] * sizes[1] * dtype.itemsize > there:
            break
        rows.append(row)
        kept, used = kept + len(line) + 1, used + sizes[0] * sizes[1] * dtype.itemsize
    if finished:
        say(f"'{folder}' was whole, but is broken or of something else: {len(rows)} of {len(ids)} clips stay")
        head.unlink()
        for pool in folder.glob("pooled-*.npz"):
            pool.unlink()
    for path, size in ((lines, kept), (frames, used)):
        if path.exists() and path.stat().st_size != size:
            os.truncate(path, size)
    return rows


def _dtype(head: Path) -> str | None:
    """The dtype that a cache.json names; None where it is broken."""
    try:
        return str(json.loads(head.read_text(encoding="utf-8"))["dtype"])
    except (ValueError, KeyError, TypeError):
        return None


def _check(made: np.ndarray, width: int | None, u: Utterance, dtype: np.dtype) -> int:
    if made.ndim != 2 or not len(made) or (width is not None and made.shape[1] != width):
        raise ProbeError(f"Frames of '{u.id}' must be [T, {width or 'W'}] with T >= 1, but are {list(made.shape)}.")
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise ProbeError(f"Frames of '{u.id}' must be finite, but are not.")
    if dtype.kind == "u" and (int(made.min()) < 0 or int(made.max()) > np.iinfo(dtype).max):
        raise ProbeError(f"Codes of '{u.id}' must lie in 0..{np.iinfo(dtype).max}, but reach {int(made.max())}.")
    return int(made.shape[1])
