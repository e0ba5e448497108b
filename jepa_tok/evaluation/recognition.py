"""Word errors of a speech recogniser on the resynthesis: what can still be understood, by a listener that has no context to guess from.

`wer` counts against what was said (the corpus's `text`), `dwer` against what the same recogniser hears in the original, so that
its own errors cancel (the "differential" WER of codec papers). Both are pooled: errors of all utterances over words of all.

A recogniser is `pocketsphinx` (rough: a GMM of 2015 that errs on some 40 % of the words of read audiobooks; it carries its
US-English model and needs no network), the name of an entry point in the group `jepa_tok.recognizers`, or `module:function`: a
function that takes samples (float32 [S] at 16 kHz in [-1, 1]) and their rate, and gives the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from jepa_tok.errors import ConfigError
from jepa_tok.evaluation.clip import Clip
from jepa_tok.evaluation.metrics import Column, Metric, Scores
from jepa_tok.transcripts import normalise

Recognizer = Callable[[np.ndarray, int], str]

RATE = 16_000
GROUP = "jepa_tok.recognizers"
ROUGH = "pocketsphinx"


class Wer(Metric):
    """Word error rate and differential word error rate."""

    name = "wer"
    columns: ClassVar = {"wer": Column("WER", "lower"), "dwer": Column("dWER", "lower")}
    packages = ("jiwer",)
    install = "pip install jiwer"

    def __init__(self, recognizer: str = ROUGH) -> None:
        import jiwer

        self._process = jiwer.process_words
        self._recognizer = load_recognizer(recognizer)
        self._prefix = re.sub(r"\W+", "_", recognizer)

    def score(self, original: Clip, output: Clip) -> Scores:
        heard = self._hear(output)
        scores = Scores(details={f"{self._prefix}_hyp_text": heard})
        if not original.text:
            scores.failures["wer"] = "the corpus has no `text` for it"
        else:
            self._count(scores, "wer", normalise(original.text), heard)
            scores.details["ref_text"] = normalise(original.text)
        self._count(scores, "dwer", self._hear(original), heard)
        return scores

    def _hear(self, clip: Clip) -> str:
        return clip.once("heard", lambda c: normalise(self._recognizer(c.at(RATE), RATE)))

    def _count(self, scores: Scores, key: str, reference: str, heard: str) -> None:
        if not reference:
            scores.failures[key] = "no word in the reference"
            return
        found = self._process(reference, heard)
        size = len(reference.split())
        scores.values[key] = (found.substitutions + found.deletions + found.insertions) / size
        scores.weights[key] = size
        counts = {
            "delete": found.deletions,
            "insert": found.insertions,
            "replace": found.substitutions,
            "equal": found.hits,
        }
        scores.details |= {f"{self._prefix}_{key}_{kind}": count for kind, count in counts.items()}


def load_recognizer(name: str) -> Recognizer:
    """The recogniser of that name; raises ConfigError where there is none such, ImportError where its package is missing."""
    if name == ROUGH:
        return _pocketsphinx()
    named = metadata.entry_points(group=GROUP, name=name)
    try:
        if named:
            found: Any = next(iter(named)).load()
        else:
            module, _, function = name.partition(":")
            if not function:
                raise ConfigError(
                    f"`recognizer` must be {ROUGH}, an entry point of {GROUP} or module:function, but is '{name}' instead."
                )
            found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"recognizer '{name}' cannot be loaded: {error}.") from None
    if not callable(found):
        raise ConfigError(f"recognizer '{name}' must be a function of samples and rate, but is {found!r} instead.")
    return found


def _pocketsphinx() -> Recognizer:
    if not find_spec("pocketsphinx"):
        raise ImportError("pip install pocketsphinx, or name another recogniser with --recognizer")
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def recognize(samples: np.ndarray, sample_rate: int) -> str:
        pcm = (samples * 32767.0).round().astype("<i2").tobytes()
        decoder.reinit_feat()  # its estimate of the noise goes on from clip to clip else
        decoder.start_utt()
        decoder.process_raw(pcm, no_search=False, full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return recognize
