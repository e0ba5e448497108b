"""Tokenizing a corpus: exactly once however it is interrupted, and folders never mixed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_tok.corpus import (
    CorpusRun,
    content_hash,
    find_shards,
    list_shards,
    read_shards,
    tokenize_corpus,
)
from jepa_tok.corpus.verify import verify_tokens
from jepa_tok.errors import CorpusError
from tests.corpora import Counter, contents, make_corpus


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


def test_a_finished_corpus_may_be_moved(whole, tmp_path):
    manifest, _, _ = whole
    first = tokenize_corpus(manifest, tmp_path / "a", Counter(), rows_per_shard=2)
    (tmp_path / "a").rename(tmp_path / "b")
    again = tokenize_corpus(manifest, tmp_path / "b", Counter(), rows_per_shard=2)
    assert again == dataclasses.replace(first, out=str(tmp_path / "b")), "where it is now, not where it was made"


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("place", ["file/x", "dangling", "n" * 300])
def test_a_place_that_cannot_be_is_one_error(whole, tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CorpusError, match=r"cannot be written: .*; mend that"):
        tokenize_corpus(whole[0], tmp_path / place, Counter())


def test_a_lost_shard_is_made_again(whole, tmp_path):
    manifest, expected, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    list_shards(tmp_path)[3].unlink()
    again = Counter()
    tokenize_corpus(manifest, tmp_path, again, rows_per_shard=2)
    assert sum(map(len, again.batches)) == 2 and contents(tmp_path) == expected


@pytest.mark.parametrize("finished", [True, False])
def test_damaged_shards_are_put_aside_and_made_again(whole, tmp_path, caplog, finished):
    manifest, expected, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    shards = list_shards(tmp_path)
    kept = {path: path.read_bytes() for path in shards.values()}
    flipped = bytearray(kept[shards[1]])
    flipped[len(flipped) // 3] ^= 1
    shards[1].write_bytes(flipped)
    shards[3].write_bytes(kept[shards[3]][:-9])
    if not finished:
        shards[5].unlink()
        state = json.loads((tmp_path / "corpus.json").read_text())
        (tmp_path / "corpus.json").write_text(json.dumps(state | {"state": "running"}))
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    aside = [path.with_suffix(".damaged") for path in (shards[1], shards[3])]
    assert [path.read_bytes() for path in aside] == [flipped, kept[shards[3]][:-9]]
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [str(shards[1]), str(shards[3])]
    for path in aside:
        path.unlink()
    assert contents(tmp_path) == expected


def test_damage_behind_a_url_is_mended_too(whole):
    manifest, expected, _ = whole
    store, out = fsspec.filesystem("memory"), "memory://damaged/out"
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    path = list_shards(out)[2]
    path.write_bytes(b"PAR1")
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    found = {path.rpartition("/")[2]: store.cat(path) for path in store.ls("/damaged/out", detail=False)}
    assert found.pop(f"{path.stem}.damaged") == b"PAR1"
    assert found.pop("corpus.json") and found == expected


def test_the_output_must_be_outside_of_a_folder_that_is_searched(tmp_path):
    manifest = make_corpus(tmp_path / "in", 3)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in ("in", "in/deep/out", "link", "link/out", "x/../in"):
        with pytest.raises(CorpusError, match=r"^[^\n]*must be outside of the source[^\n]*$"):
            tokenize_corpus(tmp_path / "in", tmp_path / out, Counter())
    assert len(list((tmp_path / "in").iterdir())) == 4
    for source, out in (
        (tmp_path / "in", "in2"),
        (tmp_path / "in", "in/.out"),
        (tmp_path / "in", ""),
        (manifest, "in"),
    ):
        for _ in range(2):
            assert tokenize_corpus(source, tmp_path / out, Counter()).written == 3
    (tmp_path / "kaldi").mkdir()
    (tmp_path / "kaldi/wav.scp").write_text(f"a {tmp_path}/in/u0.wav\n")
    for out in ("kaldi/tokens", "kaldi"):
        for _ in range(2):
            assert tokenize_corpus(tmp_path / "kaldi", tmp_path / out, Counter()).written == 1


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


def test_a_shard_of_which_all_files_were_skipped_is_done(tmp_path):
    manifest, out = make_corpus(tmp_path / "in", 6, bad=(2, 3)), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(manifest, out, Counter(interrupt_at=3), rows_per_shard=2)
    empty = list_shards(out)[1]
    assert [p.suffix for p in list_shards(out).values()] == [".parquet", ".empty"]
    again = Counter()
    summary = tokenize_corpus(manifest, out, again, rows_per_shard=2)
    assert len(again.batches) == 2 and (summary.written, summary.skipped, summary.num_shards) == (4, 2, 3)
    assert empty not in find_shards(out) and [r.id for r in read_shards(out)] == ["u0", "u1", "u4", "u5"]
    assert verify_tokens(out).sound and tokenize_corpus(manifest, out, Counter(), rows_per_shard=2) == summary
    whole = contents(out)

    empty.write_bytes(b"PAR1")
    assert not verify_tokens(out).sound
    assert tokenize_corpus(manifest, out, Counter(), rows_per_shard=2).skipped == 2
    empty.unlink()
    with pytest.raises(CorpusError, match="not whole: 2 of 3 shards"):
        find_shards(out)
    assert not verify_tokens(out).sound
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    assert whole.items() <= contents(out).items() and verify_tokens(out).sound

    soundfile.write(tmp_path / "in" / "u3.wav", np.zeros(100), 24_000)
    assert tokenize_corpus(manifest, out, Counter(), rows_per_shard=2, retry_skipped=True).skipped == 1
    assert not empty.exists() and verify_tokens(out).sound
    assert [r.id for r in read_shards(out)] == ["u0", "u1", "u3", "u4", "u5"]


# What goes away meanwhile ---------------------------------------------------------------------------------------------


class Meanwhile(Counter):
    """A Counter that at its n-th batch lets something happen."""

    def __init__(self, at, happen):
        super().__init__()
        self.at, self.happen = at, happen

    def encode(self, waves, sample_rate, batch_seconds):
        if len(self.batches) == self.at:
            self.happen()
        return super().encode(waves, sample_rate, batch_seconds)


def test_a_full_disk_ends_the_run_and_it_goes_on(whole, tmp_path, monkeypatch):
    manifest, expected, _ = whole

    def fill():
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CorpusError, match=r"tokens-00002.*cannot be written: No space left on device"):
        tokenize_corpus(manifest, tmp_path, Meanwhile(4, fill), rows_per_shard=2)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.json", *sorted(expected)[1:3]]
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    assert contents(tmp_path) == expected


def test_a_file_that_vanishes_is_skipped_and_can_be_taken_up(tmp_path):
    manifest = make_corpus(tmp_path / "in", 6)
    tokenize_corpus(manifest, tmp_path / "whole", Counter(), rows_per_shard=2)
    file = tmp_path / "in" / "u5.wav"
    vanishing = Meanwhile(1, lambda: file.rename(tmp_path / "away"))
    assert tokenize_corpus(manifest, tmp_path / "out", vanishing, rows_per_shard=2).skipped == 1
    (tmp_path / "away").rename(file)
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2, retry_skipped=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_corpus_that_vanishes_ends_the_run_and_it_goes_on(tmp_path):
    manifest = make_corpus(tmp_path / "in", 8)
    tokenize_corpus(manifest, tmp_path / "whole", Counter(), rows_per_shard=2)
    vanishing = Meanwhile(1, lambda: manifest.parent.rename(tmp_path / "away"))
    with pytest.raises(CorpusError, match=r"corpus\.jsonl: .* has vanished; .* goes on"):
        tokenize_corpus(manifest, tmp_path / "out", vanishing, rows_per_shard=2)
    (tmp_path / "away").rename(manifest.parent)
    assert tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2).skipped == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_out_and_source_may_be_urls(whole, tmp_path):
    manifest, expected, _ = whole
    store = fsspec.filesystem("memory")
    for path in manifest.parent.iterdir():
        store.pipe(f"/test_tokenize/in/{path.name}", path.read_bytes())
    url = "memory://test_tokenize/out"
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(manifest, url, Counter(interrupt_at=4), rows_per_shard=2)
    summary = tokenize_corpus(manifest, url, Counter(), rows_per_shard=2)
    found = {path.split("/")[-1]: store.cat(path) for path in store.ls("/test_tokenize/out", detail=False)}
    assert json.loads(found.pop("corpus.json"))["state"] == "done" and found == expected
    assert summary.out == url and summary.skipped == 2 and [r.id for r in read_shards(url)][:2] == ["u0", "u1"]
    assert tokenize_corpus(manifest, url, (again := Counter()), rows_per_shard=2) == summary and again.batches == []

    tokenize_corpus("memory://test_tokenize/in/corpus.jsonl", tmp_path / "a", Counter(), rows_per_shard=2)
    ids = [r.ids.tolist() for r in read_shards(url)]
    assert [r.ids.tolist() for r in read_shards(tmp_path / "a")] == ids
    tokenize_corpus(manifest.as_uri(), (tmp_path / "b").as_uri(), Counter(), rows_per_shard=2)
    assert [r.ids.tolist() for r in read_shards(tmp_path / "b")] == ids


# One folder, one corpus, one tokenizer, one process -------------------------------------------------------------------


def test_a_place_that_cannot_be_written_to(whole):
    with pytest.raises(
        CorpusError, match=r"^http://127.0.0.1:9/x: cannot be written: its file system cannot do that;[^\n]*$"
    ):
        tokenize_corpus(whole[0], "http://127.0.0.1:9/x", Counter())


def test_folders_do_not_mix(whole, tmp_path):
    manifest, expected, _ = whole
    other = make_corpus(tmp_path / "in", 3)
    out = tmp_path / "out"
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    for arguments, message in (
        ((manifest, out, Counter("d" * 16), 2), "`hash`"),
        ((other, out, Counter(), 2), "`corpus`"),
        ((manifest, out, Counter(), 3), "`rows_per_shard`"),
        ((manifest, out, Counter(), 2, 60.0), "`batch_seconds`"),
    ):
        with pytest.raises(CorpusError, match=message + ".*overwrite"):
            tokenize_corpus(*arguments[:3], rows_per_shard=arguments[3], batch_seconds=(*arguments, None)[4])
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


def test_a_shard_of_another_tokenizer_is_noticed(whole, tmp_path):
    manifest, _, _ = whole
    for name, tokenizer in (("a", Counter()), ("b", Counter("d" * 16))):
        tokenize_corpus(manifest, tmp_path / name, tokenizer, rows_per_shard=2)
    list_shards(tmp_path / "a")[1].unlink()
    other = list_shards(tmp_path / "b")[1]
    other.rename(tmp_path / "a" / other.name)
    with pytest.raises(CorpusError, match=r"tokens-00001\..*: the shard is of another"):
        tokenize_corpus(manifest, tmp_path / "a", Counter(), rows_per_shard=2)


def test_a_shard_that_lost_a_row_is_noticed(whole, tmp_path):
    manifest, _, _ = whole
    tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)
    path = list_shards(tmp_path)[1]
    pq.write_table(pq.read_table(path)[:1], path)
    path.rename(tmp_path / f"tokens-00001.{content_hash(path)}.parquet")
    with pytest.raises(CorpusError, match=r"tokens-00001\..*: the shard does not account for all"):
        tokenize_corpus(manifest, tmp_path, Counter(), rows_per_shard=2)


def test_a_finished_corpus_that_lost_a_shard_is_not_read(whole, tmp_path):
    tokenize_corpus(whole[0], tmp_path, Counter(), rows_per_shard=2)
    list_shards(tmp_path)[5].unlink()
    with pytest.raises(CorpusError, match="not whole: 5 of 6 shards"):
        read_shards(tmp_path)


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
