"""Bad inputs of every kind that was thought of: each is skipped with a reason that names it, and harms nothing else."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jepa_tok import packing
from jepa_tok.audio import AudioFile
from jepa_tok.corpus import Utterance, encode_utterances, read_corpus, read_shards, spool_corpus, tokenize_corpus
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.presets import tokenizer_config
from jepa_tok.tokens import Tokens

RATE = 24_000
NOISE = np.random.default_rng(0).normal(0, 0.1, 12_000)


def encoded(kind: str, samples: np.ndarray = NOISE, rate: int = RATE, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


def wav(data: bytes = NOISE.astype("<f4").tobytes(), *, size: int | None = None, rate: int = RATE, channels: int = 1,
        tag: int = 3, bits: int = 32) -> bytes:  # fmt: skip
    """A WAV file of which each field of the header may lie."""
    size = len(data) if size is None else size
    block = channels * bits // 8
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", min(len(body) - len(data) + size, 2**32 - 1)) + body


def flipped(data: bytes) -> bytes:
    """FLAC whose frames are damaged in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(b ^ 0xFF for b in data[middle : middle + 2000]) + data[middle + 2000 :]


FILES: dict[str, bytes] = {
    "zero_bytes": b"",
    "header_only": wav(b""),
    "half_a_header": wav()[:20],
    "flac_cut_short": encoded("FLAC")[:9000],
    "flac_header_only": encoded("FLAC")[:42],
    "flac_damaged": flipped(encoded("FLAC")),
    "ogg_cut_short": encoded("OGG")[:60],
    "mp3_cut_short": encoded("MP3")[:50],
    "wav_cut_short": wav()[:20_000],
    "data_of_zero_size": wav(size=0),
    "0_hz": wav(rate=0),
    "1_hz": wav(rate=1),
    "0_channels": wav(channels=0),
    "65_channels": wav(channels=65, data=np.zeros(65 * 100, "<f4").tobytes()),
    "1000_channels": wav(channels=1000, data=np.zeros(100_000, "<f4").tobytes()),
    "unknown_codec": wav(tag=0x1234),
    "0_bits": wav(bits=0),
    "nan": wav(np.full(100, np.nan, "<f4").tobytes()),
    "nan_at_the_end": wav(np.append(NOISE, np.nan).astype("<f4").tobytes()),
    "infinite": wav(np.full(100, -np.inf, "<f4").tobytes()),
    "floats_of_integer_size": wav((NOISE * 32_768).astype("<f4").tobytes()),
    "doubles_of_1e300": wav(np.full(100, 1e300, "<f8").tobytes(), bits=64),
    "text": b"This is a transcript, not a recording.\n" * 40,
    "random_bytes": np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes(),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "gzip": gzip.compress(wav()),
    "pickle": pickle.dumps(NOISE),
    "git_lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "sphere_header_only": b"NIST_1A\n   1024\n" + bytes(1008),
    "aiff_header_only": encoded("AIFF")[:30],
    "voc_header_only": b"Creative Video File\x1a" + bytes(12),
    "mp4": b"\x00\x00\x00\x20ftypM4A " + bytes(500),
}
"""Kinds of bad files, by content."""


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


def make_unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    path.write_bytes(wav())
    path.chmod(0)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "broken_link": lambda path: path.symlink_to("nowhere.wav"),
    "link_to_itself": lambda path: path.symlink_to(path.name),
    "link_to_a_folder": lambda path: path.symlink_to("."),
    "pipe": make_fifo,
    "socket": make_socket,
    "endless_device": lambda path: path.symlink_to("/dev/zero"),
    "empty_device": lambda path: path.symlink_to("/dev/null"),
    "unreadable": make_unreadable,
}
"""Kinds of paths that are not a regular file."""

OTHER_PATHS = {
    "below_a_file": "good0.wav/x.wav",
    "too_long_for_a_file_system": "x" * 300 + ".wav",
    "unknown_protocol": "gopher://host/x.wav",
    "missing_object": "memory://nowhere/x.wav",
    "no_server": "http://127.0.0.1:9/x.wav",
    "a_command": "$(touch pwned).wav",
    "kaldi_pipe": "touch pwned |",
}

SEGMENTS = {"starts_behind_the_end": (0.6, None), "all_behind_the_end": (5, 6), "ends_long_after_it": (0.1, 1.2)}

ROWS = {
    "not_json": "{id: 1}",
    "cut_short": '{"id": "cut", "pa',
    "a_list": "[1]",
    "a_string": '"good"',
    "too_deep": "[" * 100_000,
    "nan": '{"id": "n", "path": "good0.wav", "x": NaN}',
    "infinite": '{"id": "n", "path": "good0.wav", "x": 1e999}',
    "infinite_in_a_list": '{"id": "n", "path": "good0.wav", "x": [1e999]}',
    "number_without_end": '{"id": "n", "path": "good0.wav", "x": ' + "9" * 10_000 + "}",
    "huge_start": '{"id": "n", "path": "good0.wav", "start": 1' + "0" * 400 + "}",
    "half_a_surrogate_pair": '{"id": "\\ud800", "path": "good0.wav"}',
    "no_id": '{"path": "good0.wav"}',
    "no_path": '{"id": "n"}',
    "null_id": '{"id": null, "path": "good0.wav"}',
    "empty_id": '{"id": "", "path": "good0.wav"}',
    "blank_id": '{"id": " ", "path": "good0.wav"}',
    "list_id": '{"id": ["a"], "path": "good0.wav"}',
    "true_id": '{"id": true, "path": "good0.wav"}',
    "parent_id": '{"id": "../pwned", "path": "good0.wav"}',
    "parent_within_id": '{"id": "a/../../pwned", "path": "good0.wav"}',
    "here_id": '{"id": "./a", "path": "good0.wav"}',
    "absolute_id": '{"id": "/tmp/pwned", "path": "good0.wav"}',
    "id_ends_in_slash": '{"id": "a/", "path": "good0.wav"}',
    "double_slash_id": '{"id": "a//b", "path": "good0.wav"}',
    "nul_id": '{"id": "a\\u0000b", "path": "good0.wav"}',
    "newline_id": '{"id": "a\\nb", "path": "good0.wav"}',
    "escape_id": '{"id": "\\u001b[31m", "path": "good0.wav"}',
    "id_too_long_for_a_file": json.dumps({"id": "i" * 300, "path": "good0.wav"}),
    "id_too_long_for_a_path": json.dumps({"id": "/".join(["i" * 100] * 50), "path": "good0.wav"}),
    "id_twice": '{"id": "good0", "path": "good1.wav"}',
    "empty_path": '{"id": "n", "path": ""}',
    "nul_path": '{"id": "n", "path": "a\\u0000.wav"}',
    "number_path": '{"id": "n", "path": 7}',
    "writing_url": '{"id": "n", "path": "filecache::memory://x/a.wav"}',
    "text_start": '{"id": "n", "path": "good0.wav", "start": "0"}',
    "true_start": '{"id": "n", "path": "good0.wav", "start": true}',
    "negative_start": '{"id": "n", "path": "good0.wav", "start": -1}',
    "end_before_start": '{"id": "n", "path": "good0.wav", "start": 2, "end": 1}',
    "empty_segment": '{"id": "n", "path": "good0.wav", "start": 1, "end": 1}',
}
"""Kinds of bad rows of a manifest."""


class StubTokenizer:
    """Ids depend on the samples alone: what is tested is what comes to a tokenizer."""

    def __init__(self) -> None:
        self.config = tokenizer_config("tiny")
        self.hash, self.sample_rate, self.frame_rate = "c" * 16, RATE, 2.5

    def encode(self, waves: list, sample_rate: int | None, batch_seconds: float | None) -> list[Tokens]:
        quantizer, made = self.config.quantizer, []
        for wave in (torch.cat(list(w)) if isinstance(w, AudioFile) else w for w in waves):
            codes = torch.full((-(-len(wave) // 9600), 128), int(wave[0] > 0))
            made.append(Tokens(packing.pack(codes, 4), len(wave), tuple(quantizer.radices), tokenizer=self.hash))
        return made


def make_good(folder: Path) -> list[str]:
    """Three good files, and their rows."""
    for i in range(3):
        (folder / f"good{i}.wav").write_bytes(wav())
    return [json.dumps({"id": f"good{i}", "path": f"good{i}.wav"}) for i in range(3)]


def tree(folder: Path) -> set[str]:
    return {str(Path(root, name)) for root, folders, files in os.walk(folder) for name in folders + files}


# Bad audio ------------------------------------------------------------------------------------------------------------


def bad_audio(folder: Path, kind: str) -> Utterance:
    """An utterance of a kind, and its file."""
    path = folder / f"{kind}.wav"
    if kind in FILES:
        path.write_bytes(FILES[kind])
    elif kind in NO_FILES:
        NO_FILES[kind](path)
    elif kind in OTHER_PATHS:
        (row,) = read_corpus(_manifest(folder, [json.dumps({"id": kind, "path": OTHER_PATHS[kind]})]))
        return row
    else:
        return Utterance(kind, str(folder / "good0.wav"), *SEGMENTS[kind])
    return Utterance(kind, str(path))


def _manifest(folder: Path, lines: list[str]) -> Path:
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "m.jsonl"


@pytest.mark.parametrize("kind", [*FILES, *NO_FILES, *OTHER_PATHS, *SEGMENTS])
@pytest.mark.parametrize("batch_seconds", [None, 2.0])
def test_bad_audio_is_handed_back_with_a_reason(tmp_path, kind, batch_seconds):
    make_good(tmp_path)
    bad = bad_audio(tmp_path, kind)
    good = [Utterance(f"good{i}", str(tmp_path / f"good{i}.wav")) for i in range(3)]
    before = tree(tmp_path)
    found = dict(encode_utterances([*good[:2], bad, good[2]], StubTokenizer(), batch_seconds))
    assert [found[i].num_samples for i in (0, 1, 3)] == [len(NOISE)] * 3
    error = found[2]
    assert isinstance(error, AudioError) and bad.path in str(error) and "\n" not in str(error)
    assert tree(tmp_path) == before


ODD_BUT_GOOD = {
    "mp3_named_wav": encoded("MP3"),
    "flac_named_wav": encoded("FLAC"),
    "ogg_named_wav": encoded("OGG"),
    "written_to_a_pipe": wav(size=2**32 - 1),
    "written_to_a_pipe_by_sox": wav(size=2**31 - 1),
    "size_a_little_off": wav(size=48_007),
    "64_channels": wav(channels=64, data=np.repeat(NOISE, 64).astype("<f4").tobytes()),
}


@pytest.mark.parametrize("kind", ODD_BUT_GOOD)
def test_audio_that_only_looks_bad_is_read(tmp_path, kind):
    (tmp_path / "a.wav").write_bytes(ODD_BUT_GOOD[kind])
    ((_, tokens),) = encode_utterances([Utterance("a", str(tmp_path / "a.wav"))], StubTokenizer())
    assert tokens.num_samples == len(NOISE)


def test_a_fault_of_ours_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    make_good(tmp_path)
    monkeypatch.setattr(AudioFile, "__iter__", lambda self: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        list(encode_utterances([Utterance("a", str(tmp_path / "good0.wav"))], StubTokenizer()))


# Bad lists ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROWS)
def test_bad_rows_are_refused(tmp_path, kind):
    good = make_good(tmp_path)
    manifest = _manifest(tmp_path, [*good[:2], ROWS[kind], good[2]])
    utterances = spool_corpus(manifest, strict=False)
    assert [u.id for u in utterances] == ["good0", "good1", "good2"]
    (row,) = utterances.refused
    assert row.place == f"{manifest}:3" and row.reason.startswith(f"{manifest}:3: ") and "\n" not in row.reason
    json.dumps(row, ensure_ascii=False).encode()
    with pytest.raises(CorpusError, match=r"m\.jsonl:3: "):
        spool_corpus(manifest)
    with pytest.raises(CorpusError, match=r"m\.jsonl:3: "):
        read_corpus(manifest)


LINES = {
    "a_cell_too_many": b"n\tgood0.wav\t1\t2",
    "a_cell_too_few": b"n\tgood0.wav",
    "no_number": b"n\tgood0.wav\tsoon",
    "not_a_number": b"n\tgood0.wav\tnan",
    "latin_1": b"n\xfc\tgood0.wav\t",
    "carriage_return": b"n\ra\tgood0.wav\t",
    "parent_id": b"..\tgood0.wav\t",
}


@pytest.mark.parametrize("kind", LINES)
def test_bad_tsv_lines_are_refused(tmp_path, kind):
    (tmp_path / "m.tsv").write_bytes(b"id\tpath\tend\r\ng\tgood0.wav\t\r\n" + LINES[kind] + b"\r\n")
    utterances = spool_corpus(tmp_path / "m.tsv", strict=False)
    assert [u.id for u in utterances] == ["g"]
    assert [row.place for row in utterances.refused] == [f"{tmp_path / 'm.tsv'}:3"]


KALDI = {
    "pipe": ("wav.scp", "p touch pwned |"),
    "output": ("wav.scp", "p | touch pwned"),
    "standard_input": ("wav.scp", "p -"),
    "no_path": ("wav.scp", "p"),
    "empty_line": ("wav.scp", ""),
    "parent_id": ("wav.scp", "../p good0.wav"),
    "text_of_no_utterance": ("text", "p hello"),
    "text_twice": ("text", "g hello"),
    "speaker_of_no_utterance": ("utt2spk", "p ann"),
}


@pytest.mark.parametrize("kind", KALDI)
def test_bad_kaldi_lines_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("wav.scp", "text", "utt2spk"):
        (tmp_path / name).write_text("g good0.wav\n")
    name, line = KALDI[kind]
    (tmp_path / name).write_text(f"g good0.wav\n{line}\n")
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances] == ["g"]
    assert [row.place for row in utterances.refused] == [f"{tmp_path / name}:2"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("segment", ["p r9 0 1", "p g 0", "p g 2 1", "p g zero 1", "p g -5 1", "p g nan 1"])
def test_bad_kaldi_segments_are_refused(tmp_path, segment):
    (tmp_path / "wav.scp").write_text("g good0.wav\n")
    (tmp_path / "segments").write_text(f"s g 0 1\n{segment}\n")
    utterances = spool_corpus(tmp_path, strict=False)
    assert [u.id for u in utterances] == ["s"] and utterances.refused[0].id == "p"


NO_SOURCES = {
    "missing.jsonl": None,
    "empty.jsonl": b"",
    "binary.jsonl": bytes(range(256)) * 40,
    "endless_line.jsonl": b"x" * (2**24 + 2),
    "no_header.tsv": b"a\tgood0.wav\n",
    "header_alone.tsv": b"id\tpath\n",
    "column_twice.tsv": b"id\tpath\tpath\na\tb\tc\n",
    "manifest.csv": b"id,path\na,b\n",
    "shard.tar": b"",
    "random.tar": np.random.default_rng(2).integers(0, 256, 5000, np.uint8).tobytes(),
    "shard.tar.gz": gzip.compress(bytes(10_240)),
    "table.parquet": b"PAR1",
    "random.parquet": b"PAR1" + bytes(500) + b"PAR1",
}


@pytest.mark.parametrize("name", NO_SOURCES)
def test_what_is_no_source_is_one_error(tmp_path, name):
    content = NO_SOURCES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=name.replace(".", r"\.")) as e:
        spool_corpus(tmp_path / name, strict=False)
    assert "\n" not in str(e.value)


# End to end -----------------------------------------------------------------------------------------------------------


def test_every_bad_input_is_listed_and_nothing_else_is_touched(tmp_path, monkeypatch):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    monkeypatch.chdir(tmp_path)
    lines = make_good(source)
    for kind in [*FILES, *NO_FILES, *OTHER_PATHS]:
        if kind in FILES:
            (source / f"{kind}.wav").write_bytes(FILES[kind])
        elif kind in NO_FILES and not (kind == "unreadable" and os.geteuid() == 0):
            NO_FILES[kind](source / f"{kind}.wav")
        lines.append(json.dumps({"id": kind, "path": OTHER_PATHS.get(kind, f"{kind}.wav")}))
    lines += [json.dumps({"id": k, "path": "good0.wav", "start": s, "end": e}) for k, (s, e) in SEGMENTS.items()]
    lines += ROWS.values()
    manifest = _manifest(source, lines)
    before = tree(tmp_path)

    summary = tokenize_corpus(manifest, out, StubTokenizer(), rows_per_shard=7)
    assert {path for path in tree(tmp_path) if Path(path) != out and out not in Path(path).parents} == before
    assert [row.id for row in read_shards(out)] == ["good0", "good1", "good2"]
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert summary.skipped == len(skipped) == len(lines) - 3 and summary.written == 3
    assert all(row["reason"] and "\n" not in row["reason"] for row in skipped)
    assert {row["id"] for row in skipped} >= {*FILES, *NO_FILES, *OTHER_PATHS, *SEGMENTS}
    for number in range(len(lines) - len(ROWS) + 1, len(lines) + 1):
        assert any(row["reason"].startswith(f"{manifest}:{number}: ") for row in skipped)

    with pytest.raises(CorpusError):
        tokenize_corpus(manifest, tmp_path / "strict", StubTokenizer(), strict=True)
    assert not (tmp_path / "strict").exists()
