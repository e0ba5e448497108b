"""Clips to measure on: pieces of recordings of chosen lengths, or made-up sound where no recordings are given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.corpus.utterance import Utterance


def read_clips(sources: Sequence[Path], seconds: Sequence[float], rate: int = 24_000, seed: int = 0) -> list[Tensor]:
    """A clip [S] of each length: a random piece of a random recording, or several of one speaker end to end.

    `sources`: corpora as `read_corpus` reads them; made-up sound if there are none.
    """
    if not sources:
        return [make_clip(s, rate, seed + i) for i, s in enumerate(seconds)]
    draw = random.Random(seed)
    rows = [row for source in sources for row in read_corpus(source)]
    speakers: dict[str, list[Utterance]] = {}
    for row in rows:
        speakers.setdefault(_speaker(row), []).append(row)
    clips = []
    for length in seconds:
        size = max(1, round(length * rate))
        first = draw.choice(rows)
        parts = [load_utterance(first, rate)]
        while sum(map(len, parts)) < size:
            parts.append(load_utterance(draw.choice(speakers[_speaker(first)]), rate))
        wave = torch.cat(parts)
        start = draw.randrange(len(wave) - size + 1)
        clips.append(wave[start : start + size].clone())
    return clips


def make_clip(seconds: float, rate: int, seed: int) -> Tensor:
    """A gliding harmonic tone with syllable-like gaps in a little noise [S]: shows that code runs, and how fast."""
    draw = torch.Generator().manual_seed(seed)
    time = torch.arange(max(1, round(seconds * rate))) / rate
    low, glide, syllables = torch.tensor([100, 5, 3]) + torch.tensor([100, 30, 2]) * torch.rand(3, generator=draw)
    phase = 2 * torch.pi * (low * time + glide * torch.sin(time))
    voice = torch.stack([torch.sin(k * phase) / k for k in range(1, 12)]).sum(0)
    wave = voice * torch.sin(torch.pi * syllables * time).square() + 0.05 * torch.randn(len(time), generator=draw)
    return 0.1 * wave


def _speaker(row: Utterance) -> str:
    return str(row.info.get("speaker") or row.info.get("corpus", ""))
