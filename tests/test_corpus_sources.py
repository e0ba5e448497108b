"""Sources beyond manifests: parquet and tar shards, Kaldi pipes and archives, folders and URLs."""

from __future__ import annotations

import http.server
import io
import itertools
import json
import os
import re
import socket
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from jepa_tok.corpus import (
    Utterance,
    audio_source,
    find_shards,
    load_utterance,
    read_corpus,
    spool_corpus,
    write_manifest,
)
from jepa_tok.corpus.audio_source import Slice
from jepa_tok.corpus.formats import open_tokens
from jepa_tok.corpus.verify import verify_tokens
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import as_path
from tests.corpora import RATE, audio_column, heard, outcomes, sound, write_parquet

numbers = itertools.count()


def write_tar(path, members: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with path.open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


@pytest.fixture
def memory():
    """A folder of the memory file system, fresh for each test."""
    folder = as_path(f"memory://sources{next(numbers)}/data")
    folder.mkdir(parents=True)
    return folder


# Tar shards -----------------------------------------------------------------------------------------------------------


def test_tar_members_of_a_key_are_an_utterance(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        {
            "./x/1.flac": sound(1),
            "./x/1.json": b'{"speaker": "ann", "age": 30, "none": null}',
            "./x/1.txt": "h\u00e9 \n".encode(),
            "./x/1.cls": b"7\n",
            "./x/1.accent.txt": b"north",
            "./x/1.pyd": b"never unpickled",
            "x/.hidden.flac": b"",
            "2.seg.WAV": sound(2, "WAV"),
            "2.json": b'{"id": "two"}',
        },
    )
    first, second = read_corpus(tmp_path / "a.tar")
    assert first.id == "x/1" and first.path == f"{tmp_path / 'a.tar'}#./x/1.flac"
    assert first.info == {"speaker": "ann", "age": 30, "text": "h\u00e9", "cls": 7, "accent": "north"}
    assert second.id == "two" and heard([first, second]) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]


BAD_MEMBERS = {
    "parent": ({"../p.flac": sound(0)}, "`id`"),
    "absolute": ({"/tmp/p.flac": sound(0)}, "`id`"),
    "no audio": ({"p.txt": b"hello"}, "one member of audio, but has 0"),
    "two audios": ({"p.flac": sound(0), "p.wav": sound(0, "WAV")}, "one member of audio, but has 2"),
    "bad json": ({"p.flac": sound(0), "p.json": b"{"}, "JSON object"),
    "json list": ({"p.flac": sound(0), "p.json": b"[]"}, "JSON object"),
    "infinite": ({"p.flac": sound(0), "p.json": b'{"x": 1e999}'}, "finite"),
    "list id": ({"p.flac": sound(0), "p.json": b'{"id": [1]}'}, "`id` must be a string"),
    "latin text": ({"p.flac": sound(0), "p.txt": b"\xff"}, "UTF-8"),
    "key twice": ({"good.flac": sound(0)}, "taken already by"),
}


@pytest.mark.parametrize("kind", BAD_MEMBERS)
def test_bad_tar_members_are_refused(tmp_path, kind):
    members, reason = BAD_MEMBERS[kind]
    write_tar(tmp_path / "a.tar", {"good.flac": sound(3)})
    write_tar(tmp_path / "b.tar", members | {"other.flac": sound(4)})
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances] == ["good", "other"]
    (row,) = utterances.refused
    assert row.place.startswith(f"{tmp_path / 'b.tar'}#") and reason in row.reason


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_tar_links_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("p.flac")
    link.type, link.linkname = kind, "/etc/passwd"
    write_tar(tmp_path / "a.tar", {"good.flac": sound(3), "p": link})
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances] == ["good"] and "plain file" in utterances.refused[0].reason


@pytest.mark.parametrize(("size", "good"), [(900, 0), (2048, 1), (2600, 1), (4700, 2)])
def test_a_tar_cut_short_is_told(tmp_path, size, good):
    path = write_tar(tmp_path / "a.tar", {f"{i}.wav": bytes(512) for i in range(4)} | {"good.wav": bytes(512)})
    path.write_bytes(path.read_bytes()[:size])
    write_tar(tmp_path / "b.tar", {"later.flac": sound(1)})
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances][-1] == "later" and len(utterances) > good
    assert any("cut short" in row.reason for row in utterances.refused) or len(utterances) == size // 1024 + 1


def test_a_tar_damaged_within_is_told(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"1.flac": bytes(512), "2.flac": bytes(512)})
    content = bytearray(path.read_bytes())
    content[1024:1536] = b"x" * 512
    path.write_bytes(content)
    utterances = spool_corpus(path, strict=False)
    assert [u.id for u in utterances] == ["1"] and "damaged after 1 members" in utterances.refused[0].reason


def test_braces_name_shards(tmp_path):
    for i in range(8, 12):
        write_tar(tmp_path / f"s-{i:02d}.tar", {f"{i}.flac": sound(i)})
    assert heard(read_corpus(tmp_path / "s-{08..11}.tar")) == [8, 9, 10, 11]
    found = spool_corpus(f"{tmp_path}/s-{{11..12}}.tar", strict=False)
    assert [u.id for u in found] == ["11"] and "s-12.tar: cannot be read" in found.refused[0].reason
    for bad in ("s-{a,b}.tar", "s-{3..1}.tar", "s-{1..2.tar"):
        with pytest.raises(CorpusError, match="range of numbers"):
            read_corpus(tmp_path / bad)
    for many in ("s-{0..999999999}.tar", "s-{0..999}{0..999}.tar"):
        with pytest.raises(CorpusError, match="at most 100000 names"):
            read_corpus(tmp_path / many)


# Kaldi ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kaldi(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.flac").write_bytes(sound(5))
    return tmp_path


def test_allowed_pipes_are_run(kaldi):
    (kaldi / "wav.scp").write_text("a cat a.flac |\nb cat nowhere.flac | cat |\nc true |\nd echo no audio |\n")
    with pytest.raises(CorpusError, match=r"wav\.scp:1: pipes"):
        read_corpus(kaldi)
    good, failing, silent, noise = outcomes(read_corpus(kaldi, allow_pipes=True))
    assert good == 5 and "nowhere.flac" in failing and "status 0" in failing
    assert "wrote nothing" in silent and "libsndfile" in noise


def test_a_pipe_that_hangs_is_ended(kaldi, monkeypatch):
    monkeypatch.setattr("jepa_tok.corpus.audio_source.COMMAND_SECONDS", 0.2)
    os.mkfifo("held")
    held = os.open("held", os.O_RDONLY | os.O_NONBLOCK)
    (kaldi / "wav.scp").write_text("a sleep 1000 3> held | cat |\n")
    assert "within 0.2 s" in outcomes(read_corpus(kaldi, allow_pipes=True))[0]
    for _ in range(500):  # until `sleep`, which is not the command that was started but its child, is gone too
        try:
            assert os.read(held, 1) == b""
            break
        except BlockingIOError:
            threading.Event().wait(0.01)
    else:
        pytest.fail("sleep goes on")
    os.close(held)


def test_archives_of_wavs(kaldi):
    head, first, second = b"a ", sound(1, "WAV"), sound(2, "WAV")
    (kaldi / "wav.ark").write_bytes(head + first + b"b " + second)
    at = len(head) + len(first) + 2
    (kaldi / "wav.scp").write_text(f"a wav.ark:{len(head)}\nb wav.ark:{at}\nc wav.ark:{at + 7}\nd wav.ark:999999\n")
    rows = read_corpus(kaldi)
    assert rows[0].part == Slice(str(kaldi / "wav.ark"), 2, None) and heard(rows[:2]) == [1, 2]
    for bad in rows[2:]:
        with pytest.raises(AudioError, match=r"wav\.ark:\d+'"):
            load_utterance(bad, RATE)


# Folders and URLs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["x.tar", "deep/x.parquet"])
def test_a_folder_of_two_kinds_is_one_error(tmp_path, other):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.wav").write_bytes(sound(1, "WAV"))
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(CorpusError, match="one kind of source"):
        read_corpus(tmp_path)


def test_folders_come_in_the_order_of_ids(tmp_path):
    for name in ("a/b.wav", "a.x/1.wav", "a-1.wav", "a.wav", "ab.wav", "a/b/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    ids = [u.id for u in read_corpus(tmp_path)]
    assert len(ids) == 6 and ids == sorted(ids)


def fill(folder) -> None:
    """Every kind of source, below one folder."""
    for kind in ("flat", "shards", "tables", "kaldi"):
        (folder / kind / "wav").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        (folder / "flat" / "wav" / f"{i}.flac").write_bytes(sound(i))
    write_tar(folder / "shards" / "s-0.tar", {f"{i}.flac": sound(i) for i in range(3)})
    write_parquet(folder / "tables" / "t.parquet", {"audio": audio_column(3)})
    (folder / "kaldi" / "wav.scp").write_text("".join(f"{i} ../flat/wav/{i}.flac\n" for i in range(3)))
    rows = [{"id": str(i), "path": f"flat/wav/{i}.flac"} for i in range(3)]
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SOURCES = ["flat", "shards", "shards/s-0.tar", "shards/s-{0..0}.tar", "tables", "tables/t.parquet", "kaldi", "m.jsonl"]


@pytest.mark.parametrize("source", SOURCES)
def test_sources_are_alike_on_disk_and_by_url(tmp_path, memory, source):
    fill(tmp_path)
    fill(memory)
    here, there = read_corpus(tmp_path / source), read_corpus(f"{memory}/{source}")
    assert heard(here) == heard(there) == [0, 1, 2] and [u.id for u in here] == [u.id for u in there]
    assert all(u.path.startswith("memory://") for u in there)


def test_manifests_by_url(memory):
    (memory / "a.flac").write_bytes(sound(1))
    manifest = memory.parent / "m.tsv"
    write_manifest([Utterance("a", f"{memory}/a.flac"), Utterance("b", "/far/b.flac")], manifest)
    assert manifest.read_text().splitlines()[1] == "a\tdata/a.flac"
    a, b = read_corpus(str(manifest))
    assert a.path == f"{memory}/a.flac" and heard([a]) == [1] and b.path == "/far/b.flac"
    with pytest.raises(CorpusError, match="no such file"):
        read_corpus(f"{memory}/nowhere.jsonl")
    with pytest.raises(CorpusError, match="names files"):
        write_manifest(read_corpus(str(write_tar(memory / "s.tar", {"x.flac": sound(1)}))), memory / "m.jsonl")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of them below `/parts`."""

    def log_message(self, *args):
        pass

    def send_head(self):
        if not self.path.startswith("/parts/"):
            return super().send_head()
        content = Path(self.directory, self.path.partition("?")[0].removeprefix("/parts/")).read_bytes()
        first, last = 0, len(content) - 1
        if span := self.headers.get("Range"):
            first, last = (int(n or last) for n in span.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        return io.BytesIO(part)


def test_sources_by_http(tmp_path):
    fill(tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        for source in ("m.jsonl", "parts/m.jsonl", "parts/shards/s-0.tar", "parts/tables/t.parquet"):
            assert heard(read_corpus(f"{url}/{source}")) == [0, 1, 2]
        query = "?sig=a/b.c&t=1"  # as presigned URLs have
        for source in ("m.jsonl", "parts/shards/s-0.tar", "parts/tables/t.parquet"):
            plain, signed = read_corpus(f"{url}/{source}"), read_corpus(f"{url}/{source}{query}")
            assert heard(signed) == [0, 1, 2] and [u.id for u in signed] == [u.id for u in plain]
        assert all("range requests" in error for error in outcomes(read_corpus(f"{url}/shards/s-0.tar")))
        (tmp_path / "flat/wav/1.flac").unlink()
        first, missing, last = outcomes(read_corpus(f"{url}/m.jsonl"))
        assert (first, last) == (0, 2) and "1.flac" in missing and "404" in missing
        with pytest.raises(CorpusError, match=r"/gone.jsonl: no such file or folder\.$"):
            read_corpus(f"{url}/gone.jsonl")
        server.shutdown()


def test_a_server_that_does_not_answer_is_told_from_a_missing_file(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and not listening: whoever connects is refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for use, name in [
            (read_corpus, "m.jsonl"),
            (find_shards, "out"),
            (open_tokens, "tokens.parquet"),
            (verify_tokens, "tokens.parquet"),
        ]:
            with pytest.raises(CorpusError, match=f"^{url}/{name}: cannot be read: Connect call failed [^\n]*$"):
                use(f"{url}/{name}")
        (found,) = outcomes([Utterance("a", f"{url}/a.flac")])
        assert found.startswith(f"'{url}/a.flac' must be an audio file, but cannot be read: Connect call failed")


def test_the_page_on_inputs_runs(tmp_path, monkeypatch):
    fill(tmp_path)
    rows = [json.dumps({"id": str(i), "path": f"flat/wav/{i}.flac", "split": "train"}) for i in range(3)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "corpora.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page[: page.index("\n## Outputs")], re.DOTALL)
    scope: dict = {}
    exec(block, scope)
    assert len(scope["corpus"]) == 3 and scope["corpus"].refused == [] and len(scope["wave"]) == 1000


def test_training_reads_what_tokenizing_does(tmp_path, monkeypatch):
    pytest.importorskip("fairseq2")
    from jepa_tok._fairseq2 import speech_data

    warnings = []
    monkeypatch.setattr(speech_data.log, "warning", lambda text, *args: warnings.append(text.format(*args)))
    fill(tmp_path)
    lengths = [(1000 + i) / RATE for i in range(3)]
    for source in ("flat", "shards", "tables"):
        assert speech_data.clip_seconds(read_corpus(tmp_path / source)) == lengths
    (warning,) = warnings
    assert warning.startswith("3 of 3 clips in parquet files or behind URLs have no `duration_s`")
    # Of archives on a disk no more than headers are read; with `duration_s` no audio at all.
    monkeypatch.delattr(audio_source, "_Bytes")
    assert speech_data.clip_seconds(read_corpus(tmp_path / "shards")) == lengths
    rows = read_corpus(tmp_path / "tables")
    for row, seconds in zip(rows, lengths):
        row.info["duration_s"] = seconds
    assert speech_data.clip_seconds(rows) == lengths and len(warnings) == 1
