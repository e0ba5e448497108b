"""Fixtures shared by all tests: quiet, single-threaded, made-up audio."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# One thread: fairseq2's CPU runs are several times faster so, and results do not depend on the machine's core count.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # tasks, recipes, probes and egs are used from the checkout, not from the wheel
    sys.path.insert(0, str(ROOT))

settings.register_profile("untimed", deadline=None)  # no test asserts on time
settings.load_profile("untimed")
