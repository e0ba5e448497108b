"""Codes, latents and log-mels of a corpus on disk: made once, gone on with after an interruption, read as a memory map.

    FOLDER/frames.bin   the frames of all clips end to end, little-endian, [sum of T, W]
    FOLDER/rows.jsonl   a line a clip: id, its number of frames, its number of samples
    FOLDER/cache.json   dtype and W; there only when all clips are
    FOLDER/pooled-*.npz one vector a clip, dense or CSR; the number is that of the protocol that pooled them

A clip counts when its line is whole and its frames are there: frames are written first. The folder's name is the caller's key.

    N utterances   T frames   W values of a frame
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_tok.corpus.utterance import Utterance, one_line
from jepa_tok.files import atomic_writer, lock_folder, unlock, write_text
from probes.data import ProbeError

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
    folder: Path, utterances: Sequence[Utterance], make: Make, dtype: np.dtype, done: Callable[[int], None]
) -> Frames:
    """The frames of `utterances`, of which only those that `folder` lacks are made; `done` is told how many are there.

    `dtype` is that of the file: values beyond it are an error. Raises ProbeError where another process fills the folder, or what
    `make` gives does not fit; what `make` raises goes through, and what was made before stays.
    """
    if (folder / "cache.json").is_file():
        done(len(utterances))
        return open_frames(folder, [u.id for u in utterances])
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(
        folder, f"'{folder}' is being filled by another process; wait for it, or give another `--cache`."
    )
    try:
        width, rows = _recover(folder, [u.id for u in utterances], dtype)
        done(len(rows))
        with (folder / "frames.bin").open("ab") as frames, (folder / "rows.jsonl").open("ab") as lines:
            for u in utterances[len(rows) :]:
                made, samples = make(u)
                width = _check(made, width, u, dtype)
                frames.write(np.ascontiguousarray(made, dtype.newbyteorder("<")).tobytes())
                frames.flush()
                row = {"id": u.id, "frames": len(made), "samples": samples, "width": width}
                lines.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
                lines.flush()
                rows.append(row)
                done(len(rows))
            for file in (frames, lines):
                os.fsync(file.fileno())
        head = {"format": FORMAT, "dtype": dtype.newbyteorder("<").str, "width": width, "utterances": len(rows)}
        write_text(folder / "cache.json", json.dumps(head) + "\n")
    finally:
        unlock(lock)
    return open_frames(folder, [u.id for u in utterances])


def open_frames(folder: Path, ids: Sequence[str]) -> Frames:
    """The frames of a finished folder; raises ProbeError where it is not whole, or of other clips than `ids`."""
    try:
        head = json.loads((folder / "cache.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        starts = np.concatenate([[0], np.cumsum([row["frames"] for row in rows], dtype=np.int64)]).astype(np.int64)
        shape = (int(starts[-1]), int(head["width"]))
        data = np.memmap(folder / "frames.bin", np.dtype(head["dtype"]), "r", shape=shape)
        whole = head["format"] == FORMAT and [row["id"] for row in rows] == list(ids)
        whole = whole and (folder / "frames.bin").stat().st_size == data.nbytes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"'{folder}' must be a whole cache, but is not ({one_line(error)}); delete it.") from None
    if not whole:
        raise ProbeError(
            f"'{folder}' must hold the clips of this corpus, but holds others, or is cut short; delete it."
        )
    return Frames(list(ids), [int(row["samples"]) for row in rows], starts, np.asarray(data))


def pooled(folder: Path, version: int, make: Callable[[], Any] | None = None) -> Any:
    """float32 [N, F], an array or CSR: what `make` gave when it was first asked for.

    Raises ProbeError where it is not there and cannot be made, or the file is broken.
    """
    from scipy import sparse

    path = folder / f"pooled-{version}.npz"
    if make is not None and not path.exists():
        x = make()
        with atomic_writer(path) as file:
            if sparse.issparse(x):
                np.savez(file, data=x.data, indices=x.indices, indptr=x.indptr, shape=np.array(x.shape))
            else:
                np.savez(file, dense=x)
    try:
        with np.load(path, allow_pickle=False) as found:
            if "dense" in found:
                return found["dense"]
            parts = (found["data"], found["indices"], found["indptr"])
            return sparse.csr_array(parts, shape=tuple(found["shape"].tolist()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ProbeError(
            f"'{path}' must hold pooled statistics, but does not ({one_line(error)}); delete it."
        ) from None


def _recover(folder: Path, ids: Sequence[str], dtype: np.dtype) -> tuple[int | None, list[dict[str, Any]]]:
    """Width and rows of what an interrupted run left whole; the rest is cut off."""
    rows: list[dict[str, Any]] = []
    lines, frames = folder / "rows.jsonl", folder / "frames.bin"
    there = frames.stat().st_size if frames.exists() else 0
    kept, used, width = 0, 0, None
    for line in lines.read_bytes().splitlines(keepends=True) if lines.exists() else []:
        try:
            row = json.loads(line)
            size = row["frames"] * row["width"] * dtype.itemsize
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n") or used + size > there or len(rows) >= len(ids) or row["id"] != ids[len(rows)]:
            break
        rows.append(row)
        kept, used, width = kept + len(line), used + size, row["width"]
    for path, size in ((lines, kept), (frames, used)):
        if path.exists():
            os.truncate(path, size)
    return width, rows


def _check(made: np.ndarray, width: int | None, u: Utterance, dtype: np.dtype) -> int:
    if made.ndim != 2 or not len(made) or (width is not None and made.shape[1] != width):
        raise ProbeError(f"Frames of '{u.id}' must be [T, {width or 'W'}] with T >= 1, but are {list(made.shape)}.")
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise ProbeError(f"Frames of '{u.id}' must be finite, but are not.")
    if dtype.kind == "u" and (int(made.min()) < 0 or int(made.max()) > np.iinfo(dtype).max):
        raise ProbeError(f"Codes of '{u.id}' must lie in 0..{np.iinfo(dtype).max}, but reach {int(made.max())}.")
    return int(made.shape[1])
