"""Asset cards of jepa-tok's models and datasets, listed by `python -m fairseq2.assets list`."""

from __future__ import annotations
