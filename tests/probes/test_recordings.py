"""Which sound is it: stretches and copies between the parts of a split."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from probes import splits, suite
from probes.data import ProbeError
from probes.recordings import Recording, Recordings, file_key, identify, shared
from tests.probes.fakes import write_corpus, write_suite

SPLIT = splits.Split(np.array([0, 1]), np.array([2]), np.array([3]), "by column `split`")


Row = tuple[str, object, object] | None


def check(train: list[Row], dev: Row, test: Row) -> None:
    splits.check_parts(SPLIT, identify(row or (None, None, None) for row in (*train, dev, test)))


def test_other_files_and_unknown_ones_may_be_in_all_parts() -> None:
    a, b, c = ((f"{name}.wav", None, None) for name in "abc")
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
        check([("a.wav", *train), ("a.wav", 10.0, 11.0)], None, ("a.wav", *test))


@pytest.mark.parametrize("test", [(2.0, 3.0), (1.99, 3.0), (0.0, 1.0)])
def test_stretches_that_touch_are_apart(test: tuple[float, float]) -> None:
    check([("a.wav", 1.0, 2.0), None], None, ("a.wav", *test))


def test_a_copy_under_another_name_is_the_same_sound(tmp_path: Path) -> None:
    own: list[Row] = []
    for name, content in (("a.wav", b"one"), ("copy of a.wav", b"one"), ("b.wav", b"two")):
        (tmp_path / name).write_bytes(content)
        own.append((str(tmp_path / name), None, None))
    check([own[0], None], None, own[2])
    with pytest.raises(ProbeError, match=r"copy of a.wav', which has the same bytes \(by column `split`\); leave one"):
        check([own[0], None], None, own[1])


def test_a_row_in_two_parts_is_refused() -> None:
    with pytest.raises(ProbeError, match="train and dev both have number 1"):
        splits.check_parts(splits.Split(np.array([0, 1]), np.array([1]), np.array([3]), ""), [None] * 4)


def test_labels_that_are_no_seconds_are_of_all_the_file() -> None:
    found = identify([("a.wav", "00:01", float("nan")), ("a.wav", "1.5", 2), ("", 0, 1)])
    assert found == [Recording("a.wav", 0.0, math.inf, "a.wav"), Recording("a.wav", 1.5, 2.0, "a.wav"), None]


def test_folders_and_missing_files_are_told_by_their_paths(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.wav", tmp_path / "null\0.wav"):
        (own,) = identify([(str(path), None, None)])
        assert own is not None and Recordings([own]).sharing(own) == own


def test_only_files_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a", b"1"), ("b", b"22"), ("c", b"33"), ("d", b"")):
        (tmp_path / name).write_bytes(content)
    read = []
    monkeypatch.setattr("probes.recordings.content_hash", lambda path: read.append(Path(path).name) or "x")
    identify([(str(tmp_path / name), None, None) for name in "abcdab"])
    assert sorted(read) == ["b", "c"]


def test_a_number_sign_in_a_name_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "take#1.wav").write_bytes(b"one")
    assert file_key(str(tmp_path / "take#1.wav")) == (3, "7692c3ad3540bb80")
    assert file_key(str(tmp_path / "take#2.wav")) == (None, "")


def test_two_that_share_sound_are_found() -> None:
    spans = [("a.wav", 0, 9), ("b.wav", 2, 3), ("a.wav", 4, 5), ("a.wav", 9, 10)]
    found = shared(r for r in identify(spans) if r is not None)
    assert found is not None and [str(r) for r in found] == ["'a.wav' from 0 to 9 s", "'a.wav' from 4 to 5 s"]
    assert shared(r for r in identify(spans[1:]) if r is not None) is None


@pytest.mark.parametrize(
    ("copied", "onto", "told"),
    [
        ("s4-0", "s0-0", "must not share sound, but train has"),
        ("s4-1", "s4-0", "No two of the utterances of trials may share sound"),
    ],
)
def test_trials_share_no_sound_with_each_other_or_with_training(
    copied: str, onto: str, told: str, tmp_path: Path
) -> None:
    write_corpus(tmp_path, 12, 5)
    task = "{speaker: {column: speaker, split_column: split_utt, verification_column: split}}"
    path = str(write_suite(tmp_path / "s.yaml", task))
    suite.load_suite(path, tmp_path).corpora[0].check_labels([0])
    shutil.copy(tmp_path / "tones" / f"{copied}.wav", tmp_path / "tones" / f"{onto}.wav")
    with pytest.raises(ProbeError, match=told):
        suite.load_suite(path, tmp_path).corpora[0].check_labels([0])
