"""Stands in for `transformers` while fairseq2's modules for Hugging Face models load: any name is an empty class.

It is not a package, so fairseq2 takes those of its models that need more for unavailable, as where transformers is missing.
"""

from __future__ import annotations


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
