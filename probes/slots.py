"""Which part of a frame carries what? Groups of digits (tokens), single digits, neighbouring frames, places within a frame.

N utterances   T frames   D code dimensions   G groups of them   K classes   R mel readouts (sub-frames x filters)   O offsets
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes import features, intervals, splits
from probes.data import ProbeData
from probes.entries import Clips
from probes.results import summary
from probes.suite import Task

OFFSETS = (-3, -2, -1, 0, 1, 2, 3)
"""Frames read besides a frame's own, by their distance."""

FILTERS = 20
RIDGE = 10.0
"""Penalty of the readout of log-mels: as ten frames that say nothing."""

TEST_SHARE = 0.25


def groups_of(dims: int, size: int) -> list[np.ndarray]:
    """Dimensions of each group: `size` in a row, the last may have fewer."""
    return np.split(np.arange(dims), range(size, dims, size))


@dataclass
class Part:
    """Some dimensions of the codes as an `inputs.Source` of pooled statistics."""

    x: Any
    """float32 [N, F]"""

    name: str = "tokens"
    note: str = ""

    def pooled(self, seed: int) -> Any:
        """float32 [N, F], the same for all seeds."""
        return self.x

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """Probes over time are not run on parts."""
        raise NotImplementedError


def by_group(clips: Clips, data: ProbeData, task: Task, groups: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """What the task's own probe finds in the digits of each group alone, pooled as all digits are; labels shuffled beside it.

    `data` comes from `task.prepare`. Its main metric alone is told.
    """
    radices = np.asarray(clips.view.meta.radices)
    own = list(data.codes)
    found: dict[str, Any] = {"parts": [], "shuffled": []}
    for dims in groups:
        x = features.pool_all([codes[:, dims] for codes in own], radices[dims].tolist())
        outcome = task.run(data, Part(x), seed, "cpu")
        metric, better = next(iter(outcome.better.items()))
        rows = {row.input: row.metrics.get(metric) for row in outcome.rows}
        found["parts"].append(summary(rows["tokens"] or []))
        found["shuffled"].append(summary(rows["shuffled"] or [])["mean"])
        found |= {"metric": metric, "better": better, "chance": summary(rows["chance"] or [])["mean"]}
    return found


def by_digit(data: ProbeData, column: str) -> list[float]:
    """Omega squared of each dimension: the share of the variance between clips, of its mean value in each, that classes explain.

    Hays (Statistics, 1963); without the bias of eta squared: 0 is expected where a dimension knows nothing, and values may be
    below it. One-way analysis of variance, classes as they are.
    """
    radices = data.meta.radices
    x = np.stack([features.values_of(codes, radices).mean(0) for codes in data.codes]).astype(np.float64)  # [N, D]
    _, places = np.unique([str(v) for v in data.values(column)], return_inverse=True)
    sizes = np.bincount(places)
    sums = np.zeros((len(sizes), x.shape[1]))
    np.add.at(sums, places, x)
    total = np.square(x - x.mean(0)).sum(0)
    between = (sizes[:, None] * np.square(sums / sizes[:, None] - x.mean(0))).sum(0)
    within = (total - between) / max(1, len(x) - len(sizes))
    share = np.divide(between - (len(sizes) - 1) * within, total + within, out=np.zeros_like(total), where=total > 0)
    return np.round(share, 5).tolist()


def divide(owners: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that the readout of log-mels is fitted on and tested on: whole owners, where there are three.

    Raises ProbeError where none can be tested.
    """
    return splits.carve(np.arange(len(owners)), list(owners), seed, TEST_SHARE, groups=len(set(owners)) > 2)


def mel_readout(
    clips: Clips, mels: Sequence[np.ndarray], owners: Sequence[str], by: str, groups: Sequence[np.ndarray], seed: int
) -> dict[str, Any]:
    """How much of a frame's log-mels a linear map reads from one-hot digits: R² on speakers that it was not fitted on.

    `mels` are those of `read_mels`, in the frames of the codes. Gives `all` with its interval, `subframes` [G][subframes] and
    `offsets` [G][O]: the digits of frame t + o against the log-mels of frame t.
    """
    radices = np.asarray(clips.view.meta.radices)
    frames = [codes[: len(m)] for codes, m in zip(clips.frames, mels)]
    targets = [m[: len(codes)] for codes, m in zip(frames, mels)]
    train, test = divide(owners, seed)
    shape = targets[0].shape[1:]
    heard = np.concatenate([targets[int(i)] for i in train]).reshape(-1, int(np.prod(shape)))
    mean = np.nansum(heard, 0) / np.maximum(np.isfinite(heard).sum(0), 1)  # [R]

    def pairs(rows: np.ndarray, dims: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One-hot digits [n, F], log-mels less their mean [n, R], and which of `rows` each frame is of [n]."""
        xs, ys, of = [], [], []
        for k, i in enumerate(map(int, rows)):
            size = len(frames[i])
            low, high = max(0, -offset), min(size, size - offset)
            if low < high:
                xs.append(features.one_hot(frames[i][low + offset : high + offset][:, dims], radices[dims].tolist()))
                ys.append(targets[i][low:high].reshape(high - low, -1) - mean)
                of.append(np.full(high - low, k))
        if not xs:
            return np.zeros((0, int(radices[dims].sum())), np.float32), np.zeros((0, len(mean))), np.zeros(0, np.int64)
        return np.concatenate(xs), np.concatenate(ys), np.concatenate(of)

    def errors(dims: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared errors and squares of the test frames [n, R], and which test clip each is of."""
        x, y, _ = pairs(train, dims, offset)
        center = x.mean(0) if len(x) else 0.0
        gram = (x - center).T @ (x - center) + RIDGE * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, (x - center).T @ np.nan_to_num(y))
        x, y, of = pairs(test, dims, offset)
        return np.nan_to_num(np.square(y - (x - center) @ weights)), np.nan_to_num(np.square(y)), of

    def share(error: np.ndarray, square: np.ndarray, axes: Any) -> list[Any]:
        """R² over `axes`; None where no test frame is left."""
        values = zip(np.atleast_1d(error.sum(axes)), np.atleast_1d(square.sum(axes)))
        return [round(1 - float(above / below), 5) if below > 0 else None for above, below in values]

    found: dict[str, Any] = {"subframes": [], "offsets": []}
    for dims in groups:
        error, square, _ = errors(dims, 0)
        whole = {0: (error, square)} | {o: errors(dims, o)[:2] for o in OFFSETS if o}
        found["offsets"].append([value for o in OFFSETS for value in share(*whole[o], None)])
        found["subframes"].append(share(error.reshape(-1, *shape), square.reshape(-1, *shape), (0, 2)))
    if int(radices.sum()) <= features.DENSE_LEVELS:
        error, square, of = errors(np.arange(len(radices)), 0)
        above, below = (np.bincount(of, part.sum(1), len(test)) for part in (square - error, square))
        found["all"] = summary([intervals.ratio([owners[int(i)] for i in test], above, below, by)])
    return found


def read_mels(waves: Iterable[Any], sample_rate: int, hop: int, subframes: int) -> list[np.ndarray]:
    """Log-mels float32 [T, subframes, FILTERS] of each wave, in frames of `hop` samples; NaN past its end, where silence is no merit."""
    found = []
    for wave in waves:
        mels = features.mel_frames(wave, sample_rate, hop, subframes, FILTERS)
        mels.reshape(-1, FILTERS)[-(-len(wave) * subframes // hop) :] = np.nan
        found.append(mels)
    return found
