"""Train and validation units of the speech LM."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, final

from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import MetricBag
from fairseq2.trainer import TrainUnit
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from jepa_tok._fairseq2.lm import LMLoss
from jepa_tok._fairseq2.token_data import TokenBatch
from tasks.lm.metrics import BASELINES, add_lm_metrics, update_lm_metrics


def compute_loss(model: Module, batch: TokenBatch) -> LMLoss:
    """The model's loss; through `__call__`, so that DDP and FSDP see it."""
    return model(batch.ids, batch.lengths, batch.cut_before, batch.cut_after)


@final
class LMTrainUnit(TrainUnit[TokenBatch]):
    """Cross-entropy of tokens and of the end, normalised by the step's number of tokens over all ranks."""

    def __init__(self, model: Module, frame_rate: float) -> None:
        self._model, self._frame_rate = model, frame_rate

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        add_lm_metrics(metric_bag)

    @override
    def process_batch(self, batch: TokenBatch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        loss = compute_loss(self._model, batch)
        update_lm_metrics(metric_bag, loss, batch, self._frame_rate)
        return loss.token_nll.sum() + loss.end_nll, batch.num_frames * batch.ids.size(2)


@final
class LMEvalUnit(EvalUnit[TokenBatch]):
    """The same on validation data, by slot, with the baselines beside it."""

    def __init__(self, model: Module, frame_rate: float, slots: int, baselines: dict[str, Any] | None = None) -> None:
        self._model, self._frame_rate, self._slots, self._baselines = model, frame_rate, slots, baselines or {}

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        add_lm_metrics(metric_bag, self._slots)

    @override
    def process_batch(self, batch: TokenBatch, metric_bag: MetricBag) -> None:
        update_lm_metrics(metric_bag, compute_loss(self._model, batch), batch, self._frame_rate, self._slots)

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        for name in BASELINES:
            if name in self._baselines:
                values[f"{name}_bits_per_second"] = self._baselines[name]["bits_per_second"]
