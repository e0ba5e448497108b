"""Folders and devices that a run cannot have: one line, status 2, and nothing made; what broke in between is mended."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from jepa_tok.files import lock_folder, unlock
from probes import places
from probes.cli import main
from tests.probes import fakes
from tests.probes.conftest import Run

WRONG = [
    (["--device", "abacus"], "`--device` must be a device of this machine, but is 'abacus'"),
    (["--cache", "s3://bucket/x"], "`--cache`: must be a local path"),
    (["--out", "s3://bucket/x"], "`--out`: must be a local path"),
    (["--out", ""], "`--out`: a path must not be empty"),
    (["--cache", ""], "`--cache`: a path must not be empty"),
    (["--fit", ""], "`--fit`: a path must not be empty"),
    (["--cache", "c\udcff"], "an argument: a path must be UTF-8"),
]


def one_line(capsys: Any, message: str) -> None:
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(("options", "message"), WRONG)
@pytest.mark.parametrize("verb", ["run", "study"])
def test_wrong_places_and_devices(
    verb: str, options: list[str], message: str, run: Run, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb == "run":
        assert run("pitch", *options) == 2
    else:
        given = ["study", "--suite", "tones.yaml", "--data", ".", "--out", "out", "--tokenizer", "pitch"]
        assert main([*given, *options]) == 2
    one_line(capsys, message)
    assert not (tmp_path / "out").exists() and not (tmp_path / "s3:").exists()


@pytest.mark.parametrize("name", ["tones.yaml", "tones.yaml/x"])
@pytest.mark.parametrize("verb", ["run", "study"])
def test_a_cache_that_cannot_be_a_folder(verb: str, name: str, run: Run, tmp_path: Path, capsys: Any) -> None:
    place = str(tmp_path / name)
    if verb == "run":
        assert run("learner", "--cache", place) == 2
    else:
        given = ["--suite", tmp_path / "tones.yaml", "--data", tmp_path, "--out", tmp_path / "out"]
        assert main(["study", *map(str, given), "--tokenizer", "learner", "--cache", place]) == 2
    one_line(capsys, f"`--cache` must be a folder that can be written, but '{place}' is not: ")


@pytest.mark.parametrize("name", ["out", "out/cells", "other"])
def test_a_folder_that_may_not_be_written(name: str, run: Run, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """As superusers may write everywhere, the refusal is made up."""
    assert run("pitch", "--cache", tmp_path / "other") == 0
    capsys.readouterr()
    touch = Path.touch

    def refuse(self: Path, *given: Any, **options: Any) -> None:
        if self.parent == tmp_path / name:
            raise PermissionError(13, "Permission denied", os.fspath(self))
        touch(self, *given, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    for _ in range(2):  # the lock is given back
        assert run("pitch", "--cache", tmp_path / "other") == 2
        one_line(capsys, f"{tmp_path / name}")


def test_a_disk_that_is_full_ends_the_run_and_it_goes_on(run: Run, made: Any, tmp_path: Path, capsys: Any) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))  # bytes of a file
    try:
        assert run("pitch") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ") and "must be readable and writable, but is not" in err
    assert "Traceback" not in err
    assert run("pitch") == 0 and 0 < made["pitch"].encoded < 60


def test_a_cell_or_a_page_that_cannot_be_written(run: Run, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("probes.cells.write_text", "probes.page.write"):
        with monkeypatch.context() as patch:
            patch.setattr(name, full)
            assert run("pitch") == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith(f"error: '{tmp_path / 'out'}' must be readable and writable")
    assert run("pitch") == 0


def test_a_cache_that_broke_is_mended_by_the_next_run(run: Run, made: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("pitch") == 0
    (folder,) = (tmp_path / "out/cache").glob("*/pitch-codes-*")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".npz"}
    (folder / "frames.bin").write_bytes(before["frames.bin"][:-1])
    capsys.readouterr()
    assert run("pitch") == 0
    assert made["pitch"].encoded == 1 and "59 of 60 clips stay" in capsys.readouterr().err
    assert before == {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".npz"}
    (pool,) = folder.glob("*.npz")
    pool.write_bytes(b"PK")
    assert run("pitch") == 0
    assert f"'{pool}' is broken: it is made anew" in capsys.readouterr().err


def test_a_cache_that_another_run_fills(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert run("pitch") == 0
    (folder,) = (tmp_path / "out/cache").glob("*/pitch-codes-*")
    (folder / "cache.json").unlink()
    lock = lock_folder(folder, "")
    assert run("pitch") == 1
    unlock(lock)
    assert "is being filled by another process; wait for it" in capsys.readouterr().err
    assert run("pitch") == 0


def test_a_temporary_name_is_told_as_its_place(tmp_path: Path) -> None:
    with pytest.raises(places.StorageError, match=r"'/x/pooled-4\.npz' must be"), places.writing(tmp_path):
        raise OSError(28, "No space left on device", "/x/pooled-4.npz.0123abcd.tmp")


def test_a_cache_is_shared_with_the_results(run: Run, tmp_path: Path) -> None:
    fakes.write_suite(tmp_path / "tones.yaml", fakes.TASKS)
    assert run("pitch", "--cache", tmp_path / "out") == 0
    assert run("pitch", "--cache", tmp_path / "out") == 0
