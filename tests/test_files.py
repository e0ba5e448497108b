from __future__ import annotations

from pathlib import Path

import pytest

from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, atomic_writer, is_url, write_text


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
