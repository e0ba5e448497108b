"""Corpora and a stand-in for a tokenizer that tests of tokenization share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

from jepa_tok import packing
from jepa_tok.presets import tokenizer_config
from jepa_tok.tokens import Tokens


class Counter:
    """Stands in for a tokenizer: ids depend on the samples alone, and calls are counted."""

    def __init__(self, hash: str = "c" * 16, interrupt_at: int | None = None) -> None:
        self.config = tokenizer_config("tiny")
        self.hash, self.sample_rate, self.frame_rate = hash, 24_000, 2.5
        self.batches: list[list[int]] = []
        self.interrupt_at = interrupt_at

    def encode(self, waves, sample_rate, batch_seconds):
        assert sample_rate == self.sample_rate
        self.batches.append([len(w) for w in waves])
        if len(self.batches) == self.interrupt_at:
            raise KeyboardInterrupt
        return [self.encode_one(w) for w in waves]

    def encode_one(self, wave):
        quantizer = self.config.quantizer
        frames = -(-len(wave) // 9600)
        generator = torch.Generator().manual_seed(int(wave.abs().double().sum() * 1000) + len(wave))
        codes = torch.randint(0, 4, (frames, 128), generator=generator)
        return Tokens(packing.pack(codes, 4), len(wave), tuple(quantizer.radices), tokenizer=self.hash)


def make_corpus(folder: Path, count: int, bad: tuple[int, ...] = (), rate: int = 24_000) -> Path:
    """Clips of 0.1 to 1.2 s, a few of them broken, and their manifest."""
    folder.mkdir(exist_ok=True, parents=True)
    rng = np.random.default_rng(count)
    lines = []
    for i in range(count):
        path = folder / f"u{i}.wav"
        soundfile.write(path, rng.normal(0, 0.1, int(rate * rng.uniform(0.1, 1.2))), rate)
        if i in bad:
            path.write_bytes(b"RIFF no more")
        lines.append(json.dumps({"id": f"u{i}", "path": path.name, "speaker": f"s{i % 3}", "number": i}))
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "corpus.jsonl"


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name != "corpus.json"}
