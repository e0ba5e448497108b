"""Manifests, Kaldi folders and folders of audio: what is read, and which line is blamed for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_tok.corpus import Utterance, read_corpus, write_manifest
from jepa_tok.errors import CorpusError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


# Visible text with blanks inside; `id` may not start or end with one, and its parts must be names.
words = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
identifiers = words.filter(lambda s: s == s.strip() and not {"", ".", ".."} & set(s.split("/")))
names = st.sampled_from(["speaker", "text", "emotion", "split", "löf"])
scalars = st.one_of(words, st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))


@st.composite
def corpora(draw, values):
    utterances = []
    for id in draw(st.lists(identifiers, min_size=1, max_size=6, unique=True)):
        start = draw(st.none() | st.floats(0, 1e4))
        end = draw(st.none() | st.floats(1e4 + 1, 1e5))
        info = draw(st.dictionaries(names, values, max_size=4))
        utterances.append(Utterance(id, f"/audio/{draw(st.integers(0, 99))}.wav", start, end, info))
    return utterances


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora(st.one_of(scalars, st.lists(scalars, max_size=2))))
def test_jsonl_gives_back_what_was_written(tmp_path, utterances):
    write_manifest(utterances, tmp_path / "c.jsonl")
    assert read_corpus(tmp_path / "c.jsonl") == utterances


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora(words))
def test_tsv_gives_back_text(tmp_path, utterances):
    write_manifest(utterances, tmp_path / "c.tsv")
    assert read_corpus(tmp_path / "c.tsv") == utterances


def test_paths_are_relative_to_the_manifest(tmp_path):
    manifest = tmp_path / "a" / "m.jsonl"
    manifest.parent.mkdir()
    write_manifest([Utterance("x", str(tmp_path / "a" / "b" / "x.wav")), Utterance("y", "/far/y.wav")], manifest)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [r["path"] for r in rows] == ["b/x.wav", "/far/y.wav"]
    (tmp_path / "a").rename(tmp_path / "moved")
    assert [u.path for u in read_corpus(tmp_path / "moved" / "m.jsonl")] == [
        str(tmp_path / "moved" / "b" / "x.wav"),
        "/far/y.wav",
    ]


def test_jsonl_null_is_absent_and_whole_ids_become_text(tmp_path):
    path = write(tmp_path / "m.jsonl", '\ufeff{"id": 7, "path": "a.wav", "text": null, "n": 1}\r\n\n')
    assert read_corpus(path) == [Utterance("7", str(tmp_path / "a.wav"), info={"n": 1})]


def test_jsonl_splits_at_line_feeds_alone(tmp_path):
    path = write(tmp_path / "m.jsonl", '{"id": "a", "path": "a.wav", "text": "one\u2028two\x85three"}\n')
    assert read_corpus(path)[0].info["text"] == "one\u2028two\x85three"


def test_tsv_keeps_text_and_reads_the_numbers_it_names(tmp_path):
    path = write(tmp_path / "m.tsv", 'path\tid\tspeaker\tduration_s\ttext\r\na.wav\tu1\t007\t1.5\t"quoted\r\n')
    (u,) = read_corpus(path)
    assert u.info == {"speaker": "007", "duration_s": 1.5, "text": '"quoted'}


BAD_ROWS = {
    "not json": ("{id: 1}", "must be a JSON object"),
    "not an object": ("[1]", "must be a JSON object"),
    "nan": ('{"id": "b", "path": "b.wav", "x": NaN}', "NaN"),
    "infinite": ('{"id": "b", "path": "b.wav", "x": 1e999}', "`x` must be finite"),
    "surrogate": (
        '{"id": "b", "path": "b.wav", "x": "\\ud800"}',
        "`x` must be free of halves of surrogate pairs, but is '\\ud800'",
    ),
    "surrogate_within": ('{"id": "b", "path": "b.wav", "x": [{"y": "\\udfff"}]}', "`x` must be free of halves"),
    "surrogate_column": ('{"id": "b", "path": "b.wav", "\\ud800": 1}', "`\\ud800` must be free of halves"),
    "no id": ('{"path": "b.wav"}', "must have `id`"),
    "no path": ('{"id": "b"}', "must have `path`"),
    "empty id": ('{"id": "", "path": "b.wav"}', "must not be empty"),
    "control": ('{"id": "a\\u0000b", "path": "b.wav"}', "control"),
    "tab": ('{"id": "a\\tb", "path": "b.wav"}', "control"),
    "true": ('{"id": true, "path": "b.wav"}', "must be a string"),
    "path": ('{"id": "b", "path": ["b.wav"]}', "must be a string"),
    "twice": ('{"id": "a", "path": "b.wav"}', "unique"),
    "start": ('{"id": "b", "path": "b.wav", "start": "0"}', "must be a number"),
    "negative": ('{"id": "b", "path": "b.wav", "start": -1}', "from 0 up"),
    "backwards": ('{"id": "b", "path": "b.wav", "start": 2, "end": 2.0}', "greater than `start`"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_jsonl_rows_are_named(tmp_path, name):
    line, message = BAD_ROWS[name]
    path = write(tmp_path / "m.jsonl", f'{{"id": "a", "path": "a.wav"}}\n{line}\n')
    with pytest.raises(CorpusError) as e:
        read_corpus(path)
    text = str(e.value)
    assert text.startswith(f"{path}:2: ") and message in text and "\n" not in text


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("name\tpath\nx\ty\n", 1, "header"),
        ("id\tpath\tpath\nx\ty\tz\n", 1, "header"),
        ("id\tpath\na\tb\tc\n", 2, "2 cells"),
        ("id\tpath\na\n", 2, "2 cells"),
        ("id\tpath\n\tb\n", 2, "must have `id`"),
        ("id\tpath\tend\na\tb\tsoon\n", 2, "must be a number"),
        ("id\tpath\tduration_s\na\tb\tnan\n", 2, "must be finite"),
        ("id\tpath\na\tb\na\tc\n", 3, "unique"),
    ],
)
def test_bad_tsv_rows_are_named(tmp_path, text, line, message):
    path = write(tmp_path / "m.tsv", text)
    with pytest.raises(CorpusError, match=message) as e:
        read_corpus(path)
    assert str(e.value).startswith(f"{path}:{line}: ")


def test_lines_that_are_not_utf8_are_named(tmp_path):
    (tmp_path / "m.jsonl").write_bytes(b'{"id": "a", "path": "a.wav"}\n\xff\n')
    with pytest.raises(CorpusError, match=r"m\.jsonl:2: the line must be UTF-8"):
        read_corpus(tmp_path / "m.jsonl")


def test_tsv_refuses_what_it_cannot_hold(tmp_path):
    for value in ("a\tb", "a\nb", ""):
        with pytest.raises(CorpusError, match="TSV cannot hold"):
            write_manifest([Utterance("a", "/a.wav", info={"text": value})], tmp_path / "m.tsv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.jsonl", "m.tsv", "m.csv", "folder", "absent"])
def test_sources_without_a_corpus(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    elif name != "absent":
        write(tmp_path / name, "")
    with pytest.raises(CorpusError, match=name):
        read_corpus(tmp_path / name)


# Conditions -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(tmp_path):
    rows = [("a", "train", "F", 1), ("b", "train", "M", 2), ("c", "dev", "M", 1), ("d", "test", "F", 2)]
    lines = [json.dumps({"id": i, "path": f"{i}.wav", "split": s, "gender": g, "n": n}) for i, s, g, n in rows]
    return write(tmp_path / "m.jsonl", "\n".join(lines))


@pytest.mark.parametrize(
    ("split", "where", "expected"),
    [
        ("train", None, "ab"),
        (None, "split=train", "ab"),
        (None, ["split=train", "split=dev"], "abc"),
        ("train", ["gender=M"], "b"),
        (None, ["n=2"], "bd"),
        (None, ["id=c"], "c"),
    ],
)
def test_where(manifest, split, where, expected):
    assert "".join(u.id for u in read_corpus(manifest, split=split, where=where)) == expected


@pytest.mark.parametrize("where", ["split", "=train", "colour=red", "split=nowhere"])
def test_bad_where(manifest, where):
    with pytest.raises(CorpusError):
        read_corpus(manifest, where=where)


# Folders --------------------------------------------------------------------------------------------------------------


def test_folder_of_audio(tmp_path):
    for name in ("b/2.WAV", "a/1.x.flac", "a/.hidden.wav", ".git/c.wav", "a/notes.txt", "z.opus"):
        write(tmp_path / name, "")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = read_corpus(tmp_path)
    assert [u.id for u in found] == ["a/1.x", "b/2", "z"]
    assert found[0].path == str(tmp_path / "a" / "1.x.flac")


def test_links_to_one_folder_are_all_followed(tmp_path):
    write(tmp_path / "store" / "1.wav", "")
    (tmp_path / "store" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b").mkdir(parents=True)
    for link in ("a", "b/c"):
        (tmp_path / "in" / link).symlink_to(tmp_path / "store")
    assert [u.id for u in read_corpus(tmp_path / "in")] == ["a/1", "b/c/1"]


def test_folder_with_two_files_of_one_id(tmp_path):
    write(tmp_path / "a.wav", "")
    write(tmp_path / "a.flac", "")
    with pytest.raises(CorpusError, match=r"a\.wav.*a\.flac"):
        read_corpus(tmp_path)


@pytest.fixture
def kaldi(tmp_path):
    write(tmp_path / "wav.scp", "r1 wav/one file.wav\nr2\t/abs/two.flac\n")
    return tmp_path


def test_kaldi_recordings(kaldi):
    write(kaldi / "text", "r1 hello  there\nr2\n")
    write(kaldi / "utt2spk", "r1 ann\nr2 bob\n")
    write(kaldi / "spk2gender", "ann f\n")
    assert read_corpus(kaldi) == [
        Utterance(
            "r1", str(kaldi / "wav/one file.wav"), info={"text": "hello  there", "speaker": "ann", "gender": "f"}
        ),
        Utterance("r2", "/abs/two.flac", info={"text": "", "speaker": "bob"}),
    ]


def test_kaldi_segments(kaldi):
    write(kaldi / "segments", "u1 r1 0.5 1.25\nu2 r1 1.25 -1\n")
    write(kaldi / "utt2gender", "u1 m\n")
    path = str(kaldi / "wav/one file.wav")
    assert read_corpus(kaldi) == [Utterance("u1", path, 0.5, 1.25, {"gender": "m"}), Utterance("u2", path, 1.25)]


def test_kaldi_paths_from_the_working_directory(kaldi, tmp_path_factory, monkeypatch):
    here = tmp_path_factory.mktemp("egs")
    audio = write(here / "wav" / "one file.wav", "")
    monkeypatch.chdir(here)
    assert read_corpus(kaldi)[0].path == str(audio)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("wav.scp", "a a.wav\nb sox b.mp3 -t wav - |\n", "wav.scp:2: pipes"),
        ("wav.scp", "a | sox - x.wav\n", "wav.scp:1: .*audio to read"),
        ("wav.scp", "a -\n", "wav.scp:1: .*audio to read"),
        ("wav.scp", "a\n", "wav.scp:1: .*an id and a value"),
        ("wav.scp", "a a.wav\na b.wav\n", "wav.scp:2: `id` must be unique"),
        ("wav.scp", "a a.wav\n\nb b.wav\n", "wav.scp:2: .*empty"),
        ("text", "r9 hello\n", "text:1: .*no audio"),
        ("segments", "u r1 0\n", "segments:1: .*utterance recording start end"),
        ("segments", "u r9 0 1\n", "segments:1: the recording 'r9'"),
        ("segments", "u r1 zero 1\n", "segments:1: start and end"),
        ("segments", "u r1 2 1\n", "segments:1: `end`"),
    ],
)
def test_bad_kaldi_lines_are_named(kaldi, name, text, message):
    write(kaldi / name, text)
    with pytest.raises(CorpusError, match=message):
        read_corpus(kaldi)
