from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import pytest

from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, atomic_path, atomic_writer, final_name, is_url, temporary_name, write_text


@pytest.mark.parametrize(
    ("path", "url"),
    [("a/b", False), ("/a", False), ("C:\\x", False), ("s3://b/k", True), ("file:///a", False), ("memory://a", True)],
)
def test_what_is_a_url(path: str, url: bool) -> None:
    assert is_url(path) is url


def test_local_paths_are_plain_paths() -> None:
    assert as_path("a/b") == Path("a/b") and type(as_path("file:///a")) is type(Path("/a"))
    assert as_path("file:///a") == Path("/a")


def test_an_unknown_protocol_is_told_in_one_line() -> None:
    with pytest.raises(CorpusError, match="gopher://x/y: nothing that is installed opens URLs of this protocol"):
        as_path("gopher://x/y")


@pytest.mark.parametrize("url", ["dir:///x", "dir://x/y", "reference://x"])
def test_a_protocol_that_needs_more_than_a_url_is_told_in_one_line(url: str) -> None:
    with warnings.catch_warnings(record=True) as told, pytest.raises(CorpusError, match=f"^{url}: a URL must tell all"):
        warnings.simplefilter("always")
        as_path(url)
    assert not told


@pytest.mark.parametrize("folder", ["local", "memory"])
def test_a_file_appears_whole_or_not_at_all(folder: str, tmp_path: Path) -> None:
    root = tmp_path if folder == "local" else as_path("memory://test_files")
    write_text(root / "a.txt", "x\r\n\u2028é")
    assert (root / "a.txt").read_bytes() == "x\r\n\u2028é".encode()
    with pytest.raises(RuntimeError), atomic_writer(root / "a.txt") as file:
        file.write(b"half")
        raise RuntimeError
    assert (root / "a.txt").read_bytes().startswith(b"x\r\n")
    assert [p.name for p in root.iterdir()] == ["a.txt"]


def test_writers_of_one_file_have_temporaries_of_their_own(tmp_path: Path) -> None:
    names = []

    def write() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            names.append(temporary.name)
            temporary.write_text("a")

    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("b")
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert (tmp_path / "a.txt").read_text() == "a"
    assert (tmp_path / "a.txt").read_text() == "b" and names != [temporary.name]
    assert {final_name(name) for name in [*names, temporary.name, "a.txt"]} == {"a.txt"}
    assert final_name(temporary_name("b.tmp")) == "b.tmp"


def test_bytes_are_on_the_disk_before_their_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(("fsync", os.fstat(file).st_ino)), fsync(file))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("replace", os.stat(a).st_ino)), replace(a, b))[1])
    write_text(tmp_path / "a", "text")
    file = (tmp_path / "a").stat().st_ino
    assert calls == [("fsync", file), ("replace", file)], "or a power cut could leave the name of an empty file"
