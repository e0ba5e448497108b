"""`python -m recipes.lm.generate OUT --config common.assets.prev_checkpoint_dir=LM/checkpoints tokenizer=TOKENIZER prompts.audio=[a.wav]`"""

from __future__ import annotations

from recipes.common import run_main
from recipes.lm.generate.recipe import LMGenerateRecipe

if __name__ == "__main__":
    run_main(LMGenerateRecipe())
