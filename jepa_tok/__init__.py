"""jepa-tok: speech in, tokens, speech out.

Names are imported when first used, so that `import jepa_tok` (and `jepa-tok --help`) does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa_tok.audio import load_audio, save_audio
    from jepa_tok.errors import JepaTokError
    from jepa_tok.tokenizer import SpeechTokenizer
    from jepa_tok.tokens import Tokens

__all__ = ["JepaTokError", "SpeechTokenizer", "Tokens", "load_audio", "save_audio"]

_HOMES = {
    "JepaTokError": "jepa_tok.errors",
    "SpeechTokenizer": "jepa_tok.tokenizer",
    "Tokens": "jepa_tok.tokens",
    "load_audio": "jepa_tok.audio",
    "save_audio": "jepa_tok.audio",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("jepa-tok")
    if name not in _HOMES:
        raise AttributeError(f"module 'jepa_tok' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
