"""Stands in for Weights & Biases (20 MB, and of no use without a network), which fairseq2 imports unconditionally."""

from __future__ import annotations

from typing import NoReturn

from wandb import errors, util

__all__ = ["Run", "errors", "init", "util"]


class Run:
    """Named in fairseq2's signatures."""


def init(**_: object) -> NoReturn:
    """Called where the recipe's configuration asks for wandb; fairseq2 reports errors of this type as its own."""
    raise RuntimeError("wandb is not installed here; `common.metric_recorders.wandb.enabled` must be false.")
