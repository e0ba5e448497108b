"""Tokenizing a corpus: the rows of its clips, bad files named, progress told."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok.corpus import (
    Utterance,
    encode_utterances,
    find_shards,
    maker,
    read_corpus,
    read_shards,
    spool_corpus,
    tokenize_corpus,
)
from jepa_tok.corpus.shards import read_state
from jepa_tok.errors import AudioError, CorpusError
from tests.corpora import RATE, Counter, contents, make_corpus


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


def test_batches_reach_the_tokenizer_within_the_bound(tmp_path):
    tokenizer = Counter()
    tokenize_corpus(make_corpus(tmp_path / "in", 12), tmp_path / "out", tokenizer, batch_seconds=2.0)
    assert sum(map(len, tokenizer.batches)) == 12 and 1 < len(tokenizer.batches) < 12
    assert all(max(b) * len(b) <= 2.001 * 24_000 for b in tokenizer.batches)


def test_strict_stops_at_the_first_bad_file(tmp_path):
    manifest = make_corpus(tmp_path / "in", 5, bad=(3,))
    with pytest.raises(CorpusError, match=r"utterance 'u3': .*u3\.wav"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, strict=True)
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    before = contents(tmp_path / "out"), read_state(tmp_path / "out")
    with pytest.raises(CorpusError, match="utterance 'u3'"):  # strict is strict about a corpus made without it, too
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, strict=True)
    assert (contents(tmp_path / "out"), read_state(tmp_path / "out")) == before, "and leaves it finished"


def test_a_finished_corpus_is_running_once_a_shard_is_replaced(tmp_path):
    manifest = make_corpus(tmp_path / "in", 6, bad=(0, 3, 5))
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    make_corpus(tmp_path / "in", 6, bad=(3, 5))
    with pytest.raises(CorpusError, match="utterance 'u3'"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, strict=True)
    assert read_state(tmp_path / "out")["state"] == "running", "u0 has its tokens now"
    with pytest.raises(CorpusError, match="not whole"):
        read_shards(tmp_path / "out")
    assert tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2).written == 4
    assert tokenize_corpus(manifest, tmp_path / "whole", Counter(), rows_per_shard=2).written == 4
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


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


def test_utterances_from_elsewhere(tmp_path):
    manifest = make_corpus(tmp_path / "in", 5, bad=(2,))
    tokenize_corpus(manifest, tmp_path / "whole", Counter(), rows_per_shard=2)
    expected = contents(tmp_path / "whole")
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

    manifest.write_text("\n".join([rows[0], rows[1], rows[2]]))  # the same list, so it is only counted anew
    clean = tokenize_corpus(manifest, tmp_path / "out", Counter())
    assert (clean.utterances, clean.written, clean.skipped, clean.refused) == (3, 3, 0, 0)
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_nothing_readable_leaves_nothing(tmp_path):
    manifest = make_corpus(tmp_path / "in", 3, bad=(0, 1, 2))
    with pytest.raises(CorpusError, match=r"at least one of 3 utterances.*u0\.wav"):
        tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lengths", [False, True])
def test_progress_counts_hours_where_lengths_are_told(tmp_path, capsys, lengths):
    manifest = make_corpus(tmp_path / "in", 4, bad=(1,))
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    if lengths:
        manifest.write_text("\n".join(json.dumps(row | {"duration_s": 0.5}) for row in rows))
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, progress=True)
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert "100%" in last and "x real time" in last and "h/s" in last and "1 skipped" in last
    assert ("/0.0005556 h" if lengths else "4/4 utterances") in last


@pytest.mark.parametrize("length", [1e308, 10**400, -(10**400), True, "long"], ids=lambda x: str(x)[:5])
def test_progress_counts_utterances_where_lengths_cannot_be(tmp_path, capsys, length):
    manifest = make_corpus(tmp_path / "in", 2)
    rows = [json.loads(line) | {"duration_s": length} for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(map(json.dumps, rows)))
    tokenize_corpus(manifest, tmp_path / "out", Counter(), progress=True)
    assert "2/2 utterances" in capsys.readouterr().err


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


@pytest.mark.parametrize("arguments", [{"rows_per_shard": 0}, {"batch_seconds": 0.0}])
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(CorpusError, match="must be"):
        tokenize_corpus(make_corpus(tmp_path / "in", 1), tmp_path / "out", Counter(), **arguments)


def test_reserved_columns_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "a", "path": "a.wav", "tokens": 3}\n')
    with pytest.raises(CorpusError, match="column `tokens`"):
        tokenize_corpus(tmp_path / "m.jsonl", tmp_path / "out", Counter())
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_holes_in_the_heap_are_given_back():
    # Blocks below malloc's threshold for maps, every other one of which is freed: holes that end no heap.
    program = (
        "import ctypes\n"
        "from jepa_tok.corpus.maker import give_memory_back\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        "blocks = [bytearray(100_000) for _ in range(2000)]\n"
        "del blocks[::2]\n"
        "before = resident()\n"
        "give_memory_back()\n"
        "print(before - resident())\n"
    )
    freed = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert freed > 50e6, "of 100 MB"


def test_freed_memory_is_given_back_within_a_shard(tmp_path, monkeypatch):
    manifest = make_corpus(tmp_path, 12)
    heard = []
    monkeypatch.setattr(maker, "GIVE_BACK", 2.0)
    monkeypatch.setattr(maker, "give_memory_back", lambda: heard.append(len(counter.batches)))
    counter = Counter()
    tokenize_corpus(manifest, tmp_path / "out", counter)
    seconds = [sum(lengths) / RATE for lengths in counter.batches]
    due, total = [], 0.0
    for clip, length in enumerate(seconds, 1):
        total += length
        if total >= 2.0:
            due.append(clip)
            total = 0.0
    assert heard == [*due, 12] and len(due) >= 2, "and once a shard is written"


# Other libraries' readers open the shards as they are -----------------------------------------------------------------


BAD = {"a file": (2,), "the first shard": (0, 1, 2), "a shard": (2, 3, 4, 5), "the last shard": (6,)}


@pytest.fixture(scope="module", params=BAD)
def made(request, tmp_path_factory):
    """A tokenized corpus with files that were skipped and a shard that was damaged, and id, tokens and number of its rows."""
    folder = tmp_path_factory.mktemp("made")
    manifest = make_corpus(folder / "in", 7, bad=BAD[request.param])
    tokenize_corpus(manifest, folder / "out", Counter(), rows_per_shard=3)
    damaged = find_shards(folder / "out")[0]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    tokenize_corpus(manifest, folder / "out", Counter(), rows_per_shard=3)
    assert damaged.with_suffix(".damaged").exists()
    return folder / "out", [(r.id, r.ids.flatten().tolist(), r.info["number"]) for r in read_shards(folder / "out")]


def test_datasets_opens_them(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    out, rows = made
    for source in ({"path": "parquet", "data_files": f"{out}/*.parquet"}, {"path": str(out)}):
        found = datasets.load_dataset(**source, split="train", cache_dir=str(tmp_path / "cache"))
        assert [(r["id"], r["tokens"], r["number"]) for r in found] == rows


def test_polars_opens_them(made):
    polars = pytest.importorskip("polars")
    out, rows = made
    assert polars.read_parquet(out / "*.parquet").select("id", "tokens", "number").rows() == rows


def test_fairseq2_opens_them(made):
    parquet = pytest.importorskip("fairseq2.data.parquet")
    out, rows = made
    stream = parquet.FragmentStreamingConfig(
        parquet_path=[str(path) for path in find_shards(out)], fragment_shuffle_window=0, nb_epochs=1
    )
    config = parquet.BasicDataLoadingConfig(fragment_stream_config=stream)
    tables = parquet.build_basic_parquet_data_pipeline(config).and_return()
    found = [row for table in tables for row in table.to_pylist()]
    assert [(r["id"], r["tokens"], r["number"]) for r in found] == rows
