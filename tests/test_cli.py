"""The command line: what each verb makes, and that every error is one line."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok import SpeechTokenizer, hub, load_audio
from jepa_tok.cli.main import VERBS
from jepa_tok.corpus import read_metadata, read_shards
from jepa_tok.files import temporary_name
from tests.command_line import assert_error

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


def test_random_weights_are_never_used_in_silence(jepa_tok, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "CHECKPOINTS", tmp_path / "none")
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
        and "the same command with --retry-skipped takes up" in lines[-1]
    )
    assert jepa_tok("tokenize", manifest, tmp_path / "out", "--tokenizer", folder)[0] == 1  # also when all is done
    assert_error(jepa_tok("tokenize", manifest, tmp_path / "strict", "--strict", "--tokenizer", folder), "bad")

    refused = make_manifest(tmp_path, clips)
    refused.write_text(refused.read_text() + "no JSON\n")
    status, _, err = jepa_tok("tokenize", refused, tmp_path / "refused", "--tokenizer", folder)
    assert status == 1 and "skipped 1" in err and "--retry-skipped" not in err, "which takes up no rows"


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


@pytest.mark.parametrize("to", ["bin", "jsonl", "kaldi", "shar", "parquet"])
def test_info_of_an_export_tells_what_its_shards_told(jepa_tok, folder, clips, tmp_path, to):
    jepa_tok("tokenize", make_manifest(tmp_path, clips), tmp_path / "out", "--tokenizer", folder)
    assert jepa_tok("export", tmp_path / "out", tmp_path / to, "--to", to)[0] == 0
    status, text, err = jepa_tok("info", tmp_path / to, "--json", "--check")
    facts, expected = json.loads(text), json.loads(jepa_tok("info", tmp_path / "out", "--json", "--check")[1])
    assert status == 0 and err == "" and facts["format"] == to
    own = {"tokens", "format", "shards"}
    assert {k: v for k, v in facts.items() if k not in own} == {k: v for k, v in expected.items() if k not in own}


def test_info_of_a_damaged_export_is_one_line(jepa_tok, tmp_path):
    (tmp_path / "metadata.json").write_text("[]")
    assert_error(jepa_tok("info", tmp_path), "metadata.json")


@pytest.mark.parametrize("target", ["gone", "{tmp}", "{tmp}/x.parquet", "{tmp}/x.wav", "{tmp}/gone.parquet"])
def test_info_refusals(jepa_tok, tmp_path, target):
    (tmp_path / "x.parquet").write_text("no")
    (tmp_path / "x.wav").write_text("no")
    assert_error(jepa_tok("info", target.format(tmp=tmp_path)), target.format(tmp=tmp_path))


def test_report(jepa_tok, tmp_path, monkeypatch):
    module = types.ModuleType("jepa_tok.report")
    module.build_report = lambda run_dir, out, compare, clips: Path(out).write_text(f"report of {Path(run_dir).name}")  # type: ignore[attr-defined]
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
        raise OSError(28, "No space left on device", temporary_name("x.parquet"))

    monkeypatch.setattr("jepa_tok.cli.info.run", full)
    assert_error(jepa_tok("info", "tiny"), "x.parquet: No space left on device")


@pytest.mark.skipif(os.name == "nt", reason="of POSIX shells")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(folder, clips, tmp_path, closed):
    command = [sys.executable, "-m", "jepa_tok", "encode", *clips, "-o", tmp_path / "t.parquet", "--tokenizer", folder]
    line = f"{shlex.join(map(str, command))} {closed}"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "") and ("2 clips" in run.stdout) == (">&-" not in closed.split())
    assert len(list(read_shards(tmp_path / "t.parquet"))) == 2
    bad = subprocess.run(["sh", "-c", f"{line} --seed x"], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")


def test_a_terminal_that_knows_fewer_characters(tmp_path):
    soundfile.write(tmp_path / "ü.wav", np.zeros(100), 24_000)
    command = [sys.executable, "-m", "jepa_tok", "info", tmp_path / "ü.wav"]
    run = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0 and rb"\xfc.wav" in run.stdout and run.stderr == b""


def test_a_reader_that_goes_away(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "jepa_tok", "info", "tiny"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and errors == b""
