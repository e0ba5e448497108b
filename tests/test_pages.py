"""Pages of docs/ that show what code gives: every `expression  # = value` line of their Python holds, every shell line runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_tok.cli import main
from jepa_tok.corpus import ShardMetadata, TokenRow, write_numbered_shard

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run(text):
    """Runs blocks of Python and of shell in their order; returns how many values were compared."""
    scope: dict = {}
    compared = 0
    for language, block in re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
        for statement in re.split(r"\n(?=\S)", block.strip()):
            shown = re.search(r"^(\S.*?)  # = (.*)$", statement)
            if language == "sh":
                assert main(shlex.split(statement, comments=True)[1:]) == 0, statement
            elif shown is None:
                exec(statement, scope)
            else:
                value, expected = eval(shown[1], scope), eval(shown[2], scope)
                assert value == expected, f"{shown[1]} is {value}, not {expected}"
                compared += 1
    assert compared == len(re.findall(r"^\S.*  # = ", text, re.MULTILINE))
    return compared


def test_vocabulary(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    assert run((DOCS / "vocabulary.md").read_text(encoding="utf-8")) >= 10


def test_streaming():
    assert run((DOCS / "streaming.md").read_text(encoding="utf-8")) >= 3


def test_corpora(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    pytest.importorskip("polars")
    pytest.importorskip("fairseq2.data.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    metadata = ShardMetadata("0123456789abcdef", (4,) * 128, 7, (16_384,) * 18 + (16,), 2.5, 24_000)
    rng = np.random.default_rng(0)
    rows = []
    # Only the first row has a speaker: readers must not drop the others for it.
    for id, frames, info in (("utt1", 3, {"speaker": "ann"}), ("utt2", 2, {}), ("utt3", 1, {})):
        ids = np.stack([rng.integers(0, size, frames) for size in metadata.vocab_sizes], 1)
        rows.append(TokenRow(id, torch.from_numpy(ids), frames * 9600 - 5, info | {"text": "to be"}))
    write_numbered_shard("exp/tokens", 0, rows, metadata)
    page = (DOCS / "corpora.md").read_text(encoding="utf-8")
    page = page[page.index("\n## Outputs") :]
    # A tokenizer and its audio are for the tests of `verify`.
    assert run(re.sub(r"\njepa-tok verify .*--source.*", "", page)) >= 5
