"""Speaker and emotion from the command line: a planted signal is found, luck stays luck, results have one shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probes.cli import main
from probes.results import ROWS


def _run(*argv: object) -> dict[str, Any]:
    given = [str(a) for a in argv]
    assert main(given) == 0
    return json.loads((Path(given[given.index("--out") + 1]) / "results.json").read_text())


def _mean(results: dict[str, Any], row: str, metric: str) -> float:
    return next(r for r in results["rows"] if r["input"] == row)["metrics"][metric]["mean"]


def _interval(results: dict[str, Any], row: str, metric: str) -> tuple[float, float]:
    found = next(r for r in results["rows"] if r["input"] == row)["metrics"][metric]
    return found["low"], found["high"]


def check_shape(results: dict[str, Any], seeds: int) -> None:
    """What the report relies on."""
    assert results["format"] == "jepa-tok-probe/1"
    assert [r["input"] for r in results["rows"]] == list(ROWS)
    for row in results["rows"]:
        assert set(row) == {"input", "available", "metrics", "note"}
        assert row["available"] or (not row["metrics"] and "not available" in row["note"])
        for name, metric in row["metrics"].items():
            assert name in results["better"]
            assert len(metric["values"]) == seeds
            assert min(metric["values"]) <= metric["mean"] <= max(metric["values"]) and metric["std"] >= 0
            if metric.get("low") is not None:
                assert metric["low"] <= metric["high"] and metric["speakers"] >= 5
    for key in ("command", "commit", "seeds", "versions", "counts", "splits", "settings", "tokens", "notes"):
        assert key in results
    assert results["command"].startswith("python -m probes ")


def test_speaker_is_found_and_shuffled_is_not(tmp_path: Path, write_shards: Any, planted: Any) -> None:
    codes, info = planted()
    tokens = write_shards(tmp_path / "tokens", codes, info)
    draw = np.random.default_rng(1)
    noise = {k: draw.integers(0, 4, v.shape) for k, v in codes.items()}
    noise = write_shards(tmp_path / "noise", noise, hash="1" * 16)
    found = _run("speaker", "--tokens", tokens, "--random-tokens", noise, "--out", tmp_path / "out")
    check_shape(found, 3)
    assert _mean(found, "tokens", "accuracy") > 0.8
    assert _mean(found, "tokens", "eer_cosine") < 0.2
    assert _mean(found, "tokens", "eer") < 0.4  # LDA of five training speakers has four axes
    assert _mean(found, "shuffled", "accuracy") < 0.25
    low, high = _interval(found, "shuffled", "accuracy")
    assert low <= 0.1 <= high  # chance
    assert _interval(found, "tokens", "accuracy")[0] > high
    assert _mean(found, "tokens", "min_dcf_05_cosine") < _mean(found, "shuffled", "min_dcf_05_cosine")
    assert _mean(found, "random", "accuracy") < 0.3
    assert abs(_mean(found, "shuffled", "eer") - 0.5) < 0.1
    assert _mean(found, "chance", "accuracy") == pytest.approx(0.1)
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| logmel | - | - | - | - | - | - | - | not available: the labels name no audio paths |" in table


def test_emotion_is_found_on_new_speakers(tmp_path: Path, write_shards: Any, planted: Any) -> None:
    codes, info = planted()
    tokens = write_shards(tmp_path / "tokens", codes)
    labels = tmp_path / "labels.tsv"
    labels.write_text(
        "id\tspeaker\temotion\n" + "".join(f"{k}\t{v['speaker']}\t{v['emotion']}\n" for k, v in info.items())
    )
    found = _run("emotion", "--tokens", tokens, "--labels", labels, "--out", tmp_path / "out", "--seeds", 0, 1)
    check_shape(found, 2)
    assert _mean(found, "tokens", "uar") > 0.8
    assert _mean(found, "tokens", "macro_f1") > 0.8
    assert _mean(found, "shuffled", "uar") < 0.5
    low, high = _interval(found, "shuffled", "uar")
    assert low <= 1 / 3 <= high and _interval(found, "tokens", "uar")[0] > high
    assert _mean(found, "majority", "uar") == pytest.approx(1 / 3, abs=1e-6)
    assert found["settings"]["C_chosen"]["tokens"]


def test_same_seed_same_numbers(tmp_path: Path, write_shards: Any, planted: Any) -> None:
    codes, info = planted(6, 9)
    tokens = write_shards(tmp_path / "tokens", codes, info)
    first = _run("emotion", "--tokens", tokens, "--out", tmp_path / "a", "--seeds", 3, "--folds", 3)
    second = _run("emotion", "--tokens", tokens, "--out", tmp_path / "b", "--seeds", 3, "--folds", 3)
    assert first["rows"] == second["rows"]


def test_given_splits_are_used(tmp_path: Path, write_shards: Any, planted: Any) -> None:
    codes, info = planted(12, 9)
    for row in info.values():
        number = int(row["speaker"][1:])
        row["split"] = "train" if number < 6 else "dev" if number < 8 else "test"
    for i, row in enumerate(info.values()):
        row["split_utt"] = ["train", "train", "train", "dev", "test"][i % 5]
    tokens = write_shards(tmp_path / "tokens", codes, info)
    found = _run("speaker", "--tokens", tokens, "--out", tmp_path / "speaker", "--seeds", 0)
    assert "`split_utt`" in found["splits"]["identification"]
    assert "4 speakers held out by column `split`" in found["splits"]["verification"]
    found = _run("emotion", "--tokens", tokens, "--out", tmp_path / "emotion", "--seeds", 0, "--split-column", "split")
    assert "54 train, 18 dev, 36 test" in found["splits"]["speaker_disjoint"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["speaker", "--label-column", "who"], "The label column `who` must be a column of the labels"),
        (["speaker", "--split-column", "split"], "Closed-set identification must test speakers that it trains on"),
        (["speaker", "--verification-column", "split_utt"], "must not share speakers"),
        (["emotion", "--split-column", "split_utt"], "must not share speakers"),
        (["emotion", "--split-column", "none"], "The label column `none`"),
        (["emotion", "--label-column", "one"], "at least 2 classes, but has 1"),
        (["emotion", "--label-column", "rare"], "at least 2 utterances, but 1 of 2"),
        (["emotion", "--speaker-column", "one"], "takes at least 3"),
        (["speaker", "--seeds", "1", "1"], "`--seeds` must be different numbers"),
        (["speaker", "--labels", "absent.jsonl"], "no such file"),
        (["asr"], "The label column `text`"),
        (["classify", "--column", "id_again"], "must be a label, but equals the id"),
        (["classify", "--column", "one"], "at least 2 classes, but has 1"),
        (["classify", "--column", "emotion", "--fold-column", "split"], "at least 3 folds"),
        (
            ["classify", "--column", "emotion", "--split-column", "split_utt", "--group", "speaker"],
            "must not share speakers",
        ),
        (["speaker", "--trials", "absent.tsv"], "The list of trials must be a file of text"),
        (["asr", "--label-column", "emotion", "--lm", "a.arpa"], "must go with the decoder `beam`"),
    ],
)
def test_what_must_not_be_is_refused_in_one_line(
    argv: list[str], message: str, tmp_path: Path, write_shards: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, info = planted(6, 6)
    for i, row in enumerate(info.values()):
        row["split"] = "train" if row["speaker"] < "s04" else "test"
        row["split_utt"] = "train" if i % 3 else "test"
        row["one"] = "same"
        row["id_again"] = list(info)[i]
        row["rare"] = "first" if i == 0 else "other"
    tokens = write_shards(tmp_path / "tokens", codes, info)
    assert main([*argv, "--tokens", str(tokens), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("argv", [["speaker"], ["classify", "--column", "emotion"], ["asr", "--column", "emotion"]])
def test_one_recording_under_two_ids_is_not_trained_on_and_tested(
    argv: list[str], tmp_path: Path, write_shards: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, info = planted(6, 6)
    for i, (name, row) in enumerate(info.items()):
        row["split_utt"] = ["train", "dev", "test"][i % 3 if i % 6 else 0]
        row["path"] = f"{name}.wav"
    rows = list(info.values())
    tested = next(row for row in rows if row["split_utt"] == "test")
    tested["path"] = rows[0]["path"]
    tokens = write_shards(tmp_path / "tokens", codes, info)
    given = ["--tokens", str(tokens), "--split-column", "split_utt", "--seeds", "0", "--out", str(tmp_path / "out")]
    assert main([*argv, *given]) == 2
    err = capsys.readouterr().err
    assert "must not share sound, but train has" in err and err.count("\n") == 1


def test_tokens_without_labels_are_counted_or_refused(
    tmp_path: Path, write_shards: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, info = planted(6, 9)
    tokens = write_shards(tmp_path / "tokens", codes)
    rows = [json.dumps({"id": k, **v}) for k, v in info.items()]
    most = tmp_path / "most.jsonl"
    most.write_text("\n".join(rows[2:]) + "\n" + json.dumps({"id": "x", "speaker": "s"}))
    found = _run("speaker", "--tokens", tokens, "--labels", most, "--out", tmp_path / "out", "--seeds", 0)
    counts = found["counts"]
    assert (counts["utterances"], counts["used"], counts["without_label_row"]) == (54, 52, 2)
    assert counts["label_rows_without_tokens"] == 1 and counts["ids_without_label_row"] == ["s00-00", "s00-01"]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(rows[:5]))
    assert main(["speaker", "--tokens", str(tokens), "--labels", str(few), "--out", str(tmp_path / "b")]) == 2
    assert "49 have no row" in capsys.readouterr().err


def test_rare_classes_can_be_left_out(tmp_path: Path, write_shards: Any, planted: Any) -> None:
    codes, info = planted(6, 9)
    info["s00-00"]["speaker"] = "visitor"
    tokens = write_shards(tmp_path / "tokens", codes, info)
    argv = ["speaker", "--tokens", str(tokens), "--out", str(tmp_path / "out"), "--seeds", "0"]
    assert main(argv) == 2
    found = _run(*argv, "--drop-rare")
    assert found["counts"]["dropped_classes"] == ["visitor"] and found["splits"]["speakers"] == 6


def test_results_of_another_probe_are_not_overwritten(
    tmp_path: Path, write_shards: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, info = planted(6, 9)
    tokens = write_shards(tmp_path / "tokens", codes, info)
    argv = ["--tokens", str(tokens), "--out", str(tmp_path / "out"), "--seeds", "0"]
    _run("speaker", *argv)
    before = (tmp_path / "out" / "results.json").read_bytes()
    assert main(["emotion", *argv]) == 2
    assert "holds results of `speaker`" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    _run("speaker", *argv)  # its own it may


def test_random_tokens_must_match(
    tmp_path: Path, write_shards: Any, planted: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, info = planted(6, 9)
    tokens = write_shards(tmp_path / "tokens", codes, info)
    name = next(iter(codes))
    short = write_shards(tmp_path / "short", {**codes, name: codes[name][:-1]}, hash="1" * 16)
    lacking = write_shards(tmp_path / "lacking", {k: v for k, v in codes.items() if k != name}, hash="1" * 16)
    narrow = write_shards(tmp_path / "narrow", {k: v[:, :7] for k, v in codes.items()}, hash="1" * 16)
    for random, message in (
        (tokens, "must come from another tokenizer"),
        (short, "as many frames"),
        (lacking, f"lacks '{name}'"),
        (narrow, "dimensions and levels"),
    ):
        argv = ["speaker", "--tokens", tokens, "--random-tokens", random, "--out", tmp_path / "out", "--seeds", "0"]
        assert main([str(a) for a in argv]) == 2
        assert message in capsys.readouterr().err


def test_controls_from_audio(tmp_path: Path, write_shards: Any) -> None:
    """Log-mels and untrained tokenizers are made from the paths of the labels; tones of a pitch stand in for speakers."""
    from jepa_tok import save_audio

    codes, rows = {}, []
    draw = np.random.default_rng(0)
    for i in range(18):
        size = 9600 + 100 * i
        wave = 0.3 * np.sin(np.arange(size) * 0.02 * (1 + i % 3)) + 0.01 * draw.normal(size=size)
        save_audio(tmp_path / f"{i}.wav", wave.astype(np.float32))
        codes[f"u{i}"] = draw.integers(0, 4, (-(-size // 9600), 128))
        rows.append({"id": f"u{i}", "path": f"{i}.wav", "speaker": f"tone{i % 3}"})
    labels = tmp_path / "labels.jsonl"
    labels.write_text("\n".join(map(json.dumps, rows)))
    tokens = write_shards(tmp_path / "tokens", codes)
    found = _run(
        "speaker",
        "--tokens",
        tokens,
        "--labels",
        labels,
        "--random-config",
        "tiny",
        "--out",
        tmp_path / "out",
        "--seeds",
        0,
    )
    check_shape(found, 1)
    assert [row["input"] for row in found["rows"] if not row["available"]] == ["latent"]
    assert _mean(found, "logmel", "accuracy") == 1.0
    assert "calibrated" in next(r for r in found["rows"] if r["input"] == "random")["note"]
    (tmp_path / "3.wav").unlink()
    found = _run("speaker", "--tokens", tokens, "--labels", labels, "--out", tmp_path / "out", "--seeds", 0)
    row = next(r for r in found["rows"] if r["input"] == "logmel")
    assert not row["available"] and "audio of 1 of 18 utterances is not at its path (the first is 'u3')" in row["note"]


def test_any_column_is_classified_over_utterances_or_given_folds(
    tmp_path: Path, write_shards: Any, planted: Any
) -> None:
    codes, info = planted(6, 9)
    for i, row in enumerate(info.values()):
        row["sound"], row["fold"] = row.pop("emotion"), i % 4
        del row["speaker"]
    tokens = write_shards(tmp_path / "tokens", codes, info)
    argv = ["classify", "--tokens", tokens, "--column", "sound", "--seeds", 0]
    found = _run(*argv, "--out", tmp_path / "a", "--folds", 3)
    check_shape(found, 1)
    assert "folds over utterances" in found["splits"]["parts"] and found["splits"]["utterances"] == 54
    assert _mean(found, "tokens", "uar") > 0.8 and _mean(found, "shuffled", "uar") < 0.55
    assert found["rows"][0]["metrics"]["uar"]["by"] == "utterance"
    found = _run(*argv, "--out", tmp_path / "b", "--fold-column", "fold")
    assert "folds of column `fold`" in found["splits"]["parts"] and "4 in all" in found["splits"]["parts"]
    assert _mean(found, "tokens", "accuracy") > 0.8


def test_trials_are_written_and_taken_back(tmp_path: Path, write_shards: Any, planted: Any, capsys: Any) -> None:
    codes, info = planted(10, 6)
    for row in info.values():
        row["split"] = "train" if row["speaker"] < "s05" else "test"
    tokens = write_shards(tmp_path / "tokens", codes, info)
    argv = ["speaker", "--tokens", tokens, "--seeds", 0]
    first = _run(*argv, "--out", tmp_path / "a")
    written = (tmp_path / "a" / "trials.tsv").read_text()
    assert written.startswith("enroll\ttest\ttarget\n") and len(written.splitlines()) == 1 + 30 * 29 // 2
    again = _run(*argv, "--out", tmp_path / "b", "--trials", tmp_path / "a" / "trials.tsv")
    eer = [next(r for r in f["rows"] if r["input"] == "tokens")["metrics"]["eer_cosine"] for f in (first, again)]
    assert eer[0] == eer[1] and (tmp_path / "b" / "trials.tsv").read_text() == written
    own = tmp_path / "own.tsv"
    own.write_text("s00-00\ts00-01\t1\ns00-00\ts06-01\t0\n")
    argv = [*map(str, argv), "--out", str(tmp_path / "c"), "--trials", str(own)]
    assert main([*argv, "--verification-column", "split"]) == 2
    assert "must not be of speakers that are trained on, but 1 are" in capsys.readouterr().err
    assert main(argv) == 0  # without the column all others are trained on
