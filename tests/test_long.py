"""Long audio as `benchmarks.long` measures it: memory that does not follow the length, seams that cannot be heard, and a seam that can be is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.clips import make_clip
from benchmarks.long import measure_edit, measure_memory, measure_seams
from jepa_tok import SpeechTokenizer, windows
from jepa_tok.config import WindowConfig

RATE = 24_000
FLUX, STEP = "flux, dB", "largest step of samples"


@pytest.fixture(scope="module")
def tokenizer() -> SpeechTokenizer:
    """The packaged `tiny`, whose resynthesis is speech, with windows of 6 s: many seams in little time."""
    packaged = SpeechTokenizer.from_pretrained("tiny")
    short = SpeechTokenizer.from_config(replace(packaged.config, window=WindowConfig(seconds=6.0, context=1.2)))
    for part in ("encoder", "fsq", "generator"):
        getattr(short, part).load_state_dict(getattr(packaged, part).state_dict())
    return short


@pytest.fixture(scope="module")
def wave() -> Tensor:
    return torch.cat([make_clip(8.0, RATE, seed) for seed in range(8)])


def test_no_seam_is_heard(tokenizer: SpeechTokenizer, wave: Tensor) -> None:
    found = measure_seams(tokenizer, [wave])
    assert found["seams"] >= 30
    for name, measure in found["measures"].items():
        # Of windows so short, on sounds that are not speech, .2 to .4 dB of flux can be told from none by thirty seams, and heard by nobody.
        unheard = 0.5 if name == FLUX else 0.0
        assert measure["difference"] < max(3 * measure["standard error"], unheard), name
    alike = list(found["codes alike"].values())
    assert alike[-1] > 0.5  # a quarter by chance


def test_a_click_at_seams_is_found(tokenizer: SpeechTokenizer, wave: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    add = windows.Joiner.add

    def clicking(self: windows.Joiner, window: windows.Window, decoded: Tensor) -> object:
        decoded = decoded.clone()
        at = (window.first - window.start) * tokenizer.hop
        decoded[at : at + 24] += 0.2
        return add(self, window, decoded)

    monkeypatch.setattr(windows.Joiner, "add", clicking)
    measures = measure_seams(tokenizer, [wave])["measures"]
    assert measures[FLUX]["difference"] > 3 * measures[FLUX]["standard error"]
    assert measures[STEP]["difference"] > 3 * measures[STEP]["standard error"]


def test_an_edit_is_felt_no_further_than_a_window(tokenizer: SpeechTokenizer, wave: Tensor) -> None:
    found = measure_edit(tokenizer, [wave], 125.0)
    assert 94.0 <= found["first changed token, s"] <= 100.4 and 100.8 <= found["last changed token, s"] <= 107.0
    assert found["first changed sample, s"] >= 88.0 and found["last changed sample, s"] <= 113.0


@pytest.mark.slow
def test_small_stays_below_the_memory_it_may_take() -> None:
    (row,) = measure_memory(["--tokenizer", "small"], [make_clip(60.0, RATE, 0)], [0.025], RATE)
    assert row["encode peak, MiB"] < 1536 and row["decode peak, MiB"] < 1536


@pytest.mark.slow
def test_memory_does_not_follow_the_length() -> None:
    speech = torch.cat([make_clip(10.0, RATE, seed) for seed in range(6)])
    short, long = measure_memory(["--tokenizer", "tiny"], [speech], [0.1, 0.6], RATE)
    samples = 0.5 * 3600 * RATE * 4 / 2**20  # MiB of float32 that the long file has more: 165
    assert long["encode peak, MiB"] - short["encode peak, MiB"] < samples / 2
    assert long["decode peak, MiB"] - short["decode peak, MiB"] < samples / 2
