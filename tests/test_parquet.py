"""Parquet with audio in it: rows, ids, columns and cells."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jepa_tok.corpus import read_corpus, spool_corpus
from jepa_tok.corpus.parquet import read_cell
from jepa_tok.errors import AudioError, CorpusError
from tests.corpora import audio_column, heard, outcomes, sound, write_parquet


def test_parquet_rows_and_columns(tmp_path):
    day = np.datetime64("2024-02-29").astype("datetime64[D]").tolist()
    columns = {
        "audio": audio_column(3), "id": [7, 8, None], "text": ["a", None, "c"], "n": [1.5, float("nan"), 2.0],
        "tags": [["x"], [], None], "day": [day] * 3, "thumbnail": [b"x"] * 3, "label": [0, 1, 1],
    }  # fmt: skip
    features = {"label": {"names": ["sad", "glad"], "_type": "ClassLabel"}, "audio": {"_type": "Audio"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), tmp_path / "dev-00000-of-00001.parquet")
    rows = read_corpus(tmp_path)
    assert [u.id for u in rows] == ["7", "8", "dev-00000-of-00001/2"] and heard(rows) == [0, 1, 2]
    assert rows[0].info == {"text": "a", "n": 1.5, "tags": ["x"], "day": "2024-02-29", "label": "sad", "split": "dev"}
    assert rows[2].info == {"text": "c", "n": 2.0, "day": "2024-02-29", "label": "glad", "split": "dev"}
    assert rows[1].path == f"{tmp_path / 'dev-00000-of-00001.parquet'}#1"


@pytest.mark.parametrize(
    ("columns", "ids"),
    [
        ({"audio": audio_column(2), "utt_id": ["a", "b"]}, ["a", "b"]),
        ({"audio": audio_column(2), "file": ["x/1.flac", "/home/me/2.flac"]}, ["x/1", "2"]),
        ({"audio": audio_column(2, lambda i: f"c{i}.mp3")}, ["c0", "c1"]),
        ({"audio": [sound(0), sound(1)]}, ["f/0", "f/1"]),
        ({"speech": [{"bytes": sound(0)}, {"bytes": sound(1)}]}, ["f/0", "f/1"]),
    ],
)
def test_parquet_ids_and_audio_columns(tmp_path, columns, ids):
    rows = read_corpus(write_parquet(tmp_path / "f.parquet", columns))
    assert [u.id for u in rows] == ids and heard(rows) == [0, 1]


def test_parquet_cells_in_any_order_and_by_threads(tmp_path):
    path = write_parquet(tmp_path / "f.parquet", {"audio": audio_column(90)}, row_group_size=40)
    rows = read_corpus(path)
    assert [u.part.group for u in rows] == [0] * 40 + [1] * 40 + [2] * 10
    order = np.random.default_rng(0).permutation(90)
    assert heard(rows[i] for i in order) == list(order)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda u: heard([u])[0], rows)) == list(range(90))


def test_rows_in_order_are_read_once(tmp_path, monkeypatch):
    rows = read_corpus(write_parquet(tmp_path / "f.parquet", {"audio": audio_column(60)}, row_group_size=60))
    read = pq.ParquetFile.iter_batches
    starts = []
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: starts.append(1) or read(*a, **k))
    assert all(read_cell(u.part) for u in rows) and len(starts) == 1


def test_a_file_that_is_replaced_is_read_anew(tmp_path):
    path = write_parquet(tmp_path / "f.parquet", {"audio": audio_column(3)})
    rows = read_corpus(path)
    assert heard(rows) == [0, 1, 2]
    write_parquet(tmp_path / "new.parquet", {"audio": audio_column(3, first=4)}).replace(path)
    assert heard(rows) == [4, 5, 6]


def test_a_read_that_fails_harms_no_other(tmp_path, monkeypatch):
    rows = read_corpus(write_parquet(tmp_path / "f.parquet", {"audio": audio_column(60)}))
    read, fails = pq.ParquetFile.iter_batches, [True]

    def failing(*arguments, **options):
        for number, batch in enumerate(read(*arguments, **options)):
            if number == 1 and fails:
                fails.pop()
                raise OSError("the disk is away")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    with pytest.raises(AudioError, match="the disk is away"):
        heard(rows)
    assert heard(rows) == list(range(60))


def test_parquet_of_datasets_names_files_or_holds_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    from datasets.table import embed_table_storage

    for i in range(3):
        (tmp_path / f"c{i}.flac").write_bytes(sound(i))
    files = {"audio": [str(tmp_path / f"c{i}.flac") for i in range(3)]}
    dataset = datasets.Dataset.from_dict(files).cast_column("audio", datasets.Audio())
    dataset.to_parquet(str(tmp_path / "named.parquet"))
    dataset.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(str(tmp_path / "held.parquet"))
    named, held = (spool_corpus(tmp_path / name, strict=False) for name in ("named.parquet", "held.parquet"))
    assert [u.id for u in named] == [u.id for u in held] == ["c0", "c1", "c2"]
    assert heard(named) == heard(held) == [0, 1, 2]
    (tmp_path / "c1.flac").unlink()
    (first, gone, last), _ = outcomes(named), heard(held)
    assert (first, last) == (0, 2) and "\n" not in gone
    assert (
        f"named.parquet#1' must hold the bytes of an audio file, but is null, and no file is at its path '{tmp_path}/c1.flac'"
        in gone
    )
    assert "embed_table_storage" in gone and "push_to_hub" in gone


@pytest.mark.parametrize("remote", [False, True])
def test_paths_beside_null_bytes_keep_the_rules_of_manifests(tmp_path, remote):
    fsspec = pytest.importorskip("fsspec")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.flac").write_bytes(sound(1))
    (tmp_path / "b.flac").write_bytes(sound(2))
    fsspec.filesystem("memory").pipe("/elsewhere/c.flac", sound(3))
    reasons = {
        "filecache::memory://elsewhere/c.flac": "must be a path or a plain URL",
        "a\nb": "free of control characters",
        "": "is null, and has no path",
        "/dev/zero": "is a pipe, a socket or a device",
        ".": "must be an audio file, but",
        "nowhere://x": "nothing that is installed opens URLs of this protocol",
        "absent.flac": "embed_table_storage",
    }
    paths = ["a.flac", "../b.flac", "memory://elsewhere/c.flac", *reasons]
    cells = [{"bytes": None, "path": path} for path in paths]
    path = write_parquet(tmp_path / "in/f.parquet", {"audio": cells, "id": list(map(str, range(len(paths))))})
    if remote:
        path = f"memory://{tmp_path.as_posix().lstrip('/')}"
        fsspec.filesystem("memory").put(str(tmp_path), path, recursive=True)
        path += "/in/f.parquet"
    found = outcomes(spool_corpus(path))
    assert found[:3] == [1, 2, 3]
    for told, reason in zip(found[3:], reasons.values(), strict=True):
        assert reason in told and "\n" not in told


def test_bad_parquet_rows_and_files(tmp_path):
    cells = [*audio_column(2), {"bytes": None, "path": "x.wav"}, {"bytes": b"no sound"}, None]
    write_parquet(tmp_path / "a.parquet", {"audio": cells, "id": ["a", "..", "null", "noise", "none"]})
    write_parquet(tmp_path / "b.parquet", {"audio": audio_column(3), "id": ["a", "b", "c"], "x": [0.0, 0.0, np.inf]})
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-100])
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances] == ["a", "null", "noise", "none", "b"]
    assert sorted(row.place.rpartition("/")[2] for row in utterances.refused) == [
        "a.parquet#1", "b.parquet#0", "b.parquet#2", "c.parquet",
    ]  # fmt: skip
    a, null, noise, none, b = outcomes(utterances)
    assert (a, b) == (0, 1) and all("a.parquet#" in error for error in (null, noise, none))
    assert "must hold the bytes" in null and "must hold the bytes" in none and "libsndfile" in noise


@pytest.mark.parametrize(
    "columns", [{"text": ["a"]}, {"audio": ["a.wav"]}, {"audio": [[0.5]]}, {"id": ["a"], "x": [1]}]
)
def test_parquet_without_audio_is_one_error(tmp_path, columns):
    with pytest.raises(CorpusError, match=r"f\.parquet: .*column `audio` of bytes"):
        read_corpus(write_parquet(tmp_path / "f.parquet", columns))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    text = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    write_parquet(tmp_path / "x.parquet", {"audio": audio_column(2), "text": text})
    write_parquet(tmp_path / "y.parquet", {"audio": audio_column(1)})
    found = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in found] == ["y/0"]
    (row,) = found.refused
    assert "x.parquet" in row.reason and "utf-8" in row.reason
