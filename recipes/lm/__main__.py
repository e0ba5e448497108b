"""`python -m recipes.lm OUT --config-file recipes/lm/configs/tiny_cpu.yaml --config dataset.config_overrides.shards=[DIR]`"""

from __future__ import annotations

from fairseq2.recipe.cli import main

from recipes.lm.recipe import LMRecipe

main(LMRecipe())
