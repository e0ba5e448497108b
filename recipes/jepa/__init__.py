"""Stage 1: pretrains the encoder. `python -m recipes.jepa OUT --config-file recipes/jepa/configs/tiny_cpu.yaml`."""

from __future__ import annotations
