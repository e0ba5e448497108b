"""Tokenizing a corpus: exactly once however it is interrupted, bad files named, folders never mixed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_tok import packing
from jepa_tok.corpus import (
    CorpusRun,
    Utterance,
    encode_utterances,
    list_shards,
    read_corpus,
    read_shards,
    spool_corpus,
    tokenize_corpus,
)
from jepa_tok.corpus.encode import make_batches
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.presets import tokenizer_config
from jepa_tok.tokens import Tokens


class Counter:
    """Stands in for a tokenizer: ids depend on the samples alone, and calls are counted."""

    def __init__(self, hash: str = "c" * 16, interrupt_at: int | None = None) -> None:
        self.config = tokenizer_config("tiny")
        self.hash, self.sample_rate, self.frame_rate = hash, 24_000, 2.5
        self.batches: list[list[int]] = []
        self.interrupt_at = interrupt_at

    def encode(self, waves, sample_rate, batch_seconds):
        assert sample_rate == self.sample_rate
        self.batches.append([len(w) for w in waves])
        if len(self.batches) == self.interrupt_at:
            raise KeyboardInterrupt
        return [self.encode_one(w) for w in waves]

    def encode_one(self, wave):
        quantizer = self.config.quantizer
        frames = -(-len(wave) // 9600)
        generator = torch.Generator().manual_seed(int(wave.abs().double().sum() * 1000) + len(wave))
        codes = torch.randint(0, 4, (frames, 128), generator=generator)
        return Tokens(packing.pack(codes, 4), len(wave), tuple(quantizer.radices), tokenizer=self.hash)


def make_corpus(folder: Path, count: int, bad: tuple[int, ...] = (), rate: int = 24_000) -> Path:
    """Clips of 0.1 to 1.2 s, a few of them broken, and their manifest."""
    folder.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(count)
    lines = []
    for i in range(count):
        path = folder / f"u{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, int(rate * rng.uniform(0.1, 1.2))), rate)
        if i in bad:
            path.write_bytes(b"RIFF no more")
        lines.append(json.dumps({"id": f"u{i}", "path": path.name, "speaker": f"s{i % 3}", "number": i}))
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "corpus.jsonl"


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name != "corpus.json"}


def test_rows_are_those_of_the_clips_in_manifest_order(tmp_path):
    manifest = make_corpus(tmp_path / "in", 7, bad=(2,))
    tokenizer = Counter()
    summary = tokenize_corpus(manifest, tmp_path / "out", tokenizer, rows_per_shard=3, batch_seconds=2.0)
    rows = list(read_shards(tmp_path / "out"))
    assert [r.id for r in rows] == ["u0", "u1", "u3", "u4", "u5", "u6"]
    for row in rows:
        wave = torch.from_numpy(soundfile.read(tmp_path / "in" / f"{row.id}.wav", dtype="float32")[0])
        assert row.num_samples == len(wave) and torch.equal(row.ids, tokenizer.encode_one(wave).ids)
        assert row.info == {"speaker": f"s{row.info['number'] % 3}", "number": int(row.id[1:])}

    (skipped,) = map(json.loads, (tmp_path / "out" / "skipped.jsonl").read_text().splitlines())
    assert skipped["id"] == "u2" and skipped["path"].endswith("u2.wav") and "u2.wav" in skipped["reason"]
    state = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert state["state"] == "done" and state["tokenizer"]["name"] == "tiny" and state["seconds"] > 0
    assert (summary.utterances, summary.written, summary.skipped, summary.num_shards) == (7, 6, 1, 3)
    assert summary.frames == sum(len(r.ids) for r in rows) and summary.tokens == 19 * summary.frames
    assert summary.hours == pytest.approx(sum(r.num_samples for r in rows) / 24_000 / 3600)
    assert not list((tmp_path / "out").glob("*.tmp"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 100), max_size=40), st.floats(0.1, 200))
def test_batches_hold_each_clip_once_within_the_bound(seconds, bound):
    batches = make_batches(seconds, bound)
    assert sorted(i for b in batches for i in b) == list(range(len(seconds)))
    for batch in batches:
        assert len(batch) == 1 or max(seconds[i] for i in batch) * len(batch) <= bound


def test_batches_reach_the_tokenizer_within_the_bound(tmp_path):
    tokenizer = Counter()
    tokenize_corpus(make_corpus(tmp_path / "in", 12), tmp_path / "out", tokenizer, batch_seconds=2.0)
    assert sum(map(len, tokenizer.batches)) == 12 and 1 < len(tokenizer.batches) < 12
    assert all(max(b) * len(b) <= 2.001 * 24_000 for b in tokenizer.batches)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A corpus with bad files, tokenized without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    manifest = make_corpus(folder / "in", 11, bad=(4, 8))
    tokenizer = Counter()
    tokenize_corpus(manifest, folder / "out", tokenizer, rows_per_shard=2, batch_seconds=1.0)
    return manifest, contents(folder / "out"), len(tokenizer.batches)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_interrupted_runs_end_with_the_same_bytes(whole, tmp_path_factory, interruptions):
    manifest, expected, calls = whole
    out = tmp_path_factory.mktemp("out")
    made = 0
    for at in [*interruptions, None]:
        tokenizer = Counter(interrupt_at=at)
        before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.parquet")}
        try:
            tokenize_corpus(manifest, out, tokenizer, rows_per_shard=2, batch_seconds=1.0)
        except KeyboardInterrupt:
            with pytest.raises(CorpusError, match="not whole"):
                read_shards(out)
        assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in before.items())
        made += len(tokenizer.batches)
    assert contents(out) == expected
    assert made <= calls + sum(interruptions)


def test_killed_between_writing_and_renaming(whole, tmp_path, monkeypatch):
    manifest, expected, _ = whole
    replace, left = os.replace, [6]

    def dying(source, target):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    monkeypatch.undo()
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    assert contents(tmp_path) == expected


def test_a_finished_corpus_is_left_alone(whole, tmp_path):
    manifest, _, _ = whole
    first = tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2, command="mine")
    again = Counter()
    assert tokenize_corpus(manifest, tmp_path, again, rows_per_shard=2, command="other") == first
    assert again.batches == [] and first.command == "mine"


def test_a_lost_shard_is_made_again(whole, tmp_path):
    manifest, expected, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    list_shards(tmp_path)[3].unlink()
    again = Counter()
    tokenize_corpus(manifest, tmp_path, again, rows_per_shard=2)
    assert sum(map(len, again.batches)) == 2 and contents(tmp_path) == expected


def test_mended_files_are_taken_up_on_request(tmp_path):
    manifest = make_corpus(tmp_path / "in", 5, bad=(3,))
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    soundfile.write(tmp_path / "in" / "u3.wav", np.zeros(100), 24_000)
    assert tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2).skipped == 1
    again = Counter()
    assert tokenize_corpus(manifest, tmp_path / "out", again, rows_per_shard=2, retry_skipped=True).skipped == 0
    assert sum(map(len, again.batches)) == 2
    assert [r.id for r in read_shards(tmp_path / "out")] == [f"u{i}" for i in range(5)]
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_strict_stops_at_the_first_bad_file(tmp_path):
    manifest = make_corpus(tmp_path / "in", 5, bad=(3,))
    with pytest.raises(CorpusError, match=r"utterance 'u3': .*u3\.wav"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, strict=True)
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    with pytest.raises(CorpusError, match="utterance 'u3'"):  # strict is strict about a corpus made without it, too
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, strict=True)


def test_every_kind_of_bad_file_has_its_reason(tmp_path):
    manifest = make_corpus(tmp_path / "in", 6)
    (tmp_path / "in" / "u0.wav").unlink()
    (tmp_path / "in" / "u1.wav").write_bytes(b"")
    soundfile.write(tmp_path / "in" / "u2.wav", np.zeros(0), 24_000)
    soundfile.write(tmp_path / "in" / "u3.wav", np.full(100, np.nan), 24_000, subtype="FLOAT")
    (tmp_path / "in" / "u4.wav").unlink()
    (tmp_path / "in" / "u4.wav").mkdir()
    assert tokenize_corpus(manifest, tmp_path / "out", Counter()).written == 1
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [s["id"] for s in skipped] == ["u0", "u1", "u2", "u3", "u4"]
    assert all(f"{s['id']}.wav" in s["reason"] and "\n" not in s["reason"] for s in skipped)


def test_utterances_from_elsewhere(whole, tmp_path):
    manifest, expected, _ = whole
    utterances = read_corpus(manifest)
    assert tokenize_corpus(utterances, tmp_path / "a", Counter(), rows_per_shard=2, name="mine").source == "mine"
    assert contents(tmp_path / "a") == expected
    for bad in ([], [utterances[0]] * 2, [Utterance("a", "a.wav", 2.0, 1.0)], [Utterance("a\n", "a.wav")]):
        with pytest.raises(CorpusError, match=r"^mine"):
            tokenize_corpus(bad, tmp_path / "b", Counter(), name="mine", strict=True)
    assert not (tmp_path / "b").exists()
    spooled = spool_corpus(manifest)
    tokenize_corpus(spooled, tmp_path / "c", Counter(), rows_per_shard=2)
    assert contents(tmp_path / "c") == expected


def test_refused_rows_are_listed_and_counted(tmp_path):
    manifest = make_corpus(tmp_path / "in", 3)
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([rows[0], "{", rows[0], rows[1], '{"id": "../x", "path": "u2.wav"}', rows[2]]))
    with pytest.raises(CorpusError, match=r"corpus\.jsonl:2"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), strict=True)
    summary = tokenize_corpus(manifest, tmp_path / "out", Counter())
    assert (summary.utterances, summary.written, summary.skipped, summary.refused) == (6, 3, 3, 3)
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert all(list(row) == ["id", "path", "reason"] for row in skipped)
    found = {row["id"]: row["reason"] for row in skipped}
    assert "corpus.jsonl:2" in found[""] and "corpus.jsonl:5" in found["../x"]
    assert "corpus.jsonl:3" in found["u0"] and "corpus.jsonl:1" in found["u0"]
    assert tokenize_corpus(manifest, tmp_path / "out", Counter()) == summary


def test_nothing_readable_leaves_nothing(tmp_path):
    manifest = make_corpus(tmp_path / "in", 3, bad=(0, 1, 2))
    with pytest.raises(CorpusError, match=r"at least one of 3 utterances.*u0\.wav"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    assert not (tmp_path / "out").exists()


def test_segments_cut_the_recording(tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(tmp_path / "r.wav", wave, 24_000, subtype="FLOAT")
    (tmp_path / "wav.scp").write_text("r r.wav\n")
    (tmp_path / "segments").write_text("a r 0.5 1.25\nb r 1.5 -1\nc r 5 6\nd r 1.5 2.4\ne r 1.5 2.6\n")
    found = dict(encode_utterances(read_corpus(tmp_path), Counter()))
    cut = Counter().encode_one(torch.from_numpy(wave[12_000:30_000]).float())
    assert found[0].num_samples == 18_000 and torch.equal(found[0].ids, cut.ids)
    assert found[1].num_samples == 12_000
    assert isinstance(found[2], AudioError)
    assert found[3].num_samples == 12_000  # a segment may end a little after its recording
    assert isinstance(found[4], AudioError)


def test_other_rates_are_resampled(tmp_path):
    tokenize_corpus(make_corpus(tmp_path / "in", 2, rate=16_000), tmp_path / "out", Counter())
    for row in read_shards(tmp_path / "out"):
        frames = soundfile.info(tmp_path / "in" / f"{row.id}.wav").frames
        assert row.num_samples == math.ceil(frames * 1.5)


# One folder, one corpus, one tokenizer, one process -------------------------------------------------------------------


def test_folders_do_not_mix(whole, tmp_path):
    manifest, expected, _ = whole
    other = make_corpus(tmp_path / "in", 3)
    out = tmp_path / "out"
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    for arguments, message in (
        ((manifest, out, Counter("d" * 16), 2), "`hash`"),
        ((other, out, Counter(), 2), "`corpus`"),
        ((manifest, out, Counter(), 3), "`rows_per_shard`"),
    ):
        with pytest.raises(CorpusError, match=message + ".*overwrite"):
            tokenize_corpus(*arguments[:3], rows_per_shard=arguments[3])
    assert contents(out) == expected
    tokenize_corpus(other, out, Counter("d" * 16), rows_per_shard=3, overwrite=True)
    assert sorted(contents(out)) == ["skipped.jsonl", list_shards(out)[0].name]


def test_shards_of_unknown_origin_are_kept(whole, tmp_path):
    manifest, _, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    (tmp_path / "corpus.json").unlink()
    with pytest.raises(CorpusError, match="holds token shards but no"):
        tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)


def test_a_foreign_shard_is_noticed(whole, tmp_path):
    manifest, _, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    shards = list_shards(tmp_path)
    shards[1].unlink()
    shards[2].rename(tmp_path / shards[2].name.replace("00002", "00001"))
    with pytest.raises(CorpusError, match=r"tokens-00001\..*: the shard is of another"):
        tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)


def test_one_process_at_a_time(whole, tmp_path):
    pytest.importorskip("fcntl")
    manifest, _, _ = whole
    run = CorpusRun(manifest, tmp_path, Counter(), rows_per_shard=2)
    run.start()
    with pytest.raises(CorpusError, match="another process"):
        tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    run.close()
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)


def test_shards_shared_out_among_ranks(whole, tmp_path):
    manifest, expected, _ = whole
    runs = [CorpusRun(manifest, tmp_path, Counter(), rows_per_shard=2) for _ in range(3)]
    runs[0].start()
    shares = [run.pending()[rank::3] for rank, run in enumerate(runs)]
    for index in shares[1]:
        runs[1].make(index)
    with pytest.raises(CorpusError, match="missing"):
        runs[0].finish()
    for rank in (2, 0):
        for index in shares[rank]:
            runs[rank].make(index)
    assert runs[0].finish().written == 9
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("arguments", [{"rows_per_shard": 0}, {"batch_seconds": 0.0}])
def test_bad_arguments(whole, tmp_path, arguments):
    with pytest.raises(CorpusError, match="must be"):
        tokenize_corpus(whole[0], tmp_path / "out", Counter(), **arguments)


def test_reserved_columns_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "path": "a.wav", "tokens": 3}\n')
    with pytest.raises(CorpusError, match="column `tokens`"):
        tokenize_corpus(tmp_path / "m.jsonl", tmp_path / "out", Counter())
    assert not (tmp_path / "out").exists()
