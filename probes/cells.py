"""Cells: what one probe finds in one row's frames of one corpus with one seed, each a file of its own, in any order.

Cells of one corpus and row are a group: it opens the frames once and pools them once. Groups may run in several processes.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_tok.errors import JepaTokError
from jepa_tok.files import write_text
from probes.cache import open_frames, pooled
from probes.data import ProbeData
from probes.entries import Clips, View
from probes.suite import Corpus, Task

FORMAT = "jepa-tok-probe-cell/1"

PROTOCOL = 5
"""Raised when the same codes and labels would give other numbers than before: what has an older number is made again."""


@dataclass(frozen=True)
class Cell:
    """One measurement that is to be made."""

    corpus: str
    task: Task
    row: str
    seed: int
    key: str
    """Digest of all that its result depends on."""

    file: str

    def record(self, **found: Any) -> dict[str, Any]:
        """What its file holds."""
        own = {
            "corpus": self.corpus,
            "task": self.task.name,
            "probe": self.task.probe,
            "tokenizer": self.row,
            "seed": self.seed,
        }
        return {"format": FORMAT, "key": self.key, **own, **found}

    def failed(self, error: str, trace: str = "") -> dict[str, Any]:
        """What its file holds where it could not be measured."""
        return self.record(status="failed", error=" ".join(error.split()), trace=trace)


@dataclass
class Group:
    """Cells of one corpus and one row."""

    corpus: Corpus
    view: View
    frames: Path
    cells: list[Cell]


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """The record of a cell that was measured under this key; None where there is none, or it failed."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    good = isinstance(record, dict) and record.get("format") == FORMAT and record.get("key") == key
    return record if good and record.get("status") == "ok" else None


def measure(group: Group, folder: Path, device: str, commit: str | None) -> Iterator[dict[str, Any]]:
    """Measures and writes the cells of a group; gives their records. An error is its cell's alone."""
    try:
        frames = open_frames(group.frames, [u.id for u in group.corpus.utterances])
        clips = Clips(frames, pooled(group.frames, PROTOCOL), group.view)
    except JepaTokError as error:
        yield from (cell.failed(str(error)) for cell in group.cells)
        return
    prepared: dict[str, ProbeData] = {}
    for cell in group.cells:
        began, own = time.monotonic(), time.process_time()
        try:
            if cell.task.name not in prepared:
                prepared[cell.task.name] = cell.task.prepare(clips.data(group.corpus.utterances))
            data = prepared[cell.task.name]
            outcome = cell.task.run(data, clips.source(data), cell.seed, device)
            record = cell.record(
                status="ok",
                rows=[row.as_dict() for row in outcome.rows],
                better=outcome.better,
                splits=outcome.splits,
                settings=outcome.settings,
                notes=outcome.notes,
                counts=data.counts,
                seconds=round(time.monotonic() - began, 2),
                cpu_seconds=round(time.process_time() - own, 2),  # other work on the machine does not count
                commit=commit,
            )
            text = _json(record)
        except JepaTokError as error:
            record = cell.failed(str(error))
            text = _json(record)
        except Exception as error:  # a fault of ours, or too little memory: the other cells may still do
            record = cell.failed(f"{type(error).__name__}: {error}", traceback.format_exc())
            text = _json(record)
        write_text(folder / cell.file, text)
        yield record


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def execute(
    groups: Sequence[Group], folder: Path, jobs: int, device: str, commit: str | None
) -> Iterator[dict[str, Any]]:
    """The records of all cells as they come, measured in this process or in `jobs` others."""
    if jobs == 1 or len(groups) < 2:
        for group in groups:
            yield from measure(group, folder, device, commit)
        return
    context = multiprocessing.get_context("spawn")
    done = context.Manager().Queue()
    left = {cell.file: cell for group in groups for cell in group.cells}
    pool = ProcessPoolExecutor(min(jobs, len(groups)), context, initializer=_one_thread)
    try:
        futures = [pool.submit(_work, group, folder, device, commit, done) for group in groups]
        while left:
            ended = all(f.done() for f in futures)
            try:
                record = done.get(timeout=0.2)
            except queue.Empty:
                if ended:
                    break
                continue
            del left[record["file"]]
            yield record["record"]
        for cell in left.values():
            yield cell.failed("the process that measured it has died; is there memory enough for `--jobs`?")
        for future in futures:
            error = future.exception()
            if error is not None and not isinstance(error, BrokenProcessPool):
                raise error
    finally:
        for process in list(getattr(pool, "_processes", None) or {}):
            pool._processes[process].terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _work(group: Group, folder: Path, device: str, commit: str | None, done: Any) -> None:
    for cell, record in zip(group.cells, measure(group, folder, device, commit), strict=True):
        done.put({"file": cell.file, "record": record})


def _one_thread() -> None:
    """Workers share the cores by being several."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started them ends them
    torch.set_num_threads(1)
