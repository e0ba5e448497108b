"""Tokens in other formats: what is exported comes back, folders appear whole, and what cannot be held is refused in one line."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepa_tok.cli import main
from jepa_tok.corpus import ShardMetadata, TokenRow, read_shards, write_numbered_shard
from jepa_tok.corpus.export import export_tokens
from jepa_tok.corpus.formats import FORMATS, open_tokens
from jepa_tok.corpus.formats.binary import TokenBin
from jepa_tok.errors import CorpusError

SIZES = (64, 64, 16)
METADATA = ShardMetadata("0123456789abcdef", (4,) * 8, 3, SIZES, 2.5, 24_000)
HOP = 9600
COLUMNS = {"text": "string", "speaker": "string", "n": "int64", "x": "double", "ok": "bool"}


def row(id="a", frames=2, seed=0, **info):
    ids = torch.stack([torch.from_numpy(np.random.default_rng(seed).integers(0, v, frames)) for v in SIZES], 1)
    return TokenRow(id, ids, frames * HOP - 5, info)


ROWS = [
    row("utt1", 3, 1, text="to be or  not", speaker="ann", n=2**60, x=0.1, ok=True),
    row("utt/2", 1, 2, text="", speaker="bob", x=-math.inf),
    row("ütt.3", 5, 3, text='"été"\u2028 line', ok=False, n=-1),
    row("utt4", 2, 4),
    row("utt5", 4, 5, text=" blanks ", speaker="ann", x=1.0),
]


def same(a, b):
    return (a.id, a.ids.tolist(), a.num_samples, a.info) == (b.id, b.ids.tolist(), b.num_samples, b.info)


def make(folder, rows=ROWS, size=2, columns=COLUMNS, metadata=METADATA):
    for index in range(0, len(rows), size):
        write_numbered_shard(folder, index // size, rows[index : index + size], metadata, columns)
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def shards(tmp_path):
    return make(tmp_path / "shards")


def test_an_export_is_on_the_disk_before_its_name_is(shards, tmp_path, monkeypatch):
    synced, fsync, replace = set(), os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (synced.add(os.fstat(file).st_ino), fsync(file))[1])

    def move(a, b):
        if Path(b).name == "out":
            assert {p.stat().st_ino for p in Path(a).rglob("*") if p.is_file()} <= synced
            synced.add("moved")
        replace(a, b)

    monkeypatch.setattr(os, "replace", move)
    export_tokens(shards, tmp_path / "out", "bin")
    assert "moved" in synced


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", FORMATS)
def test_all_rows_come_back_from_every_format(shards, tmp_path, middle):
    export_tokens(shards, tmp_path / "direct", "parquet", rows_per_shard=2)
    info = export_tokens(shards, tmp_path / middle, middle, rows_per_shard=2)
    assert (info.utterances, info.frames, info.samples) == (5, 15, 15 * HOP - 25)
    source = open_tokens(tmp_path / middle)
    assert (source.layout, source.metadata, source.columns, source.num_rows) == (middle, METADATA, COLUMNS, 5)
    for a, b in zip(source.rows(), ROWS, strict=True):
        assert same(a, b) and a.ids.dtype == torch.int64
    export_tokens(tmp_path / middle, tmp_path / "back", "parquet", rows_per_shard=2)
    assert contents(tmp_path / "back") == contents(tmp_path / "direct")
    names = {n for n in contents(shards) if n.startswith("tokens-")}
    assert names <= set(contents(tmp_path / "back")), "the same rows give the same shards"


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_any_format_to_any_other(shards, tmp_path, first, second):
    export_tokens(shards, tmp_path / "direct", second, rows_per_shard=3)
    export_tokens(shards, tmp_path / "first", first, rows_per_shard=2)
    export_tokens(tmp_path / "first", tmp_path / "second", second, rows_per_shard=3)
    assert contents(tmp_path / "second") == contents(tmp_path / "direct")


@st.composite
def corpora(draw):
    # No controls and surrogates: manifests refuse them in ids, and Kaldi's lines cannot hold breaks.
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
    name = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)
    infos = st.fixed_dictionaries({}, optional={"text": text, "speaker": text, "n": st.integers(-(2**63), 2**63 - 1), "x": st.floats(allow_nan=False), "ok": st.booleans()})  # fmt: skip
    rows = []
    for id in draw(st.lists(name, min_size=1, max_size=5, unique=True)):
        samples = draw(st.integers(1, 3 * HOP))
        frames = math.ceil(samples / HOP)
        ids = draw(st.lists(st.tuples(*(st.integers(0, v - 1) for v in SIZES)), min_size=frames, max_size=frames))
        rows.append(TokenRow(id, torch.tensor(ids), samples, draw(infos)))
    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(corpora(), st.sampled_from(FORMATS))
def test_made_up_corpora_come_back(tmp_path_factory, rows, middle):
    folder = tmp_path_factory.mktemp("corpus")
    export_tokens(make(folder / "in", rows), folder / "out", middle)
    assert all(same(a, b) for a, b in zip(open_tokens(folder / "out").rows(), rows, strict=True))


def test_nan_comes_back_and_json_stays_json(tmp_path):
    make(tmp_path / "in", [row("a", x=math.nan)], columns={"x": "double"})
    for to in ("jsonl", "bin", "kaldi", "shar"):
        export_tokens(tmp_path / "in", tmp_path / to, to)
        (again,) = open_tokens(tmp_path / to).rows()
        assert math.isnan(again.info["x"])
    line = json.loads((tmp_path / "jsonl/tokens.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["x"] == "NaN"


def test_lhotse_loads_every_frame(tmp_path):
    """Also a last frame that the clip ends early in, which a cut of the clip's duration would lose."""
    lhotse = pytest.importorskip("lhotse")
    lengths = [1, HOP // 10, HOP, HOP + 1, 2 * HOP + HOP // 3, 7 * HOP - 1]
    rows = [TokenRow(f"u{n}", row(frames=-(-n // HOP), seed=n).ids, n, {"text": "a"}) for n in lengths]
    export_tokens(make(tmp_path / "in", rows), tmp_path / "out", "shar")
    cuts = list(lhotse.CutSet.from_shar(in_dir=str(tmp_path / "out/shar")))
    assert [c.load_tokens().tolist() for c in cuts] == [r.ids.tolist() for r in rows]
    assert [c.n_samples for c in cuts] == lengths
    trimmed = lhotse.CutSet.from_cuts(cuts).trim_to_supervisions()
    assert [c.load_tokens().tolist() for c in trimmed] == [r.ids.tolist() for r in rows]
    assert cuts[-1].truncate(offset=0.4, duration=0.8).load_tokens().tolist() == rows[-1].ids[1:3].tolist()


def test_columns_do_not_change_what_a_cut_is(tmp_path):
    """Neither those with the name of an attribute or method of a cut, nor others; what would is refused."""
    lhotse = pytest.importorskip("lhotse")
    names = ["start", "duration", "channel", "supervisions", "recording", "custom", "type", "load_audio", "truncate"]
    given = row(frames=2, **dict.fromkeys(names, "x"))
    export_tokens(make(tmp_path / "in", [given], columns=dict.fromkeys(names, "string")), tmp_path / "out", "shar")
    (cut,) = lhotse.CutSet.from_shar(in_dir=str(tmp_path / "out/shar"))
    assert (cut.id, cut.start, cut.duration, cut.channel, cut.sampling_rate) == ("a", 0, 0.8, 0, 24_000)
    assert cut.truncate(duration=0.4).load_tokens().tolist() == given.ids[:1].tolist()
    assert {name: cut.custom[name] for name in names} == given.info
    assert same(next(open_tokens(tmp_path / "out").rows()), given)


def test_wide_vocabularies(tmp_path):
    metadata = ShardMetadata("", (1000,) * 3, 3, (10**9,), 2.5, 24_000)
    rows = [TokenRow("a", torch.tensor([[10**9 - 1], [0]]), HOP + 1)]
    make(tmp_path / "in", rows, columns={}, metadata=metadata)
    for to in FORMATS:
        export_tokens(tmp_path / "in", tmp_path / to, to)
        assert same(next(open_tokens(tmp_path / to).rows()), rows[0])
    assert TokenBin(tmp_path / "bin").tokens.dtype == np.dtype("<u4")


def test_columns_can_be_left_behind(shards, tmp_path):
    export_tokens(shards, tmp_path / "out", "parquet", columns=["n"])
    table = pq.read_table(next((tmp_path / "out").glob("*.parquet")))
    assert table.column_names == ["id", "tokens", "n_frames", "n_samples", "n"]
    with pytest.raises(CorpusError, match="no column `age` to keep; there are: text, speaker, n, x, ok"):
        export_tokens(shards, tmp_path / "out2", "parquet", columns=["age"])


# The folder is whole or not there -------------------------------------------------------------------------------------


def test_a_folder_with_files_is_left_alone(shards, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite, message in ((False, "new or empty"), (True, r"only an earlier export")):
        with pytest.raises(CorpusError, match=message):
            export_tokens(shards, out, "bin", overwrite=overwrite)
    assert contents(out) == {"mine.txt": b"mine"}
    (out / "mine.txt").unlink()
    export_tokens(shards, out, "bin")
    with pytest.raises(CorpusError, match="new or empty"):
        export_tokens(shards, out, "jsonl")
    export_tokens(shards, out, "jsonl", overwrite=True)
    assert set(contents(out)) == {"tokens.jsonl", "metadata.json"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shards"]


@pytest.mark.parametrize("place", ["", "inner", "inner/deeper", "..", "x/../inner"])
def test_out_and_source_lie_apart(shards, place):
    with pytest.raises(CorpusError):
        export_tokens(shards, shards / place, "bin", overwrite=True)
    assert sorted(p.suffix for p in shards.iterdir()) == [".parquet"] * 3


def test_an_unfinished_corpus_is_not_exported(shards, tmp_path):
    (shards / "corpus.json").write_text('{"format": "jepa-tok-corpus/1", "state": "running", "num_shards": 3}')
    with pytest.raises(CorpusError, match="not whole"):
        export_tokens(shards, tmp_path / "out", "bin")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bad", "to", "message"),
    [
        (row("a b"), "kaldi", "the id 'a b' must have no blanks"),
        (row("a", text="a\nb"), "kaldi", "line breaks"),
        (row("a", **{"a/b": "x"}), "kaldi", "column `a/b`"),
        (row("a", num_frames="x"), "kaldi", "column `num_frames`"),
        (row("a", spk="x"), "kaldi", "column `spk`"),
        (row("a", load_tokens="x"), "shar", "column `load_tokens`.*name the columns to keep without it"),
        (row("a", sampling_rate="x"), "shar", "column `sampling_rate`"),
        (row("a//b"), "shar", "member of a tar file"),
        (row(".."), "shar", None),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(tmp_path, bad, to, message):
    make(tmp_path / "in", [row("fine"), bad], columns=dict.fromkeys(bad.info, "string"))
    if message is None:
        export_tokens(tmp_path / "in", tmp_path / "out", to)
        assert [r.id for r in open_tokens(tmp_path / "out").rows()] == ["fine", bad.id]
        return
    with pytest.raises(CorpusError, match=message) as e:
        export_tokens(tmp_path / "in", tmp_path / "out", to)
    assert "\n" not in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    export_tokens(tmp_path / "in", tmp_path / "out", "jsonl")


def test_column_types_that_cannot_be_held(tmp_path):
    folder = make(tmp_path / "in", size=5)
    (shard,) = folder.iterdir()
    table = pq.read_table(shard)
    pq.write_table(table.append_column("v", [[[1.0]] * 5]).replace_schema_metadata(table.schema.metadata), shard)
    with pytest.raises(CorpusError, match="column `v` must be string, int64, double or bool, but is list"):
        export_tokens(folder, tmp_path / "out", "jsonl")


KILLED = """
import os, signal, sys
from jepa_tok.corpus import export
original = export.{function}
def stop(*arguments):
    {before}
    os.kill(os.getpid(), signal.SIGKILL)
export.{function} = stop
export.export_tokens(sys.argv[1], sys.argv[2], "bin", overwrite=True)
"""


@pytest.mark.parametrize(
    ("function", "before"), [("_publish", "pass"), ("write_text", "original(*arguments)"), ("format_module", "pass")]
)
def test_killed_it_leaves_no_folder_and_the_next_run_clears_up(shards, tmp_path, function, before):
    out = tmp_path / "out"
    program = KILLED.format(function=function, before=before)
    for earlier in (False, True):
        if earlier:
            export_tokens(shards, out, "jsonl")
        result = subprocess.run([sys.executable, "-c", program, str(shards), str(out)], capture_output=True)
        assert result.returncode == -signal.SIGKILL, result.stderr
        assert set(contents(out)) == ({"tokens.jsonl", "metadata.json"} if earlier else set())
        assert out.exists() == earlier
    export_tokens(shards, out, "bin", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "shards"] and len(TokenBin(out)) == 5


def test_two_exports_to_one_place(shards, tmp_path):
    program = (
        "import sys\nfrom jepa_tok.corpus import export\n"
        "def wait(*_): print('ready', flush=True); sys.stdin.readline()\n"
        "export._publish = wait\nexport.export_tokens(sys.argv[1], sys.argv[2], 'bin')\n"
    )
    command = [sys.executable, "-c", program, str(shards), str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(CorpusError, match="another process"):
            export_tokens(shards, tmp_path / "out", "bin")
        process.communicate("\n")


def test_a_full_disk_leaves_nothing(shards, tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jepa_tok.corpus.formats.jsonl.Writer.add", full)
    with pytest.raises(CorpusError, match="out: cannot be written: No space left on device; mend that"):
        export_tokens(shards, tmp_path / "out", "jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["shards"]


@pytest.mark.parametrize("to", ["bin", "kaldi"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, to):
    def peak(count):
        rows = [row(f"u{i}", 9, i, text="some words") for i in range(count)]
        export_tokens(make(tmp_path / f"in{count}", rows, 50, {"text": "string"}), tmp_path / f"out{count}", "jsonl")
        del rows
        tracemalloc.start()
        try:
            export_tokens(tmp_path / f"out{count}", tmp_path / f"{to}{count}", to, rows_per_shard=50)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(50)  # imports and caches
    assert peak(1600) < 1.2 * peak(800)  # below, the buffers of files are not full yet


# The command line -----------------------------------------------------------------------------------------------------


def test_command_line(shards, tmp_path, capsys):
    assert main(["export", str(shards), str(tmp_path / "out"), "--to", "jsonl", "--columns", "text,n"]) == 0
    out = capsys.readouterr().out
    assert "jsonl, 5 utterances, 6.00 s, 15 frames, 45 tokens, tokenizer 0123456789abcdef" in out
    first = json.loads((tmp_path / "out/tokens.jsonl").read_text().split("\n")[0])
    assert list(first) == ["id", "tokens", "n_frames", "n_samples", "text", "n"]
    assert main(["export", str(shards), str(tmp_path / "out"), "--to", "bin"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--overwrite" in err
    assert main(["export", str(tmp_path / "absent"), str(tmp_path / "new"), "--to", "bin"]) == 2
    assert "no such file or folder" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert [r.id for r in read_shards(shards)] == [r.id for r in ROWS]
