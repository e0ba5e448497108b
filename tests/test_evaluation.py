"""`jepa-tok eval`: the table, its bounds and failures, what is written, and errors in one line."""

from __future__ import annotations

import json
import sys
from typing import ClassVar

import pytest
import soundfile
import torch

from jepa_tok.corpus import read_corpus
from jepa_tok.errors import ConfigError, CorpusError, JepaTokError
from jepa_tok.evaluation import evaluate
from jepa_tok.evaluation.bounds import LatentsSystem, OtherSystem, TokensSystem
from jepa_tok.evaluation.metrics import CannotMeasure, Column, Mel, Metric, Scores
from tests.tokenizers import one_line, speech

RATE = 24_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Ten clips of five speakers, and their manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for i in range(10):
        soundfile.write(folder / f"u{i}.wav", speech(12_000 + 2000 * i, seed=i).numpy(), RATE)
        rows.append({"id": f"u{i}", "path": f"u{i}.wav", "speaker": f"s{i // 2}", "text": "one two"})
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tokenizer, corpus, out, **options):
    chosen = {"metrics": ["mel"], "bounds": ["original", "latents", "other"], "progress": False}
    return evaluate(tokenizer, read_corpus(corpus), out, **{**chosen, **options})


# The table ------------------------------------------------------------------------------------------------------------


def test_rows_figures_and_files(tiny, corpus, tmp_path):
    report = run(tiny, corpus, tmp_path / "out", audio=True)
    assert [row["system"] for row in report["rows"]] == ["`tiny` tokens", "`tiny` latents, unquantised", "original", "another utterance"]  # fmt: skip
    figures = {row["system"]: row["figures"]["mel_db"] for row in report["rows"]}
    assert figures["original"] == {"mean": 0.0, "std": 0.0, "interval": [0.0, 0.0], "utterances": 10, "failed": 0}
    low, high = figures["another utterance"]["interval"]
    assert 0.0 < low <= figures["another utterance"]["mean"] <= high
    assert report["corpus"] | {"seconds": 0} == {"utterances": 10, "seconds": 0, "speakers": 5, "intervals_over": "speakers"}  # fmt: skip
    assert report["rows"][0]["bit_rate"] == pytest.approx(640.0) and report["tokens"]["bit_rate"] == pytest.approx(
        640.0
    )
    assert set(report["rows"][0]["real_time_factor"]) == {"encode", "decode"}
    assert report["tokenizer"]["hash"] == tiny.hash

    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text()) == report
    lines = [json.loads(line) for line in (out / "utterances.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and lines[0]["id"] == "u0" and lines[0]["system"] == "`tiny` tokens"
    versa = [json.loads(line) for line in (out / "versa" / "tiny-tokens.jsonl").read_text().splitlines()]
    assert [line["key"] for line in versa] == [f"u{i}" for i in range(10)] and set(versa[0]) == {"key", "mel_db"}
    page = (out / "results.md").read_text()
    assert "| original |" in page and "over speakers" in page and tiny.hash in page
    heard, _ = soundfile.read(out / "audio" / "original" / "u3.wav", dtype="float32")
    assert len(heard) == 18_000


def test_means_deviations_and_differences_are_those_of_the_single_scores(tiny, corpus, tmp_path):
    report = run(tiny, corpus, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    by_system = {}
    for line in lines:
        by_system.setdefault(line["system"], []).append(line["scores"]["mel_db"])
    for row in report["rows"]:
        values = torch.tensor(by_system[row["system"]], dtype=torch.float64)
        assert row["figures"]["mel_db"]["mean"] == pytest.approx(float(values.mean()), abs=1e-5)
        assert row["figures"]["mel_db"]["std"] == pytest.approx(float(values.std()), abs=1e-5)
    mine, theirs = report["rows"][0]["figures"]["mel_db"]["mean"], report["rows"][3]["figures"]["mel_db"]["mean"]
    assert report["rows"][3]["differences"]["mel_db"]["mean"] == pytest.approx(mine - theirs, abs=1e-5)


def test_without_speakers_intervals_are_over_utterances(tiny, corpus, tmp_path):
    for u in (utterances := read_corpus(corpus)):
        del u.info["speaker"]
    report = evaluate(tiny, utterances, tmp_path, metrics=["mel"], bounds=[], progress=False)
    assert report["corpus"]["intervals_over"] == "utterances" and report["corpus"]["speakers"] is None
    low, high = report["rows"][0]["figures"]["mel_db"]["interval"]
    assert low < high
    assert "say nothing about other speakers" in (tmp_path / "results.md").read_text()


def test_limit_spreads_over_the_corpus(tiny, corpus, tmp_path):
    run(tiny, corpus, tmp_path, limit=4, bounds=[])
    ids = [json.loads(line)["id"] for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    assert ids == ["u0", "u2", "u5", "u7"]


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_latents_differ_from_tokens_by_the_rounding_alone(tiny, monkeypatch):
    wave = speech(40_000)
    tokens, latents = TokensSystem(tiny)(wave, 0).wave, LatentsSystem(tiny)(wave, 0).wave
    assert latents.shape == tokens.shape == wave.shape
    assert not torch.allclose(latents, tokens, atol=1e-4)
    bound = tiny.fsq.bound
    monkeypatch.setattr(tiny.fsq, "bound", lambda z: tiny.fsq._values(tiny.fsq._round(bound(z))))
    assert torch.equal(LatentsSystem(tiny)(wave, 0).wave, tokens)


def test_the_other_utterance_is_another_speakers_cut_to_length(corpus):
    utterances, wave = read_corpus(corpus), speech(50_000, seed=2)
    heard = OtherSystem(utterances, RATE)(wave, 2).wave  # u2 and u3 are of one speaker: u4 is next
    assert heard.shape == wave.shape
    assert torch.allclose(heard[:20_000], speech(20_000, seed=4), atol=1e-4)
    assert torch.equal(heard[20_000:40_000], heard[:20_000])


def test_a_bound_that_cannot_be_had_is_a_row_that_says_so(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    report = run(tiny, corpus, tmp_path, bounds=["codec2"], limit=2)
    assert len(report["unavailable"]["systems"]) == 3 and len(report["rows"]) == 1
    assert "| Codec2 700C |  | not available: install codec2 |" in (tmp_path / "results.md").read_text()


# Failures -------------------------------------------------------------------------------------------------------------


class Picky(Metric):
    """Measures long clips; others fail in the three ways there are."""

    name = "picky"
    columns: ClassVar = {"picky": Column("picky", "higher")}

    def score(self, original, output):
        size = len(original.wave)
        if size < 16_000:
            raise CannotMeasure("too short")
        if size < 18_000:
            raise ZeroDivisionError("by nothing")
        return Scores({"picky": float("nan") if size < 20_000 else 1.0})


def test_failures_are_counted_by_reason_and_never_scored(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_tok.evaluation.run.registry", lambda: {"picky": Picky, "mel": Mel})
    report = run(tiny, corpus, tmp_path, metrics=None, bounds=["original"])
    row = report["rows"][1]
    assert row["figures"]["picky"] == {"mean": 1.0, "std": 0.0, "interval": None, "utterances": 6, "failed": 4}
    assert row["failures"]["picky"] == {"too short": 2, "ZeroDivisionError: by nothing": 1, "nan instead of a number": 1}  # fmt: skip
    assert row["figures"]["mel_db"]["failed"] == 0
    assert "original (4 failed)" in (tmp_path / "results.md").read_text()


def test_a_system_that_fails_has_no_scores_there(tiny, corpus, tmp_path, monkeypatch):
    call = TokensSystem.__call__

    def sometimes(self, wave, index):
        if index == 1:
            raise JepaTokError("no sound today.")
        return call(self, wave, index)

    monkeypatch.setattr(TokensSystem, "__call__", sometimes)
    row = run(tiny, corpus, tmp_path, bounds=["original"])["rows"][0]
    assert row["figures"]["mel_db"]["utterances"] == 9 and row["failures"] == {"mel_db": {"no output: no sound today": 1}}  # fmt: skip


def test_a_figure_that_nothing_has_is_none(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_tok.evaluation.run.registry", lambda: {"picky": Picky})
    report = run(tiny, corpus, tmp_path, metrics=None, limit=1, bounds=["original"])
    assert report["rows"][0]["figures"] == {"picky": None} and report["rows"][1]["differences"] == {"picky": None}
    assert "| original |  | none |" in (tmp_path / "results.md").read_text()


# Going on -------------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_was(tiny, corpus, tmp_path, monkeypatch):
    whole = run(tiny, corpus, tmp_path / "whole")
    heard = []
    call = LatentsSystem.__call__

    def counted(self, wave, index):
        heard.append(index)
        if len(heard) == 5:
            raise KeyboardInterrupt
        return call(self, wave, index)

    monkeypatch.setattr(LatentsSystem, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, corpus, tmp_path / "out")
    with (tmp_path / "out" / "partial.jsonl").open("a") as file:
        file.write('{"id": "u4", "fou')  # as a kill in the middle of a line leaves it
    again = run(tiny, corpus, tmp_path / "out")
    assert heard == [0, 1, 2, 3, 4, *range(4, 10)]
    for report in (whole, again):
        report["rows"][0].pop("real_time_factor")
    assert again == whole
    assert not (tmp_path / "out" / "partial.jsonl").exists()
    lines = (tmp_path / "out" / "utterances.jsonl").read_text()
    assert lines == (tmp_path / "whole" / "utterances.jsonl").read_text()


def test_other_settings_begin_anew(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_tok.evaluation.run._write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(tiny, corpus, tmp_path, bounds=["original"])
    monkeypatch.undo()
    assert len((tmp_path / "partial.jsonl").read_text().splitlines()) == 11
    assert len(run(tiny, corpus, tmp_path, bounds=["other"])["rows"]) == 2


# The command line -----------------------------------------------------------------------------------------------------


def test_the_verb_reports_and_skips_what_cannot_be_read(jepa_tok, corpus, tmp_path):
    rows = corpus.read_text().splitlines()[:3]
    (tmp_path / "bad.wav").write_bytes(b"RIFF no more")
    for row in rows:
        (tmp_path / json.loads(row)["path"]).symlink_to(corpus.parent / json.loads(row)["path"])
    bad = json.dumps({"id": "bad", "path": "bad.wav", "speaker": "s9"})
    (tmp_path / "c.jsonl").write_text("\n".join([bad, *rows]) + "\n")
    arguments = ["tiny", str(tmp_path / "c.jsonl"), str(tmp_path / "out"), "--random-init", "--metrics", "mel"]
    command = ["eval", *arguments, "--bounds", "original"]
    status, out, err = jepa_tok(*command)
    assert status == 1 and "2 systems, 1 figures, 3 utterances" in out and "1 skipped" in out
    assert "skipped 'bad'" in err
    status, _, err = jepa_tok(*command)
    assert status == 2 and "--overwrite" in err
    assert jepa_tok(*command, "--overwrite")[0] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--metrics", "mos"], "`metrics` must be among"),
        (["--metrics", ","], "`metrics` must name at least one"),
        (["--bounds", "mp3"], "`bounds` must be among"),
        (["--metrics", "wer", "--recognizer", "nobody"], "`recognizer` must be"),
        (["--where", "speaker=nobody"], "none of the 10 utterances"),
        (["--seed", "-1"], "`seed` of the bootstrap must be at least 0"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(jepa_tok, corpus, tmp_path, options, told):
    status, _, err = jepa_tok("eval", "tiny", corpus, tmp_path / "out", "--random-init", *options)
    last = err.splitlines()[-1]
    assert status == 2 and told in last and last.startswith("jepa-tok: error: ")
    assert not (tmp_path / "out").exists()


def test_a_metric_asked_for_by_name_must_be_there(tiny, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pesq", None)
    monkeypatch.setattr("jepa_tok.evaluation.metrics.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        run(tiny, corpus, tmp_path / "out", metrics=["pesq"])
    assert "'pesq'" in one_line(error, ConfigError) and "pip install pesq" in str(error.value)
    report = run(tiny, corpus, tmp_path / "out", metrics=None, bounds=[], limit=1)
    assert list(report["columns"]) == ["mel_db"]
    assert report["unavailable"]["metrics"]["pesq"].startswith("not available: pip install pesq")
    assert "Metric `pesq` not available: pip install pesq" in (tmp_path / "out" / "results.md").read_text()


def test_a_corpus_without_readable_audio_is_an_error(tiny, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"id": "a", "path": "missing.wav"}\n')
    with pytest.raises(CorpusError) as error:
        run(tiny, tmp_path / "c.jsonl", tmp_path / "out")
    assert "missing.wav" in one_line(error, CorpusError)
