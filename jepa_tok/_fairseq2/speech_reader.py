"""Reader of the dataset family `jepa_tok_speech`: utterances in, padded batches of 24 kHz audio out.

Audio is decoded on our side (soundfile, in threads) and only Python objects cross to the trainer: fairseq2's native
pipeline works with one build of torch alone, this with any. What a batch holds follows from (seed, epoch, step), so a run
that is killed and resumed reads on exactly where its checkpoint was made.

    B clips   S samples   N clips of the corpus
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.device import Device, SupportsDeviceTransfer
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import Self, override

from jepa_tok._fairseq2.reader_state import check_identity
from jepa_tok._fairseq2.speech_data import SpeechDataset, SpeechDatasetSection, clip_seconds
from jepa_tok._fairseq2.speech_plan import crop_start, plan_epoch, plan_validation, shard
from jepa_tok.audio import SAMPLE_RATE
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import Utterance
from jepa_tok.errors import AudioError

if TYPE_CHECKING:
    from fairseq2.gang import Gangs


@dataclass
class SpeechBatch(SupportsDeviceTransfer):
    """Padded clips of one rank."""

    wave: Tensor
    """Float32 [B, S], zero past each clip's end."""

    lengths: Tensor
    """Samples of each clip, int64 [B]."""

    ids: list[str]
    """Ids of the clips."""

    unreadable: int = 0
    """Clips of this batch that could not be read and were replaced."""

    sizes: list[int] = field(default_factory=list)
    """`lengths` again, on the CPU: reading them from a GPU would make it wait."""

    clean: Tensor | None = None
    """Float32 [B, S], what has to be predicted; None where it is `wave` itself (`tasks.augment`)."""

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        self.wave = self.wave.to(device, non_blocking=non_blocking)
        self.lengths = self.lengths.to(device, non_blocking=non_blocking)

    @property
    def seconds(self) -> float:
        """Audio in the batch, padding left out."""
        return sum(self.sizes) / SAMPLE_RATE


class _Clips:
    """Decodes clips of a list of utterances, from any thread."""

    def __init__(self, utterances: list[Utterance], section: SpeechDatasetSection, kind: str) -> None:
        self._lock = threading.Lock()
        self._bad: dict[str, str] = {}
        self._cache: dict[str, Tensor] | None = {} if section.cache_audio else None
        self._kind = kind
        lengths = clip_seconds(utterances)
        for u, length in zip(utterances, lengths):
            if length is None:
                self._report(u, f"'{u.path}' is missing or its header cannot be read")
        kept = [(u, s) for u, s in zip(utterances, lengths) if s is not None]
        if utterances and not kept:
            raise RecipeError(
                f"none of the {len(utterances)} {kind} files can be read; the first: {next(iter(self._bad.values()))}."
            )
        least = section.min_seconds if kind == "training" else 0.0
        long = [(u, s) for u, s in kept if s >= least]
        if kept and not long:
            raise RecipeError(f"`dataset.min_seconds` is {least}, but no {kind} clip is that long; the longest has {max(s for _, s in kept):.2f} s.")  # fmt: skip
        self.utterances = [u for u, _ in long]
        self.seconds = [s for _, s in long]

    def _report(self, u: Utterance, reason: str) -> None:
        with self._lock:
            if u.id in self._bad:
                return
            self._bad[u.id] = reason
        log.warning("Skipping {} file of utterance {}: {}", self._kind, u.id, reason)

    @property
    def first_problem(self) -> str:
        return next(iter(self._bad.values()), "")

    def load(self, index: int, start: int, size: int) -> Tensor | None:
        """Up to `size` samples from sample `start` on; None where the file is unreadable (told once)."""
        u = self.utterances[index]
        if u.id in self._bad:
            return None
        try:
            if self._cache is None:
                begin = (u.start or 0.0) + start / SAMPLE_RATE
                end = begin + size / SAMPLE_RATE
                return load_utterance(u, SAMPLE_RATE, start=begin, end=end if u.end is None else min(u.end, end))[:size]
            wave = self._cache.get(u.id)
            if wave is None:
                # Two threads may decode the same file at once; both get the same samples.
                wave = self._cache[u.id] = load_utterance(u, SAMPLE_RATE)
            start = min(start, max(len(wave) - size, 0))  # a manifest's duration may be rounded up
            return wave[start : start + size]
        except AudioError as ex:
            self._report(u, str(ex))
            return None


class SpeechReader(DataReader[SpeechBatch]):
    """Batches of one rank, decoded ahead by threads; its state is an epoch and a step."""

    def __init__(
        self,
        utterances: list[Utterance],
        section: SpeechDatasetSection,
        *,
        rank: int,
        ranks: int,
        seed: int,
        training: bool,
        accumulate: int = 1,
    ) -> None:
        self._section, self._seed, self._training = section, seed, training
        self._rank, self._ranks, self._accumulate = rank, ranks, accumulate
        self._clips = _Clips(utterances, section, "training" if training else "validation")
        self._crop = round(section.crop_seconds * SAMPLE_RATE)
        self._epoch = 1
        self._position = 0
        self._ahead: deque[Future[list[SpeechBatch]]] = deque()
        self._submitted = 0
        self._pool: ThreadPoolExecutor | None = None
        self._identity = self._identify()
        self._check()
        self._plan = self._make_plan()

    def _identify(self) -> dict[str, object]:
        """All that the plan follows from."""
        digest = hashlib.sha256()
        for u, seconds in zip(self._clips.utterances, self._clips.seconds):
            digest.update(f"{u.id} {seconds}\n".encode())
        limit = self._section.max_batch_seconds
        return {
            "clips": digest.hexdigest()[:16],
            "seed": self._seed,
            "batch_size": self._section.batch_size,
            "crop_seconds": self._section.crop_seconds,
            "max_batch_seconds": limit,
            # Without a limit a run goes on with any number of processes: steps are the same.
            "batches_of_a_step": None if limit is None else self._ranks * self._accumulate,
        }

    def _check(self) -> None:
        shards = self._ranks * self._accumulate
        if not self._training:
            return
        size, count = self._section.batch_size, len(self._clips.utterances)
        limit, crop = self._section.max_batch_seconds, self._section.crop_seconds
        if size % shards:
            raise RecipeError(f"`dataset.batch_size` must be a multiple of processes times accumulated batches ({shards}), but is {size} instead.")  # fmt: skip
        if limit is not None and limit < crop * shards:
            raise RecipeError(f"`dataset.max_batch_seconds` must be at least `crop_seconds` for each of the {shards} batches of a step (processes times accumulated batches), {crop * shards} in all, but is {limit} instead.")  # fmt: skip
        if limit is not None and count < shards:
            raise RecipeError(f"training clips must be at least processes times accumulated batches ({shards}), but there are {count}; take fewer processes.")  # fmt: skip
        if limit is None and count < size:
            raise RecipeError(
                f"`dataset.batch_size` must be at most the number of training clips ({count}), but is {size} instead."
            )

    def _make_plan(self) -> list[list[list[int]]]:
        """This rank's batches [step][accumulated batch][clip] of the current epoch."""
        crop = self._section.crop_seconds
        seconds = [min(s, crop) for s in self._clips.seconds]
        if not self._training:
            size = self._section.valid_batch_size
            batches = plan_validation(seconds, batch_size=size, rank=self._rank, ranks=self._ranks)
            return [[batch] if batch else [] for batch in batches]
        steps = plan_epoch(
            seconds,
            seed=self._seed,
            epoch=self._epoch,
            batch_size=self._section.batch_size,
            shards=self._ranks * self._accumulate,
            max_seconds=self._section.max_batch_seconds,
        )
        return [shard(step, self._rank, self._ranks, self._accumulate) for step in steps]

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[SpeechBatch]:
        if self._position >= len(self._plan):
            raise StopIteration
        if self._section.num_workers == 0:
            batches = self._read_step(self._epoch, self._plan[self._position])
        else:
            self._submit()
            batches = self._ahead.popleft().result()
        self._position += 1
        return batches

    def _submit(self) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._section.num_workers, thread_name_prefix="speech")
        while len(self._ahead) < self._section.prefetch and self._submitted < len(self._plan):
            self._ahead.append(self._pool.submit(self._read_step, self._epoch, self._plan[self._submitted]))
            self._submitted += 1

    def _read_step(self, epoch: int, step: list[list[int]]) -> list[SpeechBatch]:
        batches = [self._read_batch(epoch, clips) for clips in step]
        return [batch for batch in batches if batch is not None]

    def _read_batch(self, epoch: int, clips: list[int]) -> SpeechBatch | None:
        waves: list[Tensor] = []
        ids: list[str] = []
        unreadable = 0
        for index in clips:
            wave = self._read_clip(epoch, index)
            if wave is None:
                unreadable += 1
                if not self._training:
                    continue
                index, wave = self._replace(epoch, index)
            waves.append(wave)
            ids.append(self._clips.utterances[index].id)
        if not waves:
            return None
        sizes = [len(wave) for wave in waves]
        unit = round(self._section.pad_seconds * SAMPLE_RATE)
        pin = torch.cuda.is_available()  # a copy to a GPU from ordinary memory would wait
        padded = torch.zeros(len(waves), -(-max(sizes) // unit) * unit, pin_memory=pin)
        for row, wave in zip(padded, waves):
            row[: len(wave)] = wave
        return SpeechBatch(padded, torch.tensor(sizes, pin_memory=pin), ids, unreadable, sizes)

    def _read_clip(self, epoch: int, index: int) -> Tensor | None:
        if not self._training:
            return self._clips.load(index, 0, self._crop)
        samples = round(self._clips.seconds[index] * SAMPLE_RATE)
        start = crop_start(samples, self._crop, seed=self._seed, epoch=epoch, index=index)
        return self._clips.load(index, start, self._crop)

    def _replace(self, epoch: int, index: int) -> tuple[int, Tensor]:
        """The next readable clip: a batch keeps its size, so that no rank is left without one."""
        count = len(self._clips.utterances)
        for step in range(1, count):
            other = (index + step) % count
            wave = self._read_clip(epoch, other)
            if wave is not None:
                return other, wave
        raise RecipeError(f"none of the {count} training files can be read; the first: {self._clips.first_problem}")

    @property
    def ids(self) -> list[str]:
        """Ids of the clips that this rank reads in the current epoch, in the order of the corpus."""
        own = {index for step in self._plan for batch in step for index in batch}
        return [self._clips.utterances[index].id for index in sorted(own)]

    @property
    def speakers(self) -> dict[str, str]:
        """Speaker of each clip by id, where the corpus names one."""
        speakers = {u.id: u.info.get("speaker") for u in self._clips.utterances}
        return {id: str(speaker) for id, speaker in speakers.items() if speaker is not None}

    @property
    def num_steps(self) -> int:
        """Steps of the current epoch."""
        return len(self._plan)

    @property
    @override
    def num_accumulate(self) -> int:
        return self._accumulate

    def _drop_ahead(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._submitted = self._position

    @override
    def reset(self) -> None:
        """Back to the first batch; in training, of the next epoch."""
        if self._training:
            self._epoch += 1
            self._plan = self._make_plan()
        self._position = 0
        self._drop_ahead()

    @override
    def state_dict(self) -> dict[str, object]:
        return {"epoch": self._epoch, "position": self._position, **self._identity}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        check_identity(state_dict, self._identity)
        self._epoch, self._position = int(state_dict["epoch"]), int(state_dict["position"])  # type: ignore[call-overload]
        self._plan = self._make_plan()
        self._drop_ahead()


def create_readers(
    dataset: SpeechDataset, section: SpeechDatasetSection, gangs: Gangs, *, seed: int, accumulate: int
) -> tuple[SpeechReader, SpeechReader | None]:
    """The training reader of this rank, and the validation reader where the dataset has clips for it."""
    rank, ranks = gangs.dp.rank, gangs.dp.size
    train = SpeechReader(
        dataset.train, section, rank=rank, ranks=ranks, seed=seed, training=True, accumulate=accumulate
    )
    clips = dataset.valid
    if section.max_valid_clips is not None and len(clips) > section.max_valid_clips:
        picks = np.linspace(0, len(clips) - 1, section.max_valid_clips).round().astype(int)
        clips = [clips[i] for i in picks]
    if not clips:
        log.warning("The dataset has no validation clips; the run will not be validated.")
        return train, None
    return train, SpeechReader(clips, section, rank=rank, ranks=ranks, seed=seed, training=False)
