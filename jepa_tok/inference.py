"""Running a model so that what it gives depends on its weights and input alone: clips to windows to batches and back.

B windows of a batch   S samples   T frames   D code dimensions   L steps of either kind
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jepa_tok.config import WindowConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.generator import Generator
from jepa_tok.windows import Joiner, cut_frames, cut_samples

T = TypeVar("T")
K = TypeVar("K", bound=Any)

POOL = 16
"""Batches' worth of clips that are sorted by length together."""


@contextmanager
def exact_inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation and inference mode at the weights' own precision, whatever the caller has set.

    Training flags of `module` and its submodules, autocast, TF32 and PyTorch's default dtype are put back as found.
    """
    training = [m for m in module.modules() if m.training]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(_full_precision())
        stack.enter_context(_usual_defaults())
        for m in training:
            m.training = False
        try:
            yield
        finally:
            for m in training:
                m.training = True


@contextmanager
def _full_precision() -> Iterator[None]:
    """float32 products in float32: TF32, PyTorch's default for convolutions on GPUs, keeps 10 bits and flips ids."""
    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    before = [s.fp32_precision for s in settings]
    try:
        for s in settings:
            s.fp32_precision = "ieee"
        yield
    finally:
        for s, precision in zip(settings, before):
            s.fp32_precision = precision


@contextmanager
def _usual_defaults() -> Iterator[None]:
    """Tables that layers make as they run (windows, filters) are float32 and made on the CPU, as in a fresh process."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@dataclass
class Heard:
    """What the encoder gives for a run of a clip's frames."""

    clip: int
    first: int
    """Index of the run's first frame in its clip."""

    samples: int
    """Samples of the clip as far as it has been read: all of them in its last run."""

    latents: Tensor
    """[t, D]"""

    gates: list[Tensor]
    """DAAM gate of each stage over those frames, [steps of that stage]."""


def encode_clips(
    encoder: Encoder, clips: Iterable[Iterable[Tensor]], config: WindowConfig, batch_seconds: float | None
) -> Iterator[Heard]:
    """Encodes clips that come as blocks of samples [s], window by window in padded batches; runs come in any order."""
    size, context = config.frames(encoder.config.frame_rate)
    hop, strides, device = encoder.config.hop, encoder.config.strides, next(encoder.parameters()).device
    steps_per_frame = [math.prod(strides[i + 1 :]) for i in range(len(strides))]
    windows = (
        ((clip, window), wave)
        for clip, blocks in enumerate(clips)
        for window, wave in cut_samples(blocks, size, context, hop)
    )
    for batch in padded_batches(windows, batch_seconds, encoder.config.sample_rate):
        lengths = torch.tensor([wave.shape[0] for _, wave in batch], device=device)
        padded = nn.utils.rnn.pad_sequence([wave for _, wave in batch], batch_first=True).to(device)  # [B, S]
        out = encoder(padded, lengths, return_gates=True)
        for i, ((clip, window), wave) in enumerate(batch):
            kept, gates = window.kept, []
            for gate, steps in zip(out.gates or [], steps_per_frame):
                own = gate[i, : -(-wave.shape[0] * steps // hop)]
                gates.append(own[kept.start * steps : kept.stop * steps])
            yield Heard(clip, window.first, window.start * hop + wave.shape[0], out.latents[i, kept], gates)


def decode_clips(
    generator: Generator,
    clips: Iterable[Tensor],
    values: Callable[[Tensor], Tensor],
    config: WindowConfig,
    batch_seconds: float | None,
) -> Iterator[tuple[int, Tensor]]:
    """Decodes clips of ids [T, G], window by window in padded batches: (clip, its next samples [s]), float32 on the CPU.

    `values` turns ids [B, T, G] into latents [B, T, D]. The samples of a clip come in order, T * hop in all.
    """
    rate, hop = generator.config.sample_rate, generator.hop
    size, context = config.frames(rate / hop)
    device = next(generator.parameters()).device
    joiners: dict[int, Joiner] = {}
    windows = (
        ((clip, window), ids[window.start : window.start + window.size])
        for clip, ids in enumerate(clips)
        for window in cut_frames(ids.shape[0], size, context)
    )
    for batch in padded_batches(windows, batch_seconds, rate / hop):
        lengths = torch.tensor([ids.shape[0] for _, ids in batch], device=device)
        padded = nn.utils.rnn.pad_sequence([ids for _, ids in batch], batch_first=True).to(device)  # [B, T, G]
        waves = generator(values(padded), lengths)  # [B, T * hop]
        for i, ((clip, window), _) in enumerate(batch):
            joiner = joiners.setdefault(clip, Joiner(hop, round(config.fade * rate)))
            wave = waves[i, : window.size * hop].float().cpu()
            yield from ((clip, settled) for settled in joiner.add(window, wave))
            if joiner.done:
                del joiners[clip]


def read_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each fetched by another thread while the one before is used."""
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next, iterator, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]


def padded_batches(
    clips: Iterable[tuple[K, Tensor]], seconds: float | None, rate: float
) -> Iterator[list[tuple[K, Tensor]]]:
    """Groups (key, clip [L, ...]) so that a padded group holds at most `seconds` at `rate` steps a second.

    A clip longer than that is a group of its own, and with `seconds` None each is. Clips of like length go together; a
    bounded number is held at a time. Raises ConfigError for `seconds` that is not a positive number.
    """
    if seconds is None:
        yield from ([clip] for clip in clips)
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ConfigError(f"`batch_seconds` must be a positive number, but is {seconds!r} instead.")
    limit = seconds * rate
    pool: list[tuple[K, Tensor]] = []
    size = 0
    for clip in clips:
        pool.append(clip)
        size += clip[1].shape[0]
        if size > POOL * limit:
            yield from _split(pool, limit)
            pool, size = [], 0
    yield from _split(pool, limit)


def _split(pool: list[tuple[K, Tensor]], limit: float) -> Iterator[list[tuple[K, Tensor]]]:
    batch: list[tuple[K, Tensor]] = []
    for clip in sorted(pool, key=lambda item: (item[1].shape[0], item[0])):
        if batch and (len(batch) + 1) * clip[1].shape[0] > limit:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch
