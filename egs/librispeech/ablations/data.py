"""The sweep's data: short pieces of the corpus at 24 kHz, so that a cell of half a minute does not decode and resample for as long.

    OUT/data/{train,both,fit,valid,sounds_fit,sounds_valid}.jsonl   OUT/data/wav/*.wav

`train` and `valid` share no reader. Validation readers are all of the split `dev` and, since few readers make weak tests, those of `train`
that have an utterance of two pieces and the least audio in all: they cost the training least. Each gives two pieces of one utterance.
`fit` are training pieces, as many as validation has, that readers of z are fitted on; `both` adds the training sounds to `train`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_tok.audio import SAMPLE_RATE, save_audio
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import Utterance, read_corpus
from jepa_tok.errors import CorpusError
from jepa_tok.files import write_text

SECONDS = 3.2
"""Length of a piece: eight frames of 400 ms."""

SHORTEST = 1.6
"""Shorter utterances are left out."""

SOUND_COPIES = 3
"""Times that each sound stands in `both`, so that a quarter or so of what is heard are sounds."""


@dataclass(frozen=True)
class DataSettings:
    """What the pieces are made of; a sweep keeps to one."""

    manifest: str
    sounds: str | None = None
    """Corpus of labelled sounds with the splits `train` and `dev`; None: without the group of sounds."""

    valid_readers: int = 40
    utterances: int = 6
    """Most training utterances of a reader."""

    train_readers: int | None = None
    """Most training readers, in the manifest's order; None: all."""


def speaker_of(u: Utterance) -> str:
    """The reader's name in the manifest; CorpusError where it has none."""
    speaker = u.info.get("speaker")
    if not isinstance(speaker, str):
        raise CorpusError(
            f"utterance {u.id} must have a `speaker`, but has none; the sweep keeps validation readers apart."
        )
    return speaker


def seconds_of(u: Utterance) -> float:
    """Length by the manifest; CorpusError where it does not tell."""
    seconds = u.info.get("duration_s")
    if not isinstance(seconds, (int, float)):
        raise CorpusError(f"utterance {u.id} must have a `duration_s`, but has none.")
    return float(seconds)


def choose_readers(rows: Iterable[Utterance], count: int) -> list[str]:
    """Validation readers: those of the split `dev` that can give two pieces, then training readers with the least audio, `count` in all."""
    total: dict[str, float] = defaultdict(float)
    able: dict[str, str] = {}
    for u in rows:
        total[speaker_of(u)] += seconds_of(u)
        if seconds_of(u) >= 2 * SECONDS:
            able.setdefault(speaker_of(u), str(u.info.get("split")))
    first = [s for s, split in able.items() if split == "dev"]
    rest = sorted((s for s, split in able.items() if split == "train"), key=lambda s: (total[s], s))
    chosen = (first + rest)[:count]
    if len(chosen) < count:
        raise CorpusError(f"the sweep needs {count} readers with an utterance of {2 * SECONDS:g} s for validation, but the manifest has {len(chosen)}.")  # fmt: skip
    return chosen


def prepare(settings: DataSettings, out: Path) -> None:
    """Makes OUT/data where it is not there yet; CorpusError where the corpora cannot give it."""
    folder = out / "data"
    if (folder / "data.json").exists():
        return
    rows = [u for split in ("dev", "train") for u in read_corpus(settings.manifest, split=split)]
    valid = choose_readers(rows, settings.valid_readers)
    by_reader: dict[str, list[Utterance]] = defaultdict(list)
    for u in rows:
        if speaker_of(u) in valid or u.info.get("split") == "train":
            by_reader[speaker_of(u)].append(u)
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    held: list[dict[str, Any]] = []
    for speaker in valid:
        u = next(u for u in by_reader[speaker] if seconds_of(u) >= 2 * SECONDS)
        held += cut(u, folder, 2, speaker=speaker)
    readers = [s for s in by_reader if s not in valid][: settings.train_readers]
    train: list[dict[str, Any]] = []
    for speaker in readers:
        for u in [u for u in by_reader[speaker] if seconds_of(u) >= SHORTEST][: settings.utterances]:
            train += cut(u, folder, 3, speaker=speaker)
    whole = [row for row in train if row["duration_s"] >= SECONDS]
    if len(whole) < len(held):
        raise CorpusError(
            f"the sweep needs at least {len(held)} training pieces of {SECONDS:g} s, but has {len(whole)}."
        )
    picks = np.random.default_rng(0).permutation(len(whole))[: len(held)]
    found = {"train": train, "valid": held, "fit": [whole[int(i)] for i in sorted(picks)]}
    if settings.sounds is not None:
        for split, name in (("train", "sounds_fit"), ("dev", "sounds_valid")):
            found[name] = [
                row
                for u in read_corpus(settings.sounds, split=split)
                for row in cut(u, folder, 1, label=u.info.get("label"))
            ]
        copies = [{**row, "id": f"{row['id']}-{i}"} for row in found["sounds_fit"] for i in range(SOUND_COPIES)]
        found["both"] = train + copies
    for name, pieces in found.items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in pieces))
    counts = {name: {"pieces": len(p), "minutes": sum(r["duration_s"] for r in p) / 60} for name, p in found.items()}
    counts["train"]["readers"], counts["valid"]["readers"] = len(readers), len(valid)
    write_text(folder / "data.json", json.dumps(counts, indent=2) + "\n")  # last: what says that all is there


def cut(u: Utterance, folder: Path, most: int, **info: Any) -> list[dict[str, Any]]:
    """Up to `most` pieces of an utterance, written as wav files; a shorter utterance is one piece. Rows of a manifest."""
    wave = load_utterance(u, SAMPLE_RATE)
    size = round(SECONDS * SAMPLE_RATE)
    rows = []
    for i in range(max(1, min(most, len(wave) // size))):
        piece = wave[i * size : (i + 1) * size]
        name = f"{u.id}.{i}".replace("/", "_")
        save_audio(folder / "wav" / f"{name}.wav", piece)
        rows.append({"id": name, "path": f"wav/{name}.wav", "duration_s": len(piece) / SAMPLE_RATE, **info})
    return rows
