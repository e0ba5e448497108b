"""Who speaks the mini corpus and how: voices, styles, and the plan of which utterance says what.

A "speaker" is an espeak-ng accent, a voice variant and a base pitch; no two share a variant. An "emotion" is a speaking
style: a setting of rate, pitch, range and volume, with a little seeded jitter. Both only stand in for the real thing.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SPLITS = ("train", "dev", "test")
SAMPLE_RATE = 22_050
"""Samples per second that espeak-ng gives."""


@dataclass(frozen=True)
class Voice:
    """One speaker: espeak-ng voice name (accent+variant), gender, base pitch (0..100), split."""

    speaker: str
    name: str
    gender: str
    pitch: int
    split: str


VOICES = (
    Voice("mini-01", "en-us+m1", "M", 45, "train"),
    Voice("mini-02", "en-gb-x-rp+m3", "M", 52, "train"),
    Voice("mini-03", "en-us+f1", "F", 50, "train"),
    Voice("mini-04", "en-gb-scotland+m7", "M", 40, "train"),
    Voice("mini-05", "en+f2", "F", 56, "train"),
    Voice("mini-06", "en-us+f4", "F", 46, "train"),
    Voice("mini-07", "en-029+m2", "M", 48, "train"),
    Voice("mini-08", "en-gb-x-gbclan+f3", "F", 60, "train"),
    Voice("mini-09", "en-us+m5", "M", 38, "train"),
    Voice("mini-10", "en-gb-x-gbcwmd+m6", "M", 55, "train"),
    Voice("mini-11", "en-us-nyc+f5", "F", 44, "train"),
    Voice("mini-12", "en+m4", "M", 42, "train"),
    Voice("mini-13", "en-us+Andy", "M", 47, "dev"),
    Voice("mini-14", "en-gb-scotland+Annie", "F", 53, "dev"),
    Voice("mini-15", "en-us+Michael", "M", 43, "dev"),
    Voice("mini-16", "en+Alicia", "F", 48, "dev"),
    Voice("mini-17", "en-us+adam", "M", 50, "test"),
    Voice("mini-18", "en-gb-x-rp+linda", "F", 49, "test"),
    Voice("mini-19", "en+steph", "F", 54, "test"),
    Voice("mini-20", "en-us+edward", "M", 45, "test"),
)


@dataclass(frozen=True)
class Style:
    """One speaking style: words per minute, pitch shift, pitch range (0..100), volume (100 is espeak-ng's normal)."""

    name: str
    rate: int
    pitch: int
    range: int
    volume: int


STYLES = (
    Style("calm", 165, 0, 40, 60),
    Style("excited", 200, 14, 85, 75),
    Style("sad", 130, -10, 15, 45),
)


@dataclass(frozen=True)
class Plan:
    """One utterance to be spoken: who, what, how; `split_utt` splits within the speaker, by sentence."""

    id: str
    voice: Voice
    style: Style
    sentence: str
    split_utt: str
    rate: int
    pitch: int
    range: int
    volume: int

    @property
    def text(self) -> str:
        """Transcript: upper case, no punctuation."""
        return normalise(self.sentence)


def normalise(sentence: str) -> str:
    """Upper case, letters and apostrophes only, single spaces: the transcript form of the manifests."""
    return " ".join(re.sub(r"[^A-Z' ]+", " ", sentence.upper()).split())


def read_sentences(path: Path | None = None) -> dict[str, list[str]]:
    """Sentences of each split from `sentences.txt`."""
    sentences: dict[str, list[str]] = {split: [] for split in SPLITS}
    split = ""
    for line in (path or Path(__file__).with_name("sentences.txt")).read_text("utf-8").splitlines():
        line = line.strip()
        if line.startswith("["):
            split = line.strip("[]")
        elif line and not line.startswith("#"):
            sentences[split].append(line)
    return sentences


def make_plan(seed: int = 0, sentences_per_speaker: int = 8, voices: tuple[Voice, ...] = VOICES) -> list[Plan]:
    """What is spoken: every speaker says `sentences_per_speaker` sentences of their split in each of the styles.

    `split_utt` holds out some of a speaker's sentences, in all styles: closed-set speaker identification then never hears
    a speaker say the same words in training and test.
    """
    rng = random.Random(seed)
    sentences = read_sentences()
    uses: Counter[tuple[str, int]] = Counter()
    plan = []
    for voice in voices:
        pool = sentences[voice.split]
        # The least used first, ties by lot: every sentence is used about equally often, none twice by one speaker.
        order = sorted(range(len(pool)), key=lambda i: (uses[voice.split, i], rng.random()))
        chosen = order[:sentences_per_speaker]
        rng.shuffle(chosen)
        for rank, index in enumerate(chosen):
            uses[voice.split, index] += 1
            for style in STYLES:
                plan.append(
                    Plan(
                        id=f"{voice.speaker}-{voice.split}{index:02d}-{style.name}",
                        voice=voice,
                        style=style,
                        sentence=pool[index],
                        split_utt=_split_within(rank, len(chosen)),
                        rate=style.rate + rng.randint(-12, 12),
                        pitch=voice.pitch + style.pitch + rng.randint(-4, 4),
                        range=style.range + rng.randint(-8, 8),
                        volume=style.volume + rng.randint(-5, 5),
                    )
                )
    return plan


def _split_within(rank: int, count: int) -> str:
    """Part of a speaker's sentence number `rank` of `count`: the last quarter is test, the one before it dev."""
    test = max(1, count // 4)
    if rank >= count - test and count > 1:
        return "test"
    return "dev" if rank == count - test - 1 and count > 3 else "train"
