"""Which clips make which batch: a pure function of (seed, epoch), so that resuming a run needs two counters only.

N clips   W ranks   A batches accumulated in a step
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SORT_WINDOW = 50
"""Batches' worth of shuffled clips that are sorted by length together: little padding, still a different mix each epoch."""


def plan_epoch(
    seconds: Sequence[float],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    shards: int = 1,
    max_seconds: float | None = None,
) -> list[list[int]]:
    """Groups clips of similar length into the steps of an epoch, shuffled.

    Steps hold clips of all ranks, so without `max_seconds` an epoch is the same on one GPU and on eight. Clips left over wait
    for another epoch, where the shuffle puts others at the end: fewer than `batch_size`, with `max_seconds` than `shards`.

    :param seconds: Length of each clip as it will enter a batch (after cropping).
    :param batch_size: Clips of a step, over all ranks and accumulated batches; a multiple of `shards`.
    :param shards: W * A; a step's clips are a multiple of it.
    :param max_seconds: If given, a step ends where its padded audio would pass this many seconds; at least `shards` times
        the longest clip.
    :returns: Indices into `seconds`, one list a step, ascending in length.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    order = rng.permutation(len(seconds))
    lengths = np.asarray(seconds, dtype=np.float64)
    steps: list[list[int]] = []
    window = batch_size * SORT_WINDOW
    unit = batch_size if max_seconds is None else shards
    # What fills no unit is left out before sorting: by length it would be much the same clips in each epoch.
    order = order[: len(order) - len(order) % unit]
    for begin in range(0, len(order), window):
        part = order[begin : begin + window]
        clips = part[np.argsort(lengths[part], kind="stable")].tolist()
        steps += _cut(clips, lengths, batch_size, unit, max_seconds)
    return [steps[i] for i in rng.permutation(len(steps))]


def _cut(
    clips: list[int], lengths: np.ndarray, batch_size: int, unit: int, max_seconds: float | None
) -> list[list[int]]:
    # A step takes whole units. Clips come in ascending length: a unit's last is the longest, and padding brings all to it.
    steps: list[list[int]] = []
    for begin in range(0, len(clips), unit):
        new = clips[begin : begin + unit]
        size = len(steps[-1]) + unit if steps else batch_size + 1
        if size > batch_size or (max_seconds is not None and size * lengths[new[-1]] > max_seconds):
            steps.append(new)
        else:
            steps[-1].extend(new)
    return steps


def shard(step: list[int], rank: int, ranks: int, accumulate: int) -> list[list[int]]:
    """The A batches of one rank in a step; dealing clips out in turn gives every rank clips of like lengths."""
    return [step[a * ranks + rank :: ranks * accumulate] for a in range(accumulate)]


def plan_validation(seconds: Sequence[float], *, batch_size: int, rank: int, ranks: int) -> list[list[int]]:
    """A rank's batches of a pass that loses no clip: every rank has as many entries, the last ones may be empty."""
    order = [int(i) for i in np.argsort(np.asarray(seconds, dtype=np.float64), kind="stable")[::-1]]
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches += [[]] * (-len(batches) % ranks)
    return batches[rank::ranks]


def crop_start(samples: int, crop: int, *, seed: int, epoch: int, index: int) -> int:
    """First sample of the random crop that clip `index` gets in `epoch`."""
    if samples <= crop:
        return 0
    return int(np.random.default_rng([seed, epoch, 1, index]).integers(0, samples - crop + 1))
