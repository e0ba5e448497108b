"""`torchrun --standalone --nproc-per-node 8 -m recipes.tokenize OUT --config source=manifest.jsonl tokenizer=TOKENIZER`"""

from __future__ import annotations

import sys

from recipes.common import run_main
from recipes.tokenize.recipe import TokenizeRecipe

if __name__ == "__main__":
    recipe = TokenizeRecipe()
    run_main(recipe)
    sys.exit(1 if recipe.skipped else 0)  # as `jepa-tok tokenize` does
