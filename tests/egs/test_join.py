"""Manifests of the packaged tokenizers."""

from __future__ import annotations

import json

import pytest

from egs.librispeech.join import main


@pytest.fixture
def corpora(tmp_path):
    """Two corpora of ten rows, every other one of dev."""
    paths = []
    for name in ("librispeech_mini", "other"):
        rows = [
            {"id": f"{name}-{i}", "path": f"{i}.wav", "corpus": name, "split": ["train", "dev"][i % 2]}
            for i in range(10)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths.append(str(path))
    return paths


def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_training_rows_of_all_and_dev_rows_of_one(corpora, tmp_path):
    assert main([str(tmp_path / "all.jsonl"), *corpora, "--dev-of", "librispeech"]) == 0
    assert ids(tmp_path / "all.jsonl") == [
        *(f"librispeech_mini-{i}" for i in range(10)),
        *(f"other-{i}" for i in range(0, 10, 2)),
    ]
    row = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[1])
    assert row == {
        "id": "librispeech_mini-1",
        "path": "1.wav",
        "corpus": "librispeech_mini",
        "split": "dev",
    }


def test_what_an_evaluation_leaves(corpora, tmp_path):
    assert main([str(tmp_path / "rest.jsonl"), corpora[0], "--rest", "2"]) == 0
    assert ids(tmp_path / "rest.jsonl") == [
        "librispeech_mini-3",
        "librispeech_mini-7",
        "librispeech_mini-9",
    ]  # not rows 0 and 2 of five


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--rest", "5"], "nothing is left"), (["--rest", "0"], "from 1 up"), (["--dev-of", "x"], "there twice")],
)
def test_mistakes_take_one_line(corpora, tmp_path, arguments, told, capsys):
    given = [corpora[0], corpora[0]] if "there twice" in told else [corpora[0]]
    assert main([str(tmp_path / "out.jsonl"), *given, *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1 and not (tmp_path / "out.jsonl").exists()
