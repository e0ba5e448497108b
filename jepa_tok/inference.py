"""Running a model so that what it gives depends on its weights and input alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

Undo = Callable[[], None]
Change = Callable[[], Undo]

_lock = threading.Lock()
_held: dict[Hashable, tuple[int, Undo]] = {}
"""What threads share and hold changed at present: how many of them, and how the last one puts it back."""


@contextmanager
def exact_inference(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation and inference mode at the weights' own precision, whatever the caller has set.

    Training flags of `module` and its submodules, autocast, TF32 and PyTorch's default dtype are put back as found. Threads may
    overlap in it: what they share is changed by the first to enter and put back by the last to leave.
    """

    def changes() -> dict[Hashable, Change]:
        # Modules in evaluation mode that nobody holds stay out of it: there are hundreds, and a short clip takes milliseconds.
        modules: dict[Hashable, Change] = {
            m: partial(_set_evaluation, m) for m in module.modules() if m.training or m in _held
        }
        return {"fp32_precision": _set_full_precision, **modules}

    # Inference mode and autocast are the thread's own.
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), usual_defaults(), _hold(changes):
        yield


@contextmanager
def usual_defaults(device: str = "cpu") -> Iterator[None]:
    """What layers make without naming dtype or device (weights, windows, filters) is float32 and made on `device`."""
    with _hold(lambda: {"default_dtype": _set_float32}), ExitStack() as stack:
        # The default device is the thread's own; naming it slows every call of a factory, so only where it is another.
        if torch.get_default_device() != torch.device(device):
            stack.enter_context(torch.device(device))
        yield


@contextmanager
def _hold(changes: Callable[[], Mapping[Hashable, Change]]) -> Iterator[None]:
    """Makes those changes of settings that no thread holds yet; each is undone when no thread holds it any more."""
    with _lock:
        keys = changes()
        for key, change in keys.items():
            count, undo = _held[key] if key in _held else (0, change())
            _held[key] = count + 1, undo
    try:
        yield
    finally:
        with _lock:
            for key in keys:
                count, undo = _held.pop(key)
                if count > 1:
                    _held[key] = count - 1, undo
                else:
                    undo()


def _set_full_precision() -> Undo:
    """float32 products in float32: TF32, PyTorch's default for convolutions on GPUs, keeps 10 bits and flips ids."""
    backends: Any = torch.backends
    settings = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
    before = [s.fp32_precision for s in settings]
    for s in settings:
        s.fp32_precision = "ieee"

    def undo() -> None:
        for s, precision in zip(settings, before):
            s.fp32_precision = precision

    return undo


def _set_float32() -> Undo:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    return lambda: torch.set_default_dtype(dtype)


def _set_evaluation(module: nn.Module) -> Undo:
    training = module.training
    module.training = False

    def undo() -> None:
        module.training = training

    return undo
