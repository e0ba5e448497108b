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

    Steps hold clips of all ranks, so an epoch is the same on one GPU and on eight. Clips left over (fewer than a step's)
    wait for another epoch, where the shuffle puts others at the end.

    :param seconds: Length of each clip as it will enter a batch (after cropping).
    :param batch_size: Clips of a step, over all ranks and accumulated batches.
    :param shards: W * A; a step's clips are a multiple of it.
    :param max_seconds: If given, a step ends where its padded audio would pass this many seconds.
    :returns: Indices into `seconds`, one list a step, ascending in length.
    """
    rng = np.random.default_rng([seed, epoch, 0])
    order = rng.permutation(len(seconds))
    lengths = np.asarray(seconds, dtype=np.float64)
    steps: list[list[int]] = []
    window = batch_size * SORT_WINDOW
    rest: list[int] = []
    for begin in range(0, len(order), window):
        part = np.concatenate([np.asarray(rest, dtype=np.int64), order[begin : begin + window]])
        part = part[np.argsort(lengths[part], kind="stable")]
        rest = []
        for step in _cut([int(i) for i in part], lengths, batch_size, max_seconds):
            whole = len(step) - len(step) % shards
            if max_seconds is None and len(step) < batch_size:
                whole = 0  # an incomplete step goes on to the next window
            if whole:
                steps.append(step[:whole])
            rest.extend(step[whole:])
    return [steps[i] for i in rng.permutation(len(steps))]


def _cut(clips: list[int], lengths: np.ndarray, batch_size: int, max_seconds: float | None) -> list[list[int]]:
    # Clips come in ascending length: the newest is the longest, and padding brings all to it.
    if max_seconds is None and len(clips) % batch_size:
        # The remainder is cut from the middle of the lengths, not always from the longest clips.
        middle = (len(clips) // batch_size + 1) // 2 * batch_size
        extra = len(clips) % batch_size
        clips, spare = clips[:middle] + clips[middle + extra :], clips[middle : middle + extra]
    else:
        spare = []
    steps: list[list[int]] = []
    for clip in clips:
        step = steps[-1] if steps else None
        full = step is None or len(step) == batch_size
        if not full and max_seconds is not None:
            full = (len(step or ()) + 1) * lengths[clip] > max_seconds
        if full:
            steps.append([clip])
        else:
            steps[-1].append(clip)
    return [*steps, spare] if spare else steps


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
