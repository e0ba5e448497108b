"""Stage 2: the tokenizer's decoder against discriminators, the encoder frozen or fine-tuned."""

from __future__ import annotations
