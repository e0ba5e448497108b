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

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLS = 25
CLIPS = 30

SERVER = """
import io, json, os, resource, signal, sys, time
import pyarrow.parquet, tqdm
import jepa_tok.tokenizer, jepa_tok.corpus
from jepa_tok.cli import main

for line in sys.stdin:
    job = json.loads(line)
    started = time.monotonic()
    child = os.fork()
    if not child:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if job["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"],) * 2)
        status = 99
        try:
            status = main(job["argv"])
        finally:
            os._exit(status)
    if job["kill_after"] is not None:
        time.sleep(job["kill_after"])
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, time.monotonic() - started]), flush=True)
"""


class Starter:
    """Runs `jepa-tok` in forks of a process that has imported all it needs: a run without the seconds of its imports."""

    def __init__(self, log: Path) -> None:
        self.log = log
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=pipe, stdout=pipe, text=True, env=quiet())

    def run(self, *argv: object, kill_after: float | None = None, largest_file: int = 0) -> tuple[int, float]:
        """Exit status, negative for a signal, and seconds."""
        job = {"argv": [*map(str, argv)], "kill_after": kill_after, "largest_file": largest_file, "log": str(self.log)}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        status, seconds = json.loads(self.process.stdout.readline())
        return status, seconds


def quiet() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    starter = Starter(tmp_path_factory.mktemp("log") / "log")
    yield starter
    starter.process.stdin.close()
    starter.process.wait()


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
    status, seconds = starter.run(*command(manifest, folder / "whole"))
    assert status == 1, starter.log.read_text()
    return manifest, contents(folder / "whole"), seconds


def command(manifest: Path, out: Path) -> list[object]:
    return ["tokenize", manifest, out, "--tokenizer", "tiny", "--random-init", "--rows-per-shard", 2]


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
        status, _ = starter.run(*command(manifest, out), kill_after=rng.uniform(0, seconds))
        if status == -signal.SIGKILL:
            kills += 1
            check_partial(out, whole)
            partial += 0 < len(list(out.glob("*.parquet"))) < CLIPS // 2
        else:  # it was done before: the next begins anew
            assert status == 1, starter.log.read_text()
            assert contents(out) == whole
            out = tmp_path / str(attempt + 1)
        if kills == KILLS:
            break
    assert kills == KILLS and partial >= KILLS // 5
    assert starter.run(*command(manifest, out))[0] == 1
    assert contents(out) == whole


def begin(manifest: Path, out: Path, shards: int) -> subprocess.Popen[str]:
    """A process of its own, that has made at least so many shards."""
    argv = [sys.executable, "-m", "jepa_tok", *map(str, command(manifest, out))]
    # Tests that run in a shell's background inherit that an interrupt is ignored.
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet(),
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
    assert starter.run(*command(manifest, out))[0] == 1
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
    assert starter.run(*command(manifest, out))[0] == 1
    assert contents(out) == whole


def test_no_room_for_a_shard(corpus, starter, tmp_path):
    manifest, whole, _ = corpus
    out = tmp_path / "out"
    sizes = sorted(len(data) for name, data in whole.items() if name.endswith(".parquet"))
    status, _ = starter.run(*command(manifest, out), largest_file=sizes[len(sizes) // 2])
    assert status == 2
    message = starter.log.read_text().splitlines()[-1]
    assert message.startswith(f"jepa-tok: error: {out}/tokens-") and "cannot be written: File too large" in message
    check_partial(out, whole)
    assert not list(out.glob("*.tmp"))
    assert starter.run(*command(manifest, out))[0] == 1
    assert contents(out) == whole


def test_a_second_run_touches_nothing(corpus, starter, tmp_path):
    manifest, _, _ = corpus
    out = tmp_path / "out"
    ages = []
    for _ in range(2):
        assert starter.run(*command(manifest, out))[0] == 1
        ages.append({path.name: path.stat().st_mtime_ns for path in out.iterdir()})
    assert ages[0] == ages[1]
