"""Train and eval unit of stage 1.

B clips   S samples   T frames   D latent dimensions
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, MutableMapping

import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.logging import log
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.recipe.error import RecipeError
from fairseq2.trainer import TrainUnit
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.config import QuantizerConfig
from jepa_tok.models.anchor import MelPosteriors
from jepa_tok.models.fsq import FSQ
from jepa_tok.models.jepa import Jepa, JepaOutput
from jepa_tok.models.layers import sequence_mask
from jepa_tok.monitor import collapse_stats
from tasks.augment import AugmentSection, augment
from tasks.jepa.anchor import cosine
from tasks.jepa.metrics import COLLAPSE, READERS, TERMS, computed_terms, validation_loss
from tasks.jepa.readers import QuickReaders
from tasks.speech import (
    FiniteCheck,
    OptionalMean,
    add_speech_metrics,
    drop_absent,
    seeded_generator,
    to_device,
    update_speech_metrics,
)

MAX_MONITORED_FRAMES = 20_000
"""Frames a rank keeps for the collapse monitor in one validation."""


def sample_batch_mask(model: Jepa, batch: SpeechBatch, *seed: int) -> Tensor:
    """Mask [B, T] of a batch from a seed of its own: a resumed run draws what the uninterrupted one drew."""
    hop = model.config.encoder.hop
    frames = torch.tensor([-(-size // hop) for size in batch.sizes])
    mask = model.sample_mask(frames, seeded_generator(seed))
    # Batches are padded beyond their longest clip, to a few shapes only.
    mask = F.pad(mask, (0, -(-batch.wave.shape[1] // hop) - mask.shape[1]))
    return to_device(mask, batch.wave.device)


def fixed_batch_mask(model: Jepa, batch: SpeechBatch) -> Tensor:
    """Mask [B, T] of a batch that for each clip follows from its id alone, whatever shares the batch and whichever rank has it."""
    hop = model.config.encoder.hop
    mask = torch.zeros(len(batch.ids), -(-batch.wave.shape[1] // hop), dtype=torch.bool)
    for row, id, size in zip(mask, batch.ids, batch.sizes):
        frames = -(-size // hop)
        row[:frames] = model.sample_mask(torch.tensor([frames]), seeded_generator((0, zlib.crc32(id.encode()))))[0]
    return to_device(mask, batch.wave.device)


class JepaTrainUnit(TrainUnit[SpeechBatch]):
    """Predicts masked frames of a batch; the anchor's weight falls as training goes on.

    :param model: What the trainer wraps (DDP, FSDP); called for its loss.
    :param base: The bare module, for masks.
    :param decay_end: Decay of the target after `decay_steps` steps; None: the model's throughout.
    """

    def __init__(
        self,
        model: nn.Module,
        base: Jepa,
        *,
        seed: int,
        rank: int,
        augment: AugmentSection,
        anchor_steps: int,
        anchor_start: float,
        anchor_end: float,
        decay_end: float | None = None,
        decay_steps: int = 1,
    ) -> None:
        self._model, self._base = model, base
        self._seed, self._rank, self._augment = seed, rank, augment
        self._anchor = (anchor_steps, anchor_start, anchor_end)
        self._decay_end, self._decay_steps = decay_end, decay_steps
        self.finite = FiniteCheck()  # to be registered behind the optimizer's steps
        self._step = 0
        self._batch_nr = 0

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        for name in ("jepa_loss", *TERMS):
            metric_bag.add(name, OptionalMean())
        add_speech_metrics(metric_bag)

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._step, self._batch_nr = step_nr, 0

    @property
    def anchor_weight(self) -> float:
        """Weight at the current step; 0 without anchor."""
        return cosine(self._step - 1, *self._anchor) if self._base.anchor is not None else 0.0

    @property
    def target_decay(self) -> float:
        """EMA decay of the target at the current step."""
        start = self._base.config.target_decay
        return start if self._decay_end is None else cosine(self._step - 1, self._decay_steps, start, self._decay_end)

    @override
    def process_batch(self, batch: SpeechBatch, metric_bag: MetricBag) -> tuple[Tensor, int | None]:
        seed = (self._seed, self._step, self._batch_nr, self._rank)
        self._batch_nr += 1
        batch = augment(batch, self._augment, seed)
        mask = sample_batch_mask(self._base, batch, *seed)
        output: JepaOutput = self._model(batch.wave, batch.lengths, mask, self.anchor_weight, batch.clean)
        self.finite.watch(output.loss, self._step, batch)
        metric_bag.get("jepa_loss", Mean).update(output.loss.detach())
        for name in computed_terms(self._base.config):
            metric_bag.get(name, Mean).update(getattr(output, name).detach())
        update_speech_metrics(metric_bag, batch)
        return output.loss, None

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        drop_absent(values)
        if self._base.anchor is not None:
            values["anchor_weight"] = self.anchor_weight
        if self._decay_end is not None:
            values["target_decay"] = self.target_decay


class JepaEvalUnit(EvalUnit[SpeechBatch]):
    """Losses on fixed masks, R2 of the prediction, and the collapse monitor.

    Each loss is the mean over all that it is a mean over in a batch, so that batch size and ranks change nothing but rounding. Not so the
    variance and covariance terms, which are statistics of a batch, nor collapse monitor and readers, which each rank has of its own clips:
    they are averaged by frames.

    :param base: The bare module: ranks may have different numbers of batches, so no collective call is made.
    :param bound: How z is quantised for the code usage entries, as in `QuantizerConfig.bound`.
    :param min_share: Least `between_clip_share` that is no collapse.
    :param min_rank: Least `effective_rank` that is no collapse.
    :param stop: Whether a collapse ends the run (RecipeError) or is only told.
    :param speakers: Speaker of each validation clip by id, where known.
    :param seed: Of the untrained encoder beside which the readers are reported.
    """

    def __init__(
        self,
        base: Jepa,
        *,
        bound: str,
        min_share: float,
        min_rank: float,
        stop: bool,
        speakers: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self._base = base
        self._readers = QuickReaders(base.config.encoder, speakers or {}, seed)
        self._posterior: Tensor | None = None  # of the anchor's clusters, summed over sub-frames [K]
        quantizer = QuantizerConfig(dim=base.config.encoder.latent_dim, bound=bound)  # type: ignore[arg-type]
        self._fsq = FSQ(quantizer).requires_grad_(False)
        self._radices = quantizer.radices
        self._min_share, self._min_rank, self._stop = min_share, min_rank, stop
        self._step = 0
        self._clips: list[Tensor] = []
        self._frames = 0

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        for name in (*TERMS, *COLLAPSE, *READERS):
            metric_bag.add(name, OptionalMean())
        for name in ("squared_error", "squared_deviation", "num_examples"):
            metric_bag.add(name, Sum())
        self._clips, self._frames, self._posterior = [], 0, None

    @override
    def set_train_step_nr(self, step_nr: int) -> None:
        self._step = step_nr

    @override
    def process_batch(self, batch: SpeechBatch, metric_bag: MetricBag) -> None:
        mask = fixed_batch_mask(self._base, batch)
        output: JepaOutput = self._base(batch.wave, batch.lengths, mask)
        valid = sequence_mask(output.frame_lengths, mask.shape[1])
        weights = {"prediction_loss": mask.sum(), "variance_loss": valid.sum(), "covariance_loss": valid.sum()}
        if self._base.anchor is not None:
            weights["anchor_loss"] = (-(-batch.lengths // self._base.anchor.sub_hop)).sum()
        for name in computed_terms(self._base.config):
            metric_bag.get(name, Mean).update(getattr(output, name), weight=weights[name])
        metric_bag.get("num_examples", Sum).update(len(batch.ids))
        error, deviation = output.prediction_errors(mask)
        metric_bag.get("squared_error", Sum).update(error.sum())
        metric_bag.get("squared_deviation", Sum).update(deviation.sum())
        # Latents of whole clips: what the tokenizer will be made of, not what is left under a mask.
        latents = self._base.encoder(batch.wave, batch.lengths).latents
        if isinstance(self._base.anchor, MelPosteriors):
            predicted = self._base.anchor.predict(latents).exp()  # [B, L, K]
            own = valid.repeat_interleave(self._base.config.anchor.subframes, dim=1)
            total = (predicted * own[..., None]).sum((0, 1))
            self._posterior = total if self._posterior is None else self._posterior + total
        latents = latents.float().cpu()
        if self._frames < MAX_MONITORED_FRAMES:
            self._readers.add(batch.ids, batch.wave, batch.lengths, batch.sizes, latents)
        for z, frames in zip(latents, output.frame_lengths.tolist()):
            if self._frames < MAX_MONITORED_FRAMES:
                self._clips.append(z[:frames])
                self._frames += frames

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        if not self._clips:
            return
        lengths = torch.tensor([len(z) for z in self._clips])
        latents = nn.utils.rnn.pad_sequence(self._clips, batch_first=True)  # [N, T, D]
        self._clips = []
        with torch.autocast("cpu", enabled=False):
            stats = collapse_stats(latents, lengths, self._fsq.quantize(latents), self._radices)
        found = stats | self._readers.read()
        if self._posterior is not None:
            p = self._posterior / self._posterior.sum()
            found["cluster_entropy"] = float(-torch.xlogy(p, p).sum()) / math.log(max(len(p), 2))
        for name, value in found.items():
            if math.isfinite(value):  # between the frames of a single clip there is no share, which is no collapse
                metric_bag.get(name, Mean).update(value, weight=int(lengths.sum()))

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        error, deviation = (float(values.pop(n)) for n in ("squared_error", "squared_deviation"))  # type: ignore[arg-type]
        drop_absent(values)
        if deviation > 0.0:  # something was masked
            values["prediction_r2"] = 1.0 - error / deviation
            values[validation_loss(self._base.config)] = self._weighted_sum(values)
        self.check_collapse(values)

    def _weighted_sum(self, values: Mapping[str, object]) -> float:
        """The loss that `values` make, without the anchor's."""
        config = self._base.config
        weights = {
            "prediction_loss": config.prediction_weight,
            "variance_loss": config.variance_weight,
            "covariance_loss": config.covariance_weight,
        }
        return math.fsum(weight * float(values.get(name, 0.0)) for name, weight in weights.items())  # type: ignore[arg-type]

    def check_collapse(self, values: MutableMapping[str, object]) -> None:
        """Tells, or ends the run, where z holds no more of the sound than its place, or a single direction."""
        problems = []
        limits = (
            ("between_clip_share", self._min_share, "a frame's place alone decides it, not the sound"),
            ("effective_rank", self._min_rank, "its dimensions move as one"),
        )
        for name, least, why in limits:
            value = float(values.get(name, math.inf))  # type: ignore[arg-type]
            if value < least:
                problems.append(f"{name} is {value:.3g}, below {least:g} ({why})")
        if not problems:
            return
        message = f"z has collapsed at step {self._step}: {' and '.join(problems)}, however low the loss."
        if self._stop:
            raise RecipeError(f"{message} Training stops because `monitor.stop_on_collapse` is set.")
        log.warning("{} See `monitor.stop_on_collapse`; the anchor (`model.arch` base, small, tiny) prevents it.", message)  # fmt: skip
