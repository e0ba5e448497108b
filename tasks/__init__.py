"""What is trained: per task its criterion, train and eval units, and metrics."""

from __future__ import annotations

import jepa_tok._fairseq2  # noqa: F401  (makes libsndfile loadable before fairseq2 is imported)
