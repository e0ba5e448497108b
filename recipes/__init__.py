"""How it is trained: fairseq2 recipes, one folder each, run with `python -m recipes.NAME OUT --config-file FILE`."""

from __future__ import annotations

import os

# Before torch is imported: with several OpenMP threads small CPU runs are many times slower, sampling up to two hundred
# times; who wants them says so in the environment.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jepa_tok._fairseq2  # noqa: F401  (makes libsndfile loadable before fairseq2 is imported)
