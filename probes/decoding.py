"""From log-probabilities to text: greedily, or by beam search with an n-gram language model where one is given.

Beam search is torchaudio's over flashlight-text (Kahn et al., ICML 2022), which adds up the paths of a text. N-grams are ARPA files,
read by KenLM: over words, which confines the search to their words, or over the units themselves (characters, a space written
as `|`, or sentencepiece's pieces), which does not.

    P positions   V labels, the blank first
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.ctc import collapse
from probes.data import ProbeError
from probes.text import Units

if TYPE_CHECKING:
    from torch import Tensor

WIDTHS = (8, 32)
LM_WEIGHTS = (0.5, 1.0, 2.0)

_BLANK, _SILENCE, _SPACE = "<blank>", "<silence>", "|"
_OUTSIDE = ("<s>", "</s>", "<unk>")
_NEVER = -1e4

Decoder = Callable[["Tensor"], str]
"""Log-probabilities [P, V] -> text."""


@dataclass(frozen=True)
class Search:
    """What is tuned on dev; a width of 0 is greedy."""

    width: int = 0
    lm_weight: float = 0.0


def searches(kind: str, lm: str | None) -> list[Search]:
    """What is tried for `greedy` or `beam`."""
    if kind == "greedy":
        return [Search()]
    return [Search(width, weight) for width in WIDTHS for weight in (LM_WEIGHTS if lm else (0.0,))]


def check(kind: str, lm: str | None) -> None:
    """Raises ProbeError where packages or the file of the language model are missing."""
    if lm and kind != "beam":
        raise ProbeError("A language model (`lm`) must go with the decoder `beam`, but the decoder is greedy.")
    if lm and not Path(lm).is_file():
        raise ProbeError(f"The language model (`lm`) must be an ARPA file, but there is no file '{lm}'.")
    if kind == "beam":
        _packages(lm)


def _packages(lm: str | None) -> Any:
    import importlib.util

    for name, package in (("torchaudio", "torchaudio"), ("flashlight", "flashlight-text"), ("kenlm", "kenlm")):
        if importlib.util.find_spec(name) is None and (lm or name != "kenlm"):
            raise ProbeError(
                f"The decoder `beam` needs the package `{package}`, which is not installed: pip install {package} (`jepa-tok[lm]` has all three)."
            )
    from torchaudio.models.decoder import ctc_decoder

    return ctc_decoder


def make_decoder(units: Units, search: Search, lm: str | None = None) -> Decoder:
    """Raises ProbeError where `lm` breaks the format, or none of its words can be spelled in `units`."""
    if not search.width:
        return lambda log_probs: units.decode([u - 1 for u in collapse(log_probs.argmax(-1).tolist())])
    return _beam(units, search, lm)


def _beam(units: Units, search: Search, lm: str | None) -> Decoder:
    import torch

    names = [_SPACE if name == " " else name for name in units.names]
    silence = _SPACE if _SPACE in names else _SILENCE
    lexicon = None
    if lm:
        words = _vocabulary(lm)
        if not set(words) <= set(names):
            lexicon = _spell(words, units, names)
            if not lexicon:
                raise ProbeError(
                    f"The language model (`lm`) must be of words that the units can spell, but '{lm}' has none such."
                )
    if lexicon is None:
        silence = _SILENCE  # a label that never occurs: the free search puts one at both ends
    tokens = [_BLANK, *names, *([silence] if silence not in names else [])]
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as file:
        if lexicon is None:
            # Without this list torchaudio (2.9) numbers units by the order of a hash map, and scores one unit for another.
            file.writelines(f"{token}\n" for token in tokens)
        else:
            file.writelines(f"{word} {' '.join(spelling)}\n" for word, spelling in lexicon.items())
        file.flush()
        try:
            decoder = _packages(lm)(
                lexicon=file.name if lexicon else None,
                lm_dict=file.name if lm and not lexicon else None,
                tokens=tokens,
                lm=lm,
                blank_token=_BLANK,
                sil_token=silence,
                log_add=True,
                beam_size=search.width,
                beam_size_token=len(tokens),
                beam_threshold=math.inf,
                lm_weight=search.lm_weight,
            )
        except RuntimeError as e:
            reason = str(e).split("threw")[-1]
            raise ProbeError(
                f"The language model (`lm`) must be an ARPA file of 2-grams or more, but KenLM refuses '{lm}': {' '.join(reason.split())}"
            ) from None

    def decode(log_probs: Tensor) -> str:
        missing = len(tokens) - log_probs.shape[1]
        padded = torch.nn.functional.pad(log_probs.float(), (0, missing), value=_NEVER)
        found = decoder(padded[None].contiguous())[0]
        if not found:
            return ""
        if lexicon is not None:
            return " ".join(found[0].words).lower()
        return units.decode([u - 1 for u in found[0].tokens.tolist() if 0 < u <= len(names)])

    return decode


def _vocabulary(lm: str) -> list[str]:
    """The 1-grams of an ARPA file but for those that stand for no word."""
    out, inside = [], False
    try:
        with open(lm, encoding="utf-8") as file:
            for line in file:
                line = line.rstrip("\n")
                if line.startswith("\\"):
                    if inside:
                        break
                    inside = line == "\\1-grams:"
                elif inside and line:
                    out.append(line.split("\t")[1])
    except (IndexError, UnicodeDecodeError):
        out = []
    if not out:
        raise ProbeError(
            f"The language model (`lm`) must be an ARPA file with 1-grams (probability, tab, word), but '{lm}' is not."
        )
    return [word for word in out if word not in _OUTSIDE]


def _spell(words: Sequence[str], units: Units, names: Sequence[str]) -> dict[str, list[str]]:
    """Each word's spelling, a space behind it where spaces are units; words that other units spell are left out."""
    out = {}
    for word in words:
        spelling = units.encode(word.lower())
        if spelling and units.decode(spelling) == word.lower():
            out[word] = [names[u] for u in spelling] + [_SPACE] * (_SPACE in names)
    return out
