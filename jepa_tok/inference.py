"""Running a model so that what it gives depends on its weights and input alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


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
