"""Made-up token shards whose digits hold what a probe should find."""

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

Write = Callable[..., Path]


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
