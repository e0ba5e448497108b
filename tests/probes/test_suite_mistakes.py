"""Each mistake in a suite's file, or in how its tasks divide the data, is one line before anything is tokenized."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jepa_tok.errors import JepaTokError
from probes import suite
from probes.cli import main, parser
from probes.data import ProbeError
from probes.options import Count, File, Folds, wrong
from tests.probes.conftest import Run
from tests.probes.fakes import write_corpus, write_suite

ASR = "manifest: tones.jsonl\ntasks: {asr: {column: text}}\n"


def refusal(root: Path, text: str) -> str:
    """The one line that a file of this text ends in."""
    (root / "s.yaml").write_text(text)
    with pytest.raises(JepaTokError) as caught:
        suite.load_suite(str(root / "s.yaml"), root)
    line = str(caught.value)
    assert "\n" not in line and f"'{root / 's.yaml'}'" in line
    return line


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a small corpus, and a suite `t.yaml` of it."""
    write_corpus(tmp_path, 1, 1)
    write_suite(tmp_path / "t.yaml", "{asr: {column: text}}")
    return tmp_path


@pytest.mark.parametrize(
    ("probe", "option", "message"),
    [
        ("asr", "units: word", "`units` must be one of char, spm, but is `word`"),
        ("asr", "head: blstm", "`head` must be one of linear, bilstm, but is `blstm`"),
        ("asr", "decoder: viterbi", "`decoder` must be one of greedy, beam, but is `viterbi`"),
        ("asr", "head: [linear]", "`head` must be one of linear, bilstm, but is `['linear']`"),
        ("asr", "epochs: -1", "`epochs` must be a whole number from 1 up, but is `-1`"),
        ("asr", "epochs: 1.5", "`epochs` must be a whole number from 1 up, but is `1.5`"),
        ("asr", "spm_size:", "`spm_size` must be a whole number from 1 up, but is empty"),
        ("asr", "spm_size: true", "`spm_size` must be a whole number from 1 up, but is `true`"),
        ("asr", "context: x", "`context` must be a whole number from 0 up, but is `x`"),
        ("asr", "lm: none.arpa", "`lm` must be a file that is there, but is `none.arpa`"),
        ("asr", "speaker_column: 3", "`speaker_column` must be text (a number or a date in quotes), but is `3`"),
        ("asr", f"lm: {'a' * 300}.arpa", "`lm` must be a file that is there"),
        ("classify", "folds: 0", "`folds` must be a whole number from 2 up, but is `0`"),
        ("classify", "folds: 1", "`folds` must be a whole number from 2 up, but is `1`"),
        ("classify", "folds: five", "`folds` must be a whole number from 2 up, but is `five`"),
        ("classify", "rare: maybe", "`rare` must be true or false, but is `maybe`"),
        ("classify", "split_column: {a: b}", "`split_column` must be text"),
        ("speaker", "trials_file: none.tsv", "`trials_file` must be a file that is there, but is `none.tsv`"),
        ("speaker", "3: x", "but `3` is given"),
        ("speaker", "null: x", "but empty is given"),
    ],
)
def test_values_of_a_task(root: Path, probe: str, option: str, message: str) -> None:
    found = refusal(root, f"manifest: tones.jsonl\ntasks: {{who: {{probe: {probe}, column: text, {option}}}}}\n")
    assert message in found and "task `who`" in found


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{probe: classify, column: [a, b]}", "`column` must be text"),
        ("{probe: classify, column: ''}", "`column` must be text"),
        ("[column]", "must map parameters to values, but is `['column']`"),
        ("3", "must map parameters to values, but is `3`"),
        ("{probe: [asr], column: text}", "`probe` must be one of asr, speaker, classify, but is `['asr']`"),
        ("{probe: asr, column: text, column: words}", "`column` is given twice"),
    ],
)
def test_tasks_of_the_wrong_form(root: Path, task: str, message: str) -> None:
    assert message in refusal(root, f"manifest: tones.jsonl\ntasks: {{who: {task}}}\n")


@pytest.mark.parametrize(
    "classes",
    [
        "",
        "3",
        "yes",
        "[[a, b], c]",
        "[a, null]",
        "{a: null, b: c}",
        "{a: [b], c: d}",
        "{null: a, b: c}",
        "[a, a]",
        "[]",
    ],
)
def test_classes_of_the_wrong_form(root: Path, classes: str) -> None:
    found = refusal(
        root, f"manifest: tones.jsonl\ntasks: {{c: {{probe: classify, column: high, classes: {classes}}}}}\n"
    )
    assert "task `c`: `classes` must be a list of two or more labels of `column`, or map labels to two or more" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map `tasks` or `suites` to what they are, but is empty"),
        ("- asr\n", "must map `tasks` or `suites` to what they are, but is `['asr']`"),
        ("3: x\n" + ASR, "but has `3`"),
        ("task: {asr: {column: text}}\n", "but has `task`"),
        ("about: [a]\n" + ASR, "`about` must be text (a number or a date in quotes), but is `['a']`"),
        ("about: 2020-13-45\n" + ASR, "cannot be read: month must be in 1..12"),
        ("tasks: {asr: {column: text}}\nmanifest: 3\n", "`manifest` must be text"),
        ("tasks: {asr: {column: text}}\nmanifest: [[a]]\n", "`manifest` must be text"),
        ("more: 3\n" + ASR, "`more` must be text (a number or a date in quotes), or a list of such, but is `3`"),
        ("layout: [emodb]\n" + ASR, "`layout` must be text"),
        ("layout: emodb\nfolder: 3\n" + ASR, "`folder` must be text"),
        ("tasks: {asr: {column: text}}\n", "must have a `manifest` or a `layout`, but has neither"),
        ("manifest: [a, b]\ntasks: {asr: {column: text}}\n", "b', but it is not there; see `--data`"),
        ("folder: tones\n" + ASR, "`folder` must go with a `layout`"),
        ("manifest: tones.jsonl\ntasks: [asr]\n", "`tasks` must map names to parameters, but is `['asr']`"),
        ("manifest: tones.jsonl\ntasks: 3\n", "`tasks` must map names to parameters, but is `3`"),
        ("manifest: tones.jsonl\ntasks: {1: {probe: asr, column: text}}\n", "a task's name must be text"),
        ("tasks: {asr: {column: text}}\n" + ASR, "`tasks` is given twice"),
        ("suites: 3\n", "`suites` must be text"),
        ("suites: [3]\n", "`suites` must be text"),
        ("suites: [none.yaml]\n", "`suites` must name files that are there"),
        ("suites: [mars]\n", "`suites` must be one of all, an4"),
        ("suites: [t.yaml]\ntasks: {asr: {column: text}}\n", "but has `suites` and `tasks`"),
        ("suites: [t.yaml]\nmanifest: tones.jsonl\n", "but has `suites` and `manifest`"),
        ("suites: [t.yaml]\nmore: x.jsonl\n", "but has `suites` and `more`"),
        ("suites: [t.yaml]\nlayout: emodb\n", "but has `suites` and `layout`"),
        ("[" * 3000, "cannot be read"),
        ("about: !!timestamp x\n" + ASR, "cannot be read"),
        ("about: !!bool x\n" + ASR, "cannot be read"),
        ("tasks: !!map [a]", "cannot be read"),
    ],
)
def test_what_stands_at_the_top(root: Path, text: str, message: str) -> None:
    assert message in refusal(root, text)


def test_a_circle_by_another_path(root: Path) -> None:
    (root / "sub").mkdir()
    assert "must not name a suite that names it" in refusal(root, "suites: [sub/../s.yaml]\n")


def test_a_suite_may_name_one_other(root: Path) -> None:
    (root / "s.yaml").write_text("about: all\nsuites: t.yaml\n")
    assert [c.name for c in suite.load_suite(str(root / "s.yaml"), root).corpora] == ["t"]


def test_classes_may_be_numbers(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path)
    manifest.write_text(manifest.read_text().replace('"high": "yes"', '"high": 1').replace('"high": "no"', '"high": 0'))
    path = write_suite(tmp_path / "s.yaml", "{high: {probe: classify, column: high, classes: [0, 1]}}")
    (corpus,) = suite.load_suite(str(path), tmp_path).corpora
    corpus.check_labels([0])
    assert set(corpus.tasks[0].prepare(corpus.labels()).values("high")) == {"0", "1"}


# --- what the labels do not allow

SHARED = "{probe: classify, column: high, speaker_column: speaker, split_column: split_utt}"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SHARED, "must not share speakers here, but 6 are in both train and test"),
        (
            "{probe: classify, column: high, split_column: high}",
            "or be blank, but 60 rows have others",
        ),
        (
            "{probe: classify, column: high, split_column: none}",
            "(of token shards and `--labels`, or of a suite's manifest)",
        ),
        ("{probe: classify, column: only}", "`only` must have at least 2 classes"),
        ("{probe: classify, column: high, classes: [yse, 'no']}", "`yse` is none; labels there: no, yes"),
        (
            "{probe: classify, column: high, classes: [yes, no]}",
            "`True` is none; labels there: no, yes; YAML reads yes,",
        ),
        ("{probe: classify, column: high, classes: {'yes': a, 'no': b, mabye: b}}", "`mabye` is none; labels there"),
        ("{probe: classify, column: size, split_column: split}", "`--drop-rare` (in a suite: `rare: true`)"),
        ("{probe: classify, column: high, fold_column: high}", "in one of at least 3 folds, but has 2"),
        ("{probe: classify, column: text, speaker_column: high}", "takes at least 3, but `high` has 2"),
        ("{probe: classify, column: high, speaker_column: text, folds: 40, split_column: split}", "share speakers"),
        ("{probe: speaker, column: speaker, split_column: split}", "2 test speakers without training utterances"),
        (
            "{probe: speaker, column: speaker, verification_column: split}",
            "Verification needs at least 4 held-out speakers",
        ),
        ("{probe: speaker, column: speaker, trials_file: TRIALS}", "`0` or `1`, but is"),
        ("{probe: asr, column: text, split_column: high}", "or be blank, but 60 rows have others"),
        ("{probe: asr, column: only}", "must hold at least 2 different transcripts"),
        ("{probe: asr, column: text, lm: TRIALS}", "A language model (`lm`) must go with the decoder `beam`"),
        (
            "{probe: asr, column: text, units: spm, spm_size: 1}",
            "The number of sentencepiece units (`spm_size`) must suit",
        ),
    ],
)
def test_what_does_not_divide_is_refused_before_tokenizing(
    run: Run, made: Any, task: str, message: str, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "trials.txt").write_text("s0-0 s0-1 yes\n")
    manifest = tmp_path / "tones.jsonl"
    manifest.write_text(manifest.read_text().replace('"high"', '"only": "one", "high"'))
    write_suite(tmp_path / "tones.yaml", f"{{who: {task}}}".replace("TRIALS", str(tmp_path / "trials.txt")))
    assert run("pitch", seeds="0 1") == 2
    err = capsys.readouterr().err
    assert (
        message.replace("`0` or `1`", "0 or 1`") in err and "tones.yaml', task `who`: " in err and err.count("\n") == 1
    )
    assert made["pitch"].encoded == 0 and not (tmp_path / "out").exists()


def test_every_seed_is_planned(tmp_path: Path) -> None:
    """Seed 0 has both classes among the speakers of each training part, seed 1 has not."""
    write_corpus(tmp_path, 6, 4)
    task = "{probe: classify, column: high, speaker_column: speaker, folds: 3}"
    (corpus,) = suite.load_suite(str(write_suite(tmp_path / "s.yaml", f"{{high: {task}}}")), tmp_path).corpora
    corpus.check_labels([0])
    with pytest.raises(ProbeError, match="at least 2 classes"):
        corpus.check_labels([0, 1])


def test_a_shared_recording_is_refused_before_tokenizing(run: Run, made: Any, tmp_path: Path, capsys: Any) -> None:
    """The table of labels knows where audio is, as the table of codes does."""
    manifest = tmp_path / "tones.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[4]["path"] = rows[0]["path"]  # test and train of `split_utt`
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("pitch") == 2
    assert "must not share sound" in capsys.readouterr().err and made["pitch"].encoded == 0


@pytest.mark.parametrize(
    ("column", "message"),
    [("high", "task `who`: The split column `high` must name"), ("part", "log-mels: Holding out utterances needs")],
    ids=["its tasks", "clips that log-mels are read from"],
)
def test_a_study_plans_what_it_divides(column: str, message: str, tmp_path: Path, made: Any, capsys: Any) -> None:
    manifest = write_corpus(tmp_path, 2, 2)  # too few to hold clips of a speaker out
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row, part in zip(rows, ("train", "dev", "train", "test"), strict=True):
        row["part"] = part
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_suite(tmp_path / "s.yaml", f"{{who: {{probe: classify, column: high, split_column: {column}}}}}")
    given = ["--suite", str(tmp_path / "s.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["study", *given, "--tokenizer", "pitch"]) == 2
    err = capsys.readouterr().err
    assert f"s.yaml', {message}" in err and err.count("\n") == 1
    assert made["pitch"].encoded == 0 and not (tmp_path / "out").exists()


# --- the command line has the same kinds


def test_folds_on_the_command_line(capsys: Any) -> None:
    given = ["emotion", "--tokens", "t", "--out", "o", "--folds"]
    for text in ("1", "x", "-2"):
        with pytest.raises(SystemExit) as caught:
            parser().parse_args([*given, text])
        assert caught.value.code == 2 and re.search(r"a whole number from 2 up|expected one", capsys.readouterr().err)
    assert parser().parse_args([*given, "2"]).folds == 2


def test_kinds(tmp_path: Path) -> None:
    assert wrong(2, Folds) == "" and wrong(None, Count | None) == "" and wrong(str(Path(__file__)), File | None) == ""
    assert wrong(0, Count | None) == "must be a whole number from 1 up, but is `0`"
    assert wrong("x" * 99, bool) == f"must be true or false, but is `{'x' * 60}...`"
