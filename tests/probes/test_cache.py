"""The cache of frames: what was made stays, whatever interrupts; what is broken is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from jepa_tok.corpus.utterance import Utterance
from jepa_tok.files import lock_folder, unlock
from probes import cache
from probes.data import ProbeError

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


def test_other_clips_and_cut_files_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, Maker())
    with pytest.raises(ProbeError, match="must hold the clips of this corpus"):
        fill(tmp_path, Maker(), CLIPS[:-1])
    data = (tmp_path / "frames.bin").read_bytes()
    for changed in (data + b"x", data[:-1]):
        (tmp_path / "frames.bin").write_bytes(changed)
        with pytest.raises(ProbeError, match="delete it"):
            fill(tmp_path, Maker())


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
def test_pooled_statistics_are_kept(tmp_path: Path, thin: bool) -> None:
    x = np.eye(4, 6, dtype=np.float32)
    made = cache.pooled(tmp_path, 1, lambda: sparse.csr_array(x) if thin else x)
    found = cache.pooled(tmp_path, 1)
    assert sparse.issparse(found) == thin == sparse.issparse(made)
    np.testing.assert_array_equal(found.toarray() if thin else found, x)
    with pytest.raises(ProbeError, match="pooled-2"):
        cache.pooled(tmp_path, 2)
    (tmp_path / "pooled-1.npz").write_bytes(b"PK broken")
    with pytest.raises(ProbeError, match="delete it"):
        cache.pooled(tmp_path, 1)
