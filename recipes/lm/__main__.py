"""`python -m recipes.lm OUT --config-file recipes/lm/configs/tiny_cpu.yaml --config dataset.config_overrides.shards=[DIR]`"""

from __future__ import annotations

from recipes.common import run_main
from recipes.lm.recipe import LMRecipe

if __name__ == "__main__":
    run_main(LMRecipe())
