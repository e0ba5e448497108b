"""`jepa-tok verify`: a sound corpus passes, and each kind of damage is found and named. Exports are in test_verify_exports.py."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from jepa_tok import SpeechTokenizer
from jepa_tok.cli import main
from jepa_tok.corpus import ShardMetadata, TokenRow, content_hash, find_shards, tokenize_corpus, write_numbered_shard
from jepa_tok.corpus.verify import _twice, verify_tokens
from jepa_tok.corpus.verify_files import KEPT
from jepa_tok.errors import CorpusError

METADATA = ShardMetadata("0123456789abcdef", (4,) * 8, 3, (64, 64, 16), 2.5, 24_000)
HOP = 9600


def shard(corpus, index=0):
    return sorted(corpus.glob("tokens-*.parquet"))[index]


def edit(corpus, index=0, rename=True, **columns):
    """Writes columns of a shard anew; `rename` gives the file the name that it then earns."""
    path = shard(corpus, index)
    table = pq.read_table(path)
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    if rename:
        new = path.with_name(f"tokens-{index:05d}.{content_hash(path)}.parquet")
        path.rename(new)
        text = (corpus / "corpus.json").read_text()
        (corpus / "corpus.json").write_text(text.replace(path.name, new.name))
        path = new
    return path


def edit_state(corpus, **values):
    state = json.loads((corpus / "corpus.json").read_text())
    (corpus / "corpus.json").write_text(json.dumps(state | values))


# Sound ----------------------------------------------------------------------------------------------------------------


def test_a_finished_corpus_is_sound(corpus, made, tiny):
    report = verify_tokens(corpus, tokenizer=tiny, source=made / "m.jsonl")
    assert report.sound and not report.failures
    assert list(report.checks) == ["state", "shards", "content", "metadata", "rows", "ids", "totals", "audio"]
    assert not any(found.startswith("not checked") for found in report.checks.values())
    assert report.checks["audio"].startswith("4 utterances encoded again: 0 of ")


def test_plain_shards_get_fewer_checks_and_it_is_said(corpus, made):
    (corpus / "corpus.json").unlink()
    for place in (corpus, shard(corpus)):
        report = verify_tokens(place)
        assert report.sound
        assert {k for k, v in report.checks.items() if v.startswith("not checked")} == {"state", "totals", "audio"}


def test_nothing_is_written(corpus, made, tiny):
    def listing():
        return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in corpus.iterdir()}

    before = listing()
    verify_tokens(corpus, tokenizer=tiny, source=made / "m.jsonl", sample=1)
    assert listing() == before


def test_a_folder_behind_a_url(corpus):
    import fsspec

    url = f"memory://{corpus.as_posix().lstrip('/')}"
    fsspec.filesystem("memory").put(str(corpus), url, recursive=True)
    assert verify_tokens(url).sound
    fsspec.filesystem("memory").rm(f"{url}/{shard(corpus).name}")
    assert list(verify_tokens(url).failed) == ["shards"]


# Damage ---------------------------------------------------------------------------------------------------------------


def assert_failed(report, check, *parts):
    assert check in report.failed and not report.sound
    assert all("\n" not in line for line in report.failures)
    for part in parts:
        assert any(str(part) in line for line in report.failures), report.failures


def test_missing_and_foreign_shards(corpus):
    gone = shard(corpus, 1)
    gone.rename(corpus / "tokens-00009.0123456789abcdef.parquet")
    report = verify_tokens(corpus)
    assert_failed(report, "shards", "shard 1 of 3", "tokens-00009", "run the same `jepa-tok tokenize` command again")
    assert list(report.failed) == ["shards"], "what follows from it is not told"


def test_two_files_of_one_number(corpus):
    shutil.copy(shard(corpus), corpus / "tokens-00000.0123456789abcdef.parquet")
    assert_failed(verify_tokens(corpus), "shards", "shard 0 is both")


def test_a_running_corpus(corpus):
    edit_state(corpus, state="running")
    report = verify_tokens(corpus)
    assert_failed(report, "state", "must be done, but is running")


def test_a_corpus_json_without_counts(corpus):
    state = {"format": "jepa-tok-corpus/1", "state": "done", "num_shards": 3}
    (corpus / "corpus.json").write_text(json.dumps(state))
    assert_failed(verify_tokens(corpus), "totals", "`hours` must be")
    assert_failed(verify_tokens(corpus), "state", "`shards` must name all")
    for text in (
        "{",
        "[]",
        "{}",
        "null",
        "7",
        "[" * 100_000,
        json.dumps(state | {"shards": [1]}),
        json.dumps(state | {"shards": None}),
        json.dumps(state | {"shards": []}),
        json.dumps(state | {"num_shards": True}),
        '{"format": []}',
    ):
        (corpus / "corpus.json").write_text(text)
        for use in (verify_tokens, find_shards):
            with pytest.raises(CorpusError, match=r"^[^\n]*corpus\.json: [^\n]*$"):
                use(corpus)


def test_any_number_of_shards_may_be_promised(corpus):
    edit_state(corpus, state="running", num_shards=10**12, shards=[])
    with pytest.raises(CorpusError, match="`shards` are 0 of"):
        verify_tokens(corpus)
    state = {"format": "jepa-tok-corpus/1", "state": "running", "num_shards": 10**12}
    (corpus / "corpus.json").write_text(json.dumps(state))
    assert_failed(verify_tokens(corpus), "shards", f"shard 3 of {10**12} must be there")


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_bytes(corpus, damage):
    path = shard(corpus)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 1
    path.write_bytes({"flip": data, "truncate": data[:-9], "empty": b""}[damage])
    assert_failed(
        verify_tokens(corpus), "content", path, "delete it and run the same `jepa-tok tokenize` command again"
    )
    (corpus / "corpus.json").unlink()
    report = verify_tokens(corpus)
    assert_failed(report, "content", path, "without a corpus.json it cannot be made again here")
    assert not any("delete" in line or "same" in line for line in report.failures)


def test_a_gap_in_the_numbers_needs_no_corpus_json(corpus):
    (corpus / "corpus.json").unlink()
    shard(corpus, 1).unlink()
    assert_failed(verify_tokens(corpus), "shards", "shard 1 of 3", "without a corpus.json")


def test_files_that_are_no_tokens_are_one_error(corpus, made):
    for path in (made / "u0.wav", made / "m.jsonl", corpus / "skipped.jsonl", corpus / "corpus.json"):
        with pytest.raises(CorpusError, match=f"{path.name}: must be a token shard.* but is another file"):
            verify_tokens(path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "miscount", "forget", "garble"])
def test_the_cure_that_is_told_works(corpus, made, tiny, damage):
    before = json.loads((corpus / "corpus.json").read_text())
    if damage == "truncate":
        shard(corpus).write_bytes(shard(corpus).read_bytes()[:-9])
    elif damage == "remove":
        shard(corpus, 2).unlink()
    elif damage == "miscount":
        edit_state(corpus, written=7)
    elif damage == "garble":
        (corpus / "skipped.jsonl").write_text("garbage\n")
    else:
        (corpus / "skipped.jsonl").unlink()
    report = verify_tokens(corpus)
    assert report.failures
    for line in report.failures:
        assert "run the same `jepa-tok tokenize` command again" in line
        if "delete it" in line:
            (corpus / line.partition(":")[0]).unlink(missing_ok=True)
        if "delete skipped.jsonl" in line:
            (corpus / "skipped.jsonl").unlink(missing_ok=True)
    tokenize_corpus(made / "m.jsonl", corpus, tiny, rows_per_shard=2)
    assert verify_tokens(corpus).sound
    if damage in ("miscount", "forget", "garble"):  # of the run that made the shards
        after = json.loads((corpus / "corpus.json").read_text())
        assert after["seconds"] == before["seconds"] > 0 and after["times_real_time"] == before["times_real_time"]


def test_bad_rows_are_all_named(corpus):
    tokens = pq.read_table(shard(corpus)).column("tokens").to_pylist()
    path = edit(corpus, tokens=[[*tokens[0][:-1], 16], tokens[1][:-1]])
    report = verify_tokens(corpus)
    assert_failed(report, "rows", f"{path}, row 0 ('u0')", f"{path}, row 1 ('u1')", "must be in 0..15, but is 16")
    assert report.failed["rows"] == 2 and "content" not in report.failed
    assert report.checks["ids"].startswith("not checked") and "2 are sound, 2 are not" in report.checks["rows"]


def test_lengths_that_contradict(corpus):
    samples = pq.read_table(shard(corpus)).column("n_samples").to_pylist()
    edit(corpus, n_samples=[samples[0] + HOP, samples[1]])
    assert_failed(verify_tokens(corpus), "rows", "`n_frames` must be ceil")


def test_an_id_in_two_shards(corpus):
    path = edit(corpus, index=2, id=["u1"])
    assert_failed(verify_tokens(corpus), "ids", f"{path}, row 0 ('u1')", f"{shard(corpus)}, row 1 has the same")


@pytest.mark.parametrize("key", ["frames", "hours", "tokens", "written", "skipped", "refused", "utterances"])
def test_totals(corpus, key):
    state = json.loads((corpus / "corpus.json").read_text())
    edit_state(corpus, **{key: state[key] + 1})
    report = verify_tokens(corpus)
    assert_failed(report, "totals", f"`{key}` must be")


@pytest.mark.parametrize("line", ["garbage", "7", "{}", '{"id": "u3", "path": 1, "reason": "x"}', "[" * 100_000])
def test_lines_of_skipped_files_that_are_none(corpus, line):
    assert (corpus / "skipped.jsonl").read_text().count("\n") == 1
    (corpus / "skipped.jsonl").write_text(line + "\n")
    report = verify_tokens(corpus)
    assert report.failed == {"totals": 1}, "the number of lines is right"
    assert_failed(report, "totals", "skipped.jsonl:1: must be an object with `id`, `path` and `reason`")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("columns", {}),
        ("columns", {"speaker": "int64"}),
        ("columns", None),
        ("tokenizer", {}),
        ("tokenizer", None),
        ("tokenizer", "levels"),
        ("tokenizer", "strides"),
        ("rows_per_shard", 3),
        ("rows_per_shard", None),
    ],
)
def test_corpus_json_tells_what_the_shards_do(corpus, key, value):
    state = json.loads((corpus / "corpus.json").read_text())
    config = state["tokenizer"]
    if value == "levels":
        value = config | {"quantizer": config["quantizer"] | {"levels": [5]}}
    elif value == "strides":
        value = config | {"encoder": config["encoder"] | {"strides": [1, 1]}}
    edit_state(corpus, **{key: value})
    report = verify_tokens(corpus)
    assert report.failed == {"state": 1}
    assert_failed(report, "state", f"corpus.json: `{key}` must be", "as the shards tell", "--overwrite")


def test_another_tokenizer(corpus, tiny, made):
    path = shard(corpus, 2)
    table = pq.read_table(path)
    text = table.schema.metadata[b"jepa_tok"].decode().replace(tiny.hash, "0" * 16)
    pq.write_table(table.replace_schema_metadata({"jepa_tok": text}), path)
    assert_failed(verify_tokens(corpus), "metadata", path, "0" * 16)
    other = SpeechTokenizer.from_config("tiny", seed=1)
    with pytest.raises(CorpusError, match=f"made by tokenizer {tiny.hash}, but the one given is {other.hash}"):
        verify_tokens(corpus, tokenizer=other, source=made / "m.jsonl")


def test_tokens_that_their_audio_does_not_give(corpus, made, tiny):
    tokens = pq.read_table(shard(corpus)).column("tokens").to_pylist()
    wrong = tokens[1][0] ^ 1  # one digit of base 4, so one code
    path = edit(corpus, tokens=[tokens[0], [wrong, *tokens[1][1:]]])
    report = verify_tokens(corpus, tokenizer=tiny, source=made / "m.jsonl")
    assert list(report.failed) == ["audio"]
    assert_failed(report, "audio", f"{path}, row 1 ('u1'): 1 of 256 codes differ")


def test_audio_that_changed_or_went(corpus, made, tiny, tmp_path):
    for name in ("u0", "u1", "u2"):
        shutil.copy(made / f"{name}.wav", tmp_path)
    soundfile.write(tmp_path / "u1.wav", np.zeros(100), 24_000)
    (tmp_path / "u2.wav").unlink()
    lines = [json.dumps({"id": f"u{i}", "path": str(tmp_path / f"u{i}.wav")}) for i in range(3)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    report = verify_tokens(corpus, tokenizer=tiny, source=tmp_path / "m.jsonl")
    assert report.failed == {"audio": 3}
    assert_failed(
        report,
        "audio",
        "has 100: it has changed",
        "('u2'): the audio must be readable",
        "('u4'): the utterance must be in",
    )


def test_the_sample_is_drawn_by_its_seed(corpus, made, tiny):
    tokens = pq.read_table(shard(corpus, 2)).column("tokens").to_pylist()
    edit(corpus, index=2, tokens=[[tokens[0][0] ^ 1, *tokens[0][1:]]])
    found = [
        not verify_tokens(corpus, tokenizer=tiny, source=made / "m.jsonl", sample=1, seed=s).sound for s in range(8)
    ]
    assert any(found) and not all(found)


def test_many_failures_are_counted_not_kept(tmp_path):
    rows = [TokenRow(f"u{i % 10}", torch.tensor([[1, 2, 3]]), 5) for i in range(300)]
    write_numbered_shard(tmp_path, 0, rows, METADATA, {})
    report = verify_tokens(tmp_path)
    assert report.failed == {"ids": 290} and len(report.failures) == KEPT


def test_equal_hashes_are_not_equal_ids(monkeypatch):
    from array import array

    monkeypatch.setattr("jepa_tok.corpus.verify._hash", lambda id: 7)
    rows = [(f"row {i}", TokenRow(id, torch.zeros(1, 3), 1)) for i, id in enumerate("abcaa")]
    found = list(_twice(array("Q", [7] * 5), lambda: iter(rows)))
    assert found == [("row 3", "a", "row 0"), ("row 4", "a", "row 0")], "the first place is told, not the last"


def test_the_source_is_read_as_it_was_tokenized(tiny, tmp_path):
    """Of two rows with one id the first counts, and only rows that were asked for."""
    rng = np.random.default_rng(1)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 9000 + 500 * i), 24_000)
    rows = [("a", 0, "train"), ("a", 1, "train"), ("b", 1, "dev"), ("b", 2, "train")]
    lines = [json.dumps({"id": id, "path": f"{i}.wav", "split": split}) for id, i, split in rows]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    for chosen in ({}, {"split": "train"}, {"where": ["split=train", "id=a", "id=b"]}):
        out = tmp_path / f"out{len(chosen)}{'where' in chosen}"
        tokenize_corpus(tmp_path / "m.jsonl", out, tiny, **chosen)
        report = verify_tokens(out, tokenizer=tiny, source=tmp_path / "m.jsonl", **chosen)
        assert report.sound and report.checks["audio"].startswith("2 utterances"), report.failures
    assert not verify_tokens(out, tokenizer=tiny, source=tmp_path / "m.jsonl", split="dev").sound
    tiny.save_pretrained(tmp_path / "tok")
    options = ["--tokenizer", tmp_path / "tok", "--source", tmp_path / "m.jsonl"]
    assert (
        main([str(a) for a in ["verify", out, *options, "--split", "train", "--where", "id=a", "--where", "id=b"]]) == 0
    )


# The command line -----------------------------------------------------------------------------------------------------


def test_command_line(corpus, made, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tok")
    full = [str(corpus), "--tokenizer", str(tmp_path / "tok"), "--source", str(made / "m.jsonl"), "--sample", "2"]
    assert main(["verify", *full]) == 0
    out, err = capsys.readouterr()
    assert out.endswith(": sound\n") and err == "" and "FAILED" not in out
    shard(corpus, 1).unlink()
    assert main(["verify", str(corpus)]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out and "NOT sound" in out and all(line.startswith("jepa-tok: ") for line in err.splitlines())
    for bad in (["absent"], [corpus, "--source", "x"], [made], [*full, "--sample-seed", "-1"]):
        assert main(["verify", *map(str, bad)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
