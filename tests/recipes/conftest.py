"""Runs of recipes in processes of their own: to the end, killed at a random instant, and what they recorded."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(args: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]


def kill_at_random(args: list[str], out: Path) -> None:
    """Starts a run and sends SIGKILL at a random instant after its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", *args], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 240
    while not list((out / "checkpoints").glob("step_[0-9]*/model")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint was written"
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 0.5))
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, f"the run ended before it could be killed: {output[-3000:]}"


def curve(out: Path, kind: str = "train") -> dict[int, dict[str, float]]:
    """Metrics of each step, without those that are of time; a resumed run's lines replace the lost ones."""
    rows = [json.loads(line) for line in (out / "metrics" / f"{kind}.jsonl").read_text().splitlines()]
    return {r["Step"]: {k: v for k, v in r.items() if "Time" not in k and "per Second" not in k} for r in rows}


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """`run(args)`, `kill_at_random(args, out)` and `curve(out, kind)`."""
    return SimpleNamespace(run=run, kill_at_random=kill_at_random, curve=curve)
