"""Ablations at micro scale: one sweep of the project's own recipes, several seeds, paired comparisons (`__main__.py`)."""
