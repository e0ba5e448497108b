"""Reading ahead of the encoder: in bounded memory, long clips as they are encoded, the same batches whatever the threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch

from jepa_tok.corpus import Utterance, encode_utterances
from jepa_tok.corpus import encode as encode_module

RATE = 24_000


class Stub:
    """Stands in for a tokenizer: only counts samples."""

    sample_rate = RATE

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def encode(self, waves, sample_rate, batch_seconds):
        loaded = [torch.cat(list(w)) if sample_rate is None else w for w in waves]
        self.calls.append([len(w) for w in loaded])
        return [Counted(len(w)) for w in loaded]


class Counted:
    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples


def clips(folder: Path, seconds: list[float]) -> list[Utterance]:
    for i, s in enumerate(seconds):
        soundfile.write(folder / f"{i}.wav", np.zeros(round(s * RATE)), RATE)
    return [Utterance(str(i), str(folder / f"{i}.wav")) for i in range(len(seconds))]


def test_long_clips_are_read_while_they_are_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "LONG", 1.0)
    rows = clips(tmp_path, [0.5, 1.5, 3.0, 1.0])
    rows += [Utterance("cut", rows[2].path, 0.5, 2.75), Utterance("over", rows[2].path, 0.5, 5.0)]
    stub = Stub()
    found = dict(encode_utterances(rows, stub, batch_seconds=4.0))
    assert [found[i].num_samples for i in range(5)] == [12_000, 36_000, 72_000, 24_000, 54_000]
    assert "segment's end" in str(found[5])
    assert [12_000, 24_000] in stub.calls and [36_000] in stub.calls  # long clips never share a call


def test_no_more_is_held_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "READ_AHEAD", 2.0)
    rows = clips(tmp_path, [0.5] * 40)
    loaded, load = [], encode_module.load_clip
    monkeypatch.setattr(encode_module, "load_clip", lambda u, rate: loaded.append(u.id) or load(u, rate))
    for done, _ in encode_utterances(rows, Stub(), workers=3):
        assert len(loaded) <= done + 1 + 4 + 3  # what is done, what the bound allows, and what threads had begun
    assert len(loaded) == 40


def test_batches_do_not_depend_on_threads(tmp_path):
    rows = clips(tmp_path, list(np.random.default_rng(0).uniform(0.1, 1.0, 60).round(2)))
    calls = []
    for workers in (1, 4):
        stub = Stub()
        assert sorted(i for i, _ in encode_utterances(rows, stub, 2.0, workers)) == list(range(60))
        calls.append(stub.calls)
    assert calls[0] == calls[1] and all(max(c) * len(c) <= 2 * RATE for c in calls[0])
