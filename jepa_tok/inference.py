"""Running a model so that what it gives depends on its weights and input alone, and grouping clips into batches.

L steps of a clip (samples or frames)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jepa_tok.errors import ConfigError

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


def padded_batches(
    clips: Iterable[tuple[int, Tensor]], seconds: float | None, rate: float
) -> Iterator[list[tuple[int, Tensor]]]:
    """Groups (index, clip [L, ...]) so that a padded group holds at most `seconds` at `rate` steps a second.

    A clip longer than that is a group of its own, and with `seconds` None each is. Clips of like length go together; a
    bounded number is held at a time. Raises ConfigError for `seconds` that is not a positive number.
    """
    if seconds is None:
        yield from ([clip] for clip in clips)
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise ConfigError(f"`batch_seconds` must be a positive number, but is {seconds!r} instead.")
    limit = seconds * rate
    pool: list[tuple[int, Tensor]] = []
    size = 0
    for clip in clips:
        pool.append(clip)
        size += clip[1].shape[0]
        if size > POOL * limit:
            yield from _split(pool, limit)
            pool, size = [], 0
    yield from _split(pool, limit)


def _split(pool: list[tuple[int, Tensor]], limit: float) -> Iterator[list[tuple[int, Tensor]]]:
    batch: list[tuple[int, Tensor]] = []
    for clip in sorted(pool, key=lambda item: (item[1].shape[0], item[0])):
        if batch and (len(batch) + 1) * clip[1].shape[0] > limit:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch
