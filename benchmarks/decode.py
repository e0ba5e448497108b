"""Speed of decoding beside EnCodec, Mimi, DAC, and the paper's generator as a naive port runs it.

    python -m benchmarks.decode [--audio CORPUS ...] [--out FILE.json]

See benchmarks/speed.py for how it is measured and docs/speed.md for what came out.
"""

from __future__ import annotations

from benchmarks.common import run_main
from benchmarks.speed import PEERS, main

MODELS = [*PEERS, "small", "base", "paper", "paper-naive", "small:bf16", "base:bf16", "paper:bf16"]

if __name__ == "__main__":
    run_main(lambda: main("decode", MODELS, __doc__))
