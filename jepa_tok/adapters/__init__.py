"""Any speech tokenizer behind one face: docs/adapters.md."""

from __future__ import annotations

from jepa_tok.adapters.base import Adapter, fingerprint_of, fit_once, make_adapter, names

__all__ = ["Adapter", "fingerprint_of", "fit_once", "make_adapter", "names"]
