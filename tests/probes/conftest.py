"""Made-up token shards whose digits hold what a probe should find, and suites of tones with adapters that are quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepa_tok.corpus import ShardMetadata, TokenShardWriter
from jepa_tok.packing import pack, vocab_sizes
from jepa_tok.tokens import Tokens
from probes.cli import main
from tests.probes import fakes

Write = Callable[..., Path]
Run = Callable[..., int]


@pytest.fixture
def write_shards() -> Write:
    """write(folder, {id: codes [T, D]}, {id: columns}) -> folder with token shards, four levels, seven digits a token."""

    def write(
        folder: Path, codes: dict[str, np.ndarray], info: dict[str, dict[str, Any]] | None = None, hash: str = "0" * 16
    ) -> Path:
        dim = next(iter(codes.values())).shape[1]
        radices = (4,) * dim
        meta = ShardMetadata(hash, radices, 7, tuple(vocab_sizes(radices, 7)), 2.5, 24_000)
        with TokenShardWriter(folder, meta, rows_per_shard=64) as writer:
            for name, own in codes.items():
                ids = pack(torch.from_numpy(own.astype(np.int64)), radices)
                tokens = Tokens(ids, len(own) * 9600, radices, 7, 24_000)
                writer.add(name, tokens, **(info or {}).get(name, {}))
        return folder

    return write


@pytest.fixture
def planted() -> Callable[..., tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]]:
    """make(speakers, per_speaker, ...) -> codes and labels; dims 0..6 lean on the speaker, dims 7..13 on the emotion.

    With `signal` 0 the digits know nothing of either.
    """

    def make(
        speakers: int = 10, per_speaker: int = 12, *, signal: float = 0.6, seed: int = 0
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        rng = np.random.default_rng(seed)
        emotions = ["anger", "joy", "sadness"]
        voice = rng.integers(0, 4, (speakers, 7))
        mood = rng.integers(0, 4, (len(emotions), 7))
        codes, info = {}, {}
        for s in range(speakers):
            for k in range(per_speaker):
                e = k % len(emotions)
                own = rng.integers(0, 4, (int(rng.integers(4, 9)), 14))
                lean = rng.random(own.shape) < signal
                own = np.where(lean, np.concatenate([voice[s], mood[e]]), own)
                name = f"s{s:02d}-{k:02d}"
                codes[name] = own
                info[name] = {"speaker": f"s{s:02d}", "emotion": emotions[e]}
        return codes, info

    return make


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, fakes.Pitch]:
    """The adapters that were made last, by spec; the specs are pitch, noise and learner."""
    kinds = {"pitch": fakes.Pitch, "noise": fakes.Noise, "learner": fakes.Learner}
    found: dict[str, fakes.Pitch] = {}

    def make(spec: str) -> fakes.Pitch:
        name, _, argument = spec.partition(":")
        found[spec] = kinds[name](argument)
        return found[spec]

    monkeypatch.setattr("jepa_tok.adapters.make_adapter", make)
    return found


@pytest.fixture
def run(tmp_path: Path, made: Any) -> Run:
    """run(specs, *options) -> exit status; the suite is `tones.yaml`, the results are in `out`."""
    fakes.write_corpus(tmp_path)
    fakes.write_suite(tmp_path / "tones.yaml", fakes.TASKS)

    def run(specs: str, *options: object, seeds: str = "0") -> int:
        return main([*fakes.command(tmp_path, specs, seeds), *map(str, options)])

    return run
