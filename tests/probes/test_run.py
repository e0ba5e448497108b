"""Whole suites on made-up tones: what is planted is found, failures are said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from jepa_tok.corpus import ShardMetadata, TokenShardWriter
from jepa_tok.errors import AudioError
from jepa_tok.packing import pack, vocab_sizes
from jepa_tok.tokens import Tokens
from probes.cli import main
from tests.probes import fakes
from tests.probes.conftest import Run
from tests.probes.fakes import TASKS, ages, table


def test_a_planted_signal_is_found_beside_its_controls(run: Run, tmp_path: Path, capsys: Any) -> None:
    assert run("pitch,noise,latent:pitch", seeds="0 1 2") == 0
    rows = table(tmp_path)
    assert list(rows) == ["pitch", "noise", "latent:pitch", "logmel", "majority", "chance"]
    uar = {name: row["metrics"]["uar"]["mean"] for name, row in rows.items()}
    assert uar["pitch"] == uar["logmel"] == 1.0 and uar["latent:pitch"] > 0.8
    assert uar["noise"] < 0.5 and uar["chance"] == pytest.approx(1 / 6, abs=1e-6)
    assert rows["pitch"]["signal"] is True and rows["noise"]["signal"] is False
    for name in ("pitch", "noise", "logmel"):
        assert rows[name]["shuffled"]["uar"]["mean"] < 0.5
    assert (
        rows["pitch"]["metrics"]["uar"] | {"speakers": 6, "by": "speaker", "low": 1.0}
        == rows["pitch"]["metrics"]["uar"]
    )
    assert rows["pitch"]["bits_per_second"] == 60.0 and len(rows["pitch"]["metrics"]["uar"]["values"]) == 3
    out = capsys.readouterr().out
    assert "tones: speaker" in out and "labels shuffled" in out
    missing = "Controls that were not asked for: `random:CONFIG`, `latent:noise`."
    assert missing in (tmp_path / "out/results.md").read_text()
    assert (
        missing.replace("`random:CONFIG`", "<code>random:CONFIG</code>")[:60]
        in (tmp_path / "out/results.html").read_text()
    )
    assert "| pitch | 60 | 1.000" in (tmp_path / "out/results.md").read_text()


def test_tokenizers_learn_from_the_training_part_alone(run: Run, made: Any, tmp_path: Path) -> None:
    assert run("learner") == 0
    rows = [json.loads(line) for line in (tmp_path / "tones.jsonl").read_text().splitlines()]
    assert made["learner"].heard.tolist() == sorted(r["size"] for r in rows if r["split_utt"] == "train")
    assert run("learner") == 0
    assert made["learner"].encoded == 0  # its state, and so its codes, came from the cache


def test_no_training_part_needs_audio_to_fit_to(run: Run, made: Any, tmp_path: Path, capsys: Any) -> None:
    tasks = "{high: {probe: classify, column: high, speaker_column: speaker, folds: 3}}"
    fakes.write_suite(tmp_path / "tones.yaml", tasks)
    assert run("learner") == 2
    assert "`learner` learns from training audio, but the suite `tones` has none" in capsys.readouterr().err
    assert run("learner", "--fit", tmp_path / "tones.jsonl") == 2
    assert "60 of 60 rows of" in capsys.readouterr().err
    other = fakes.write_corpus(tmp_path, 1, 3, name="other")
    assert run("learner", "--fit", other) == 0
    assert made["learner"].heard.tolist() == [3000, 3100, 3200]


def test_a_clip_that_another_corpus_tests_is_not_learned_from(run: Run, made: Any, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "tones.jsonl").read_text().splitlines()]
    for row in rows:
        row["split_utt"] = {"train": "test", "test": "train"}.get(row["split_utt"], "dev")
    (tmp_path / "swapped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fakes.write_suite(tmp_path / "a.yaml", TASKS)
    fakes.write_suite(tmp_path / "b.yaml", TASKS, "swapped.jsonl")
    (tmp_path / "tones.yaml").write_text("suites: [a.yaml, b.yaml]\n")
    assert run("learner") == 2  # nothing is left


def test_some_tasks_of_a_suite(run: Run, tmp_path: Path) -> None:
    """What tokenizers learn from stays that of the whole suite, so that other tasks can be added later."""
    fakes.write_corpus(tmp_path, name="more")
    fakes.write_suite(tmp_path / "a.yaml", TASKS)
    both = "{high: {probe: classify, column: high, split_column: split}, who: {probe: classify, column: speaker, split_column: split_utt}}"
    fakes.write_suite(tmp_path / "b.yaml", both, "more.jsonl")
    (tmp_path / "tones.yaml").write_text("suites: [a.yaml, b.yaml]\n")
    assert run("learner", "--tasks", "who") == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [(t["corpus"], t["task"]) for t in found["tables"]] == [("b", "who")]
    before = ages(tmp_path)
    assert run("learner") == 0
    assert before.items() <= ages(tmp_path).items() and len(list((tmp_path / "out/cache/fit").iterdir())) == 1
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert [t["task"] for t in found["tables"]] == ["speaker", "high", "who"]


def test_shards_are_read_and_not_tokenized(run: Run, tmp_path: Path, capsys: Any) -> None:
    rows = [json.loads(line) for line in (tmp_path / "tones.jsonl").read_text().splitlines()]
    radices = (8, 4)
    meta = ShardMetadata("0" * 16, radices, 2, tuple(vocab_sizes(radices, 2)), 2.5, 24_000)

    def write(folder: Path, kept: list[dict[str, Any]]) -> Path:
        with TokenShardWriter(folder, meta, rows_per_shard=64) as writer:
            for row in kept:
                codes = torch.tensor([[int(row["speaker"][1:]), k % 4] for k in range(3)])
                writer.add(row["id"], Tokens(pack(codes, radices), 3 * 9600, radices, 2, 24_000))
        return folder

    assert run("", "--tokens", f"ours={write(tmp_path / 'tokens', rows)}") == 0
    own = table(tmp_path)["ours"]
    assert own["metrics"]["uar"]["mean"] == 1.0 and own["bits_per_second"] == pytest.approx(12.5)
    assert run("", "--tokens", f"ours={write(tmp_path / 'some', rows[:50])}") == 2
    assert "must hold every utterance of tones, but lacks 10 of 60 (the first is 's5-0')" in capsys.readouterr().err


def test_a_fault_in_a_probe_is_one_cells_own(run: Run, monkeypatch: Any, tmp_path: Path) -> None:
    from probes import linear

    fit, calls = linear.fit, []

    def faulty(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError("no room")
        return fit(*args, **options)

    monkeypatch.setattr(linear, "fit", faulty)
    assert run("pitch", seeds="0 1") == 1
    assert table(tmp_path)["pitch"]["error"] == "1 of 2 seeds failed: MemoryError: no room"
    record = json.loads((tmp_path / "out/cells/tones.speaker.pitch.0.json").read_text())
    assert record["status"] == "failed" and "in faulty" in record["trace"]
    assert run("pitch", seeds="0 1") == 0


def test_audio_that_cannot_be_read_fails_its_corpus_alone(run: Run, tmp_path: Path, capsys: Any) -> None:
    fakes.write_corpus(tmp_path, name="broken")
    (tmp_path / "broken/s3-3.wav").write_bytes(b"RIFF")
    fakes.write_suite(tmp_path / "a.yaml", TASKS)
    fakes.write_suite(tmp_path / "b.yaml", TASKS, "broken.jsonl")
    (tmp_path / "tones.yaml").write_text("suites: [a.yaml, b.yaml]\n")
    assert run("pitch") == 1
    found = json.loads((tmp_path / "out/results.json").read_text())
    good, bad = ({row["name"]: row for row in t["rows"]} for t in found["tables"])
    assert good["pitch"]["metrics"]["uar"]["mean"] == 1.0 and not bad["pitch"]["metrics"]
    assert "s3-3.wav" in bad["pitch"]["error"] and "s3-3.wav" in capsys.readouterr().err


def test_several_processes_find_the_same(run: Run, tmp_path: Path) -> None:
    assert run("pitch,noise") == 0
    one = table(tmp_path)
    for cell in (tmp_path / "out/cells").iterdir():
        cell.unlink()
    assert run("pitch,noise", "--jobs", 2) == 0
    assert table(tmp_path) == one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1", "1"], "`--seeds` must be different"),
        (["--tokens", "x"], "`--tokens` must be NAME=FOLDER"),
        (["--tokens", "x=/none"], "/none"),
        (["--tasks", "speaker,spaeker"], "`--tasks` must be of speaker in the suite `tones`, but has `spaeker`"),
        (["--suite", "mars"], "`--suite` must be one of all"),
        (["--data", "/none"], "`--data` must be a folder"),
        (["--fit", "/none.jsonl"], "/none.jsonl"),
        (["--tokenizers", "pitch,pitch"], "`pitch` is given twice"),
        (["--tokenizers", "logmel"], "`logmel` is in every table"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Run, options: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert run("pitch", *options) == 2
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_stays_as_it_is(run: Run, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    assert run("pitch") == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    (tmp_path / "out/thesis.tex").unlink()
    assert run("pitch") == 0
    (tmp_path / "tones.yaml").rename(tmp_path / "sounds.yaml")
    assert run("pitch", "--suite", tmp_path / "sounds.yaml") == 2
    assert "is of `tones`, not `sounds`" in capsys.readouterr().err
    assert main(["run", "--suite", "fsdd", "--out", str(tmp_path / "o")]) == 2


def test_latents_must_be_there(run: Run, made: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(fakes.Pitch, "latents", lambda self, wave: None)
    assert run("latent:pitch") == 1
    assert "must be of a tokenizer that has latents, but `pitch` has none" in table(tmp_path)["latent:pitch"]["error"]


@pytest.mark.parametrize("specs", ["pitch,latent:pitch", "latent:pitch,pitch", "pitch"])
def test_a_clip_is_heard_once_for_latents_and_codes(specs: str, run: Run, monkeypatch: Any, tmp_path: Path) -> None:
    heard: list[int] = []
    encode = fakes.Pitch.encode

    def codes_of(self: fakes.Pitch, latents: np.ndarray) -> np.ndarray:
        return np.rint((latents + 1) * np.array(self.radices) / 2 - 0.5).astype(self.code_dtype)

    monkeypatch.setattr(fakes.Pitch, "encode", lambda self, wave: heard.append(len(wave)) or encode(self, wave))
    assert run("pitch", "--out", tmp_path / "alone") == 0
    heard.clear()
    monkeypatch.setattr(fakes.Pitch, "codes_of", codes_of)
    assert run(specs) == 0
    assert len(heard) == 60
    (alone,) = (tmp_path / "alone/cache").glob("*/pitch-codes-*/frames.bin")
    (own,) = (tmp_path / "out/cache").glob("*/pitch-codes-*/frames.bin")
    assert own.read_bytes() == alone.read_bytes()


def test_codebooks_are_pooled_by_what_they_stand_for(run: Run, monkeypatch: Any, tmp_path: Path) -> None:
    """1,024 levels and more make sparse histograms; moments are of the adapter's own values."""
    monkeypatch.setattr(fakes.Noise, "radices", (1024, 64))
    monkeypatch.setattr(fakes.Noise, "values", lambda self, codes: np.full((len(codes), 3), 7, np.float32))
    assert run("noise") == 0
    (file,) = (tmp_path / "out/cache").glob("*/noise-*/pooled-*.npz")
    with np.load(file) as found:
        assert found["shape"].tolist() == [60, 1024 + 64 + 6]


def test_an_audio_error_has_one_line(run: Run, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    def broken(u: Any, rate: int) -> Any:
        raise AudioError("'x.wav' is cut short.")

    monkeypatch.setattr("probes.run.load_utterance", broken)
    assert run("learner") == 2
    assert "error: 'x.wav' is cut short." in capsys.readouterr().err


def test_clips_may_be_stretches_of_one_file(run: Run, tmp_path: Path) -> None:
    """They share a path, and no audio."""
    manifest, folder = tmp_path / "tones.jsonl", tmp_path / "tones"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    waves = [sf.read(tmp_path / row["path"]) for row in rows]
    rate, at = waves[0][1], 0
    for row, (wave, _) in zip(rows, waves):
        row |= {"path": "tones/long.wav", "start": at / rate, "end": (at + len(wave)) / rate}
        at += len(wave)
    sf.write(folder / "long.wav", np.concatenate([wave for wave, _ in waves]), rate)
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("pitch") == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["failed"] == 0 and found["tables"][0]["rows"]
