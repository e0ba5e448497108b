"""The command line `jepa-tok`: encode, decode, resynth, tokenize, export, verify, vocabulary, info, report; a module each, named as the Python verbs.

torch is imported by the verbs when they run, so that `--help` answers at once.
"""

from __future__ import annotations

from jepa_tok.cli.main import main

__all__ = ["main"]
