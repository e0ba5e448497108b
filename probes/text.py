"""Transcripts: units (characters or sentencepiece), word and character error rates.

V units, without the blank
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from probes.data import ProbeError


class Units(Protocol):
    """Maps normalised text to unit numbers 0..size-1 and back."""

    size: int
    names: list[str]
    """What each unit is written as."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, units: Sequence[int]) -> str: ...


class Characters:
    """The characters of the training transcripts; others are left out of the labels."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.alphabet = sorted(set("".join(texts)))
        self.size = len(self.alphabet)
        self.names = self.alphabet
        self._number = {c: i for i, c in enumerate(self.alphabet)}

    def encode(self, text: str) -> list[int]:
        """Unit numbers of `text`."""
        return [self._number[c] for c in text if c in self._number]

    def decode(self, units: Sequence[int]) -> str:
        """Text of unit numbers, spaces collapsed."""
        return " ".join("".join(self.alphabet[u] for u in units).split())


class SentencePieces:
    """A sentencepiece unigram model of the training transcripts; small corpora get fewer pieces than `size`."""

    def __init__(self, texts: Sequence[str], size: int) -> None:
        import sentencepiece

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                vocab_size=size,
                model_type="unigram",
                character_coverage=1.0,
                hard_vocab_limit=False,
                normalization_rule_name="identity",
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                unk_id=0,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as e:
            reason = " ".join(str(e).split())[-120:]
            raise ProbeError(
                f"The number of sentencepiece units (`spm_size`) must suit the {len(texts)} training transcripts, but sentencepiece refuses {size}: {reason}"
            ) from None
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        self.size = self._model.vocab_size()
        self.names = [self._model.id_to_piece(i) for i in range(self.size)]

    def encode(self, text: str) -> list[int]:
        """Unit numbers of `text`."""
        return [u for u in self._model.encode(text) if u != self._model.unk_id()]

    def decode(self, units: Sequence[int]) -> str:
        """Text of unit numbers, spaces collapsed."""
        return " ".join(self._model.decode([int(u) for u in units if u != self._model.unk_id()]).split())


@dataclass(frozen=True)
class Edits:
    """Edits and length of each utterance: int64 [N] each."""

    words: np.ndarray
    length_words: np.ndarray
    characters: np.ndarray
    length_characters: np.ndarray

    def rates(self) -> dict[str, float]:
        """`wer` and `cer` over all utterances together."""
        return {
            "wer": float(self.words.sum() / self.length_words.sum()),
            "cer": float(self.characters.sum() / self.length_characters.sum()),
        }


def edits(truth: Sequence[str], guess: Sequence[str]) -> Edits:
    """Substitutions, deletions and insertions of words and of characters (jiwer), beside the length of `truth`.

    Both sides are normalised already, and no truth is empty; an empty guess counts as deletions.
    """
    import jiwer

    rows = []
    for t, g in zip(truth, guess, strict=True):
        w, c = jiwer.process_words(t, g), jiwer.process_characters(t, g)
        rows.append(
            [
                x
                for o in (w, c)
                for x in (o.substitutions + o.deletions + o.insertions, o.hits + o.substitutions + o.deletions)
            ]
        )
    return Edits(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def error_rates(truth: Sequence[str], guess: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer` over all utterances together: edits divided by words, or characters, of `truth`."""
    return edits(truth, guess).rates()
