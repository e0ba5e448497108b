"""`jepa-tok tokenize`, killed at random instants, interrupted and out of space, then run again: the same bytes in the end."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jepa_tok.corpus import content_hash
from jepa_tok.corpus.shards import named_hash
from tests.forks import Forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLS = 25
CLIPS = 20


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    """`jepa-tok` in forks."""
    modules = ("pandas", "pyarrow.compute", "pyarrow.parquet", "tqdm", "jepa_tok.corpus", "jepa_tok.tokenizer")
    forks = Forks(*modules, log=tmp_path_factory.mktemp("log") / "log")
    yield forks
    forks.close()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, starter):
    """A manifest with a bad file and a bad row, and what an uninterrupted run makes of it, and how long it took."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    lines = ["no JSON"]
    for i in range(CLIPS):
        soundfile.write(folder / f"{i}.wav", rng.normal(0, 0.1, int(24_000 * rng.uniform(0.1, 0.9))), 24_000)
        lines.append(json.dumps({"id": f"u{i}", "path": f"{i}.wav", "number": i}))
    (folder / "5.wav").write_bytes(b"RIFF no more")
    manifest = folder / "corpus.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    starter.run("jepa_tok", "--version")  # now all is imported
    began = time.monotonic()
    status = starter.run(*command(manifest, folder / "whole"))
    seconds = time.monotonic() - began
    assert status == 1, starter.log.read_text()
    return manifest, contents(folder / "whole"), seconds


def command(manifest: Path, out: Path) -> list[object]:
    return ["jepa_tok", "tokenize", manifest, out, "--tokenizer", "tiny", "--random-init", "--rows-per-shard", 2]


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "corpus.json"}


def check_partial(out: Path, whole: dict[str, bytes]) -> None:
    """What a run that was killed left: shards of the whole, and at most one unfinished file."""
    found = contents(out) if out.exists() else {}
    assert sum(name.endswith(".tmp") for name in found) <= 1
    for name, data in found.items():
        if not name.endswith(".tmp"):
            assert data == whole[name]


def test_whole_run(corpus):
    manifest, whole, _ = corpus
    assert sum(name.endswith(".parquet") for name in whole) == CLIPS // 2
    skipped = [json.loads(line) for line in whole["skipped.jsonl"].decode().splitlines()]
    assert ["corpus.jsonl:1" in skipped[0]["reason"], skipped[1]["id"]] == [True, "u5"] and len(skipped) == 2
    for path in (manifest.parent / "whole").glob("*.parquet"):
        assert named_hash(path) == content_hash(path)


def test_killed_at_random_instants(corpus, starter, tmp_path):
    manifest, whole, seconds = corpus
    rng = random.Random(0)
    kills, partial, out = 0, 0, tmp_path / "0"
    for attempt in range(20 * KILLS):
        complete = len(list(out.glob("*.parquet"))) == CLIPS // 2
        pid = starter.start(*command(manifest, out))
        time.sleep(rng.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        status = starter.wait(pid)
        if status == -signal.SIGKILL:
            kills += 1
            check_partial(out, whole)
            partial += 0 < len(list(out.glob("*.parquet"))) < CLIPS // 2
        else:  # it was done before
            assert status == 1, starter.log.read_text()
            assert contents(out) == whole
        if kills == KILLS:
            break
        if complete or status != -signal.SIGKILL:  # nothing is left to do: the next begins anew
            out = tmp_path / str(attempt + 1)
    assert kills == KILLS and partial >= KILLS // 5
    assert starter.run(*command(manifest, out)) == 1
    assert contents(out) == whole


def begin(manifest: Path, out: Path, shards: int) -> subprocess.Popen[str]:
    """A process of its own, that has made at least so many shards."""
    argv = [sys.executable, "-m", *map(str, command(manifest, out))]
    # Tests that run in a shell's background inherit that an interrupt is ignored.
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while process.poll() is None and len(list(out.glob("tokens-*.parquet"))) < shards:
        time.sleep(0.002)
    return process


def test_a_process_of_its_own_killed(corpus, starter, tmp_path):
    manifest, whole, _ = corpus
    out = tmp_path / "out"
    process = begin(manifest, out, 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    check_partial(out, whole)
    assert starter.run(*command(manifest, out)) == 1
    assert contents(out) == whole


def test_interrupted_by_the_user(corpus, starter, tmp_path):
    manifest, whole, _ = corpus
    out = tmp_path / "out"
    process = begin(manifest, out, 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    warning, message = errors.splitlines()
    assert "UNTRAINED" in warning and message == "jepa-tok: interrupted"
    check_partial(out, whole)
    assert not list(out.glob("*.tmp"))
    assert starter.run(*command(manifest, out)) == 1
    assert contents(out) == whole


def test_no_room_for_a_shard(corpus, starter, tmp_path):
    manifest, whole, _ = corpus
    out = tmp_path / "out"
    sizes = sorted(len(data) for name, data in whole.items() if name.endswith(".parquet"))
    status = starter.run(*command(manifest, out), largest_file=sizes[len(sizes) // 2])
    assert status == 2
    message = starter.log.read_text().splitlines()[-1]
    assert message.startswith(f"jepa-tok: error: {out}/tokens-") and "cannot be written: File too large" in message
    check_partial(out, whole)
    assert not list(out.glob("*.tmp"))
    assert starter.run(*command(manifest, out)) == 1
    assert contents(out) == whole


def test_a_second_run_touches_nothing(corpus, starter, tmp_path):
    manifest, _, _ = corpus
    out = tmp_path / "out"
    ages = []
    for _ in range(2):
        assert starter.run(*command(manifest, out)) == 1
        ages.append({path.name: path.stat().st_mtime_ns for path in out.iterdir()})
    assert ages[0] == ages[1]
