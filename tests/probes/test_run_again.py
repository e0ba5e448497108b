"""Suites that run a second time: what was done stays done, what changed, failed or was cut short is done anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from probes.entries import LogMels
from probes.run import _cells
from probes.suite import load_suite
from tests.probes import fakes
from tests.probes.conftest import Run
from tests.probes.fakes import TASKS, ages, table


def test_a_rerun_does_only_what_is_missing(run: Run, made: Any, tmp_path: Path) -> None:
    assert run("pitch") == 0
    before, first = ages(tmp_path), table(tmp_path)
    assert made["pitch"].encoded == 60
    assert run("pitch") == 0
    assert made["pitch"].encoded == 0 and ages(tmp_path) == before
    lost = tmp_path / "out/cells/tones.speaker.pitch.0.json"
    lost.unlink()
    assert run("pitch,noise") == 0
    after = ages(tmp_path)
    assert {name for name in after if after[name] != before.get(name)} == {lost.name, "tones.speaker.noise.0.json"}
    assert made["pitch"].encoded == 0 and made["noise"].encoded == 60
    assert table(tmp_path)["pitch"] == first["pitch"]


def test_new_labels_make_new_cells_from_old_codes(run: Run, made: Any, tmp_path: Path) -> None:
    assert run("pitch") == 0
    manifest = tmp_path / "tones.jsonl"
    manifest.write_text(manifest.read_text().replace('"speaker": "s5"', '"speaker": "s4"'))
    before = ages(tmp_path)
    assert run("pitch") == 0
    assert made["pitch"].encoded == 0 and all(ages(tmp_path)[name] != age for name, age in before.items())
    assert table(tmp_path)["chance"]["metrics"]["uar"]["mean"] == 0.2


def test_a_cell_that_fails_is_said_and_tried_again(run: Run, made: Any, tmp_path: Path, capsys: Any) -> None:
    manifest = tmp_path / "tones.jsonl"
    manifest.write_text(manifest.read_text().replace('"text": "', f'"text": "{"long " * 40}'))
    fakes.write_suite(tmp_path / "tones.yaml", "{asr: {column: text, split_column: split, epochs: 1}, " + TASKS[1:])
    assert run("pitch") == 1
    captured = capsys.readouterr()
    assert "failed: tones, asr, 1 cells: No transcript of the train part fits its clip" in captured.err
    assert "pitch (failed)" in captured.out
    assert table(tmp_path)["pitch"]["metrics"]["uar"]["mean"] == 1.0
    assert "1 of 1 seeds failed" in table(tmp_path, "asr")["pitch"]["error"]
    assert "1 of 1 seeds failed" in (tmp_path / "out/results.md").read_text()
    assert "2 cells failed" in (tmp_path / "out/results.html").read_text()
    fakes.write_suite(tmp_path / "tones.yaml", TASKS)
    before = ages(tmp_path)
    assert run("pitch") == 0 and ages(tmp_path) == before


def test_ctrl_c_leaves_what_is_finished(run: Run, made: Any, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    from probes import linear

    fit, calls = linear.fit, []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(linear, "fit", interrupted)
    assert run("pitch", seeds="0 1") == 130
    assert "interrupted" in capsys.readouterr().err
    assert list(ages(tmp_path)) == ["tones.speaker.pitch.0.json"] and not (tmp_path / "out/results.json").exists()
    before = ages(tmp_path)
    assert run("pitch", seeds="0 1") == 0
    assert before.items() <= ages(tmp_path).items() and made["pitch"].encoded == 0


KILLED = """
import os, signal, sys
import jepa_tok.adapters
from probes.cli import main
from tests.probes.fakes import Pitch

class Dying(Pitch):
    def encode(self, wave):
        if self.encoded == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(wave)

jepa_tok.adapters.make_adapter = lambda spec: Dying()
main(sys.argv[1:])
"""


def test_killed_while_tokenizing_and_run_again(run: Run, made: Any, tmp_path: Path) -> None:
    given = fakes.command(tmp_path, "pitch")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, *given], cwd=root, capture_output=True)
    assert done.returncode == -9
    assert run("pitch") == 0
    assert made["pitch"].encoded == 40  # 20 were there
    first = table(tmp_path)
    assert run("pitch", "--cache", tmp_path / "fresh") == 0
    assert table(tmp_path)["pitch"] == first["pitch"]
    (frames,) = (tmp_path / "out/cache").glob("*/pitch-*/frames.bin")
    (anew,) = (tmp_path / "fresh").glob("*/pitch-*/frames.bin")
    assert frames.read_bytes() == anew.read_bytes()


def test_corrected_speakers_are_measured_anew(run: Run, tmp_path: Path) -> None:
    """Intervals are drawn over them, though no task names the column."""
    fakes.write_suite(tmp_path / "tones.yaml", "{high: {probe: classify, column: high, split_column: split_utt}}")
    cells = tmp_path / "out/cells"
    assert run("pitch") == 0
    before = {f.name: f.read_text() for f in cells.glob("*.json")}
    manifest = tmp_path / "tones.jsonl"
    rows = [json.loads(line) | {"speaker": "one"} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("pitch") == 0
    assert before and all(f.read_text() != before[f.name] for f in cells.glob("*.json"))


def test_a_cell_goes_by_the_columns_and_files_that_no_task_names(tmp_path: Path) -> None:
    fakes.write_corpus(tmp_path)
    (tmp_path / "lm.arpa").write_text("one")
    tasks = f"{{asr: {{column: text, decoder: beam, lm: {tmp_path / 'lm.arpa'}}}, speaker: {{column: speaker}}}}"
    (corpus,) = load_suite(str(fakes.write_suite(tmp_path / "s.yaml", tasks)), tmp_path).corpora

    def keys() -> list[str]:
        return [cell.key for cell in _cells(corpus, LogMels(), [0], "audio")]

    asr, speaker = keys()
    (tmp_path / "lm.arpa").write_text("two!")
    assert keys()[0] != asr and keys()[1] == speaker
    for u in corpus.utterances:
        u.info["split_utt"] = "train" if u.info["split_utt"] == "test" else "test"
    assert keys()[1] != speaker
