"""The cache of frames: what was made stays, whatever interrupts; what is broken is mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from jepa_tok.corpus.utterance import Utterance
from jepa_tok.files import lock_folder, unlock
from probes import cache
from probes.data import ProbeError
from probes.places import StorageError

CLIPS = [Utterance(f"u{i}", f"/audio/u{i}.wav") for i in range(9)]


class Maker:
    """Codes [i + 1, 3] of clip i; stops dead after `limit` clips."""

    def __init__(self, limit: int = 99) -> None:
        self.limit, self.made = limit, []

    def __call__(self, u: Utterance) -> tuple[np.ndarray, int]:
        if len(self.made) == self.limit:
            raise KeyboardInterrupt
        self.made.append(u.id)
        i = int(u.id[1:])
        return np.random.default_rng(i).integers(0, 200, (i + 1, 3)).astype(np.uint16), 100 * i


def fill(folder: Path, maker: Maker, clips: list[Utterance] = CLIPS) -> cache.Frames:
    return cache.fill(folder, clips, maker, np.dtype(np.uint8), lambda count: None)


def check(frames: cache.Frames) -> None:
    assert frames.ids == [u.id for u in CLIPS] and frames.num_samples == [100 * i for i in range(9)]
    for frame, u in zip(frames, CLIPS, strict=True):
        np.testing.assert_array_equal(frame, Maker()(u)[0])
    assert frames.data.dtype == np.uint8 and not frames.data.flags.writeable


def test_made_once_and_read_as_made(tmp_path: Path) -> None:
    check(fill(tmp_path / "a", Maker()))
    again = Maker()
    check(fill(tmp_path / "a", again))
    assert again.made == []


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Maker(limit=4))
    assert not (tmp_path / "cache.json").exists()
    rest = Maker()
    check(fill(tmp_path, rest))
    assert rest.made == ["u4", "u5", "u6", "u7", "u8"]


@pytest.mark.parametrize(
    ("lines", "frames", "kept"),
    [(0, 5, 4), (-3, 0, 3), (0, -2, 3), (7, 0, 4), (0, -(10**6), 0)],
    ids=["frames ahead", "half a line", "half a frame", "a line of noise", "no frames"],
)
def test_a_torn_end_is_made_anew(tmp_path: Path, lines: int, frames: int, kept: int) -> None:
    """Bytes that a crash left behind, or took, at the ends of the files."""
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Maker(limit=4))
    for name, change in (("rows.jsonl", lines), ("frames.bin", frames)):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data + b"x" * change if change >= 0 else data[:change])
    rest = Maker()
    check(fill(tmp_path, rest))
    assert rest.made == [u.id for u in CLIPS[kept:]]


def test_other_clips_and_cut_files_are_not_read(tmp_path: Path) -> None:
    """Whoever only reads refuses; `fill` mends."""
    fill(tmp_path, Maker())
    ids = [u.id for u in CLIPS]
    with pytest.raises(ProbeError, match="must hold the clips of this corpus"):
        cache.open_frames(tmp_path, ids[:-1])
    data = (tmp_path / "frames.bin").read_bytes()
    for changed in (data + b"x", data[:-1]):
        (tmp_path / "frames.bin").write_bytes(changed)
        with pytest.raises(ProbeError, match="delete it"):
            cache.open_frames(tmp_path, ids)


@pytest.mark.parametrize(
    ("name", "change", "kept"),
    [
        ("frames.bin", lambda data: data[:-1], 8),
        ("frames.bin", lambda data: data + b"x", 9),
        ("frames.bin", lambda data: b"", 0),
        ("rows.jsonl", lambda data: data[:-3], 8),
        ("rows.jsonl", lambda data: data.replace(b'"u5"', b'"v5"'), 5),
        ("rows.jsonl", lambda data: data.replace(b'"frames": 3', b'"frames": "ab"'), 2),
        ("rows.jsonl", lambda data: data.replace(b'"frames": 3', b'"frames": -3'), 2),
        ("rows.jsonl", lambda data: data.replace(b'"samples": 400, ', b""), 4),
        ("rows.jsonl", lambda data: b"[]\n" + data, 0),
        ("rows.jsonl", lambda data: b"\xff\n" + data, 0),
        ("cache.json", lambda data: data[:9], 9),
        ("cache.json", lambda data: b"[]", 9),
        ("cache.json", lambda data: b"\xff", 9),
        ("cache.json", lambda data: data.replace(b"|u1", b"<u2"), 0),
    ],
)
def test_a_finished_folder_that_broke_is_mended(
    tmp_path: Path, capsys: Any, name: str, change: Callable[[bytes], bytes], kept: int
) -> None:
    """Leading clips that are whole stay; what was pooled goes; one line says so."""
    fill(tmp_path, Maker())
    cache.pooled(tmp_path, 1, lambda: np.eye(9, dtype=np.float32))
    data = (tmp_path / name).read_bytes()
    assert change(data) != data
    (tmp_path / name).write_bytes(change(data))
    rest = Maker()
    check(fill(tmp_path, rest))
    assert rest.made == [u.id for u in CLIPS[kept:]]
    assert not (tmp_path / "pooled-1.npz").exists()
    err = capsys.readouterr().err
    assert f"{kept} of 9 clips stay" in err and err.count("\n") == 1
    again = Maker()
    check(fill(tmp_path, again))
    assert again.made == [] and not capsys.readouterr().err


@pytest.mark.parametrize("limit", [4, 99])
def test_frames_of_another_dtype_are_made_anew(tmp_path: Path, limit: int) -> None:
    """Those of an interrupted run are not read as if they were of this one's."""
    with contextlib.suppress(KeyboardInterrupt):
        cache.fill(tmp_path, CLIPS, Maker(limit), np.dtype(np.uint16), lambda count: None)
    rest = Maker()
    check(fill(tmp_path, rest))
    assert len(rest.made) == 9


def test_frames_of_another_width_are_made_anew(tmp_path: Path, capsys: Any) -> None:
    def fill_narrow(folder: Path, limit: int = 99) -> None:
        maker = Maker(limit)
        with contextlib.suppress(KeyboardInterrupt):
            cache.fill(folder, CLIPS, lambda u: (maker(u)[0][:, :2], 1), np.dtype(np.uint8), lambda count: None)

    fill_narrow(tmp_path / "part", 4)
    check(fill(tmp_path / "part", Maker()))
    assert "it is made anew" in capsys.readouterr().err
    fill_narrow(tmp_path / "whole")
    maker = Maker()
    check(cache.fill(tmp_path / "whole", CLIPS, maker, np.dtype(np.uint8), lambda count: None, 3))
    assert len(maker.made) == 9


def test_a_full_disk_is_one_line_and_what_was_made_stays(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))  # bytes of a file
    try:
        with pytest.raises(StorageError, match=r"must be readable and writable, but is not: .*; what was made stays"):
            fill(tmp_path, Maker())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rest = Maker()
    check(fill(tmp_path, rest))
    assert 0 < len(rest.made) < 9


def test_a_clip_that_cannot_be_read_is_no_fault_of_the_folder(tmp_path: Path) -> None:
    def make(u: Utterance) -> tuple[np.ndarray, int]:
        raise PermissionError(13, "Permission denied")

    with pytest.raises(ProbeError, match=r"'u0' .*must be readable, but is not: Permission denied") as caught:
        fill(tmp_path, make)  # type: ignore[arg-type]
    assert not isinstance(caught.value, StorageError)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (np.zeros((2, 2), np.uint16), r"must be \[T, 3\]"),
        (np.zeros((0, 3), np.uint16), "with T >= 1"),
        (np.full((2, 3), 256, np.uint16), "must lie in 0..255, but reach 256"),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, made: np.ndarray, message: str) -> None:
    maker = Maker()
    with pytest.raises(ProbeError, match=message):
        fill(tmp_path, lambda u: (made, 1) if u.id == "u3" else maker(u))
    check(fill(tmp_path, Maker()))


def test_values_must_be_finite(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="'u0' must be finite"):
        cache.fill(tmp_path, CLIPS, lambda u: (np.full((1, 2), np.nan), 1), np.dtype(np.float32), lambda count: None)


def test_a_folder_that_is_being_filled_is_refused(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path, "")
    with pytest.raises(ProbeError.__mro__[1], match="being filled by another process"):
        fill(tmp_path, Maker())
    unlock(lock)
    check(fill(tmp_path, Maker()))


@pytest.mark.parametrize("thin", [False, True])
def test_pooled_statistics_are_kept(tmp_path: Path, thin: bool, capsys: Any) -> None:
    x = np.eye(4, 6, dtype=np.float32)
    made = cache.pooled(tmp_path, 1, lambda: sparse.csr_array(x) if thin else x)
    found = cache.pooled(tmp_path, 1)
    assert sparse.issparse(found) == thin == sparse.issparse(made)
    np.testing.assert_array_equal(found.toarray() if thin else found, x)
    with pytest.raises(ProbeError, match="pooled-2"):
        cache.pooled(tmp_path, 2)
    path, x = tmp_path / "pooled-1.npz", x * 2
    whole = path.read_bytes()
    for broken in (b"PK broken", b"", whole[: len(whole) // 2], whole.replace(b"NUMPY", b"NUMPX")):
        path.write_bytes(broken)
        with pytest.raises(ProbeError, match="delete it"):
            cache.pooled(tmp_path, 1)
        capsys.readouterr()
        found = cache.pooled(tmp_path, 1, lambda: sparse.csr_array(x) if thin else x)
        np.testing.assert_array_equal(found.toarray() if thin else found, x)
        assert "is broken: it is made anew" in capsys.readouterr().err
