"""Fixtures shared by all tests: quiet, single-threaded, made-up audio."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# One thread: fairseq2's CPU runs are several times faster so, and results do not depend on the machine's core count.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # tasks, recipes, probes and egs are used from the checkout, not from the wheel
    sys.path.insert(0, str(ROOT))

settings.register_profile("untimed", deadline=None)  # no test asserts on time
settings.load_profile("untimed")


@pytest.fixture(scope="module")
def tiny():
    """An untrained `tiny` tokenizer."""
    from jepa_tok import SpeechTokenizer

    return SpeechTokenizer.from_config("tiny")


@pytest.fixture(scope="module")
def thin():
    """An untrained tokenizer in the published layout: see `paper_layout`."""
    from jepa_tok import SpeechTokenizer
    from tests.tokenizers import paper_layout

    return SpeechTokenizer.from_config(paper_layout())
