"""Train and eval unit of stage 2.

B clips   S samples   T frames   D code dimensions
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.trainer import TrainUnit
from torch import Tensor, nn
from typing_extensions import override

from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.models.codec import Codec, CodecOutput
from jepa_tok.monitor import collapse_stats
from jepa_tok.training_config import CodecConfig
from tasks.augment import AugmentSection, augment
from tasks.codec.metrics import CODES, LOSSES, RECONSTRUCTION, computed_losses
from tasks.codec.samples import SampleWriter
from tasks.speech import FiniteCheck, OptionalMean, add_speech_metrics, drop_absent, update_speech_metrics

MAX_MONITORED_FRAMES = 20_000
"""Frames a rank keeps for code usage in one validation."""


class CodecTrainUnit(TrainUnit[SpeechBatch]):
    """Generator and discriminators in one backward pass; the two reach different weights.

    :param model: What the trainer wraps (DDP); called for its losses.
    :param config: Of the bare model; says which losses there are.
    :param augment: What is done to the clips; the decoder is to give back what was heard, noise included.
    :param synthesis_start: First step in which a waveform is made; before it the mel head alone judges.
    :param discriminator_start: First step in which the discriminators train.
    :param adversarial_start: First step in which the generator hears them.
    """

    def __init__(
        self,
        model: nn.Module,
        config: CodecConfig,
        *,
        seed: int,
        rank: int,
        augment: AugmentSection,
        discriminator_start: int,
        adversarial_start: int,
        synthesis_start: int = 0,
    ) -> None:
        self._model, self._config = model, config
        self._seed, self._rank, self._augment = seed, rank, augment
        self._discriminator_start, self._adversarial_start = discriminator_start, adversarial_start
        self._synthesis_start = synthesis_start
        self.finite = FiniteCheck()  # to be registered behind the optimizer's steps
        self._step = 0
        self._batch_nr = 0

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        for name in LOSSES:
            metric_bag.add(name, OptionalMean())
        add_speech_metrics(metric_bag)

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._step, self._batch_nr = step_nr, 0

    @override
    def process_batch(self, batch: SpeechBatch, metric_bag: MetricBag) -> tuple[Tensor, int | None]:
        batch = augment(batch, self._augment, (self._seed, self._step, self._batch_nr, self._rank))
        self._batch_nr += 1
        acting = {
            "adversarial": self._step >= self._adversarial_start,
            "disc": self._step >= self._discriminator_start,
            "synthesis": self._step >= self._synthesis_start,
        }
        output: CodecOutput = self._model(batch.wave, batch.lengths, **acting)
        loss = output.generator_loss + output.discriminator_loss
        self.finite.watch(loss, self._step, batch)
        for name in computed_losses(self._config, training=True, **acting):
            weight = output.voiced_windows if name == "pitch" else 1.0
            metric_bag.get(name, Mean).update(getattr(output, name).detach(), weight=weight)
        update_speech_metrics(metric_bag, batch)
        return loss, None

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        drop_absent(values)


class CodecEvalUnit(EvalUnit[SpeechBatch]):
    """Reconstruction losses, use of the codes, and samples to listen to.

    Losses are means over samples, that of the pitch over voiced windows; what is not computed is not logged.

    :param base: The bare module: ranks may have different numbers of batches, so no collective call is made.
    :param synthesis_start: First training step in which a waveform is made; before it there is none to judge.
    :param score: Loss that fairseq2 takes for the score, which a validation must not be without: infinite where it is not computed.
    """

    def __init__(self, base: Codec, samples: SampleWriter, synthesis_start: int = 0, score: str | None = None) -> None:
        self._base, self._samples = base, samples
        self._synthesis_start, self._score = synthesis_start, score
        self._step = 0
        self._clips: list[tuple[Tensor, Tensor]] = []
        self._frames = 0

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        for name in (*RECONSTRUCTION, *CODES):
            metric_bag.add(name, OptionalMean())
        metric_bag.add("num_examples", Sum())
        self._clips, self._frames = [], 0

    @override
    def set_train_step_nr(self, step_nr: int) -> None:
        self._step = step_nr

    @override
    def process_batch(self, batch: SpeechBatch, metric_bag: MetricBag) -> None:
        synthesis = self._step >= self._synthesis_start
        output: CodecOutput = self._base(batch.wave, batch.lengths, adversarial=False, disc=False, synthesis=synthesis)
        computed = computed_losses(self._base.config, training=False, synthesis=synthesis)
        for name in RECONSTRUCTION:
            if name in computed:
                weight = output.voiced_windows if name == "pitch" else sum(batch.sizes)
                metric_bag.get(name, Mean).update(getattr(output, name), weight=weight)
        metric_bag.get("num_examples", Sum).update(len(batch.ids))
        for z, codes, frames in zip(output.latents.float().cpu(), output.codes.cpu(), output.frame_lengths.tolist()):
            if self._frames < MAX_MONITORED_FRAMES:
                self._clips.append((z[:frames], codes[:frames]))
                self._frames += frames
        if output.reconstruction is None:
            return
        for id, wave, fake, size in zip(batch.ids, batch.wave, output.reconstruction, batch.sizes):
            if id in self._samples.ids:
                self._samples.write(self._step, id, wave[:size], fake[:size])

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        if not self._clips:
            return
        lengths = torch.tensor([len(z) for z, _ in self._clips])
        latents = nn.utils.rnn.pad_sequence([z for z, _ in self._clips], batch_first=True)  # [N, T, D]
        codes = nn.utils.rnn.pad_sequence([c for _, c in self._clips], batch_first=True)
        self._clips = []
        stats = collapse_stats(latents, lengths, codes, self._base.config.tokenizer.quantizer.radices)
        for name in CODES:
            if math.isfinite(stats[name]):
                metric_bag.get(name, Mean).update(stats[name], weight=int(lengths.sum()))

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        drop_absent(values)
        if self._score in RECONSTRUCTION:
            values.setdefault(self._score, math.inf)
