"""Exports to stores, which cannot rename folders and fail in ways of their own: readers meet one export or are refused."""

from __future__ import annotations

import contextlib
import itertools
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from jepa_tok.corpus.export import export_tokens
from jepa_tok.corpus.formats import FORMATS, open_tokens
from jepa_tok.corpus.formats.binary import TokenBin
from jepa_tok.errors import CorpusError
from tests.test_export import ROWS, make, row, same

OTHERS = [row(f"other{i}", 1 + i, 9 + i) for i in range(3)]


class StoreError(Exception):
    """What a store's own library raises: no OSError."""


class Flaky:
    """Lets the `last` change of the memory file system fail, and all after it while `down`."""

    def __init__(self, monkeypatch, last, down):
        self.left, self.down, self.failed = last, down, False
        for name in ("_open", "cp_file", "rm_file", "rm"):
            monkeypatch.setattr(MemoryFileSystem, name, self.wrapped(getattr(MemoryFileSystem, name)))

    def wrapped(self, original):
        def call(fs, *arguments, **options):
            if original.__name__ != "_open" or "w" in (*arguments, *options.values(), "rb")[1]:
                self.left -= 1
                if self.left == 0 or (self.left < 0 and self.down):
                    self.failed = True
                    raise StoreError("connection reset\nby peer")
            return original(fs, *arguments, **options)

        return call


@pytest.fixture
def url():
    url = f"memory://{uuid.uuid4().hex}/tokens"
    yield url
    with contextlib.suppress(FileNotFoundError):
        fsspec.filesystem("memory").rm(url.rsplit("/", 1)[0], recursive=True)


@pytest.fixture
def old(tmp_path):
    return make(tmp_path / "old")


@pytest.fixture
def new(tmp_path):
    return make(tmp_path / "new", OTHERS)


def names(url):
    fs = fsspec.filesystem("memory")
    return sorted(path.split("/tokens/", 1)[1] for path in fs.find(url))


def holds(url, rows):
    read = list(open_tokens(url).rows())
    return len(read) == len(rows) and all(map(same, read, rows))


def test_every_format_is_uploaded_and_replaced(old, new, url):
    for to in FORMATS:
        export_tokens(old, f"{url}/{to}", to)
        if to == "bin":
            with pytest.raises(CorpusError, match="local disk"):
                list(open_tokens(f"{url}/{to}").rows())
        else:
            assert holds(f"{url}/{to}", ROWS)
    with pytest.raises(CorpusError, match="new or empty"):
        export_tokens(old, f"{url}/jsonl", "bin")
    export_tokens(f"{url}/parquet", f"{url}/jsonl", "kaldi", overwrite=True)
    assert holds(f"{url}/jsonl", ROWS) and "jsonl/tokens.jsonl" not in names(url)
    with pytest.raises(CorpusError, match="neither in"):
        export_tokens(f"{url}/parquet", f"{url}/parquet/x", "bin")


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    ("first", "second"), [("jsonl", "jsonl"), ("parquet", "parquet"), ("parquet", "kaldi"), ("shar", "parquet")]
)
def test_whenever_the_store_fails_one_export_is_there_or_none_is_read(old, new, url, tmp_path, first, second, down):
    export_tokens(new, f"{url}/clean", second)
    clean = [name.removeprefix("clean/") for name in names(url)]
    kept = refused = 0
    for last in itertools.count(1):
        out = f"{url}/{last}"
        export_tokens(old, out, first)
        with pytest.MonkeyPatch.context() as patch:
            store = Flaky(patch, last, down)
            try:
                export_tokens(new, out, second, overwrite=True)
            except CorpusError as error:
                message = f"{out}: cannot be written: connection reset by peer; mend that and run the same command"
                assert str(error).startswith(message) and "\n" not in str(error)
        if not store.failed:
            break
        try:
            assert holds(out, ROWS) or holds(out, OTHERS)
            kept += 1
        except CorpusError:
            refused += 1
        export_tokens(new, out, second, overwrite=True)
        assert holds(out, OTHERS)
        assert [n.removeprefix(f"{last}/") for n in names(url) if n.startswith(f"{last}/")] == clean
    assert kept > len(clean) and refused  # the whole of the upload spares the earlier export


def test_a_new_export_that_broke_off_is_made_again_by_the_same_command(new, url):
    for last in itertools.count(1):
        out = f"{url}/{last}"
        with pytest.MonkeyPatch.context() as patch:
            store = Flaky(patch, last, down=True)
            with contextlib.suppress(CorpusError):
                export_tokens(new, out, "kaldi")
        if not store.failed:
            break
        if not any(n == f"{last}/metadata.json" for n in names(url)):  # else all is there but for clearing up
            export_tokens(new, out, "kaldi")
        assert holds(out, OTHERS)
    assert last > 8


def test_a_store_that_does_not_copy(old, new, url, monkeypatch):
    def cp_file(*arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "cp_file", cp_file)
    export_tokens(old, url, "shar")
    export_tokens(new, url, "jsonl", overwrite=True)
    assert holds(url, OTHERS) and names(url) == ["metadata.json", "tokens.jsonl"]


def test_a_store_that_does_not_answer(old, url, tmp_path, monkeypatch):
    def exists(*arguments, **options):
        raise StoreError("Unable to locate credentials")

    monkeypatch.setattr(MemoryFileSystem, "exists", exists)
    with pytest.raises(CorpusError, match=f"^{url}: cannot be read: Unable to locate credentials.$"):
        export_tokens(old, url, "jsonl")
    with pytest.raises(CorpusError, match=f"^{url}: cannot be read: Unable to locate credentials.$"):
        export_tokens(url, tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()


def test_a_source_that_breaks_off_is_told_from_an_output_that_does(old, url, tmp_path, monkeypatch):
    export_tokens(old, url, "jsonl")
    original = MemoryFileSystem._open

    def broken(fs, path, *arguments, **options):
        if path.endswith("tokens.jsonl"):
            raise StoreError("connection reset")
        return original(fs, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", broken)
    with pytest.raises(CorpusError, match=f"^{url}: cannot be read: connection reset.$"):
        export_tokens(url, tmp_path / "out", "bin")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    export_tokens(url, tmp_path / "out", "bin")
    assert len(TokenBin(tmp_path / "out")) == len(ROWS)
