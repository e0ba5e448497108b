"""The files that each export format consists of: what others find in them, and what is said of damaged ones."""

from __future__ import annotations

import json
import math
import tarfile

import numpy as np
import pytest
import torch

from jepa_tok.corpus import ShardMetadata, TokenBin, TokenRow, export_tokens, open_tokens, write_numbered_shard
from jepa_tok.errors import CorpusError

METADATA = ShardMetadata("0123456789abcdef", (4,) * 8, 3, (64, 64, 16), 2.5, 24_000)
HOP = 9600


def row(id, frames, **info):
    ids = torch.arange(frames * 3).reshape(frames, 3)
    return TokenRow(id, ids, frames * HOP - 5, info)


ROWS = [
    row("utt1", 3, text="to be or  not", speaker="ann", n=2**60, ok=True),
    row("utt/2", 1, text="", speaker="bob"),
    row("utt3", 5),
    row("utt4", 2, text="\u2028", ok=False),
    row("utt5", 4, speaker="ann"),
]


@pytest.fixture
def shards(tmp_path):
    write_numbered_shard(tmp_path / "shards", 0, ROWS, METADATA)
    return tmp_path / "shards"


# What others find -----------------------------------------------------------------------------------------------------


def test_bin_is_read_in_two_lines_of_numpy(shards, tmp_path):
    export_tokens(shards, tmp_path / "bin", "bin")
    tokens = np.memmap(tmp_path / "bin/tokens.bin", dtype="<u2", mode="r").reshape(-1, 3)
    offsets = np.load(tmp_path / "bin/offsets.npy")
    assert offsets.tolist() == [0, 3, 4, 9, 11, 15] and offsets.dtype == np.int64
    for i, r in enumerate(ROWS):
        assert tokens[offsets[i] : offsets[i + 1]].tolist() == r.ids.tolist()


def test_token_bin(shards, tmp_path):
    export_tokens(shards, tmp_path / "bin", "bin")
    data = TokenBin(tmp_path / "bin")
    assert len(data) == 5 and data.num_frames == 15 and data.metadata == METADATA
    assert [t.tolist() for t in data] == [r.ids.tolist() for r in ROWS]
    assert data[-1].tolist() == ROWS[-1].ids.tolist() and len(data[1:3]) == 2
    assert data[0].dtype == np.uint16 and not data[0].flags.writeable and np.shares_memory(data[0], data.tokens)
    assert [r["id"] for r in data.rows()] == [r.id for r in ROWS]
    for index in (5, -6):
        with pytest.raises(IndexError):
            data[index]


def test_kaldi_files(shards, tmp_path):
    export_tokens(shards, tmp_path / "kaldi", "kaldi", columns=["text", "speaker", "n"])
    files = {p.name: p.read_text().split("\n")[:-1] for p in (tmp_path / "kaldi").iterdir() if p.suffix != ".json"}
    assert set(files) == {"tokens", "utt2num_frames", "utt2num_samples", "utt2dur", "text", "utt2spk", "utt2n"}
    assert files["tokens"][1] == "utt/2 " + " ".join(map(str, ROWS[1].ids.flatten().tolist()))
    assert files["utt2num_frames"][0] == "utt1 3" and files["utt2dur"][0] == "utt1 1.199792"
    assert files["utt2spk"] == ["utt1 ann", "utt/2 bob", "utt5 ann"]
    assert files["text"][:2] == ["utt1 to be or  not", "utt/2 "]


def test_shar_members_are_pairs_in_the_order_of_the_cuts(shards, tmp_path):
    export_tokens(shards, tmp_path / "shar", "shar", rows_per_shard=2)
    names = sorted(p.name for p in (tmp_path / "shar/shar").iterdir())
    assert names == [f"{n}.{i:06d}.{e}" for n, e in (("cuts", "jsonl.gz"), ("tokens", "tar")) for i in range(3)]
    with tarfile.open(tmp_path / "shar/shar/tokens.000000.tar") as tar:
        assert tar.getnames() == ["utt1.npy", "utt1.json", "utt/2.npy", "utt/2.json"]
        assert json.load(tar.extractfile("utt1.json"))["array"]["shape"] == [3, 3]


# Damage ---------------------------------------------------------------------------------------------------------------


def exported(shards, folder, to):
    export_tokens(shards, folder, to)
    return folder


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("to", "file", "old", "new", "message"),
    [
        ("jsonl", "tokens.jsonl", '"n_frames": 3', '"n_frames": 4', "tokens.jsonl:1.*n_frames"),
        ("jsonl", "tokens.jsonl", '"n_samples": 28795', '"n_samples": 100', "'utt1'.*ceil"),
        ("jsonl", "tokens.jsonl", '"tokens": [', '"tokens": [64, ', "'utt1'"),
        ("jsonl", "tokens.jsonl", '"tokens": [', '"tokens": [0.5, ', "whole numbers"),
        ("jsonl", "tokens.jsonl", '"id": "utt1"', '"id": 7', "`id` must be text"),
        ("jsonl", "tokens.jsonl", '"id": "utt1", ', "", "must have `id`"),
        ("jsonl", "tokens.jsonl", '"speaker": "ann"', '"speaker": 7', "column `speaker` must be string, but is 7"),
        ("jsonl", "tokens.jsonl", '"speaker": "ann"', '"age": 7', "column `age` is not among"),
        ("jsonl", "tokens.jsonl", "{", "", "tokens.jsonl:1: the line must be JSON"),
        ("jsonl", "metadata.json", '"utterances": 5', '"utterances": 6', "must be 6 utterances"),
        ("jsonl", "metadata.json", "export/1", "export/9", "format must be"),
        ("jsonl", "metadata.json", '"layout": "jsonl"', '"layout": "x"', "unknown layout"),
        ("bin", "rows.jsonl", '"n_frames": 3', '"n_frames": 2', "`n_frames` must be 3"),
        ("bin", "metadata.json", '"uint16"', '"uint32"', "bytes"),
        ("bin", "metadata.json", '"utterances": 5', '"utterances": 4', "int64"),
        ("kaldi", "tokens", "utt1 ", "utt1 x ", "whole numbers"),
        ("kaldi", "utt2num_samples", "utt/2", "uttx", "must be 'utt/2'"),
        ("kaldi", "utt2spk", "utt5", "utt9", "'utt9' is not in tokens"),
        ("kaldi", "utt2ok", "true", "yes", "must be bool"),
    ],
)
def test_damage_is_named(shards, tmp_path, to, file, old, new, message):
    folder = exported(shards, tmp_path / "out", to)
    edit(folder / file, old, new)
    with pytest.raises(CorpusError, match=message) as e:
        list(open_tokens(folder).rows())
    assert "\n" not in str(e.value) and str(folder) in str(e.value)


ODD = ([], {}, None, -1, 0, math.inf, math.nan, "x", [[]])


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_metadata_that_is_json_but_not_ours_is_one_line(shards, tmp_path, value):
    folder = exported(shards, tmp_path / "out", "bin")
    good = json.loads((folder / "metadata.json").read_text())
    bad = [value, good | {"metadata": value}, good | {"layout": value}, good | {"utterances": [value]}]
    for field in ("frame_rate", "sample_rate", "group_size", "vocab_sizes"):
        bad.append(good | {"metadata": good["metadata"] | {field: value}})
    for given in bad:
        (folder / "metadata.json").write_text(json.dumps(given))
        with pytest.raises(CorpusError, match=r"metadata\.json") as e:
            open_tokens(folder)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("to", "file"), [("bin", "tokens.bin"), ("bin", "offsets.npy"), ("shar", "shar/tokens.000000.tar"), ("shar", "shar/cuts.000000.jsonl.gz")]
)  # fmt: skip
def test_truncated_files(shards, tmp_path, to, file):
    folder = exported(shards, tmp_path / "out", to)
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 3])
    with pytest.raises(CorpusError):
        list(open_tokens(folder).rows())
    (folder / file).unlink()
    with pytest.raises(CorpusError):
        list(open_tokens(folder).rows())
