"""Runs of recipes in processes of their own: to the end, in two ranks, killed at a random instant, and what they recorded."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.forks import Forks


class Runs:
    """Recipes as `python -m` runs them, in forks of a process that has imported fairseq2."""

    def __init__(self, forks: Forks) -> None:
        self.forks = forks

    def run(self, args: list[str], ranks: int = 1) -> str:
        """What a run wrote; it must succeed."""
        statuses = [self.forks.run(*args)] if ranks == 1 else self.forks.run_ranks(ranks, *args)
        written = self.forks.log.read_text()
        assert statuses == [0] * ranks, written[-6000:]
        return written

    def kill(self, args: list[str], reached: Callable[[], bool], within: float = 0.0) -> None:
        """Starts a run and sends SIGKILL at a random instant within so many seconds after what it must have reached."""
        pid = self.forks.start(*args)
        deadline = time.monotonic() + 240
        while not reached():
            assert time.monotonic() < deadline, self.forks.log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(random.uniform(0.0, within))
        os.kill(pid, signal.SIGKILL)
        assert self.forks.wait(pid) == -signal.SIGKILL, "the run ended before it could be killed"

    def kill_after_a_checkpoint(self, args: list[str], out: Path) -> None:
        self.kill(args, lambda: any((out / "checkpoints").glob("step_[0-9]*/model")), within=0.5)

    def curve(self, out: Path, kind: str = "train") -> dict[int, dict[str, float]]:
        """Metrics of each step, without those that are of time; a resumed run's lines replace the lost ones."""
        rows = [json.loads(line) for line in (out / "metrics" / f"{kind}.jsonl").read_text().splitlines()]
        return {r["Step"]: {k: v for k, v in r.items() if "Time" not in k and "per Second" not in k} for r in rows}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    recipes = [f"recipes.{name}.recipe" for name in ("jepa", "codec", "lm")]
    # Beside the recipes, what their runs import when they begin.
    late = ("fairseq2.recipe.cli", "fairseq2.composition", "s3fs", "sklearn.cluster")
    forks = Forks("recipes", *recipes, *late, log=tmp_path_factory.mktemp("runs") / "log")
    yield Runs(forks)
    forks.close()
