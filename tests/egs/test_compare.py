"""Tokenizers side by side from their evaluations."""

from __future__ import annotations

import json

import pytest

from egs.librispeech.compare import main
from tests.test_evaluation_merge import report


def write(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def named(name, metric="stoi", bounds=("original", "codec")):
    own = report(metric, [f"`{name}` tokens", *bounds])
    return own | {"tokenizer": {"name": name, "hash": name}}


def test_rows_of_tokenizers_then_bounds_then_differences(tmp_path, capsys):
    words = named("a", "wer", ["codec"])
    given = [
        write(tmp_path, "a.json", named("a")),
        write(tmp_path, "w.json", words),
        write(tmp_path, "b.json", named("b")),
    ]
    assert main([f"{given[0]},{given[1]}", given[2], "--beside", "codec"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split(" | ")[0] for line in lines] == [
        "| ",
        "| ---",
        "| `a` tokens",
        "| `b` tokens",
        "| original",
        "| codec",
        "| minus codec",
        "| ---",
        "| `a` tokens",
        "| `b` tokens",
    ]
    assert (
        lines[2] == "| `a` tokens | 640 | 0.500 | 0.500 |" and lines[3] == "| `b` tokens | 640 | 0.500 |  |"
    )  # b has no words
    assert lines[8] == "| `a` tokens | -2.000 | -1.000 |"


def test_pairs_count_words_and_leave_out_what_one_lacks(tmp_path, capsys):
    def rows(name, wer, stoi):
        return "".join(
            json.dumps({"id": str(i), "system": name, "scores": {"wer": w, "stoi": s} if s else {"wer": w}, "x_wer_equal": 9 * (i == 0), "x_wer_delete": 1, "x_wer_insert": 5}) + "\n"
            for i, (w, s) in enumerate(zip(wer, stoi))
        )  # fmt: skip

    a, b = (
        write(tmp_path, f"{name}.jsonl", text)
        for name, text in (("a", rows("A", [0.5, 1.0], [0.8, 0.9])), ("b", rows("B", [0.4, 0.0], [0.7, None])))
    )
    assert main(["--pair", a, b]) == 0
    out = capsys.readouterr().out
    assert "| A minus B |" in out and "| wer | 2 | +0.182 |" in out  # (10 x .1 + 1 x 1) / 11
    assert "| stoi | 1 | +0.100 |" in out


def test_speakers_are_drawn_where_there_are_enough(tmp_path, capsys):
    def rows(name, value):
        return "".join(
            json.dumps({"id": str(i), "speaker": f"s{i // 4}", "system": name, "scores": {"stoi": value(i // 4)}})
            + "\n"
            for i in range(24)
        )

    given = [
        write(tmp_path, "a.jsonl", rows("A", lambda s: 0.1 * s)),
        write(tmp_path, "b.jsonl", rows("B", lambda _: 0.0)),
    ]
    assert main(["--pair", *given]) == 0
    low, high = capsys.readouterr().out.split("+0.250 [")[1].split("]")[0].split(", ")
    assert float(high) - float(low) > 0.25  # of 6 speakers; over 24 utterances it is half of that


def test_a_bound_has_the_columns_of_all(tmp_path, capsys):
    a = [write(tmp_path, "a.json", named("a", "wer", ["codec"])), write(tmp_path, "as.json", named("a"))]
    b = write(tmp_path, "b.json", named("b"))
    assert main([b, ",".join(a), "--beside", "codec"]) == 0
    assert "| codec | 640 | 2.500 | 1.500 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.json", "--beside", "opus"], ["--pair", "a.json", "a.json"], ["nothing.json"], ["a.json", "other.json"]],
)
def test_mistakes_take_one_line(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a.json", named("a"))
    write(tmp_path, "other.json", named("b") | {"where": ["split=test"]})
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
