"""Corpora and a stand-in for a tokenizer that tests of tokenization share."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from jepa_tok import packing
from jepa_tok.corpus import load_utterance, tokenize_corpus
from jepa_tok.errors import AudioError
from jepa_tok.presets import tokenizer_config
from jepa_tok.tokens import Tokens

RATE = 24_000


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


def make_tokens(folder: Path, tokenizer) -> Path:
    """Audio of five clips, the fourth of them broken, their manifest `m.jsonl`, and their `tokens` in three shards."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(5):
        soundfile.write(folder / f"u{i}.wav", rng.normal(0, 0.1, 9000 + 3000 * i), RATE)
        lines.append(json.dumps({"id": f"u{i}", "path": f"u{i}.wav", "speaker": "ann"}))
    (folder / "u3.wav").write_bytes(b"no audio")
    (folder / "m.jsonl").write_text("\n".join(lines) + "\n")
    tokenize_corpus(folder / "m.jsonl", folder / "tokens", tokenizer, rows_per_shard=2, progress=False)
    return folder


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name != "corpus.json"}


def sound(seed: int, kind: str = "FLAC") -> bytes:
    """A clip of 1000 + seed samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(seed).normal(0, 0.1, 1000 + seed), RATE, format=kind)
    return buffer.getvalue()


def heard(utterances) -> list[int]:
    return [len(load_utterance(u, RATE)) - 1000 for u in utterances]


def outcomes(utterances) -> list:
    """As `heard`, with the error in place of what cannot be read."""
    found = []
    for u in utterances:
        try:
            found += heard([u])
        except AudioError as error:
            found.append(str(error))
    return found


def write_parquet(path, columns: dict, **options) -> Path:
    with path.open("wb") as file:
        pq.write_table(pa.table(columns), file, **options)
    return path


def audio_column(count: int, paths=lambda i: None, first: int = 0) -> list:
    return [{"bytes": sound(i), "path": paths(i), "sampling_rate": 1} for i in range(first, first + count)]
