"""Metrics of the speech LM: bits per second of audio first, because nats per token compare nothing across tokenizers."""

from __future__ import annotations

import math

import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.metrics.formatters import format_as_float, format_as_int
from fairseq2.metrics.recorders import MetricDescriptor

from jepa_tok._fairseq2.lm import LMLoss
from jepa_tok._fairseq2.token_data import TokenBatch

BASELINES = ("uniform", "unigram", "bigram_time", "bigram_digit")

METRICS = [
    MetricDescriptor("bits_per_second", "Bits/s", 70, format_as_float),
    MetricDescriptor("nats_per_token", "Nats/Token", 71, format_as_float),
    MetricDescriptor("end_nats_per_frame", "End Nats/Frame", 72, format_as_float),
    MetricDescriptor("audio_seconds", "Audio (s)", 810, format_as_int),
    *[
        MetricDescriptor(f"{name}_bits_per_second", f"{name.replace('_', ' ').title()} Bits/s", 80 + i, format_as_float)
        for i, name in enumerate(BASELINES)
    ],
    *[
        MetricDescriptor(f"nats_slot_{slot:02d}", f"Nats Slot {slot:02d}", 900, format_as_float, log=False)
        for slot in range(100)
    ],
]
"""What logs call them; the losses of the slots go to JSONL and TensorBoard alone."""


def add_lm_metrics(bag: MetricBag, slots: int = 0) -> None:
    """Adds them to a bag; `slots` > 0 adds one a slot too."""
    for name in ("bits_per_second", "nats_per_token", "end_nats_per_frame"):
        bag.add(name, Mean())
    for slot in range(slots):
        bag.add(f"nats_slot_{slot:02d}", Mean())
    for name in ("audio_seconds", "num_examples", "num_elements", "padding"):
        bag.add(name, Sum())
    bag.add("total_num_examples", Sum())
    bag.add("total_num_elements", Sum())


@torch.inference_mode()
def update_lm_metrics(bag: MetricBag, loss: LMLoss, batch: TokenBatch, frame_rate: float, slots: int = 0) -> None:
    """Adds a batch; sums over frames, so that batches of any size weigh what they should."""
    frames, groups = batch.num_frames, batch.ids.size(2)
    tokens, end = loss.token_nll.detach().sum(), loss.end_nll.detach()
    bits = (tokens + end) / frames / math.log(2) * frame_rate
    bag.get("bits_per_second", Mean).update(bits, weight=frames)
    bag.get("nats_per_token", Mean).update(tokens / (frames * groups), weight=frames)
    bag.get("end_nats_per_frame", Mean).update(end / frames, weight=frames)
    for slot in range(slots):
        bag.get(f"nats_slot_{slot:02d}", Mean).update(loss.token_nll.detach()[slot] / frames, weight=frames)
    elements = frames * groups
    bag.get("audio_seconds", Sum).update(frames / frame_rate)
    bag.get("padding", Sum).update(batch.ids.size(0) * batch.ids.size(1) * groups - elements)
    for prefix in ("", "total_"):
        bag.get(f"{prefix}num_examples", Sum).update(batch.ids.size(0))
        bag.get(f"{prefix}num_elements", Sum).update(elements)
