"""Studies: what is planted in a group, a digit or a neighbouring frame is found there and nowhere else; gates are judged right."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa_tok import SpeechTokenizer
from jepa_tok.report.charts import heat
from probes import gates, slots
from probes.cli import main
from probes.data import ProbeData
from probes.entries import Clips, Meta, View
from tests.probes import fakes

RADICES = (4,) * 14
META = Meta("0" * 16, RADICES, 2.5, 24_000, 2)


def table(codes: list[np.ndarray], **columns: list[str]) -> ProbeData:
    info = [dict(zip(columns, values)) for values in zip(*columns.values())]
    meta: Any = META
    return ProbeData([str(i) for i in range(len(codes))], codes, [9600 * len(c) for c in codes], info, meta)


def test_groups_are_digits_in_a_row() -> None:
    found = slots.groups_of(128, 7)
    assert [len(dims) for dims in found] == [7] * 18 + [2]
    assert np.concatenate(found).tolist() == list(range(128))


def test_a_digit_that_knows_the_class_stands_out(planted: Any) -> None:
    codes, info = planted(10, 12, signal=0.7)
    data = table(list(codes.values()), speaker=[v["speaker"] for v in info.values()])
    share = np.array(slots.by_digit(data, "speaker"))
    assert share[:7].min() > 0.3 and abs(share[7:].mean()) < 0.1  # dimensions 0 to 6 lean on the speaker
    drawn = np.random.default_rng(0).permutation([v["speaker"] for v in info.values()]).tolist()
    assert abs(np.mean(slots.by_digit(table(data.codes, speaker=drawn), "speaker"))) < 0.03


def test_log_mels_are_read_where_they_are_told() -> None:
    """Token 1 tells the level of its own frame, token 2 that of the next; other places and frames tell nothing."""
    draw, codes, mels = np.random.default_rng(0), [], []
    for _ in range(60):
        level = draw.integers(0, 4, 13)
        own = draw.integers(0, 4, (12, 14))
        own[:, 0], own[:, 7] = level[:12], level[1:]
        heard = np.zeros((12, 2, slots.FILTERS), np.float32)
        heard[:, 0] = level[:12, None]
        heard[:, 1] = draw.normal(size=(12, 1))
        heard[-1, 1] = np.nan  # past the end of the clip
        codes.append(own)
        mels.append(heard)
    frames: Any = codes
    owners = [f"s{i % 24}" for i in range(60)]
    found = slots.mel_readout(
        Clips(frames, None, View("codes", META)), mels, owners, "speaker", slots.groups_of(14, 7), 0
    )
    own, other = np.array(found["subframes"])
    assert own[0] > 0.9 and abs(own[1]) < 0.1 and np.abs(other).max() < 0.1
    first, second = np.array(found["offsets"])
    assert slots.OFFSETS[first.argmax()] == 0 and slots.OFFSETS[second.argmax()] == -1
    assert first.max() > 0.4 and np.sort(first)[-2] < 0.1 and second.max() > 0.4 and np.sort(second)[-2] < 0.1
    assert 0.3 < found["all"]["low"] <= found["all"]["mean"] <= found["all"]["high"] < 0.9


def test_frames_that_no_clip_has_are_not_read() -> None:
    frames: Any = [np.zeros((2, 14), np.int64)] * 8
    mels = [np.random.default_rng(i).normal(size=(2, 1, slots.FILTERS)).astype(np.float32) for i in range(8)]
    clips = Clips(frames, None, View("codes", META))
    found = slots.mel_readout(clips, mels, [f"s{i}" for i in range(8)], "speaker", slots.groups_of(14, 7), 0)
    assert [v is None for v in found["offsets"][0]] == [abs(o) > 1 for o in slots.OFFSETS]


def test_sound_past_the_end_of_a_clip_does_not_count() -> None:
    (mels,) = slots.read_mels([torch.randn(24_000)], 24_000, 9_600, 20)
    known = np.isfinite(mels).all(2)
    assert mels.shape == (3, 20, slots.FILTERS) and known[:2].all() and known[2].tolist() == [True] * 10 + [False] * 10


def test_boundaries_are_where_the_sound_changes() -> None:
    time = torch.arange(24_000) / 24_000
    pitch = torch.where(time < 0.3, 200.0, torch.where(time < 0.7, 900.0, 3000.0))
    energy, marks = gates.describe(0.3 * torch.sin(2 * torch.pi * pitch * time), 24_000)
    assert len(energy) == len(marks) == 100 and energy == pytest.approx(np.full(100, 0.045), rel=0.1)
    found = np.flatnonzero(marks[5:95]) + 5
    assert len(found) == 2 and abs(found[0] - 30) <= 2 and abs(found[1] - 70) <= 2  # the window is 43 ms long


@pytest.mark.parametrize("hop", [80, 256, 240, 1920])
def test_a_gate_that_follows_loudness(hop: int) -> None:
    draw = np.random.default_rng(0)
    size = 12 * 24_000
    loud = np.repeat(draw.integers(0, 2, size // 4_800), 4_800)
    wave = torch.from_numpy((0.001 + 0.3 * loud) * draw.normal(size=size)).float()
    energy, marks = gates.describe(wave, 24_000)
    steps = -(-size // hop)
    gate = np.array([loud[k * hop : (k + 1) * hop].mean() for k in range(steps)]) + 1e-3 * draw.normal(size=steps)
    found = gates.compare(gate, hop / 24_000, energy, marks)
    assert found["energy"] > 0.9 and found["voice"] > 0.95
    against = gates.compare(-gate, hop / 24_000, energy, marks)
    assert against["energy"] == pytest.approx(-found["energy"]) and against["voice"] == pytest.approx(
        1 - found["voice"]
    )
    noise = gates.compare(draw.normal(size=steps), hop / 24_000, energy, marks)
    assert abs(noise["energy"]) < 0.2 and abs(noise["voice"] - 0.5) < 0.15 and abs(noise["boundary"] - 0.5) < 0.15
    assert set(gates.compare(np.ones(steps), hop / 24_000, energy, marks).values()) == {None}


def test_area_under_the_curve() -> None:
    truth = np.array([False, True, False, True])
    assert gates.auc(np.array([0.1, 0.9, 0.2, 0.8]), truth) == 1.0
    assert gates.auc(np.zeros(4), truth) == 0.5 and gates.auc(np.arange(4.0), truth) == 0.75
    assert gates.auc(np.zeros(4), truth & False) is None


TASKS = (
    "{speaker: {probe: classify, column: speaker, split_column: split_utt}, asr: {column: text, split_column: split}}"
)


class Balanced(HTMLParser):
    """Tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "link", "path", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag


def study(root: Path, *options: str) -> dict[str, Any]:
    suite = fakes.write_suite(root / "tones.yaml", TASKS)
    given = ["study", "--suite", str(suite), "--data", str(root), "--out", str(root / "out"), *options]
    assert main(given) == 0
    page = Balanced()
    page.feed((root / "out/study.html").read_text())
    assert page.open == []
    return json.loads((root / "out/study.json").read_text())["corpora"][0]


def test_the_token_that_tells_the_speaker_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"pitch": fakes.Pitch, "noise": fakes.Noise}
    monkeypatch.setattr("jepa_tok.adapters.make_adapter", lambda spec: kinds[spec]())
    fakes.write_corpus(tmp_path)
    found = study(tmp_path, "--tokenizer", "pitch", "--control", "noise")
    read = {name: [part["mean"] for part in t["parts"]] for name, t in found["tasks"]["speaker"].items()}
    assert read["pitch"][0] == 1.0 and max(read["pitch"][1], *read["noise"]) < 0.7  # lengths of clips tell a little
    assert found["tasks"]["speaker"]["pitch"]["chance"] == pytest.approx(1 / 6, abs=1e-5)
    assert max(found["tasks"]["speaker"]["pitch"]["shuffled"]) < 0.5
    assert found["mels"]["noise"]["all"]["mean"] < 0.2 and len(found["mels"]["pitch"]["offsets"]) == 2
    assert found["gates"] == {"pitch": [], "noise": []} and list(found["tasks"]) == ["speaker"]


def test_ours_stands_beside_an_untrained_one_with_its_gates(tmp_path: Path, capsys: Any) -> None:
    fakes.write_corpus(tmp_path, 4, 5)
    tokenizer = SpeechTokenizer.from_config("tiny", seed=1)
    tokenizer.save_pretrained(tmp_path / "tok")
    found = study(tmp_path, "--tokenizer", str(tmp_path / "tok"))
    names = [str(tmp_path / "tok"), f"random:{tmp_path / 'tok'}"]
    assert list(found["groups"]) == names and found["groups"][names[0]] == [7] * 18 + [2]
    stages = tokenizer.config.encoder.strides
    for name in names:
        assert len(found["tasks"]["speaker"][name]["by_digit"]) == 128
        assert [row["stage"] for row in found["gates"][name]] == list(range(1, len(stages) + 1))
        assert found["gates"][name][0]["alpha"] == pytest.approx(0.05) and found["gates"][name][0]["energy"] is not None
        assert np.array(found["mels"][name]["subframes"]).shape == (19, 20)
    assert main(["study", "--suite", "x.yaml", "--data", "x", "--out", "x", "--tokenizer", "x"]) == 2
    options = ["--suite", str(tmp_path / "tones.yaml"), "--data", str(tmp_path), "--out", str(tmp_path / "o")]
    assert main(["study", *options, "--tokenizer", "random:tiny", "--tasks", "asr"]) == 2
    assert "A study needs tasks of pooled tokens" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_heat_leaves_out_what_is_not_known() -> None:
    text = heat("a & b", ["one", "two"], ["1", "2"], [[0.0, 2.0], [None, -1.0]], [["0.10 [0, 1]", "1"], ["", "x"]], "n")
    assert text.count('class="heat"') == 3 and "a &amp; b" in text
    assert ">.10</text>" in text and "<title>one, 1: 0.10 [0, 1]</title>" in text
    shades = [float(part.split('"')[0]) for part in text.split("fill-opacity:")[1:]]
    assert shades == [0.05, 0.8, 0.05]
