"""Entry point of stage 2."""

from __future__ import annotations

from recipes.codec.recipe import CodecRecipe
from recipes.common import run_main

if __name__ == "__main__":
    run_main(CodecRecipe())
