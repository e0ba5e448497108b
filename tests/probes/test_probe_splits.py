"""Splits: nothing lost, nothing twice, no speaker where it must not be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import splits
from probes.data import ProbeError

LABELS = st.lists(st.sampled_from("abcde"), min_size=6, max_size=60)


def _whole(split: splits.Split, size: int) -> bool:
    return sorted([*split.train, *split.dev, *split.test]) == list(range(size))


@given(LABELS.filter(lambda v: min(Counter(v).values()) >= 2 and max(Counter(v).values()) >= 3), st.integers(0, 5))
def test_stratified_keeps_every_class_in_train_and_test(labels: list[str], seed: int) -> None:
    split = splits.stratified(labels, seed)
    assert _whole(split, len(labels))
    assert {labels[i] for i in split.train} == {labels[i] for i in split.test} == set(labels)
    again = splits.stratified(labels, seed)
    assert all(
        (a == b).all() for a, b in ((split.train, again.train), (split.dev, again.dev), (split.test, again.test))
    )


@given(LABELS, st.integers(2, 6), st.integers(0, 5))
def test_folds_cover_all_and_never_cut_a_group(groups: list[str], folds: int, seed: int) -> None:
    parts = splits.group_folds(groups, folds, seed)
    assert len(parts) == min(folds, len(set(groups)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    owners = [{groups[i] for i in part} for part in parts]
    assert sum(map(len, owners)) == len(set(groups))
    assert all(len(part) for part in parts)


@given(LABELS.filter(lambda v: len(set(v)) > 1), st.integers(0, 5))
def test_carving_by_group_never_cuts_one(groups: list[str], seed: int) -> None:
    first, second = splits.carve(np.arange(len(groups)), groups, seed, 0.3, groups=True)
    assert len(first) and len(second) and sorted([*first, *second]) == list(range(len(groups)))
    assert not {groups[i] for i in first} & {groups[i] for i in second}


@given(LABELS, st.integers(0, 5))
def test_permuted_keeps_counts_in_each_part(labels: list[str], seed: int) -> None:
    parts = [np.arange(0, len(labels) // 2), np.arange(len(labels) // 2, len(labels))]
    out = splits.permuted(labels, parts, seed)
    for part in parts:
        assert Counter(out[i] for i in part) == Counter(labels[i] for i in part)


def test_column_without_test_is_tested_on_dev() -> None:
    values = ["train"] * 12 + ["dev"] * 4 + [None]
    labels = ["a", "b", "c"] * 4 + ["a", "b", "c", "a"] + ["a"]
    split = splits.from_column(values, "split", labels, 0, groups=False)
    assert split.test.tolist() == [12, 13, 14, 15] and split.ignored == 1
    assert sorted([*split.train, *split.dev]) == list(range(12)) and len(split.dev) == 3
    assert "no test part" in split.origin


@pytest.mark.parametrize("values", [["dev", "test"], ["train", "train"], [None, None]])
def test_empty_parts_are_refused(values: list[str | None]) -> None:
    with pytest.raises(ProbeError, match="split column `split` must name"):
        splits.by_column(values, "split")


def test_shared_speakers_are_refused() -> None:
    split = splits.Split(np.array([0, 1]), np.array([2]), np.array([3]), "")
    splits.check_disjoint(split, ["a", "a", "b", "c"], "split")
    with pytest.raises(ProbeError, match="in both train and test"):
        splits.check_disjoint(split, ["a", "a", "b", "a"], "split")


def test_classes_are_checked() -> None:
    with pytest.raises(ProbeError, match="at least 2 classes, but has 1"):
        splits.check_classes(["a", "a"], "emotion")
    with pytest.raises(ProbeError, match="the first is 'b' with 1"):
        splits.check_classes(["a", "a", "b"], "emotion")


def test_folds_over_utterances_have_like_classes() -> None:
    labels = ["a"] * 20 + ["b"] * 10
    folds = splits.utterance_folds(labels, 5, 0)
    assert sorted(np.concatenate(folds).tolist()) == list(range(30))
    assert all(Counter(labels[i] for i in fold) == {"a": 4, "b": 2} for fold in folds)


def test_labels_that_name_the_utterance_are_refused() -> None:
    with pytest.raises(ProbeError, match="`word` must be a label, but equals the id of each utterance"):
        splits.check_labels(["u1", "u2", "u3"], ["u1", "u2", "u3"], "word")
    splits.check_labels(["u1", "u2", "u2"], ["u1", "u2", "u3"], "word")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("train", "train"), ("train-clean-100", "train"), ("Training", "train"), ("dev_other", "dev"), ("valid", "dev"), ("val.1", "dev"),
        ("test-clean", "test"), ("eval", "test"), ("evaluation", "test"), ("trained", None), ("", None), (None, None), (3, None),
    ],
)  # fmt: skip
def test_names_of_parts(value: object, part: str | None) -> None:
    assert splits.part_of(value) == part


def test_rows_of_a_misspelled_part_are_not_left_out_unseen() -> None:
    values = ["train", "test-clean", None, "tset"]
    with pytest.raises(
        ProbeError,
        match=r"must name parts .* 1 rows have others \(the first is 'tset'\); it has blank: 1, test-clean: 1",
    ):
        splits.by_column(values, "split")
    assert {k: v.tolist() for k, v in splits.by_column(values[:3], "split").items()} == {
        "train": [0],
        "dev": [],
        "test": [1],
    }
