"""Runnable recipes, one folder per corpus; thin over `recipes` and `probes`."""
