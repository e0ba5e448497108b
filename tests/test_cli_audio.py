"""`jepa-tok encode`, `decode` and `resynth`: what they make, and that they refuse before they write."""

from __future__ import annotations

import os

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok import load_audio
from jepa_tok.corpus import ShardMetadata, TokenRow, content_hash, read_shards, write_shard
from tests.command_line import assert_error


def test_encode_then_decode(jepa_tok, folder, tokenizer, clips, tmp_path):
    out = tmp_path / "t.parquet"
    status, text, err = jepa_tok("encode", *reversed(clips), "-o", out, "--tokenizer", folder)
    assert status == 0 and "2 clips" in text and tokenizer.hash in text and err == ""
    rows = list(read_shards(out))
    assert [r.id for r in rows] == ["b", "a"]
    for row, clip in zip(rows, reversed(clips)):
        assert torch.equal(row.ids, tokenizer.encode(load_audio(clip)).ids)

    status, text, err = jepa_tok("decode", out, tmp_path / "wavs", "--tokenizer", folder)
    assert status == 0 and "2 clips" in text and err == ""
    assert sorted(p.name for p in (tmp_path / "wavs").iterdir()) == ["a.wav", "b.wav"]
    assert soundfile.info(tmp_path / "wavs" / "a.wav").frames == 10_500
    wave, rate = soundfile.read(tmp_path / "wavs" / "b.wav", dtype="float32")
    expected = tokenizer.decode(tokenizer.encode(load_audio(clips[1]))).clamp(-1, 1).numpy()
    assert rate == 24_000 and len(wave) == 12_345 and np.abs(wave - expected).max() < 1e-4

    status, text, _ = jepa_tok("decode", out, tmp_path / "one", "--id", "b", "--format", "flac", "--tokenizer", folder)
    assert status == 0 and [p.name for p in (tmp_path / "one").iterdir()] == ["b.flac"]


def test_encode_to_a_folder(jepa_tok, folder, clips, tmp_path):
    assert jepa_tok("encode", clips[0], "-o", tmp_path / "x", "--tokenizer", folder)[0] == 0
    (shard,) = (tmp_path / "x").iterdir()
    assert shard.name == f"tokens-00000.{content_hash(shard)}.parquet"
    again = jepa_tok("encode", clips[1], "-o", tmp_path / "x", "--tokenizer", folder)
    assert_error(again, "holds token shards already", "--overwrite")
    assert jepa_tok("encode", clips[1], "-o", tmp_path / "x", "--overwrite", "--tokenizer", folder)[0] == 0
    (new,) = (tmp_path / "x").iterdir()
    assert new.name != shard.name


def test_encode_writes_all_or_nothing(jepa_tok, folder, clips, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no")
    for out in (tmp_path / "t.parquet", tmp_path / "t"):
        assert_error(jepa_tok("encode", *clips, bad, "-o", out, "--tokenizer", folder), "bad.wav")
        assert not out.exists()


def test_encode_does_not_replace_an_input(jepa_tok, folder, clips, tmp_path):
    odd = tmp_path / "odd.parquet"  # sound, whatever its name says
    odd.write_bytes(clips[0].read_bytes())
    result = jepa_tok("encode", clips[1], odd, "-o", odd, "--overwrite", "--tokenizer", folder)
    assert_error(result, "odd.parquet", "input itself")
    assert odd.read_bytes() == clips[0].read_bytes()


@pytest.mark.parametrize("name", ["out.jsonl", "a.wav", "nowhere/t.parquet", "a.wav/t.parquet"])
def test_encode_to_bad_places(jepa_tok, folder, clips, tmp_path, name):
    assert_error(jepa_tok("encode", clips[0], "-o", tmp_path / name, "--tokenizer", folder), name.split("/")[0])


def test_encode_two_files_of_one_name(jepa_tok, folder, clips, tmp_path):
    (tmp_path / "x").mkdir()
    twin = tmp_path / "x" / "a.wav"
    twin.write_bytes(clips[0].read_bytes())
    assert_error(
        jepa_tok("encode", clips[0], twin, "-o", tmp_path / "t.parquet", "--tokenizer", folder), clips[0], twin
    )


def test_decode_needs_the_tokenizer_that_encoded(jepa_tok, clips, tmp_path, tokenizer, folder):
    out = tmp_path / "t.parquet"
    jepa_tok("encode", *clips, "-o", out, "--tokenizer", folder)
    result = jepa_tok("decode", out, tmp_path / "wavs", "--tokenizer", "tiny", "--random-init", "--seed", "9")
    assert result[0] == 2 and tokenizer.hash in result[2] and not (tmp_path / "wavs").exists()


@pytest.mark.parametrize("id", ["../evil", "/tmp/evil", "a/../../evil", "", "a\\b", "..", "a/" + "b" * 250])
def test_decode_stays_in_its_folder(jepa_tok, tokenizer, folder, tmp_path, id):
    tokens = tokenizer.encode(torch.zeros(100))
    write_shard(tmp_path / "t.parquet", [TokenRow(id, tokens.ids, 100)], ShardMetadata.of(tokenizer))
    assert_error(
        jepa_tok("decode", tmp_path / "t.parquet", tmp_path / "d" / "wavs", "--tokenizer", folder), "cannot name a file"
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["t.parquet"]


def shard_of(tokenizer, ids, path):
    tokens = tokenizer.encode(torch.zeros(100))
    return write_shard(path, [TokenRow(id, tokens.ids, 100) for id in ids], ShardMetadata.of(tokenizer))


@pytest.mark.parametrize(
    ("ids", "parts"),
    [
        (["x", "s/a", "s//a"], ["'s/a' and 's//a'", "s/a.wav"]),
        (["x", "s/a", "./s/a"], ["'s/a' and './s/a'", "s/a.wav"]),
        (["x", "A", "A.wav/c"], ["A.wav", "'A'", "'A.wav/c'"]),
        (["x", "A.wav/b/c", "A"], ["A.wav", "'A'", "'A.wav/b/c'"]),
    ],
)
def test_decode_gives_each_utterance_a_file_of_its_own(jepa_tok, tokenizer, folder, tmp_path, ids, parts):
    shard, out = shard_of(tokenizer, ids, tmp_path / "t.parquet"), tmp_path / "wavs"
    assert_error(jepa_tok("decode", shard, out, "--overwrite", "--tokenizer", folder), *parts)
    assert not out.exists()
    assert jepa_tok("decode", shard, out, "--id", ids[1], "--tokenizer", folder)[0] == 0


def test_decode_knows_disks_that_take_names_of_other_case_for_one(jepa_tok, tokenizer, folder, tmp_path, monkeypatch):
    shard = shard_of(tokenizer, ["s/a", "S/a"], tmp_path / "t.parquet")
    status, _, _ = jepa_tok("decode", shard, tmp_path / "wavs", "--tokenizer", folder)
    folds = (tmp_path / "WAVS").exists()
    assert (status, folds) in ((0, False), (2, True))
    if not folds:  # two names of the output's folder for one folder are what such a disk shows
        (tmp_path / "WAVS").symlink_to(tmp_path / "wavs")
        again = jepa_tok("decode", shard, tmp_path / "wavs", "--overwrite", "--tokenizer", folder)
        assert_error(again, "'s/a' and 'S/a'")


@pytest.mark.parametrize("place", ["wavs/s", "wavs"])
def test_decode_looks_for_files_where_it_needs_folders(jepa_tok, tokenizer, folder, tmp_path, place):
    shard = shard_of(tokenizer, ["a", "s/t/b"], tmp_path / "t.parquet")
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    for out in (tmp_path / "wavs", tmp_path / "wavs" / "s" / "more"):
        assert_error(
            jepa_tok("decode", shard, out, "--overwrite", "--tokenizer", folder), f"{file}: the ", "must be a folder"
        )
    assert file.read_text() == "mine" and not list(tmp_path.rglob("*.wav"))


def test_decode_checks_before_it_writes(jepa_tok, folder, clips, tmp_path):
    out, wavs = tmp_path / "t.parquet", tmp_path / "wavs"
    jepa_tok("encode", *clips, "-o", out, "--tokenizer", folder)
    wavs.mkdir()
    (wavs / "b.wav").write_text("mine")
    assert_error(jepa_tok("decode", out, wavs, "--tokenizer", folder), "b.wav: exists already")
    assert [p.name for p in wavs.iterdir()] == ["b.wav"] and (wavs / "b.wav").read_text() == "mine"
    assert jepa_tok("decode", out, wavs, "--overwrite", "--tokenizer", folder)[0] == 0
    assert soundfile.info(wavs / "b.wav").frames == 12_345
    assert_error(jepa_tok("decode", out, tmp_path / "x", "--id", "z", "--tokenizer", folder), "'z'")
    assert_error(jepa_tok("decode", out, clips[0], "--tokenizer", folder), "must be a folder")
    assert_error(jepa_tok("decode", clips[0], tmp_path / "x", "--tokenizer", folder), "a.wav")


def test_resynth(jepa_tok, folder, clips, tmp_path):
    out = tmp_path / "out.flac"
    status, text, err = jepa_tok("resynth", clips[0], out, "--tokenizer", folder)
    assert status == 0 and "2 frames, 38 tokens" in text and err == ""
    assert soundfile.info(out).frames == 10_500 and soundfile.info(out).samplerate == 24_000
    assert_error(jepa_tok("resynth", clips[0], out, "--tokenizer", folder), "exists already")
    assert jepa_tok("resynth", clips[1], out, "--overwrite", "--tokenizer", folder)[0] == 0


@pytest.mark.parametrize("name", ["a.wav", "x/../a.wav", "link.wav"])
def test_resynth_does_not_replace_its_input(jepa_tok, folder, clips, tmp_path, name):
    (tmp_path / "x").mkdir()
    (tmp_path / "link.wav").symlink_to(clips[0])
    before = clips[0].read_bytes()
    for options in ([], ["--overwrite"]):
        result = jepa_tok("resynth", clips[0], tmp_path / name, *options, "--tokenizer", folder)
        assert_error(result, name, "input itself")
    assert clips[0].read_bytes() == before


def test_paths_must_not_be_empty(jepa_tok, folder, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("encode", clips[0], "-o", ""),
        ("encode", "", "-o", "x"),
        ("decode", "", "x"),
        ("decode", "x", ""),
        ("resynth", clips[0], ""),
        ("tokenize", "", "x"),
        ("tokenize", "x", ""),
        ("verify", "", "--source", "x"),
        ("verify", "x", "--source", ""),
    ):
        assert_error(jepa_tok(*arguments, "--tokenizer", folder), "must not be empty")
    for arguments in (
        ("vocabulary", "tiny", ""),
        ("vocabulary", "", "x"),
        ("tokenize", "x", "y", "--tokenizer", ""),
        ("export", "", "x", "--to", "bin"),
        ("export", "x", "", "--to", "bin"),
    ):
        assert_error(jepa_tok(*arguments), "must not be empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.flac"]


def test_verbs_for_local_files_refuse_urls(jepa_tok, folder, clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ("encode", "http://h/a.wav", "-o", "x"),
        ("encode", clips[0], "-o", "memory://x"),
        ("decode", "s3://b/t.parquet", "x"),
        ("decode", "x", "s3://b/out"),
        ("resynth", "http://h/a.wav", "x.wav"),
        ("resynth", clips[0], "memory://x.wav"),
    ):
        assert_error(jepa_tok(*arguments, "--tokenizer", folder), "must be a local path, but is the URL", "://")
    assert_error(jepa_tok("info", "http://h/t.parquet"), "must be a local path, but is the URL 'http://h/t.parquet'")
    assert jepa_tok("info", f"file://{clips[0]}")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.flac"]


def test_paths_must_be_utf8(jepa_tok, folder, clips, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for arguments in (("tokenize", clips[0], odd), ("verify", odd), ("encode", odd, "-o", "x"), ("decode", "x", odd)):
        assert_error(jepa_tok(*arguments, "--tokenizer", folder), "must be UTF-8", r"\xff")


def test_encode_says_what_to_do_where_it_cannot_write(jepa_tok, folder, clips, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa_tok.corpus.shards.atomic_writer", full)
    status, _, err = jepa_tok("encode", clips[0], "-o", tmp_path / "t.parquet", "--tokenizer", folder)
    # It begins anew, whatever `tokenize` does.
    assert status == 2 and "No space left on device" in err and "run the same command again" in err
    assert "goes on" not in err


@pytest.mark.parametrize(
    ("source", "target", "part"),
    [
        ("gone.wav", "o.wav", "gone.wav"),
        (".", "o.wav", "folder"),
        ("text.wav", "o.wav", "text.wav"),
        ("a.wav", "o.mp3", ".wav or .flac"),
        ("a.wav", "gone/o.wav", "gone"),
        ("a.wav", ".", "folder"),
    ],
)
def test_resynth_refusals(jepa_tok, folder, clips, tmp_path, source, target, part):
    (tmp_path / "text.wav").write_text("words\nand more")
    assert_error(jepa_tok("resynth", tmp_path / source, tmp_path / target, "--tokenizer", folder), part)
