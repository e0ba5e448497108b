"""How it is trained: fairseq2 recipes, one folder each, run with `python -m recipes.NAME OUT --config-file FILE`."""

from __future__ import annotations

import jepa_tok._fairseq2  # noqa: F401  (makes libsndfile loadable before fairseq2 is imported)
