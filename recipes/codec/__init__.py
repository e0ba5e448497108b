"""Stage 2: trains the tokenizer's decoder. `python -m recipes.codec OUT --config encoder.path=STAGE1 ...`."""

from __future__ import annotations
