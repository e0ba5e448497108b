"""Sampling of continuations, and the unit that decodes and writes them.

B clips   P frames of a prompt   F frames of the continuation at most   G tokens of a frame   K digits of a token
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, final

import numpy as np
import torch
from fairseq2.gang import Gangs
from fairseq2.generator import GeneratorUnit
from fairseq2.metrics import MetricBag, Sum
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.nn import IncrementalStateBag
from torch import Tensor
from typing_extensions import override

from jepa_tok._fairseq2.lm import SpeechLM
from jepa_tok._fairseq2.lm_layers import LogitFilter
from jepa_tok.audio import save_audio
from jepa_tok.files import write_text
from jepa_tok.tokenizer import SpeechTokenizer
from tasks.lm.prompts import Prompt, PromptBatch

GENERATION_METRICS = [
    MetricDescriptor("generated_seconds", "Audio (s)", 60, format_as_float),
    MetricDescriptor("sampling_seconds", "Sampling (s)", 61, format_as_float),
    MetricDescriptor("times_real_time", "Times Real Time", 62, format_as_float),
]
"""What logs call them; decoding and writing are not in the sampling time."""


@dataclass
class Continuations:
    """What the model said, on the CPU."""

    ids: Tensor
    """int64 [B, F, G]; valid up to `lengths`."""
    lengths: Tensor
    """int64 [B], in frames."""
    ended: Tensor
    """bool [B]: whether the model ended the clip, rather than reached the limit."""
    prompt_nats: Tensor
    """float32 [B]: of the prompt's tokens, and of its not ending before its last frame."""
    nats: Tensor
    """float32 [B]: of the continuation's tokens and of its end or not, under the unfiltered model."""


def draw_noise(seed: int, prompt_id: str, sample: int, shape: tuple[int, ...]) -> Tensor:
    """Uniform float32 in [0, 1) from seed, id and number alone, so that batches and ranks change nothing."""
    rng = np.random.default_rng([seed, zlib.crc32(prompt_id.encode()), sample])
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


@torch.inference_mode()
def continue_prompts(
    model: SpeechLM, prompts: Tensor, noise: Tensor, filter_: LogitFilter, min_frames: int = 1
) -> Continuations:
    """Continues prompts [B, P, G] by up to F frames, with noise [B, F, 1 + G * K]: the end's, then the digits'.

    A key-value cache makes each token one step of the decoder. Within the first `min_frames` no clip can end; behind them one ends with
    the model's own probability at any temperature but 0, at which it ends where that is the likelier.
    """
    batch, length, groups = prompts.shape
    frames, digits = noise.size(1), model.layout.num_digits
    noise = noise.to(prompts.device)
    cut = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    state = IncrementalStateBag(2 + (length + frames) * groups, capacity_increment=None)
    hidden = model.hidden(prompts, cut, state)  # [B, 1 + P * G, C]
    token_nats = model.token_nll(hidden[:, :-1].unflatten(1, (length, groups)), prompts)
    going_on = torch.nn.functional.softplus(model.end_logits(hidden[:, groups:-1:groups]))
    prompt_nats = token_nats.sum((1, 2)) + going_on.sum(1)

    h, last = hidden[:, -1], prompts[:, -1]
    ids = torch.zeros(batch, frames, groups, dtype=torch.int64, device=prompts.device)
    lengths = torch.zeros(batch, dtype=torch.int64, device=prompts.device)
    nats = torch.zeros(batch, device=prompts.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=prompts.device)
    for frame in range(frames + 1):
        if frame >= min_frames:
            logit = model.end_logits(h)
            ends = torch.zeros_like(ended)
            if frame < frames:  # at the limit nothing is drawn: whether the clip would have ended stays open
                ends = logit > 0.0 if filter_.temperature == 0.0 else noise[:, frame, 0] < logit.sigmoid()
                nats += torch.where(ended, 0.0, torch.nn.functional.softplus(torch.where(ends, -logit, logit)))
            ended |= ends
        if frame == frames or bool(ended.all()):
            break
        for slot in range(groups):
            first = 1 + slot * digits
            token, cost = model.sample_token(h, last[:, slot], slot, noise[:, frame, first : first + digits], filter_)
            ids[:, frame, slot] = token
            nats += torch.where(ended, 0.0, cost)
            h = model.step(token, slot, state)
        last = ids[:, frame]
        lengths += ~ended
    return Continuations(ids.cpu(), lengths.cpu(), ended.cpu(), prompt_nats.float().cpu(), nats.cpu())


@final
class LMGeneratorUnit(GeneratorUnit[PromptBatch]):
    """Writes, for each continuation, prompt + continuation and continuation alone as WAV, and a JSON beside them.

    Both come from one decoding of the whole, so that the continuation begins as it does after the prompt. At the end rank
    0 writes `generations.json`, all entries in the order of prompts.
    """

    def __init__(
        self,
        model: SpeechLM,
        tokenizer: SpeechTokenizer,
        folder: Path,
        gangs: Gangs,
        *,
        max_frames: int,
        min_frames: int,
        filter_: LogitFilter,
        seed: int,
    ) -> None:
        self._model, self._tokenizer, self._folder, self._gangs = model, tokenizer, folder, gangs
        self._max_frames, self._min_frames, self._filter, self._seed = max_frames, min_frames, filter_, seed
        folder.mkdir(parents=True, exist_ok=True)
        if gangs.root.rank == 0:
            for old in folder.glob("*.json"):  # of an earlier run, perhaps of other prompts
                for path in (old, old.with_suffix(".wav"), old.with_name(f"{old.stem}_continuation.wav")):
                    path.unlink(missing_ok=True)
        gangs.root.barrier()

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        for name in ("num_examples", "generated_seconds", "sampling_seconds"):
            metric_bag.add(name, Sum())

    @override
    def process_batch(self, batch: PromptBatch, metric_bag: MetricBag) -> None:
        layout = self._model.layout
        shape = (self._max_frames, 1 + layout.num_groups * layout.num_digits)
        noise = torch.stack([draw_noise(self._seed, p.id, s, shape) for p, s in zip(batch.prompts, batch.samples)])
        began = perf_counter()
        made = continue_prompts(self._model, batch.ids, noise, self._filter, self._min_frames)
        metric_bag.get("sampling_seconds", Sum).update(perf_counter() - began)
        metric_bag.get("generated_seconds", Sum).update(int(made.lengths.sum()) / self._tokenizer.frame_rate)
        metric_bag.get("num_examples", Sum).update(len(batch.prompts))
        for i, (prompt, sample) in enumerate(zip(batch.prompts, batch.samples)):
            self._write(prompt, sample, made, i)

    def _write(self, prompt: Prompt, sample: int, made: Continuations, i: int) -> None:
        tokenizer, frames = self._tokenizer, int(made.lengths[i])
        ids = torch.cat([prompt.ids, made.ids[i, :frames]])
        wave = tokenizer.decode(tokenizer.tokens(ids))
        heard = len(prompt.ids) * tokenizer.hop
        name = f"{prompt.number:03d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', prompt.id)[-60:]}_{sample}"
        save_audio(self._folder / f"{name}.wav", wave, tokenizer.sample_rate)
        if frames:
            save_audio(self._folder / f"{name}_continuation.wav", wave[heard:], tokenizer.sample_rate)

        def rate(nats: Tensor, frames: int) -> float | None:
            return float(nats) / math.log(2) * tokenizer.frame_rate / frames if frames else None

        entry = {
            "prompt": prompt.id,
            "source": prompt.source,
            "sample": sample,
            "seed": self._seed,
            "tokenizer": tokenizer.hash,
            "prompt_seconds": len(prompt.ids) / tokenizer.frame_rate,
            "seconds": frames / tokenizer.frame_rate,
            "ended": bool(made.ended[i]),
            "prompt_bits_per_second": rate(made.prompt_nats[i], len(prompt.ids)),
            "bits_per_second": rate(made.nats[i], frames),
            "wav": f"{self._folder.name}/{name}.wav",
            "continuation_wav": f"{self._folder.name}/{name}_continuation.wav" if frames else None,
            "prompt_ids": prompt.ids.tolist(),
            "ids": made.ids[i, :frames].tolist(),
        }
        write_text(self._folder / f"{name}.json", json.dumps(entry) + "\n")

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        self._gangs.root.barrier()
        if self._gangs.root.rank == 0:
            entries: list[Any] = [json.loads(file.read_text()) for file in sorted(self._folder.glob("*.json"))]
            write_text(self._folder.parent / "generations.json", json.dumps(entries) + "\n")

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        made, took = float(values["generated_seconds"]), float(values["sampling_seconds"])  # type: ignore[arg-type]
        values["times_real_time"] = made / took if took else 0.0
