"""recipes.tokenize: the same shards as `tokenize_corpus`, however many processes make them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq2")

from fairseq2.recipe.config import CommonSection
from fairseq2.recipe.error import RecipeError
from fairseq2.recipe.run import run

from jepa_tok.audio import save_audio
from jepa_tok.corpus.run import CorpusRun
from jepa_tok.corpus.shards import content_hash, list_shards, named_hash, read_shards
from jepa_tok.corpus.tokenize import tokenize_corpus
from jepa_tok.tokenizer import SpeechTokenizer
from recipes.tokenize.config import TokenizeConfig
from recipes.tokenize.recipe import TokenizeRecipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """Seven clips, one of them broken, a tokenizer, and what `tokenize_corpus` makes of them."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = SpeechTokenizer.from_config("tiny")
    tokenizer.save_pretrained(folder / "tokenizer")
    rng = torch.Generator().manual_seed(0)
    with (folder / "manifest.jsonl").open("w") as manifest:
        for i in range(7):
            save_audio(folder / f"{i}.wav", 0.1 * torch.randn(4000 + 3000 * i, generator=rng))
            manifest.write(json.dumps({"id": f"u{i}", "path": f"{i}.wav", "speaker": f"s{i % 2}"}) + "\n")
    (folder / "3.wav").write_bytes(b"no audio")
    tokenize_corpus(folder / "manifest.jsonl", folder / "wanted", tokenizer, rows_per_shard=2)
    return folder


def config(given: Path, **changes) -> TokenizeConfig:
    return TokenizeConfig(
        source=str(given / "manifest.jsonl"),
        tokenizer=str(given / "tokenizer"),
        rows_per_shard=2,
        common=CommonSection(no_sweep_dir=True),
        **changes,
    )


def check(out: Path, given: Path) -> None:
    assert [row.id for row in read_shards(out)] == ["u0", "u1", "u2", "u4", "u5", "u6"]
    made, wanted = (list_shards(folder) for folder in (out, given / "wanted"))
    assert [p.name for p in made.values()] == [p.name for p in wanted.values()] and len(made) == 4
    assert all(content_hash(p) == named_hash(p) for p in made.values())
    assert [json.loads(line)["id"] for line in (out / "skipped.jsonl").read_text().splitlines()] == ["u3"]


def test_shards_are_those_of_the_library_and_a_second_run_goes_on(tmp_path, given):
    recipe = TokenizeRecipe()
    run(recipe, config(given), tmp_path / "out", no_rich=True, no_progress=True)
    check(tmp_path / "out", given)
    assert recipe.skipped == 1

    kept = list_shards(tmp_path / "out")[0]
    age = kept.stat().st_mtime_ns
    list_shards(tmp_path / "out")[2].unlink()
    run(TokenizeRecipe(), config(given), tmp_path / "out", no_rich=True, no_progress=True)
    check(tmp_path / "out", given)
    assert kept.stat().st_mtime_ns == age


def test_errors_are_one_line(tmp_path, given):
    with pytest.raises(RecipeError, match="'u3'") as caught:
        run(TokenizeRecipe(), config(given, strict=True), tmp_path / "a", no_rich=True, no_progress=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError):
        run(TokenizeRecipe(), config(given, where=["speaker=nobody"]), tmp_path / "b", no_rich=True, no_progress=True)


def test_pipes_are_run_where_allowed(tmp_path, given):
    (tmp_path / "kaldi").mkdir()
    lines = f"a {given / '0.wav'}\nb cat {given / '1.wav'} |\n"
    (tmp_path / "kaldi/wav.scp").write_text(lines)
    for allow_pipes, ids in ((False, ["a"]), (True, ["a", "b"])):
        out, recipe = tmp_path / f"{allow_pipes}", TokenizeRecipe()
        changed = config(given, allow_pipes=allow_pipes)
        changed.source = str(tmp_path / "kaldi")
        run(recipe, changed, out, no_rich=True, no_progress=True)
        assert [row.id for row in read_shards(out)] == ids and recipe.skipped == 2 - len(ids)


def test_every_option_of_the_library_is_one_of_the_recipe():
    options = set(inspect.signature(CorpusRun).parameters) - {"out", "name"}
    assert options <= {field.name for field in dataclasses.fields(TokenizeConfig)}


@pytest.mark.slow
def test_two_processes_lose_nothing_and_make_nothing_twice(tmp_path, given):
    out = tmp_path / "out"
    out.mkdir()
    args = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recipes.tokenize",
        str(out), "--no-rich", "--config", f"source={given / 'manifest.jsonl'}", f"tokenizer={given / 'tokenizer'}",
        "rows_per_shard=2",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(args, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, (done.stdout + done.stderr)[-3000:]  # a file was skipped
    check(out, given)
    for rank in range(2):
        assert (out / "logs" / f"rank_{rank}.log").read_text().count(" done, ") == 2
