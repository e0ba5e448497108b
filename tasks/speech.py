"""What all tasks on batches of speech share: counting what was read, and refusing losses that are not numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, MutableMapping
from functools import partial
from typing import Any

import numpy as np
import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.metrics.formatters import format_as_float, format_as_int
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.audio import SAMPLE_RATE
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import Utterance
from jepa_tok.errors import AudioError

SPEECH_METRICS = [
    MetricDescriptor("audio_seconds", "Audio (s)", 800, format_as_float, log=False),
    MetricDescriptor("total_audio_seconds", "Total Audio (s)", 801, format_as_float, log=False),
    MetricDescriptor("total_unreadable", "Unreadable Clips", 802, format_as_int),
]


def float_metric(name: str, display: str, priority: int, *, higher_better: bool = False) -> MetricDescriptor:
    """A metric that is logged with six digits."""
    return MetricDescriptor(name, display, priority, partial(format_as_float), higher_better=higher_better)


def register_metrics(container: DependencyContainer, metrics: Iterable[MetricDescriptor]) -> None:
    """Registers display names, so that logs, JSONL, TensorBoard and `regime.score_metric` know the metrics."""
    for metric in metrics:
        container.collection.register_instance(MetricDescriptor, metric)


def add_speech_metrics(bag: MetricBag) -> None:
    """Adds the counters that `update_speech_metrics` updates."""
    for name in ("num_examples", "audio_seconds", "total_audio_seconds", "total_unreadable"):
        bag.add(name, Sum())


def update_speech_metrics(bag: MetricBag, batch: SpeechBatch) -> None:
    """Counts clips and seconds read, and clips that could not be."""
    bag.get("num_examples", Sum).update(len(batch.ids))
    bag.get("audio_seconds", Sum).update(batch.seconds)
    bag.get("total_audio_seconds", Sum).update(batch.seconds)
    bag.get("total_unreadable", Sum).update(batch.unreadable)


class OptionalMean(Mean):
    """A mean that is None where nothing was added to it, or all that was had weight 0: fairseq2's would be 0.0, which of a loss is the best value."""

    weights: Tensor

    @override
    def compute(self) -> Tensor | None:  # type: ignore[override]
        return super().compute() if self.weights else None


def drop_absent(values: MutableMapping[str, object]) -> None:
    """Takes out the metrics that have no value (`OptionalMean`): they are not logged at all."""
    for name in [name for name, value in values.items() if value is None]:
        del values[name]


class FiniteCheck:
    """Ends a run whose loss or weights are no numbers, before they reach a checkpoint: a hook behind the optimizer's steps.

    The trainer waits for the device when a step is over, to take its time; what is read there costs nothing. Read between
    forward and backward pass, the same loss would leave the device without work in each step.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._clips: list[str] = []
        self._step = 0

    def watch(self, loss: Tensor, step: int, batch: SpeechBatch) -> None:
        """Notes a loss of the step that is under way, without reading it."""
        self._step = step
        self._losses.append(loss.detach())
        self._clips += batch.ids[: 5 - len(self._clips)]

    def __call__(self, optimizer: Optimizer, *_: Any) -> None:
        """RecipeError, naming step and clips, where the step's losses or the weights that it leaves are not finite."""
        losses, clips = self._losses, self._clips
        self._losses, self._clips = [], []
        weights = [p.detach() for group in optimizer.param_groups for p in group["params"]]
        weights = [p.to_local() if isinstance(p, DTensor) else p for p in weights]  # of a sharded one this rank's part
        # A gradient can be infinite where the loss is not; and in data parallel the loss of another rank may be the bad one.
        total = nn.utils.get_total_norm(weights).to(torch.float32)
        found = torch.stack([*(loss.float() for loss in losses), total]).tolist()
        if all(map(math.isfinite, found)):
            return
        named = ", ".join(clips[:4]) + (", ..." if len(clips) > 4 else "")
        bad = next((x for x in found[:-1] if not math.isfinite(x)), None)
        what = f"the loss must be finite, but is {bad} at" if bad is not None else "the weights must be finite, but are not after"  # fmt: skip
        raise RecipeError(
            f"{what} step {self._step} (clips {named}); lower the learning rate, set `trainer.max_grad_norm`, or resume from the last checkpoint with bf16."
        )


def seeded_generator(seed: Iterable[int], device: torch.device | str = "cpu") -> torch.Generator:
    """A generator on `device` whose draws follow from `seed` alone."""
    state = np.random.SeedSequence(tuple(seed)).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(state))


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on `device`; a GPU's queue goes on meanwhile."""
    if device.type == "cuda":
        x = x.pin_memory()  # copies from ordinary memory wait
    return x.to(device, non_blocking=True)


def sample_waves(utterances: list[Utterance], rng: np.random.Generator, crop_seconds: float) -> Iterator[Tensor]:
    """Clips [S] in random order, at most `crop_seconds` from their start; unreadable ones are passed over."""
    for index in rng.permutation(len(utterances)):
        u = utterances[int(index)]
        begin = u.start or 0.0
        end = begin + crop_seconds
        try:
            yield load_utterance(u, SAMPLE_RATE, start=begin, end=end if u.end is None else min(end, u.end))
        except AudioError:
            continue
