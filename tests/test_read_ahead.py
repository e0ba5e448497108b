"""Reading ahead of the encoder: in bounded memory, long clips as they are encoded, the same batches whatever the threads."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok.corpus import Utterance, audio_source, encode_utterances, load_utterance
from jepa_tok.corpus import encode as encode_module
from jepa_tok.errors import AudioError

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


def test_there_are_no_more_readers_than_clips(tmp_path, monkeypatch):
    begun, start = [], threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (begun.append(thread), start(thread))[1])
    assert len(list(encode_utterances(clips(tmp_path, [0.1, 0.1]), Stub(), workers=10_000))) == 2
    assert len(begun) == 2


def test_no_more_is_held_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(encode_module, "READ_AHEAD", 2.0)
    rows = clips(tmp_path, [0.5] * 40)
    loaded, load = [], encode_module.load_clip
    monkeypatch.setattr(encode_module, "load_clip", lambda u, *rest: loaded.append(u.id) or load(u, *rest))
    for done, _ in encode_utterances(rows, Stub(), workers=3):
        assert len(loaded) <= done + 1 + 4 + 3  # what is done, what the bound allows, and what threads had begun
    assert len(loaded) == 40


def test_clips_that_are_being_read_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_tok.audio.BLOCK", RATE)
    monkeypatch.setattr(encode_module, "LONG", 15.0)
    rows = clips(tmp_path, [10.0, 10.0, 20.0, 20.0, 10.0, 20.0, 0.5])
    rows.insert(3, Utterance("none", str(tmp_path / "none.wav")))
    most, hold = [], encode_module._Reader._hold

    def watched(self, i, samples):
        most.append(sum(self._held.copy().values()) + samples)
        hold(self, i, samples)

    monkeypatch.setattr(encode_module._Reader, "_hold", watched)
    with encode_module._Reader(rows, RATE, 4, 2.0) as reader:
        found = ["bad" if isinstance(c, AudioError) else c if c is None else len(c) / RATE for c in reader]
        assert found == [10.0, 10.0, None, "bad", None, 10.0, None, 0.5]
        assert reader._total == 0 and not reader._held
    assert max(most) <= (2 + 15 + 4) * RATE  # the bound, the clip that is due, a block for each thread


def test_a_reader_that_waits_ends_with_its_loop(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_tok.audio.BLOCK", RATE)
    with encode_module._Reader(clips(tmp_path, [5.0] * 4), RATE, 3, 1.0) as reader:
        next(iter(reader))
    assert not any(thread.is_alive() for thread in reader._threads)


def test_batches_do_not_depend_on_threads(tmp_path):
    rows = clips(tmp_path, list(np.random.default_rng(0).uniform(0.1, 1.0, 60).round(2)))
    calls = []
    for workers in (1, 4):
        stub = Stub()
        assert sorted(i for i, _ in encode_utterances(rows, stub, 2.0, workers)) == list(range(60))
        calls.append(stub.calls)
    assert calls[0] == calls[1] and all(max(c) * len(c) <= 2 * RATE for c in calls[0])


def test_commands_end_with_their_reader(tmp_path):
    lines = [f"echo $$ > {tmp_path}/{i}; exec sleep 1000" for i in range(2)]
    rows = [Utterance(str(i), line, part=audio_source.Command(line)) for i, line in enumerate(lines)]
    with encode_module._Reader(rows, RATE, 2, 1.0) as reader:
        while not all((tmp_path / f"{i}").exists() and (tmp_path / f"{i}").read_text() for i in range(2)):
            threading.Event().wait(0.01)
    assert not any(thread.is_alive() for thread in reader._threads)
    for i in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"{i}").read_text()), 0)


def test_a_command_that_starts_while_its_reader_ends_ends_too(tmp_path, monkeypatch):
    row = Utterance("a", "a", part=audio_source.Command("sleep 1000 | cat"))
    begun, which = threading.Event(), audio_source.shutil.which

    def wait_for_the_end(name):
        begun.set()
        with reader._changed:
            while not reader._closed:
                reader._changed.wait()
        threading.Event().wait(0.1)  # end_commands has seen no command
        return which(name)

    monkeypatch.setattr(audio_source.shutil, "which", wait_for_the_end)
    with encode_module._Reader([row], RATE, 1, 1.0) as reader:
        begun.wait()
    assert not any(thread.is_alive() for thread in reader._threads)


def test_large_parts_are_read_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_source, "SMALL", 0)
    soundfile.write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 50_000), RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "x.tar").write_bytes(bytes(700) + content + bytes(700))
    part = audio_source.Slice(str(tmp_path / "x.tar"), 700, len(content))
    clip = Utterance("a", "x.tar#a.flac", 0.5, 1.5, part=part)
    whole = load_utterance(Utterance("a", str(tmp_path / "a.flac")), RATE)
    assert torch.equal(load_utterance(clip, RATE), whole[12_000:36_000])
    clip.part = part._replace(size=len(content) + 701)
    with pytest.raises(AudioError, match=r"x\.tar#a\.flac' is cut short"):
        load_utterance(clip, RATE)


def test_a_disk_that_fails_while_it_is_read_is_the_reason(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(50_000), RATE)

    class Failing(io.FileIO):
        def read(self, size=-1):
            if self.tell() > 20_000:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr(audio_source, "SMALL", 0)
    monkeypatch.setattr(audio_source, "as_path", lambda name: SimpleNamespace(open=lambda mode: Failing(name, mode)))
    part = audio_source.Slice(str(tmp_path / "a.wav"), 0, 100_044)
    ((_, error),) = encode_utterances([Utterance("a", "x.tar#a.wav", part=part)], Stub())
    assert str(error) == "'x.tar#a.wav' must be an audio file, but cannot be read: Input/output error."
