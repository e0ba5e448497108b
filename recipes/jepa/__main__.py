"""Entry point of stage 1."""

from __future__ import annotations

from recipes.common import run_main
from recipes.jepa.recipe import JepaRecipe

if __name__ == "__main__":
    run_main(JepaRecipe())
