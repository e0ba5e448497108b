"""Speed of encoding beside EnCodec, Mimi, DAC, and the paper's encoder as a naive port runs it.

    python -m benchmarks.encode [--audio CORPUS ...] [--out FILE.json]
    python -m benchmarks.encode --models small small:compile base base:compile --batches 1 --threads 1

See benchmarks/speed.py for how it is measured and docs/speed.md for what came out.
"""

from __future__ import annotations

from benchmarks.common import run_main
from benchmarks.speed import PEERS, main

MODELS = [
    *PEERS,
    "small",
    "base",
    "paper",
    "paper-naive",
    "paper-taps",
    "paper-last",
    "small:bf16",
    "base:bf16",
    "paper:bf16",
]

if __name__ == "__main__":
    run_main(lambda: main("encode", MODELS, __doc__))
