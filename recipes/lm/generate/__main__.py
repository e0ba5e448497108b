"""`python -m recipes.lm.generate OUT --config common.assets.prev_checkpoint_dir=LM/checkpoints tokenizer=TOKENIZER prompts.audio=[a.wav]`"""

from __future__ import annotations

import os

# Before torch is imported: with two OpenMP threads, sampling on a CPU is up to two hundred times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from recipes.common import run_main
from recipes.lm.generate.recipe import LMGenerateRecipe

if __name__ == "__main__":
    run_main(LMGenerateRecipe())
