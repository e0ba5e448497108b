"""Stage 1: joint-embedding prediction of masked frames, with or without the mel anchor."""

from __future__ import annotations
