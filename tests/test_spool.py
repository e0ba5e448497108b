"""The list of utterances on disk is the list in memory: same rows, same order, same errors."""

from __future__ import annotations

import hashlib
import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok.cli import main
from jepa_tok.corpus import Utterance, UtteranceList, column_types, read_corpus, spool_corpus
from jepa_tok.corpus.audio_source import Cell, Command, Slice
from jepa_tok.errors import CorpusError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
seconds = st.none() | st.floats(0, 1e6)
parts = st.one_of(
    st.none(),
    st.builds(Slice, texts, st.integers(0, 2**50), st.none() | st.integers(0, 2**50)),
    st.builds(Cell, texts, texts, st.integers(0, 999), st.integers(0, 999)),
    st.builds(Command, texts),
)
values = st.one_of(texts, st.booleans(), st.integers(), st.floats(allow_nan=False), st.lists(st.integers(), max_size=2))
utterances = st.builds(
    Utterance,
    st.text("abc/", min_size=1, max_size=4),
    texts,
    seconds,
    seconds,
    st.dictionaries(st.sampled_from("xyz"), values),
    parts,
)


@given(st.lists(utterances, max_size=20), st.integers(-25, 25), st.integers(-25, 25), st.sampled_from([1, 2, -1]))
def test_it_is_a_sequence_of_what_went_in(rows, start, stop, step):
    spooled = UtteranceList((str(i), u) for i, u in enumerate(rows))
    assert len(spooled) == len(rows) and list(spooled) == rows and list(spooled) == rows
    assert spooled[start:stop:step] == rows[start:stop:step]
    if -len(rows) <= start < len(rows):
        assert spooled[start] == rows[start]
    else:
        with pytest.raises(IndexError):
            spooled[start]
    assert spooled.columns == column_types(u.info for u in rows)


@given(st.lists(utterances, max_size=20))
def test_the_first_of_an_id_stays(rows):
    spooled = UtteranceList((f"row {i}", u) for i, u in enumerate(rows))
    twice = spooled.drop_duplicates()
    first = {u.id: i for i, u in reversed(list(enumerate(rows)))}
    assert list(spooled) == [u for i, u in enumerate(rows) if first[u.id] == i] and len(spooled) == len(first)
    assert [row.place for row in twice] == [f"row {i}" for i, u in enumerate(rows) if first[u.id] != i]
    assert all(row.reason.endswith(f"taken already by row {first[row.id]}.") for row in twice)


def test_the_digest_names_ids_paths_segments_and_columns():
    rows = [Utterance("a", "a.wav", info={"y": 1, "x": "é"}), Utterance("b", "b.wav", 0.5, 2.0)]
    lines = '["a", "a.wav", null, null, {"x": "\\u00e9", "y": 1}]\n["b", "b.wav", 0.5, 2.0, {}]\n'
    assert spool_corpus(rows).digest == hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert spool_corpus(rows).digest != spool_corpus(rows[::-1]).digest


def test_rows_are_chosen_and_checked_as_in_memory(tmp_path):
    rows = [{"id": f"u{i}", "path": f"{i}.wav", "split": "train" if i % 3 else "dev", "n": i} for i in range(2500)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for options in ({}, {"split": "dev"}, {"where": ["n=1", "n=7"]}, {"where": "id=u3"}):
        assert list(spool_corpus(tmp_path / "m.jsonl", **options)) == read_corpus(tmp_path / "m.jsonl", **options)
    for options, message in (
        ({"split": "test"}, "none of the 2500 utterances meets split=test"),
        ({"where": "colour=red"}, "there are only: id, n, split"),
        ({"where": "colour"}, "column=value"),
    ):
        with pytest.raises(CorpusError, match=message):
            spool_corpus(tmp_path / "m.jsonl", **options)


def test_bad_rows_are_left_out_on_request(tmp_path):
    good = '{"id": "a", "path": "a.wav"}'
    (tmp_path / "m.jsonl").write_text(f'{good}\n{{"id": ".."}}\n{good}\n{{"id": "b", "path": "b.wav"}}\n')
    spooled = spool_corpus(tmp_path / "m.jsonl", strict=False)
    assert [u.id for u in spooled] == ["a", "b"] and spooled[1].path == str(tmp_path / "b.wav")
    assert [row.place.rpartition(":")[2] for row in spooled.refused] == ["2", "3"]
    assert "taken already by" in spooled.refused[1].reason and spooled.refused[1].path == str(tmp_path / "a.wav")
    (tmp_path / "m.jsonl").write_text("[]\n[]\n")
    with pytest.raises(CorpusError, match="none of 2 rows can be used; the first: "):
        spool_corpus(tmp_path / "m.jsonl", strict=False)


def test_utterances_from_elsewhere():
    good = Utterance("a", "/a.wav")
    assert list(spool_corpus(iter([good]))) == [good]
    for bad in (
        [],
        [good, good],
        [Utterance("a", "/a.wav", 2.0, 1.0)],
        [Utterance("a\n", "/a.wav")],
        [Utterance("a", "\ud800")],
    ):
        with pytest.raises(CorpusError, match=r"^mine"):
            spool_corpus(bad, name="mine")
    assert len(spool_corpus([good, good], strict=False).refused) == 1
    for value in ("\ud800", float("nan"), object(), [b"x"], {1.5: {2}}):
        with pytest.raises(CorpusError, match=r"^mine, utterance 0: `x` must be "):
            spool_corpus([Utterance("a", "/a.wav", info={"x": value})], name="mine")


@pytest.mark.parametrize("source", ["m.jsonl", "kaldi"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys, source):
    (tmp_path / "m.jsonl").write_text("".join(f'{{"id": "u{i}", "path": "{i}.wav"}}\n' for i in range(2000)))
    (tmp_path / "kaldi").mkdir()
    for name, value in (("wav.scp", "a.wav"), ("text", "to be or not")):
        (tmp_path / "kaldi" / name).write_text("".join(f"u{i} {value}\n" for i in range(2000)))
    connect = sqlite3.connect

    def small(*arguments, **options):
        made = connect(*arguments, **options)
        made.execute("PRAGMA max_page_count = 9")
        return made

    monkeypatch.setattr(sqlite3, "connect", small)
    monkeypatch.setenv("TMPDIR", "/full")
    argv = ["tokenize", tmp_path / source, tmp_path / "out", "--tokenizer", "tiny", "--random-init"]
    assert main([str(a) for a in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "TMPDIR, /full" in line and "database or disk is full" in line and not (tmp_path / "out").exists()
