"""How transcripts are compared, wherever words are counted: evaluation and probes."""

from __future__ import annotations

import re
import unicodedata

NORMALISATION = "NFKC, lower case, letters, digits and apostrophes kept, all else a space, spaces collapsed"


def normalise(text: str) -> str:
    """`text` as NORMALISATION says; both sides of every comparison pass through here."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    kept = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return re.sub(r"\s+", " ", kept).strip()
