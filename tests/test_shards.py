"""Token shards: what is written is read back, by us and by others, and damage is named."""

from __future__ import annotations

import errno
import json
import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_tok.corpus import (
    ShardMetadata,
    TokenRow,
    TokenShardWriter,
    column_types,
    content_hash,
    find_shards,
    list_shards,
    read_metadata,
    read_shards,
    write_numbered_shard,
    write_shard,
)
from jepa_tok.corpus.shards import named_hash
from jepa_tok.errors import CorpusError

SIZES = (64, 64, 16)
METADATA = ShardMetadata("0123456789abcdef", (4,) * 8, 3, SIZES, 2.5, 24_000)
HOP = 9600


def row(id="a", frames=2, seed=0, **info):
    ids = torch.stack([torch.from_numpy(np.random.default_rng(seed).integers(0, v, frames)) for v in SIZES], 1)
    return TokenRow(id, ids, frames * HOP - 5, info)


def same(a, b):
    return (a.id, a.ids.tolist(), a.num_samples, a.info) == (b.id, b.ids.tolist(), b.num_samples, b.info)


@st.composite
def rows(draw):
    out = []
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    infos = st.fixed_dictionaries({}, optional={"text": text, "n": st.integers(-(2**63), 2**63 - 1), "x": st.floats(), "b": st.booleans()})  # fmt: skip
    for id in draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5, unique=True)):
        samples = draw(st.integers(1, 5 * HOP))
        ids = draw(st.lists(st.tuples(*(st.integers(0, v - 1) for v in SIZES)), min_size=(t := math.ceil(samples / HOP)), max_size=t))  # fmt: skip
        out.append(TokenRow(id, torch.tensor(ids, dtype=torch.int64), samples, draw(infos)))
    return out


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows())
def test_rows_come_back(tmp_path, rows):
    path = tmp_path / "x.parquet"
    write_shard(path, rows, METADATA)
    again = list(read_shards(path))
    assert len(again) == len(rows)
    for a, b in zip(again, rows):
        nan = a.info.get("x") != a.info.get("x")
        assert same(a, b) or (nan and math.isnan(b.info["x"]))
        assert a.ids.dtype == torch.int64 and a.ids.shape[1] == 3
    assert read_metadata(path) == METADATA
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["a", None, "b"], "string", ["a", None, "b"]),
        ([1, None, 2**60], "int64", [1, None, 2**60]),
        ([1, 0.5], "double", [1.0, 0.5]),
        ([True, None], "bool", [True, None]),
        ([1, "a"], "string", ["1", "a"]),
        ([True, 1], "string", ["true", "1"]),
        ([2**60, 0.5], "string", [str(2**60), "0.5"]),  # a double would change the number
        ([2**70], "string", [str(2**70)]),
        ([[1, "é"], {"k": 1}], "string", ['[1, "é"]', '{"k": 1}']),
    ],
)
def test_column_types(tmp_path, values, kind, expected):
    rows = [row(str(i)) if v is None else row(str(i), column=v) for i, v in enumerate(values)]
    assert column_types(r.info for r in rows) == {"column": kind}
    write_shard(tmp_path / "x.parquet", rows, METADATA)
    assert [r.info.get("column") for r in read_shards(tmp_path / "x.parquet")] == expected


def test_others_read_it_as_it_is(tmp_path):
    with TokenShardWriter(tmp_path, METADATA, rows_per_shard=2) as writer:
        for i in range(5):
            r = row(f"u{i}", frames=i + 1, seed=i, speaker="ann")
            writer.add(r.id, METADATA.tokens(r), **r.info)
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == [f"tokens-{i:05d}.{content_hash(f)}.parquet" for i, f in enumerate(files)]
    table = pyarrow.dataset.dataset(files).to_table()
    assert table.schema.field("tokens").type == pa.list_(pa.uint16())
    assert table.schema.field("n_frames").type == pa.int32() and table.schema.field("n_samples").type == pa.int64()
    assert table.column("n_frames").to_pylist() == [1, 2, 3, 4, 5]
    assert table.column("tokens").to_pylist()[3] == row("u3", frames=4, seed=3).ids.flatten().tolist()
    assert pq.ParquetFile(files[0]).metadata.row_group(0).column(1).compression == "ZSTD"
    metadata = json.loads(pq.read_schema(files[0]).metadata[b"jepa_tok"])
    assert metadata["hash"] == METADATA.hash and metadata["num_groups"] == 3 and metadata["vocab_sizes"] == [64, 64, 16]
    assert [r.id for r in read_shards(tmp_path)] == [f"u{i}" for i in range(5)]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_shard(tmp_path / name, [row(seed=3, text="x"), row("b", 7, 1)], METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_name_tells_content(tmp_path):
    first = write_numbered_shard(tmp_path / "a", 7, [row()], METADATA)
    assert write_numbered_shard(tmp_path / "b", 7, [row()], METADATA).name == first.name
    assert write_numbered_shard(tmp_path / "a", 7, [row()], METADATA) == first  # made twice: one file
    assert list_shards(tmp_path / "a") == {7: first}
    assert named_hash(first) == content_hash(first) and named_hash("tokens-00007.parquet") is None
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    assert named_hash(first) != content_hash(first)


def test_two_results_under_one_number_are_refused(tmp_path):
    a, b = (write_numbered_shard(tmp_path, 3, [row(id)], METADATA) for id in "ab")
    for look in (list_shards, find_shards):
        with pytest.raises(CorpusError, match="shard 3 is both") as e:
            look(tmp_path)
        assert a.name in str(e.value) and b.name in str(e.value) and "delete both" in str(e.value)


def test_shards_are_in_order_of_their_numbers(tmp_path):
    for index in (100_000, 99_999, 2):
        write_numbered_shard(tmp_path, index, [row(str(index))], METADATA)
    assert [r.id for r in read_shards(tmp_path)] == ["2", "99999", "100000"]


def test_folders_may_be_urls():
    url = "memory://test_shards/tokens"
    with TokenShardWriter(url, METADATA, rows_per_shard=2) as writer:
        for i in range(3):
            writer.add(f"u{i}", METADATA.tokens(row(seed=i)))
    shards = find_shards(url)
    assert len(shards) == 2 and [named_hash(s) for s in shards] == [content_hash(s) for s in shards]
    assert [(r.id, r.ids.tolist()) for r in read_shards(url)] == [(f"u{i}", row(seed=i).ids.tolist()) for i in range(3)]
    assert read_metadata(shards[0]) == METADATA


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CorpusError, match=r"cannot be written: No space left on device; .* same command again"):
        write_numbered_shard(tmp_path, 0, [row()], METADATA)
    assert not list(tmp_path.iterdir())


def test_wide_vocabularies_get_wide_columns(tmp_path):
    metadata = ShardMetadata("", (1000,) * 3, 3, (10**9,), 2.5, 24_000)
    write_shard(tmp_path / "x", [TokenRow("a", torch.tensor([[10**9 - 1]]), 1)], metadata)
    assert pq.read_schema(tmp_path / "x").field("tokens").type == pa.list_(pa.uint32())
    assert next(read_shards(tmp_path / "x")).ids.tolist() == [[10**9 - 1]]


def test_tokens_of_a_row():
    tokens = METADATA.tokens(row(frames=3))
    assert tokens.ids.shape == (3, 3) and tokens.num_samples == 3 * HOP - 5 and tokens.tokenizer == METADATA.hash
    assert tokens.codes.shape == (3, 8)


# Refusals -------------------------------------------------------------------------------------------------------------


def damaged(tmp_path, metadata=METADATA, drop=None, **columns):
    """A shard that no writer of ours would make: columns of two good rows, some replaced."""
    good = [row("a", 2), row("b", 3)]
    data = {
        "id": pa.array([r.id for r in good]),
        "tokens": pa.array([r.ids.flatten().tolist() for r in good], pa.list_(pa.uint16())),
        "n_frames": pa.array([2, 3], pa.int32()),
        "n_samples": pa.array([r.num_samples for r in good], pa.int64()),
    } | columns
    data.pop(drop, None)
    schema_metadata = (
        None if metadata is None else {"jepa_tok": metadata if isinstance(metadata, str) else metadata.to_json()}
    )
    pq.write_table(pa.table(data).replace_schema_metadata(schema_metadata), tmp_path / "x.parquet")
    return tmp_path / "x.parquet"


def test_undamaged(tmp_path):
    assert len(list(read_shards(damaged(tmp_path)))) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"tokens": pa.array([[0] * 6, [0] * 8])},
            r"row 1 \('b'\): `tokens` must have n_frames \* 3 = 9 ids, but has 8",
        ),
        (
            {"tokens": pa.array([[0] * 6, [0] * 8 + [16]])},
            r"row 1 \('b'\): token 2 of frame 2 must be in 0..15, but is 16",
        ),
        ({"tokens": pa.array([[-1] * 6, [0] * 9])}, r"row 0 \('a'\): token 0 of frame 0"),
        ({"n_frames": pa.array([2, 4], pa.int32())}, r"row 1 \('b'\)"),
        ({"n_samples": pa.array([2 * HOP + 1, 3 * HOP])}, r"row 0 \('a'\): `n_frames` must be ceil"),
        ({"n_samples": pa.array([HOP, 3 * HOP])}, r"row 0 \('a'\): `n_frames` must be ceil"),
        ({"id": pa.array(["a", None])}, r"row 1 .*must not be null"),
        ({"tokens": pa.array([[0] * 6, None])}, r"row 1 .*must not be null"),
    ],
)
def test_bad_rows_are_named(tmp_path, columns, message):
    path = damaged(tmp_path, **columns)
    with pytest.raises(CorpusError, match=message) as e:
        list(read_shards(path))
    assert str(path) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metadata": None}, "not a token shard"),
        ({"metadata": "{"}, "broken"),
        ({"metadata": "[]"}, "broken"),
        ({"metadata": METADATA.to_json().replace("tokens/1", "tokens/9")}, "format must be"),
        ({"metadata": METADATA.to_json().replace("[64, 64, 16]", "[64, 64, 64]")}, "contradicts itself"),
        ({"metadata": METADATA.to_json().replace('"group_size": 3', '"group_size": 0')}, "contradicts itself"),
        ({"metadata": METADATA.to_json().replace('"group_size": 3', '"group_size": -3')}, "contradicts itself"),
        ({"drop": "tokens"}, "no column `tokens`"),
        ({"tokens": pa.array([[0.5], [1.0]])}, "lists of integers"),
    ],
)
def test_files_that_are_no_shards_are_refused_before_any_row(tmp_path, arguments, message):
    path = damaged(tmp_path, **arguments)
    with pytest.raises(CorpusError, match=message) as e:
        read_shards(path)
    assert str(path) in str(e.value)


def test_truncated_and_foreign_files(tmp_path):
    path = damaged(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match=r"x\.parquet: not a readable parquet file"):
        read_shards(path)
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(CorpusError):
            read_shards(place)


def test_one_folder_holds_one_tokenizer(tmp_path):
    write_shard(tmp_path / "tokens-00000.parquet", [row()], METADATA)
    write_shard(tmp_path / "tokens-00001.parquet", [row("b")], ShardMetadata("f" * 16, (4,) * 8, 3, SIZES, 2.5, 24_000))
    with pytest.raises(CorpusError, match=r"tokens-00001\.parquet: made by tokenizer f{16}"):
        read_shards(tmp_path)


def test_a_corpus_that_is_not_whole_is_not_read(tmp_path):
    write_shard(tmp_path / "tokens-00000.parquet", [row()], METADATA)
    state = {"format": "jepa-tok-corpus/1", "state": "done", "num_shards": 1}
    for change, message in (
        ({}, None),
        ({"state": "running"}, "1 of 1 shards"),
        ({"num_shards": 2}, "1 of 2 shards"),
        ({"num_shards": "2"}, "its `num_shards` is 2"),
        ({"format": "x"}, "format must be"),
    ):
        (tmp_path / "corpus.json").write_text(json.dumps(state | change))
        if message is None:
            assert len(list(read_shards(tmp_path))) == 1
        else:
            with pytest.raises(CorpusError, match=message):
                read_shards(tmp_path)


def test_a_value_of_another_type_than_the_shards_before_is_named(tmp_path):
    with (
        pytest.raises(CorpusError, match=r"shard 1, row 0 \('b'\): the column `n` must be int64.*but is 'x'"),
        TokenShardWriter(tmp_path, METADATA, rows_per_shard=1) as writer,
    ):
        writer.add("a", METADATA.tokens(row("a")), n=1)
        writer.add("b", METADATA.tokens(row("b")), n="x")


def test_nothing_is_written_for_rows_that_would_be_refused(tmp_path):
    bad = [
        TokenRow("a", torch.tensor([[0, 0, 16]]), HOP),
        TokenRow("a", torch.tensor([[0, 0, 10**6]]), HOP),
        TokenRow("a", torch.tensor([[0, 0]]), HOP),
        TokenRow("a", torch.tensor([[0, 0, 0]]), HOP + 1),
        row("a", tokens="mine"),
    ]
    for r in bad:
        with pytest.raises(CorpusError):
            write_shard(tmp_path / "x.parquet", [row("ok"), r], METADATA)
    with pytest.raises(CorpusError, match="column `text`"):
        write_shard(tmp_path / "x.parquet", [row(text="a")], METADATA, columns={})
    assert not list(tmp_path.iterdir())


def test_writer_refusals(tmp_path):
    with pytest.raises(RuntimeError), TokenShardWriter(tmp_path, METADATA) as writer:
        writer.add("a", METADATA.tokens(row()))
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with TokenShardWriter(tmp_path, METADATA) as writer:
        writer.add("a", METADATA.tokens(row()))
        with pytest.raises(CorpusError, match="unique"):
            writer.add("a", METADATA.tokens(row()))
    with pytest.raises(CorpusError, match="already"):
        TokenShardWriter(tmp_path, METADATA)
    other = ShardMetadata("f" * 16, (4,) * 8, 3, SIZES, 2.5, 24_000)
    with pytest.raises(CorpusError, match="must be of tokenizer"):
        TokenShardWriter(tmp_path / "x", METADATA).add("a", other.tokens(row()))
