"""How well speech survives a tokenizer: metrics, the reference systems beside it, and the tables of both (docs/evaluation.md)."""

from __future__ import annotations

from jepa_tok.evaluation.run import evaluate

__all__ = ["evaluate"]
