"""How the programs that write a tokenizer's folder end. Imports nothing heavy, so that their --help comes at once."""

from __future__ import annotations

import sys
from collections.abc import Callable

from jepa_tok.errors import JepaTokError


def write_tokenizer(out_dir: str, write: Callable[[], str], remark: str = "") -> int:
    """Exit status of `write`, which makes the folder and returns its tokenizer's hash: 0, or 2 after a user's error told in one line."""
    try:
        hash = write()
    except JepaTokError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    print(f"wrote {out_dir} (tokenizer {hash}{remark})")
    return 0
