"""Prompts of a speech LM: the first seconds of audio, or of rows of token shards, in whole frames.

B prompts of a batch   P frames of a prompt   G tokens of a frame
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.datasets import DataReader
from fairseq2.device import Device, SupportsDeviceTransfer
from torch import Tensor
from typing_extensions import Self, override

from jepa_tok.errors import CorpusError
from jepa_tok.tokenizer import SpeechTokenizer


@dataclass(frozen=True)
class Prompt:
    """What is to be continued."""

    number: int
    id: str
    source: str
    """File that it was taken from."""
    ids: Tensor
    """int64 [P, G]"""


def prompts_of_audio(
    sources: Sequence[str], tokenizer: SpeechTokenizer, seconds: float, split: str | None, limit: int | None
) -> list[Prompt]:
    """The first `seconds` of clips, cut before they are tokenized, so that a prompt knows nothing of what follows.

    A source is an audio file, or anything that `read_corpus` takes. Raises AudioError and CorpusError.
    """
    from jepa_tok.corpus.audio_source import load_utterance
    from jepa_tok.corpus.manifest import read_corpus
    from jepa_tok.corpus.utterance import AUDIO_SUFFIXES, Utterance

    clips: list[Utterance] = []
    for source in sources:
        if Path(source).suffix.lower() in AUDIO_SUFFIXES:
            clips.append(Utterance(Path(source).stem, source))
        else:
            clips += read_corpus(source, split=split)
    prompts = []
    for number, clip in enumerate(clips[:limit]):
        wave = load_utterance(clip, tokenizer.sample_rate)
        frames = _prompt_frames(len(wave), tokenizer.hop, seconds, tokenizer.frame_rate)
        ids = tokenizer.encode(wave[: frames * tokenizer.hop], sample_rate=tokenizer.sample_rate).ids
        prompts.append(Prompt(number, clip.id, str(clip.path), ids))
    return _some(prompts, sources)


def prompts_of_shards(
    paths: Sequence[str], tokenizer: SpeechTokenizer, seconds: float, split: str | None, limit: int | None
) -> list[Prompt]:
    """The first `seconds` of rows of token shards; raises CorpusError for shards of another tokenizer."""
    from jepa_tok.corpus.shards import read_metadata, read_shards

    prompts: list[Prompt] = []
    for path in paths:
        made_by = read_metadata(path).hash
        if made_by != tokenizer.hash:
            raise CorpusError(f"{path}: shards must be of tokenizer {tokenizer.hash}, but are of {made_by}.")
        for row in read_shards(path):
            if limit is not None and len(prompts) == limit:
                break
            if split is None or str(row.info.get("split")) == split:
                frames = _prompt_frames(row.num_samples, tokenizer.hop, seconds, tokenizer.frame_rate)
                prompts.append(Prompt(len(prompts), row.id, path, row.ids[:frames]))
    return _some(prompts, paths)


def _prompt_frames(samples: int, hop: int, seconds: float, rate: float) -> int:
    # Whole frames: the silence that fills up a clip's last frame would have the model hear an end.
    return max(1, min(samples // hop, math.floor(seconds * rate + 1e-6)))


def _some(prompts: list[Prompt], sources: Sequence[str]) -> list[Prompt]:
    if not prompts:
        raise CorpusError(f"{', '.join(sources)}: there must be at least one prompt, but is none.")
    return prompts


@dataclass
class PromptBatch(SupportsDeviceTransfer):
    """Prompts of one length, and which sample of each is asked for."""

    ids: Tensor
    """int64 [B, P, G]"""
    prompts: list[Prompt]
    samples: list[int]

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        self.ids = self.ids.to(device, non_blocking=non_blocking)


@final
class PromptReader(DataReader[PromptBatch]):
    """Every (prompt, sample) once, those of one length in a batch, since the key-value cache knows no padding."""

    def __init__(
        self, prompts: Sequence[Prompt], num_samples: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._position = 0
        self._world = world_size
        self._rank = rank
        self._batches = list(_batches(prompts, num_samples, batch_size))

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[PromptBatch]:
        if self._position >= len(self._batches):
            raise StopIteration
        turns = self._batches[self._position : self._position + self._world]
        self._position += self._world
        return turns[self._rank : self._rank + 1]  # empty for ranks that are done

    @override
    def reset(self) -> None:
        self._position = 0

    @override
    def state_dict(self) -> dict[str, object]:
        return {"position": self._position}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._position = int(state_dict["position"])  # type: ignore[call-overload]

    @property
    @override
    def num_accumulate(self) -> int:
        return 1


def _batches(prompts: Sequence[Prompt], num_samples: int, batch_size: int) -> Iterator[PromptBatch]:
    work = [(p, s) for p in sorted(prompts, key=lambda p: len(p.ids)) for s in range(num_samples)]
    while work:
        length = len(work[0][0].ids)
        batch = [w for w in work[:batch_size] if len(w[0].ids) == length]
        work = work[len(batch) :]
        yield PromptBatch(torch.stack([p.ids for p, _ in batch]), [p for p, _ in batch], [s for _, s in batch])
