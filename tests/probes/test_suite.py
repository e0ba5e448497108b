"""Suites: short files, corpora in their makers' layouts, what may be learned from; each mistake in them is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepa_tok import save_audio
from jepa_tok.errors import JepaTokError
from probes import suite, suite_file
from probes.data import ProbeError
from tests.probes.fakes import write_corpus, write_suite

SPLIT = "{speaker: {column: speaker, split_column: split_utt, verification_column: split}}"


def sound(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_audio(root / name, np.full(800 + i, 0.1, np.float32), 8_000)


def load(name: str, root: Path) -> suite.Corpus:
    (corpus,) = suite.load_suite(name, root).corpora
    return corpus


def rows(corpus: suite.Corpus) -> dict[str, dict[str, Any]]:
    return {u.id: u.info for u in corpus.utterances}


@pytest.mark.parametrize("name", suite_file.names())
def test_suites_that_come_along_are_valid_and_say_what_they_lack(name: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=r"must have '.*, but it is not there; see `--data`"):
        suite.load_suite(name, tmp_path)


def test_all_is_every_free_corpus(tmp_path: Path) -> None:
    for name in ("librispeech", "an4", "emodb", "fsdd", "esc10"):
        write_corpus(tmp_path, 1, 1, name=name)
    found = suite.load_suite("all", tmp_path)
    names = ["librispeech_speaker", "librispeech_asr", "an4", "emodb", "fsdd", "esc10"]
    assert [c.name for c in found.corpora] == names
    probes = {task.probe for c in found.corpora for task in c.tasks}
    assert probes == {"asr", "speaker", "classify"}
    some = found.only(["an4.asr", "keyword"])
    assert [(c.name, [t.name for t in c.tasks]) for c in some.corpora] == [("an4", ["asr"]), ("fsdd", ["keyword"])]


# --- layouts


def test_emodb(tmp_path: Path) -> None:
    sound(tmp_path, "emodb/03a01Fa.wav", "emodb/wav/08b10Wc.wav")
    found = rows(load("emodb", tmp_path))
    assert found["03a01Fa"] | {"emotion": "happiness", "speaker": "emodb-03", "gender": "M"} == found["03a01Fa"]
    assert found["08b10Wc"] | {"emotion": "anger", "speaker": "emodb-08", "gender": "F"} == found["08b10Wc"]


def test_ravdess(tmp_path: Path) -> None:
    names = ["03-01-05-01-02-01-12", "03-01-08-02-01-02-07", "03-02-05-01-02-01-12"]
    sound(tmp_path, *(f"RAVDESS/Actor_12/{n}.wav" for n in names))
    corpus = load("ravdess", tmp_path)
    found = rows(corpus)
    assert list(found) == names[:2]  # the last is sung
    assert [(r["emotion"], r["gender"], r["speaker"]) for r in found.values()] == [
        ("anger", "F", "ravdess-12"),
        ("surprise", "M", "ravdess-07"),
    ]
    assert [task.name for task in corpus.tasks] == ["emotion4", "emotion8"]


def test_crema_d(tmp_path: Path) -> None:
    sound(tmp_path, "CREMA-D/AudioWAV/1001_DFA_ANG_XX.wav", "CREMA-D/AudioWAV/1002_IEO_SAD_HI.wav")
    (tmp_path / "CREMA-D/VideoDemographics.csv").write_text("ActorID,Age,Sex\n1001,51,Male\n1002,21,Female\n")
    found = rows(load("crema_d", tmp_path))
    assert [(r["emotion"], r["gender"], r["label"]) for r in found.values()] == [
        ("anger", "M", "DFA"),
        ("sadness", "F", "IEO"),
    ]


def test_iemocap(tmp_path: Path) -> None:
    turns = {"Ses01F_impro01_F000": "neu", "Ses01F_impro01_M000": "exc", "Ses01F_impro01_F001": "xxx"}
    session = tmp_path / "IEMOCAP" / "Session1"
    sound(session, *(f"sentences/wav/Ses01F_impro01/{t}.wav" for t in turns))
    labels = session / "dialog/EmoEvaluation/Ses01F_impro01.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text(
        "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        + "".join(
            f"[6.2901 - 8.2357]\t{t}\t{e}\t[2.5000, 2.5000, 2.5000]\nC-E2:\tNeutral;\t()\n\n" for t, e in turns.items()
        )
    )
    words = session / "dialog/transcriptions/Ses01F_impro01.txt"
    words.parent.mkdir(parents=True)
    words.write_text("Ses01F_impro01_F000 [006.2901-008.2357]: Excuse me.\n")
    corpus = load("iemocap", tmp_path)
    found = rows(corpus)
    assert [(r["emotion"], r["speaker"], r["session"]) for r in found.values()] == [
        ("neutral", "iemocap-01F", "Session1"),
        ("excitement", "iemocap-01M", "Session1"),
        ("undecided", "iemocap-01F", "Session1"),
    ]
    assert found["Ses01F_impro01_F000"]["text"] == "Excuse me."
    (session / "sentences/wav/Ses01F_impro01/Ses01F_impro01_M000.wav").unlink()
    with pytest.raises(ProbeError, match=r"Ses01F_impro01_M000.wav' of 'Ses01F_impro01_M000' .iemocap. is missing"):
        load("iemocap", tmp_path)


def test_librispeech_in_its_own_layout(tmp_path: Path) -> None:
    for subset, reader in (("train-clean-5", 19), ("dev-clean-2", 84)):
        chapter = tmp_path / f"LibriSpeech/{subset}/{reader}/198"
        sound(chapter, f"{reader}-198-0000.flac", f"{reader}-198-0001.flac")
        lines = "".join(f"{reader}-198-000{k} SOME WORDS {k}\n" for k in range(2))
        (chapter / f"{reader}-198.trans.txt").write_text(lines)
    (tmp_path / "LibriSpeech/SPEAKERS.TXT").write_text(
        "; comment\n19 | F | train | 25 | name\n84 | M | dev | 8 | name\n"
    )
    found = rows(load("librispeech_speaker", tmp_path))
    assert {(r["speaker"], r["gender"], r["split"]) for r in found.values()} == {
        ("ls-19", "F", "train"),
        ("ls-84", "M", "dev"),
    }


def test_a_file_that_breaks_the_convention_is_no_silent_loss(tmp_path: Path) -> None:
    sound(tmp_path, "RAVDESS/03-01-05-01-02-01-12.wav", "RAVDESS/angry woman.wav")
    with pytest.raises(ProbeError, match=r"angry woman.wav' must be named as `03-01-05-02-01-02-12.wav`"):
        load("ravdess", tmp_path)


# --- what may be learned from


def test_training_rows_are_those_that_every_task_trains_on(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    path = write_suite(tmp_path / "s.yaml", SPLIT.rstrip("}") + "}, asr: {column: text, split_column: split}}")
    found = load(str(path), tmp_path).training()
    assert found and all(u.info["split"] == u.info["split_utt"] == "train" for u in found)
    assert len(found) == 3 * 6  # speakers 0 to 2, three utterances of five


@pytest.mark.parametrize(
    "tasks",
    [
        "{high: {probe: classify, column: high, speaker_column: speaker}}",
        "{high: {probe: classify, column: high, fold_column: split}}",
        "{speaker: {column: speaker, split_column: split_utt}}",
        SPLIT.rstrip("}") + "}, asr: {column: text}}",
    ],
    ids=["folds over speakers", "folds of a column", "trials by seed", "one task of two by seed"],
)
def test_there_are_none_where_a_task_draws_its_parts(tasks: str, tmp_path: Path) -> None:
    write_corpus(tmp_path)
    assert load(str(write_suite(tmp_path / "s.yaml", tasks)), tmp_path).training() == []


def test_more_is_trained_on_where_it_is_there(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    found = [json.loads(line) for line in write_corpus(tmp_path, name="more").read_text().splitlines()]
    del found[0]["text"]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    path = write_suite(
        tmp_path / "s.yaml", "{asr: {column: text, split_column: split}}\nmore: [more.jsonl, absent.jsonl]"
    )
    corpus = load(str(path), tmp_path)
    added = corpus.utterances[60:]
    assert len(added) == 29 and {u.info["split"] for u in added} == {
        "train"
    }  # of speakers 0 to 2, less one without text
    assert corpus.about == "tones; 29 utterances of more.jsonl are trained on besides; absent.jsonl is not there"
    (tmp_path / "more.jsonl").write_text((tmp_path / "tones.jsonl").read_text())
    with pytest.raises(ProbeError, match="`more` must hold other audio than the corpus, but 30 rows of"):
        load(str(path), tmp_path)
    write_suite(path, "{asr: {column: text}}\nmore: [more.jsonl]")
    with pytest.raises(
        ProbeError, match=r"`more` must go with tasks that have a `split_column` .*, but `asr` has none"
    ):
        load(str(path), tmp_path)


@pytest.mark.parametrize(
    ("classes", "kept"),
    [("[yes, no]", {"yes": 30, "no": 28}), ("{yes: up, no: down, other: up}", {"up": 31, "down": 28})],
)
def test_classes_are_picked_and_mapped(classes: str, kept: dict[str, int], tmp_path: Path) -> None:
    write_corpus(tmp_path)
    path = write_suite(
        tmp_path / "s.yaml",
        f"{{high: {{probe: classify, column: high, classes: {classes}}}}}".replace("yes", "'yes'").replace(
            "no", "'no'"
        ),
    )
    corpus = load(str(path), tmp_path)
    corpus.utterances[0].info["high"], corpus.utterances[1].info["high"] = "neither", "other"
    labels = corpus.tasks[0].prepare(corpus.labels()).values("high")
    assert {name: labels.count(name) for name in set(labels)} == kept


def test_the_suite_that_the_page_shows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/probes.md").read_text(encoding="utf-8")
    text = page.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "commands.yaml").write_text(text)
    manifest = write_corpus(tmp_path, 12, 5, name="commands")  # four speakers to test
    manifest.write_text(manifest.read_text().replace('"high"', '"word"'))
    corpus = load(str(tmp_path / "commands.yaml"), tmp_path)
    corpus.check_labels([0, 1, 2])
    assert [task.name for task in corpus.tasks] == ["keyword", "speaker", "asr"]
    assert corpus.about == "spoken commands, our office; an4.jsonl is not there" and corpus.training()
    told = [name for name in suite_file.names() if f"`{name}`" in page]
    assert told == suite_file.names()


# --- mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\n", "must have `tasks` or `suites`"),
        ("tasks: {", "must be a suite in YAML"),
        ("tasks: {asr: {column: text}}\ncolour: red\n", "but has `colour`"),
        ("tasks: [asr]\n", "must map names to parameters"),
        ("tasks: {high: {column: high}}\n", "`probe` must be one of asr, speaker, classify, but is `high`"),
        ("tasks: {asr: {column: text, split: split}}\n", "`split` is given"),
        ("tasks: {asr: {split_column: split}}\n", "needs `column`"),
        ("tasks: {'a/b': {probe: asr, column: text}}\n", "letters, digits"),
        ("tasks: {high: {probe: classify, column: high, classes: [yes]}}\n", "`classes` must be"),
        ("layout: mars\ntasks: {asr: {column: text}}\n", "`layout` must be one of librispeech"),
        ("tasks: {asr: {column: text}}\n", "a `manifest`"),
        ("manifest: none.jsonl\ntasks: {asr: {column: text}}\n", "none.jsonl'"),
        ("suites: [s.yaml]\n", "must not name a suite that names it"),
        ("suites: [mars]\n", "must be one of all, an4"),
        ("suites: [t.yaml, t.yaml]\n", "name each suite once"),
    ],
)
def test_mistakes_in_a_file(text: str, message: str, tmp_path: Path) -> None:
    write_corpus(tmp_path, 1, 1)
    write_suite(tmp_path / "t.yaml", "{asr: {column: text}}")
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(JepaTokError, match=message.replace("[", r"\[")) as caught:
        suite.load_suite(str(tmp_path / "s.yaml"), tmp_path)
    assert "\n" not in str(caught.value)


def test_mistakes_in_the_data(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, 2, 2)
    path = str(write_suite(tmp_path / "s.yaml", "{high: {probe: classify, column: hight}, asr: {column: text}}"))
    with pytest.raises(ProbeError, match=r"s\.yaml', task `high`: The label column `hight` must be"):
        load(path, tmp_path).check_labels([0])
    twice = write_suite(tmp_path / "twice.yaml", "{asr: {column: text}}", "[tones.jsonl, tones.jsonl]")
    with pytest.raises(ProbeError, match="unique in a corpus, but 's0-0' of twice is both"):
        suite.load_suite(str(twice), tmp_path)
    (tmp_path / "tones/s1-1.wav").unlink()
    with pytest.raises(ProbeError, match=r"s1-1.wav' of 's1-1' .s. is missing"):
        suite.load_suite(path, tmp_path)
    with pytest.raises(ProbeError, match="`--data` must be a folder"):
        suite.load_suite(path, tmp_path / "none")
    manifest.write_text(json.dumps({"id": "a"}) + "\n")
    with pytest.raises(JepaTokError, match=r"tones.jsonl:1"):
        suite.load_suite(path, tmp_path)


def test_a_digest_follows_the_audio_not_the_place(tmp_path: Path) -> None:
    found = []
    for folder in ("a", "b"):
        write_corpus(tmp_path / folder, 2, 2)
        found.append(load(str(write_suite(tmp_path / folder / "s.yaml", "{asr: {column: text}}")), tmp_path / folder))
    assert found[0].digest == found[1].digest
    sound(tmp_path / "b/tones", "s0-0.wav")
    assert found[0].digest != found[1].digest


def test_a_digest_sees_audio_of_the_same_size(tmp_path: Path) -> None:
    write_corpus(tmp_path / "a", 2, 2)
    corpus = load(str(write_suite(tmp_path / "a/s.yaml", "{asr: {column: text}}")), tmp_path / "a")
    before, path = corpus.digest, Path(corpus.utterances[0].path)
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    data[size // 2] ^= 1
    path.write_bytes(data)
    assert path.stat().st_size == size and corpus.digest != before
