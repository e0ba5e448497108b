"""The command line: what each verb makes, and that every error is one line."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok import SpeechTokenizer, load_audio
from jepa_tok.cli import main
from jepa_tok.cli.main import VERBS
from jepa_tok.corpus import TokenRow, content_hash, read_metadata, read_shards, write_shard


@pytest.fixture
def jepa_tok(capsys):
    """Runs a command line in this process: exit status, stdout, stderr. A traceback would fail the test."""

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse
            status = e.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved tokenizer; untrained, but that is nobody's business."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    SpeechTokenizer.from_config("tiny").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return SpeechTokenizer.from_pretrained(folder)


@pytest.fixture
def clips(tmp_path):
    rng = np.random.default_rng(0)
    for name, size, rate in (("a.wav", 7000, 16_000), ("b.flac", 12_345, 24_000)):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, size), rate)
    return tmp_path / "a.wav", tmp_path / "b.flac"


def assert_error(result, *parts):
    status, out, err = result
    assert status == 2 and out == ""
    assert err.startswith("jepa-tok: error: ") and err.count("\n") == 1 and err.endswith("\n")
    for part in parts:
        assert str(part) in err


# Help and start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(jepa_tok, verb):
    status, out, err = jepa_tok(verb, "--help")
    assert status == 0 and f"example: jepa-tok {verb} " in out and err == ""


def test_help_does_not_wait_for_heavy_imports():
    program = (
        "import sys\nfrom jepa_tok.cli import main\n"
        "for arguments in (['--help'], ['encode', '--help'], ['tokenize']):\n"
        "    try: main(arguments)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'soundfile', 'tqdm', 'fairseq2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_module_and_version():
    result = subprocess.run([sys.executable, "-m", "jepa_tok", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("jepa-tok ") and result.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["encode"],
        ["encode", "a.wav", "-o", "t.parquet"],
        ["tokenize", "x", "y", "--tokenizer", "z", "--rows-per-shard", "0"],
        ["tokenize", "x", "y", "--tokenizer", "z", "--batch-seconds", "-1"],
        ["tokenize", "x", "y", "--tokenizer", "z", "--batch-seconds", "nan"],
        ["decode", "x", "y", "--tokenizer", "z", "--format", "mp3"],
    ],
)
def test_bad_command_lines(jepa_tok, arguments):
    assert_error(jepa_tok(*arguments), "--help")


# Tokenizers -----------------------------------------------------------------------------------------------------------


def test_random_weights_are_never_used_in_silence(jepa_tok, clips, tmp_path):
    out = tmp_path / "t.parquet"
    assert_error(
        jepa_tok("encode", clips[0], "-o", out, "--tokenizer", "tiny"), "no trained tokenizer", "--random-init"
    )
    assert not out.exists()
    status, _, err = jepa_tok("encode", clips[0], "-o", out, "--tokenizer", "tiny", "--random-init", "--seed", "3")
    assert status == 0 and "warning" in err and "UNTRAINED" in err and err.count("\n") == 1
    assert read_metadata(out).hash == SpeechTokenizer.from_config("tiny", seed=3).hash


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--tokenizer", "nowhere"], "nowhere"),
        (["--tokenizer", "{tmp}"], "config.json"),
        (["--tokenizer", "{tmp}/a.wav"], "a.wav"),
        (["--tokenizer", "huge", "--random-init"], "huge"),
        (["--tokenizer", "tiny", "--random-init", "--device", "abacus"], "abacus"),
        (["--tokenizer", "tiny", "--random-init", "--device", "cuda:99"], "cuda:99"),
        (["--tokenizer", "tiny", "--random-init", "--device", "meta"], "meta"),
        (["--tokenizer", "tiny", "--random-init", "--seed", str(2**64)], "seed"),
    ],
)
def test_bad_tokenizers(jepa_tok, clips, tmp_path, options, part):
    options = [o.format(tmp=tmp_path) for o in options]
    assert_error(jepa_tok("resynth", clips[0], tmp_path / "out.wav", *options), part)
    assert not (tmp_path / "out.wav").exists()


# encode, decode, resynth ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("id", ["../evil", "/tmp/evil", "a/../../evil", "", "a\\b", ".."])
def test_decode_stays_in_its_folder(jepa_tok, tokenizer, folder, tmp_path, id):
    from jepa_tok.corpus import ShardMetadata

    tokens = tokenizer.encode(torch.zeros(100))
    write_shard(tmp_path / "t.parquet", [TokenRow(id, tokens.ids, 100)], ShardMetadata.of(tokenizer))
    assert_error(
        jepa_tok("decode", tmp_path / "t.parquet", tmp_path / "d" / "wavs", "--tokenizer", folder), "cannot name a file"
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["t.parquet"]


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


# tokenize, info, report -----------------------------------------------------------------------------------------------


def make_manifest(tmp_path, clips, bad=0):
    rows = [{"id": c.stem, "path": str(c), "split": "train" if c.stem == "a" else "dev"} for c in clips]
    rows += [{"id": f"bad{i}", "path": f"bad{i}.wav", "split": "train"} for i in range(bad)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path / "m.jsonl"


def test_tokenize(jepa_tok, folder, tokenizer, clips, tmp_path):
    manifest, out = make_manifest(tmp_path, clips), tmp_path / "out"
    status, text, err = jepa_tok("tokenize", manifest, out, "--where", "split=dev", "--tokenizer", folder)
    assert status == 0 and "1 of 1 clips" in text and err == ""
    (row,) = read_shards(out)
    assert row.id == "b" and row.info == {"split": "dev"}
    assert torch.equal(row.ids, tokenizer.encode(load_audio(clips[1])).ids)
    assert_error(jepa_tok("tokenize", manifest, out, "--tokenizer", folder), "overwrite")
    batched = ["--overwrite", "--batch-seconds", "10", "--rows-per-shard", "1", "--progress"]
    status, text, err = jepa_tok("tokenize", manifest, out, "--tokenizer", folder, *batched)
    assert status == 0 and "2 of 2 clips in 2 shards" in text and "h/s" in err


def test_tokenize_names_bad_files_and_exits_with_1(jepa_tok, folder, clips, tmp_path):
    manifest = make_manifest(tmp_path, clips, bad=12)
    status, text, err = jepa_tok("tokenize", manifest, tmp_path / "out", "--tokenizer", folder)
    assert status == 1 and "2 of 14 clips" in text and "12 skipped" in text
    lines = err.splitlines()
    assert (
        len(lines) == 11
        and "skipped 'bad0'" in lines[0]
        and "bad0.wav" in lines[0]
        and "skipped 12 (2 more)" in lines[-1]
    )
    assert jepa_tok("tokenize", manifest, tmp_path / "out", "--tokenizer", folder)[0] == 1  # also when all is done
    assert_error(jepa_tok("tokenize", manifest, tmp_path / "strict", "--strict", "--tokenizer", folder), "bad")


@pytest.mark.parametrize("source", ["gone.jsonl", "empty.jsonl", "broken.jsonl", "emptyfolder"])
def test_tokenize_bad_sources(jepa_tok, tmp_path, source):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.jsonl").write_text("{}\n")
    (tmp_path / "emptyfolder").mkdir()
    options = ["--tokenizer", "tiny", "--random-init"]
    assert_error(jepa_tok("tokenize", tmp_path / source, tmp_path / "out", *options), source)
    assert not (tmp_path / "out").exists()


def test_info_of_a_tokenizer(jepa_tok, folder, tokenizer):
    status, text, _ = jepa_tok("info", folder, "--json")
    facts = json.loads(text)
    assert status == 0 and facts["hash"] == tokenizer.hash and facts["vocab_sizes"] == tokenizer.vocab_sizes
    assert facts["frame_rate"] == 2.5 and facts["tokens_per_second"] == 47.5 and facts["bits_per_second"] == 640
    assert sum(facts["parameters"].values()) == sum(p.numel() for p in tokenizer.parameters())
    assert facts["config"]["encoder"]["n_mels"] == tokenizer.config.encoder.n_mels
    status, text, _ = jepa_tok("info", folder)
    assert status == 0 and "16384 x 18, 16" in text and tokenizer.hash in text


def test_info_of_a_preset_says_that_it_has_no_weights(jepa_tok):
    status, text, _ = jepa_tok("info", "paper", "--json")
    facts = json.loads(text)
    assert status == 0 and facts["weights"] == "none packaged" and "hash" not in facts
    assert facts["parameters"]["encoder"] == 118_512_562 and facts["parameters"]["generator"] == 69_291_649


def test_info_of_tokens_and_audio(jepa_tok, folder, tokenizer, clips, tmp_path):
    jepa_tok("tokenize", make_manifest(tmp_path, clips), tmp_path / "out", "--tokenizer", folder)
    status, text, _ = jepa_tok("info", tmp_path / "out", "--json", "--check")
    facts = json.loads(text)
    assert status == 0 and facts["rows"] == 2 and facts["frames"] == 4 and facts["tokenizer_hash"] == tokenizer.hash
    assert facts["columns"] == {"split": "string"} and facts["checked"].startswith("2 rows")
    status, text, _ = jepa_tok("info", clips[0], "--json")
    assert status == 0 and json.loads(text)["sample_rate"] == 16_000 and json.loads(text)["frames_at_2.5_Hz"] == 2


@pytest.mark.parametrize("target", ["gone", "{tmp}", "{tmp}/x.parquet", "{tmp}/x.wav", "{tmp}/gone.parquet"])
def test_info_refusals(jepa_tok, tmp_path, target):
    (tmp_path / "x.parquet").write_text("no")
    (tmp_path / "x.wav").write_text("no")
    assert_error(jepa_tok("info", target.format(tmp=tmp_path)), target.format(tmp=tmp_path))


def test_report(jepa_tok, tmp_path, monkeypatch):
    module = types.ModuleType("jepa_tok.report")
    module.build_report = lambda run_dir, out: Path(out).write_text(f"report of {Path(run_dir).name}")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jepa_tok.report", module)
    run = tmp_path / "run"
    run.mkdir()
    assert jepa_tok("report", run)[:2] == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text() == "report of run"
    assert_error(jepa_tok("report", run), "exists already")
    assert jepa_tok("report", run, "--out", tmp_path / "r.html")[0] == 0
    assert_error(jepa_tok("report", tmp_path / "gone"), "gone")


# Ends -----------------------------------------------------------------------------------------------------------------


def test_interruption_is_one_line(jepa_tok, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jepa_tok.cli.info.run", interrupted)
    status, out, err = jepa_tok("info", "tiny")
    assert (status, out, err) == (130, "", "jepa-tok: interrupted\n")


def test_errors_of_the_system_are_one_line(jepa_tok, monkeypatch):
    def full(args):
        raise OSError(28, "No space left on device", "x.parquet")

    monkeypatch.setattr("jepa_tok.cli.info.run", full)
    assert_error(jepa_tok("info", "tiny"), "x.parquet: No space left on device")


def test_errors_of_the_system_name_the_output_and_not_its_temporary_file(jepa_tok, monkeypatch):
    def full(args):
        raise OSError(28, "No space left on device", "x.parquet.tmp")

    monkeypatch.setattr("jepa_tok.cli.info.run", full)
    assert_error(jepa_tok("info", "tiny"), "x.parquet: No space left on device")


def test_a_reader_that_goes_away(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "jepa_tok", "info", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and errors == b""
