"""`python -m recipes.lm OUT --config-file recipes/lm/configs/tiny_cpu.yaml --config dataset.config_overrides.shards=[DIR]`"""

from __future__ import annotations

import os

# Before torch is imported: with several OpenMP threads, small CPU runs are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from recipes.common import run_main
from recipes.lm.recipe import LMRecipe

if __name__ == "__main__":
    run_main(LMRecipe())
