"""Tokens behind URLs: what is in one folder of a store is never taken for what is in another."""

from __future__ import annotations

import fsspec
import pytest

from jepa_tok.corpus import find_shards, list_shards, read_corpus, tokenize_corpus
from jepa_tok.corpus.export import export_tokens
from jepa_tok.corpus.verify import verify_tokens
from jepa_tok.errors import CorpusError
from tests.corpora import Counter, make_corpus


@pytest.mark.parametrize("name", ["run[12]", "run?", "run*"])
def test_a_url_is_no_pattern(tmp_path, name):
    manifest = make_corpus(tmp_path / "in", 11, bad=(4, 8))
    tokenize_corpus(manifest, tmp_path / "out", Counter(), rows_per_shard=2)
    store, root = fsspec.filesystem("memory"), f"memory://patterns{tmp_path.name}"
    for path in manifest.parent.iterdir():
        store.pipe(f"{root}/{name}/in/{path.name}", path.read_bytes())
    for run in ("run1", "run2"):
        tokenize_corpus(manifest, f"{root}/{run}/out", Counter(), rows_per_shard=2)
        export_tokens(f"{root}/{run}/out", f"{root}/{run}/export", "shar")
    others = {path: store.cat(path) for run in ("run1", "run2") for path in store.find(f"{root}/{run}")}

    out = f"{root}/{name}/out"
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(manifest, out, Counter(interrupt_at=4), rows_per_shard=2)
    for options in ({}, {}, {"retry_skipped": True}, {"overwrite": True}):
        tokenize_corpus(manifest, out, Counter(), rows_per_shard=2, **options)
    list_shards(out)[2].write_bytes(b"PAR1")
    tokenize_corpus(manifest, out, Counter(), rows_per_shard=2)
    assert {p.name: p.read_bytes() for p in find_shards(out)} == {
        p.name: p.read_bytes() for p in find_shards(tmp_path / "out")
    }
    assert verify_tokens(out).sound
    for _ in range(2):
        export_tokens(out, f"{root}/{name}/export", "shar", overwrite=True)
    assert verify_tokens(f"{root}/{name}/export").sound
    assert len(read_corpus(f"{root}/{name}/in/corpus.jsonl")) == len(read_corpus(f"{root}/{name}/in")) == 11
    with pytest.raises(CorpusError, match="at least one"):
        tokenize_corpus(make_corpus(tmp_path / "bad", 2, bad=(0, 1)), f"{root}/{name}/none", Counter())
    assert {path: store.cat(path) for path in others} == others


def test_a_corpus_that_comes_to_nothing_leaves_other_files_alone(tmp_path):
    store, out = fsspec.filesystem("memory"), f"memory://nothing{tmp_path.name}/out"
    store.pipe(f"{out}/deep/mine.txt", b"mine")
    with pytest.raises(CorpusError, match="at least one"):
        tokenize_corpus(make_corpus(tmp_path / "in", 2, bad=(0, 1)), out, Counter())
    assert [path.rpartition("/")[2] for path in store.find(out)] == ["mine.txt"]
