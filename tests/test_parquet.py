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
