"""Which sound is it: stretches and copies between the parts of a split."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from probes import splits
from probes.data import ProbeError
from probes.recordings import Recording, Recordings

SPLIT = splits.Split(np.array([0, 1]), np.array([2]), np.array([3]), "by column `split`")


def check(train: list[Recording | None], dev: Recording | None, test: Recording | None) -> None:
    splits.check_parts(SPLIT, [*train, dev, test])


def test_other_files_and_unknown_ones_may_be_in_all_parts() -> None:
    a, b, c = (Recording.of(f"{name}.wav", None, None) for name in "abc")
    check([a, a], b, c)
    check([None, None], None, None)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ((None, None), (None, None)),
        ((None, None), (5.0, 6.0)),
        ((5.0, 6.0), (None, None)),
        ((0.0, 5.0), (4.5, 9.0)),
        ((4.5, 9.0), (0.0, 5.0)),
        ((0.0, 60.0), (30.0, 31.0)),  # the stretch at 10 s begins later and ends before
        ((8.0, None), (9.0, 10.0)),
    ],
)
def test_stretches_that_overlap_are_refused(
    train: tuple[float | None, float | None], test: tuple[float | None, float | None]
) -> None:
    with pytest.raises(ProbeError, match=r"train has 'a.wav'.* and test 'a.wav'"):
        check([Recording.of("a.wav", *train), Recording.of("a.wav", 10.0, 11.0)], None, Recording.of("a.wav", *test))


@pytest.mark.parametrize("test", [(2.0, 3.0), (1.99, 3.0), (0.0, 1.0)])
def test_stretches_that_touch_are_apart(test: tuple[float, float]) -> None:
    a = Recording.of("a.wav", 1.0, 2.0)
    check([a, None], None, Recording.of("a.wav", *test))


def test_a_copy_under_another_name_is_the_same_sound(tmp_path: Path) -> None:
    own = []
    for name, content in (("a.wav", b"one"), ("copy of a.wav", b"one"), ("b.wav", b"two")):
        (tmp_path / name).write_bytes(content)
        own.append(Recording.of(str(tmp_path / name), None, None))
    check([own[0], None], None, own[2])
    with pytest.raises(ProbeError, match=r"copy of a.wav', which has the same bytes \(by column `split`\); leave one"):
        check([own[0], None], None, own[1])


def test_a_row_in_two_parts_is_refused() -> None:
    with pytest.raises(ProbeError, match="train and dev both have number 1"):
        splits.check_parts(splits.Split(np.array([0, 1]), np.array([1]), np.array([3]), ""), [None] * 4)


def test_labels_that_are_no_seconds_are_of_all_the_file() -> None:
    assert Recording.of("a.wav", "00:01", float("nan")) == Recording("a.wav", 0.0, math.inf)
    assert Recording.of("a.wav", "1.5", 2) == Recording("a.wav", 1.5, 2.0)


def test_folders_and_missing_files_are_told_by_their_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.wav"):
        own = Recording.of(str(path), None, None)
        assert Recordings([own]).sharing(own) == own
