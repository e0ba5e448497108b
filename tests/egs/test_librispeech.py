"""LibriSpeech's own layout -> manifests: rows, splits, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from egs.librispeech.prepare import prepare
from egs.librispeech.results import last_row, metrics_table
from jepa_tok import SpeechTokenizer
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.errors import CorpusError


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    """Two training readers of six utterances and one dev reader of two, half a second each."""
    root = tmp_path / "Libri Speech"
    for subset, reader, count in (("train-clean-5", "19", 6), ("train-clean-5", "32", 6), ("dev-clean-2", "84", 2)):
        chapter = root / subset / reader / "7"
        chapter.mkdir(parents=True)
        lines = []
        for i in range(count):
            name = f"{reader}-7-{i:04d}"
            soundfile.write(chapter / f"{name}.flac", 0.1 * np.sin(np.arange(8000) * (i + 1) / 50), 16000)
            lines.append(f"{name} SENTENCE NUMBER {i}")
        (chapter / f"{reader}-7.trans.txt").write_text("\n".join(lines) + "\n")
    (root / "SPEAKERS.TXT").write_text(
        "; id | sex | subset\n19 | F | train-clean-5 | 1 | -\n32 | M | train-clean-5 | 1 | -\n"
    )
    return root


def test_rows_hold_what_the_folder_says(librispeech: Path, tmp_path: Path) -> None:
    assert prepare(librispeech, tmp_path / "out") == {"train": 12, "dev": 2, "test": 0}
    rows = [json.loads(line) for line in (tmp_path / "out" / "all.jsonl").read_text().splitlines()]
    assert len(rows) == 14 and not (tmp_path / "out" / "test.jsonl").exists()
    first = rows[0]
    assert first["id"] == "19-7-0000" and first["text"] == "SENTENCE NUMBER 0" and first["gender"] == "F"
    assert first["duration_s"] == 0.5 and first["sample_rate"] == 16000 and first["speaker"] == "ls-19"
    assert "gender" not in rows[-1]
    assert [r["split_utt"] for r in rows[:6]] == ["train", "train", "train", "dev", "test", "train"]
    assert {r["speaker"] for r in rows if r["split"] == "train"}.isdisjoint(
        r["speaker"] for r in rows if r["split"] == "dev"
    )


def test_manifests_are_what_the_corpus_reader_reads(librispeech: Path, tmp_path: Path) -> None:
    prepare(librispeech, tmp_path / "out")
    utterances = read_corpus(tmp_path / "out" / "all.jsonl", split="dev")
    assert [u.id for u in utterances] == ["84-7-0000", "84-7-0001"]
    assert all(Path(u.path).exists() for u in utterances)


def test_a_missing_or_broken_file_is_named(librispeech: Path, tmp_path: Path) -> None:
    (librispeech / "dev-clean-2/84/7/84-7-0001.flac").write_bytes(b"not audio")
    with pytest.raises(CorpusError, match="84-7-0001"):
        prepare(librispeech, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_folder_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "egs.librispeech.prepare", str(tmp_path), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and "trans.txt" in result.stderr


def test_the_last_row_is_the_one_that_a_resumed_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    rows = [{"Step": 10, "L1": 3.0}, {"Step": 20, "L1": 2.0}, {"Step": 20, "L1": 1.0, "Mel Loss (nats)": 0.5}]
    (tmp_path / "metrics" / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = last_row(tmp_path, "valid")
    assert found == rows[-1] and last_row(tmp_path, "train") is None
    assert metrics_table(found)[2:] == ["| Step | 20 |", "| L1 | 1 |", "| Mel Loss (nats) | 0.5 |"]


def test_a_trained_tokenizer_takes_the_place_of_training(librispeech: Path, tmp_path: Path) -> None:
    tokenizer = SpeechTokenizer.from_config("tiny", seed=2)
    tokenizer.save_pretrained(tmp_path / "mine", compact=True)
    exp, root = tmp_path / "exp", Path(__file__).parents[2]
    command = ["bash", str(root / "egs/librispeech/run.sh"), "--librispeech", str(librispeech), "--exp", str(exp)]
    command += ["--python", sys.executable, "--stop-stage", "3", "--tokenizer"]
    subprocess.run([*command, str(tmp_path / "mine")], check=True, capture_output=True)
    names = [json.loads(line)["name"] for line in (exp / "commands.jsonl").read_text().splitlines()]
    assert names == ["data", "tokenizer"] and not (exp / "stage1").exists()
    mine = SpeechTokenizer.from_pretrained(tmp_path / "mine")
    assert SpeechTokenizer.from_pretrained(exp / "tokenizer").hash == mine.hash != tokenizer.hash
    failed = subprocess.run([*command, str(tmp_path / "lost")], capture_output=True, text=True)
    assert failed.returncode != 0 and failed.stderr.splitlines()[-1].startswith("run.sh: error: tokenizer ended")
