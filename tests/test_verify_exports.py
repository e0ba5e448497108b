"""`jepa-tok verify` of exports: each format is checked row by row, and its digest shows changes that break no rule."""

from __future__ import annotations

import json

import pytest

from jepa_tok.corpus.export import export_tokens
from jepa_tok.corpus.formats import FORMATS
from jepa_tok.corpus.verify import verify_tokens


@pytest.mark.parametrize("to", FORMATS)
def test_exports_are_verified_too(corpus, made, tiny, tmp_path, to):
    export_tokens(corpus, tmp_path / "out", to)
    report = verify_tokens(tmp_path / "out", tokenizer=tiny, source=made / "m.jsonl", sample=2)
    assert report.sound and report.checks["rows"] == "4 are sound" and "2 utterances" in report.checks["audio"]
    metadata = tmp_path / "out/metadata.json"
    metadata.write_text(metadata.read_text().replace('"samples": ', '"samples": 1'))
    report = verify_tokens(tmp_path / "out")
    assert list(report.failed) == ["totals"] and "`samples`" in report.failures[0]


@pytest.mark.parametrize(
    ("to", "file", "old", "new"),
    [
        ("bin", "tokens.bin", None, None),
        ("bin", "rows.jsonl", b'"ann"', b'"amn"'),
        ("jsonl", "tokens.jsonl", b'"u0"', b'"u9"'),
        ("kaldi", "utt2spk", b"u2 ann", b"u2 amn"),
        ("kaldi", "utt2num_samples", b"u0 9000", b"u0 9001"),
    ],
)
def test_a_change_that_breaks_no_rule_shows_in_the_digest(corpus, tmp_path, to, file, old, new):
    export_tokens(corpus, tmp_path / "out", to)
    assert verify_tokens(tmp_path / "out").sound
    path = tmp_path / "out" / file
    data = path.read_bytes()
    changed = bytes([data[0] ^ 1, *data[1:]]) if old is None else data.replace(old, new)
    assert changed != data
    path.write_bytes(changed)
    report = verify_tokens(tmp_path / "out")
    assert list(report.failed) == ["totals"]
    assert any("`digest` must be" in line and "export the tokens again" in line for line in report.failures)


def test_the_digest_is_that_of_the_rows_in_any_format_and_order(corpus, tmp_path):
    digests = {export_tokens(corpus, tmp_path / to, to).digest for to in FORMATS}
    assert len(digests) == 1 and export_tokens(corpus, tmp_path / "less", "bin", columns=[]).digest not in digests
    for file in (tmp_path / "kaldi").iterdir():  # as Kaldi's tools leave them, were they to sort the other way
        if file.suffix != ".json":
            file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert verify_tokens(tmp_path / "kaldi").sound
    metadata = json.loads((tmp_path / "jsonl/metadata.json").read_text())
    del metadata["digest"]  # an export made before there were any
    (tmp_path / "jsonl/metadata.json").write_text(json.dumps(metadata))
    assert verify_tokens(tmp_path / "jsonl").sound
