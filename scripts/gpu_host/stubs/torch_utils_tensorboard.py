"""Stands in for `torch.utils.tensorboard`, which fairseq2 imports unconditionally, where tensorboard is not installed."""

from __future__ import annotations

import sys


class SummaryWriter:
    """Takes what fairseq2 and the recipes write, and drops it; says so, once a writer."""

    def __init__(self, log_dir: object = None) -> None:
        print(f"gpu_host: tensorboard is not installed, so {log_dir} gets no events; metrics are in the log and in metrics/*.jsonl", file=sys.stderr)  # fmt: skip

    def drop(self, *_: object, **__: object) -> None:
        """What SummaryWriter does, without doing it."""

    add_text = add_scalar = add_audio = add_image = flush = close = drop
