"""Train, dev and test parts: from a column of the labels, or drawn by a seed; never with a speaker on both sides unasked.

N utterances; parts are sorted int64 arrays of row numbers
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.data import ProbeData, ProbeError
from probes.recordings import Recording, Recordings, shared

_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "valid", "validation", "val"),
    "test": ("test", "eval", "evaluation"),
}
"""What the parts are called in corpora; an ending may follow, as in `train-clean-100`."""

_PAIRS = (("train", "test"), ("dev", "test"), ("train", "dev"))

DEV_SHARE = 0.15
"""Share of the training part that is carved out for tuning where the labels name no dev part."""


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, and one sentence on where they come from."""

    train: np.ndarray
    dev: np.ndarray
    test: np.ndarray
    origin: str
    ignored: int = 0
    """Rows that are blank in the column."""


def part_of(value: object) -> str | None:
    """`train`, `dev` or `test`, as a cell of a split column names it; None for anything else."""
    first = re.split(r"[-_. ]", str(value or "").strip().lower(), maxsplit=1)[0]
    return next((part for part, names in _NAMES.items() if first in names), None)


def by_column(values: Sequence[str | None], column: str) -> dict[str, np.ndarray]:
    """Rows of train, dev and test as `values` name them; blanks are in none.

    Raises ProbeError where train, or both dev and test, are empty, or a value names no part: rows of a misspelled one would be missing
    unseen.
    """
    parts = [part_of(v) for v in values]
    rows = {
        name: np.array([i for i, p in enumerate(parts) if p == name], dtype=np.int64)
        for name in ("train", "dev", "test")
    }
    found = ", ".join(f"{k or 'blank'}: {n}" for k, n in sorted(Counter(v or "" for v in values).items())[:8])
    unknown = [v for v, part in zip(values, parts) if v and part is None]
    if unknown:
        raise ProbeError(
            f"The split column `{column}` must name parts ({', '.join(n for names in _NAMES.values() for n in names)}, with any ending "
            f"as in `test-clean`) or be blank, but {len(unknown)} rows have others (the first is '{unknown[0]}'); it has {found}."
        )
    if len(rows["train"]) == 0:
        raise ProbeError(f"The split column `{column}` must name some rows `train`, but names none; it has {found}.")
    if len(rows["dev"]) + len(rows["test"]) == 0:
        raise ProbeError(
            f"The split column `{column}` must name some rows `dev` or `test`, but names none; it has {found}."
        )
    return rows


def from_column(values: Sequence[str | None], column: str, labels: Sequence[str], seed: int, *, groups: bool) -> Split:
    """The split of a column. Where it has no test part, its dev part is the test and a new dev part is drawn from train.

    Carving is by whole label (`groups`: labels are then speakers, say) or within each label.
    """
    rows = by_column(values, column)
    used = sum(len(r) for r in rows.values())
    train, dev, test = rows["train"], rows["dev"], rows["test"]
    if len(test) and len(dev):
        return Split(train, dev, test, f"train, dev and test of column `{column}`", len(values) - used)
    origin = f"train and test of column `{column}`"
    if not len(test):
        test, origin = dev, f"train of column `{column}`, tested on its dev part (it has no test part)"
    train, dev = carve(train, labels, seed, DEV_SHARE, groups=groups)
    how = "whole speakers" if groups else "utterances of each class"
    return Split(train, dev, test, f"{origin}; dev drawn from train ({how}, by seed)", len(values) - used)


def carve(
    rows: np.ndarray, labels: Sequence[str], seed: int, share: float, *, groups: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Splits `rows` in two: about `share` of them go to the second part.

    With `groups` whole labels move, at least one of them; otherwise utterances of each label do, and each label keeps one.
    Raises ProbeError where nothing can move.
    """
    rng = np.random.default_rng([seed, 1])
    members: dict[str, list[int]] = {}
    for i in rows:
        members.setdefault(labels[int(i)], []).append(int(i))
    second: list[int] = []
    if groups:
        names = sorted(members)
        if len(names) < 2:
            raise ProbeError(f"Holding out whole speakers needs at least 2 of them, but there is only '{names[0]}'.")
        take = min(max(1, round(share * len(names))), len(names) - 1)
        for k in rng.permutation(len(names))[:take]:
            second += members[names[k]]
    else:
        for name in sorted(members):
            own = rng.permutation(members[name])
            take = min(max(round(share * len(own)), 1 if len(own) > 2 else 0), len(own) - 1)
            second += own[:take].tolist()
        if not second:
            raise ProbeError(
                f"Holding out utterances needs classes of at least 3 of them, but none of {len(members)} has."
            )
    chosen = np.array(sorted(second), dtype=np.int64)
    return np.setdiff1d(rows, chosen), chosen


def stratified(labels: Sequence[str], seed: int) -> Split:
    """60 / 20 / 20 % of each label's utterances, by seed; each label has at least one in train and one in test."""
    rng = np.random.default_rng([seed, 2])
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for name in sorted(set(labels)):
        own = rng.permutation([i for i, v in enumerate(labels) if v == name]).tolist()
        n_test = max(1, round(0.2 * len(own)))
        n_dev = max(1, round(0.2 * len(own))) if len(own) > 2 else 0
        parts[2].extend(own[:n_test])
        parts[1].extend(own[n_test : n_test + n_dev])
        parts[0].extend(own[n_test + n_dev :])
    train, dev, test = (np.array(sorted(p), dtype=np.int64) for p in parts)
    if not len(dev):
        raise ProbeError(
            "A split drawn by utterance needs a class of at least 3 utterances, but every class has fewer."
        )
    return Split(train, dev, test, "60/20/20 % of each class's utterances, by seed")


def check_classes(labels: Sequence[str], column: str, least: int = 2) -> None:
    """Raises ProbeError where there are fewer than two classes, or one with fewer than `least` utterances."""
    times = Counter(labels)
    if len(times) < 2:
        raise ProbeError(
            f"`{column}` must have at least 2 classes, but has {len(times)} ({', '.join(times) or 'none'})."
        )
    rare = sorted(name for name, n in times.items() if n < least)
    if rare:
        raise ProbeError(
            f"Each class of `{column}` must have at least {least} utterances, but {len(rare)} of {len(times)} have fewer "
            f"(the first is '{rare[0]}' with {times[rare[0]]}); leave them out with `--drop-rare` (in a suite: `rare: true`)."
        )


def check_labels(labels: Sequence[str], ids: Sequence[str], column: str) -> None:
    """Raises ProbeError where labels name the utterances: a head that knows them apart would seem to know the label."""
    if len(labels) > 2 and all(a == b for a, b in zip(labels, ids, strict=True)):
        raise ProbeError(f"`{column}` must be a label, but equals the id of each utterance.")


def check_parts(split: Split, recordings: Sequence[Recording | None]) -> None:
    """Raises ProbeError where an utterance, or some of its sound (None where unknown), is in two parts."""
    parts = {name: [int(i) for i in getattr(split, name)] for name in ("train", "dev", "test")}
    for a, b in _PAIRS:
        both = sorted(set(parts[a]) & set(parts[b]))
        if both:
            raise ProbeError(
                f"The parts of a split must not share utterances, but {a} and {b} both have number {both[0]} ({split.origin})."
            )
        known = Recordings(r for i in parts[a] if (r := recordings[i]) is not None)
        for i in parts[b]:
            own = recordings[i]
            other = known.sharing(own) if own is not None else None
            if other is not None:
                raise ProbeError(
                    f"The parts of a split must not share sound, but {a} has {other} and {b} {own}"
                    f"{', which has the same bytes' if own and own.path != other.path else ''} ({split.origin}); leave one of them out."
                )


def check_apart(recordings: Sequence[Recording | None], what: str) -> None:
    """Raises ProbeError where two of them share sound: of two trials that do, one is of a clip with itself."""
    both = shared(r for r in recordings if r is not None)
    if both:
        raise ProbeError(f"No two of {what} may share sound, but {both[0]} and {both[1]} do; leave one of them out.")


def check_disjoint(split: Split, speakers: Sequence[str], column: str) -> None:
    """Raises ProbeError where a speaker is in two parts."""
    of = {name: {speakers[int(i)] for i in getattr(split, name)} for name in ("train", "dev", "test")}
    for a, b in _PAIRS:
        both = sorted(of[a] & of[b])
        if both:
            raise ProbeError(
                f"The parts of split column `{column}` must not share speakers here, but {len(both)} are in both {a} and {b} "
                f"(the first is '{both[0]}'); name a column that divides by speaker."
            )


def group_folds(groups: Sequence[str], folds: int, seed: int) -> list[np.ndarray]:
    """Test rows of each fold: whole groups, spread so that folds are of about equal size.

    There are min(folds, number of groups) folds; with as many groups as folds it is leave-one-group-out.
    """
    times = Counter(groups)
    names = sorted(times)
    order = [names[k] for k in np.random.default_rng([seed, 3]).permutation(len(names))]
    order.sort(key=lambda name: -times[name])  # stable: equal sizes keep the drawn order
    fold_of: dict[str, int] = {}
    sizes = [0] * min(folds, len(names))
    for name in order:
        smallest = sizes.index(min(sizes))
        fold_of[name] = smallest
        sizes[smallest] += times[name]
    return [np.array([i for i, g in enumerate(groups) if fold_of[g] == k], dtype=np.int64) for k in range(len(sizes))]


def utterance_folds(labels: Sequence[str], folds: int, seed: int) -> list[np.ndarray]:
    """Test rows of each fold: the utterances of each class dealt out by seed, so that folds have like shares of all classes."""
    rng = np.random.default_rng([seed, 3])
    dealt = np.concatenate([rng.permutation([i for i, v in enumerate(labels) if v == c]) for c in sorted(set(labels))])
    return [np.sort(dealt[k::folds]) for k in range(min(folds, len(dealt)))]


def owners(data: ProbeData, column: str | None) -> tuple[list[str], str]:
    """Who is drawn when intervals are made, for each utterance, and whether that is a `speaker` or an `utterance`.

    An utterance where `column`, or `speaker` if it is None, is not known for all.
    """
    known = data.values(column or "speaker")
    if all(known):
        return [str(v) for v in known], "speaker"
    return list(data.ids), "utterance"


def permuted(labels: Sequence[str], parts: Sequence[np.ndarray], seed: int) -> list[str]:
    """The shuffled-labels control: labels change places among the rows of each part, so that class counts stay."""
    out = list(labels)
    rng = np.random.default_rng([seed, 4])
    for rows in parts:
        for i, j in zip(rows, rng.permutation(rows)):
            out[int(i)] = labels[int(j)]
    return out
