"""The mini corpus: same bytes each time, splits that share no speaker and no sentence, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from egs.mini import corpus
from egs.mini.voices import SPLITS, STYLES, VOICES, make_plan, normalise, read_sentences
from jepa_tok.errors import CorpusError

FEW = (VOICES[1], VOICES[4], VOICES[12], VOICES[16])  # a breathy voice among them: its noise has a seed of its own


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed: pip install espeakng-loader==0.2.4")
    out = tmp_path_factory.mktemp("mini")
    corpus.make_corpus(out, sentences_per_speaker=2, voices=FEW, quiet=True)
    return out


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sentences_belong_to_one_split() -> None:
    sentences = read_sentences()
    texts = {split: {normalise(s) for s in sentences[split]} for split in SPLITS}
    assert all(len(texts[split]) == len(sentences[split]) for split in SPLITS)
    assert not (texts["train"] & texts["dev"] or texts["train"] & texts["test"] or texts["dev"] & texts["test"])
    assert sum(len(t) for t in texts.values()) >= 60
    assert all(4 <= len(s.split()) <= 10 for t in texts.values() for s in t)


def test_plan_splits_by_speaker_and_sentence() -> None:
    plan = make_plan(seed=3)
    assert len({p.id for p in plan}) == len(plan)
    assert len({v.name.split("+")[1] for v in VOICES}) == len(VOICES) >= 12
    assert all(sum(v.split == s for v in VOICES) >= 4 for s in SPLITS)  # speaker verification asks for four unseen ones
    speakers = {split: {p.voice.speaker for p in plan if p.voice.split == split} for split in SPLITS}
    assert sum(len(s) for s in speakers.values()) == len(set().union(*speakers.values()))
    for split in SPLITS:
        assert {p.sentence for p in plan if p.voice.split == split} <= set(read_sentences()[split])
    for voice in VOICES:
        own = [p for p in plan if p.voice == voice]
        assert Counter(p.style.name for p in own) == {style.name: len(own) // 3 for style in STYLES}
        held = {p.sentence for p in own if p.split_utt == "test"}
        assert held and not held & {p.sentence for p in own if p.split_utt != "test"}
    uses = Counter(p.sentence for p in plan if p.voice.split == "train").values()
    assert max(uses) - min(uses) <= 3  # one sentence more or less, in three styles
    assert make_plan(seed=3) == plan != make_plan(seed=4)


def test_same_bytes_each_time_in_any_company(small: Path, tmp_path: Path) -> None:
    again = corpus.make_corpus(tmp_path, sentences_per_speaker=2, voices=FEW, quiet=True)
    assert again["digest"] == json.loads((small / "corpus.json").read_text())["digest"]
    assert (tmp_path / "all.jsonl").read_bytes() == (small / "all.jsonl").read_bytes()
    # One utterance lost and spoken anew, alone: the library's state of other utterances must not show.
    wav = sorted((tmp_path / "wav").glob("*.wav"))[-1]
    before = wav.read_bytes()
    wav.unlink()
    corpus.make_corpus(tmp_path, sentences_per_speaker=2, voices=FEW, quiet=True)
    assert wav.read_bytes() == before


def test_manifest_describes_the_audio(small: Path) -> None:
    every = rows(small / "all.jsonl")
    assert len(every) == len(FEW) * 2 * len(STYLES) == sum(len(rows(small / f"{s}.jsonl")) for s in SPLITS)
    for row in every:
        info = soundfile.info(str(small / row["path"]))
        assert (info.samplerate, info.channels, info.subtype) == (row["sample_rate"], 1, "PCM_16")
        assert abs(info.duration - row["duration_s"]) < 1e-3 and 0.5 < info.duration < 6
        assert row["text"] == normalise(row["text"]) and row["emotion"] in {s.name for s in STYLES}
    assert len({(small / row["path"]).read_bytes() for row in every}) == len(every)
    peak = max(abs(soundfile.read(str(small / row["path"]))[0]).max() for row in every)
    assert 0.2 < peak < 1.0
    note = json.loads((small / "corpus.json").read_text())["note"]
    assert note.startswith("Synthetic")


def test_other_seed_replaces_the_audio(small: Path, tmp_path: Path) -> None:
    first = corpus.make_corpus(tmp_path, seed=1, sentences_per_speaker=1, voices=FEW[:1], quiet=True)
    second = corpus.make_corpus(tmp_path, seed=2, sentences_per_speaker=1, voices=FEW[:1], quiet=True)
    assert first["digest"] != second["digest"]
    assert len(list((tmp_path / "wav").iterdir())) == second["utterances"]


def test_missing_espeak_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "espeakng_loader.py").write_text("raise ImportError('not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CorpusError, match="pip install espeakng-loader") as caught:
        corpus.make_corpus(tmp_path / "out", sentences_per_speaker=1, voices=FEW[:1], quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "all.jsonl").exists()


def test_unknown_voice_is_one_line(small: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(CorpusError, match="no voice 'xx-nowhere'"):
        corpus.make_corpus(tmp_path, sentences_per_speaker=1, voices=(replace(FEW[0], name="xx-nowhere"),), quiet=True)


def test_command_line(small: Path, tmp_path: Path) -> None:
    root = Path(corpus.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "egs.mini.corpus", str(tmp_path), "--sentences-per-speaker", "1"],
        cwd=root,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "synthetic speech" in done.stdout
    assert len(rows(tmp_path / "all.jsonl")) == len(VOICES) * len(STYLES)
