"""Audio that goes away while a corpus is tokenized: the run ends where all may be gone, and says how to go on."""

from __future__ import annotations

import json
import os
import shutil
import tarfile

import pytest

from jepa_tok.corpus import Utterance, spool_corpus, tokenize_corpus
from jepa_tok.errors import CorpusError
from tests.corpora import Counter, audio_column, contents, make_corpus, sound, write_parquet
from tests.test_tokenize_resume import Meanwhile

GONE = r"^[^\n]*has vanished[^\n]*run the same command again, it goes on\.$"


def make_archives(folder, kind):
    """Three of two clips each, and what braces call them."""
    folder.mkdir()
    for i in range(3):
        if kind == "parquet":
            write_parquet(folder / f"s-{i}.parquet", {"audio": audio_column(2, first=2 * i)})
            continue
        for name in (f"{2 * i}", f"{2 * i + 1}"):
            (folder / f"{name}.flac").write_bytes(sound(int(name)))
        with tarfile.open(folder / f"s-{i}.tar", "w") as archive:
            for name in (f"{2 * i}.flac", f"{2 * i + 1}.flac"):
                archive.add(folder / name, name)
                (folder / name).unlink()
    return f"{folder}/s-{{0..2}}.{kind}"


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("what", ["the folder", "one of them"])
def test_archives_that_braces_name(tmp_path, kind, what):
    source = make_archives(tmp_path / "in", kind)
    tokenize_corpus(source, tmp_path / "whole", Counter(), rows_per_shard=1)
    gone = tmp_path / "in" if what == "the folder" else tmp_path / "in" / f"s-2.{kind}"
    vanishing = Meanwhile(1, lambda: gone.rename(tmp_path / "away"))
    with pytest.raises(CorpusError, match=GONE):
        tokenize_corpus(source, tmp_path / "out", vanishing, rows_per_shard=1)
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["state"] == "running"
    (tmp_path / "away").rename(gone)
    assert tokenize_corpus(source, tmp_path / "out", Counter(), rows_per_shard=1).skipped == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_the_folder_of_all_audio_of_a_manifest(tmp_path, left):
    audio = make_corpus(tmp_path / "audio", 6).parent
    lines = [json.dumps({"id": f"u{i}", "path": f"audio/u{i}.wav"}) for i in range(6)]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(lines))
    tokenize_corpus(manifest, tmp_path / "whole", Counter(), rows_per_shard=2)

    def happen():
        audio.rename(tmp_path / "away")
        if left == "an empty folder":
            audio.mkdir()

    for tokenizer in (Meanwhile(1, happen), Counter()):  # nor does it help to go on without it
        with pytest.raises(CorpusError, match=f"^{audio}: .*has vanished, .*it goes on"):
            tokenize_corpus(manifest, tmp_path / "out", tokenizer, rows_per_shard=2)
    shutil.rmtree(audio, ignore_errors=True)
    (tmp_path / "away").rename(audio)
    assert tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2).skipped == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_folder_that_may_not_be_listed_is_there(tmp_path, monkeypatch):
    def deny(folder):
        if str(folder) == str(tmp_path / "in"):
            raise PermissionError(folder)
        return scandir(folder)

    manifest = make_corpus(tmp_path / "in", 3, bad=(1,))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", deny)  # the superuser, who may run tests, is denied nothing
    assert tokenize_corpus(manifest, tmp_path / "out", Counter()).skipped == 1


def test_the_folder_that_all_audio_is_in():
    def folder(*paths):
        return spool_corpus([Utterance(str(i), path) for i, path in enumerate(paths)]).folder

    assert folder("/a/b/1.wav") == folder("/a/b/1.wav", "/a/b/2.wav") == "/a/b"
    assert folder("/a/b/1.wav", "/a/bc/1.wav", "/a/b/2.wav") == "/a"
    assert folder("/a/1.wav", "/b/1.wav") == "/"
    assert folder("/a/1.wav", "s3://b/1.wav") is None
