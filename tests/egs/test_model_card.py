"""The model card: facts and figures of the very tokenizer, limits told unasked, lacking facts refused in one line."""

from __future__ import annotations

import copy
import json

import pytest
import soundfile

from egs.librispeech.model_card import comparisons, main
from jepa_tok import SpeechTokenizer
from jepa_tok.corpus import read_corpus
from jepa_tok.evaluation import evaluate
from tests.tokenizers import speech

TRAINING = {
    "licence": "CC BY 4.0",
    "hardware": "2 cores",
    "data": [
        {"name": "first", "hours": 1.2, "speakers": 16, "licence": "CC BY 4.0", "credit": "A, 2015"},
        {"name": "second", "hours": 4, "speakers": 1, "licence": "CC0", "credit": "B"},
    ],
    "stages": [{"name": "stage 1", "steps": 9000, "audio_hours": 120, "minutes": 4.1, "commit": "abc", "command": "python -m recipes.jepa exp"}],
    "limits": ["It heard English alone."],
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A compact tokenizer folder and the results of its evaluation."""
    root = tmp_path_factory.mktemp("shipped")
    tokenizer = SpeechTokenizer.from_config("tiny", seed=4)
    tokenizer.config.name = "small"
    tokenizer = SpeechTokenizer.from_pretrained(tokenizer.save_pretrained(root / "small", compact=True))
    rows = []
    for i in range(2):
        soundfile.write(root / f"{i}.wav", speech(24_000, seed=i).numpy(), 24_000)
        rows.append(json.dumps({"id": str(i), "path": f"{i}.wav", "speaker": f"s{i}"}) + "\n")
    (root / "all.jsonl").write_text("".join(rows))
    about = {"command": "jepa-tok eval small all.jsonl out", "source": "/far/all.jsonl", "where": ["split=dev"]}
    options = {"metrics": ["mel"], "bounds": ["original", "other"], "progress": False, "about": about}
    evaluate(tokenizer, read_corpus(root / "all.jsonl"), root / "out", **options)
    return root


def write(shipped, training, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(training))
    return [
        str(shipped / "small"),
        "--eval",
        str(shipped / "out" / "results.json"),
        "--training",
        str(tmp_path / "training.json"),
    ]


def test_card_holds_what_was_measured(shipped, tmp_path, capsys):
    assert main(write(shipped, TRAINING, tmp_path)) == 0
    card = (shipped / "small" / "README.md").read_text()
    tokenizer = SpeechTokenizer.from_pretrained(shipped / "small")
    report = json.loads((shipped / "out" / "results.json").read_text())
    assert (
        f"Speech tokenizer {tokenizer.hash}: 1.9 M + 2.0 M parameters, 2.5 frames of 19 tokens a second, 640 bit/s."
        in card
    )
    assert "| first | 1.2 | 16 | CC BY 4.0 | A, 2015 |" in card and "5.2 hours in all." in card
    assert "| stage 1 | 9,000 | 120 | 4.1 | abc |" in card and "    python -m recipes.jepa exp" in card
    assert "source `all.jsonl`, where split=dev" in card and "/far" not in card
    assert f"{report['rows'][0]['figures']['mel_db']['mean']:.3f}" in card and "- It heard English alone." in card


def test_what_a_codec_does_better_is_told_unasked(shipped):
    report = json.loads((shipped / "out" / "results.json").read_text())
    for rate, mean, expected in ((700, 0.0, "worse in log-mel distance, dB; better in nothing measured."), (1280, 99.0, "worse in nothing measured; better in log-mel")):  # fmt: skip
        codec = copy.deepcopy(report["rows"][0]) | {"system": "Codec", "bit_rate": rate}
        codec["figures"]["mel_db"]["mean"] = mean
        (told,) = comparisons({**report, "rows": [report["rows"][0], codec]})
        assert told.startswith(f"Beside Codec ({rate} bit/s): ") and expected in told
    codec["bit_rate"] = 1300
    assert comparisons({**report, "rows": [report["rows"][0], codec]}) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("licence"), "training must have the fields licence"),
        (lambda t: t.update(limits=[]), "training `limits` must be given, but is [] instead"),
        (lambda t: t["data"][1].pop("hours"), "training `data[1]` must have the fields name, hours"),
        (lambda t: t["stages"][0].update(commit=""), "training `stages[0]` `commit` must be given"),
        (lambda t: t["data"][0].update(hours="1"), "training `data[0]` `hours` must be given, but is '1' instead"),
    ],
)
def test_lacking_facts(shipped, tmp_path, capsys, change, message):
    training = copy.deepcopy(TRAINING)
    change(training)
    (shipped / "small" / "README.md").unlink(missing_ok=True)
    assert main(write(shipped, training, tmp_path)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (shipped / "small" / "README.md").exists()


def test_results_of_another_tokenizer(shipped, tmp_path, capsys):
    arguments = write(shipped, TRAINING, tmp_path)
    SpeechTokenizer.from_config("tiny").save_pretrained(tmp_path / "other")
    assert main([str(tmp_path / "other"), *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert "results must be of tokenizer" in error and not (tmp_path / "other" / "README.md").exists()
