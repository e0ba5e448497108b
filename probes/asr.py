"""What is said? A linear CTC head over the token stream, scored by word and character error rates.

N utterances   T frames   V labels, the blank among them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from probes import ctc, splits
from probes.data import ProbeData, ProbeError, labelled
from probes.inputs import Missing, Source, progress
from probes.results import Outcome, Row
from probes.splits import Split
from probes.text import NORMALISATION, Characters, SentencePieces, Units, error_rates, normalise


def prepare(data: ProbeData, *, column: str) -> ProbeData:
    """The utterances whose transcript has a letter or digit; the others are counted."""
    data = labelled(data, column)
    keep = [i for i, text in enumerate(data.values(column)) if normalise(str(text))]
    out = data.select(keep)
    out.counts.update(used=len(keep), without_words=len(data) - len(keep))
    if len({normalise(str(t)) for t in out.values(column)}) < 2:
        raise ProbeError(f"`{column}` must hold at least 2 different transcripts, but holds fewer.")
    return out


def make_split(data: ProbeData, column: str | None, speaker_column: str, seed: int) -> Split:
    """The column asked for, else `split`; else whole speakers, or utterances where there are fewer than 3, by seed.

    Raises ProbeError where the column is absent or a part of the split is empty.
    """
    name = column or "split"
    speakers = [v or "" for v in data.values(speaker_column)] if data.has(speaker_column) else ["all"] * len(data)
    by_speaker = len(set(speakers)) > 2
    if column and not data.has(column):
        labelled(data, column)  # raises
    if data.has(name):
        values = data.values(name)
        parts = splits.by_column(values, name)
        whole = len({speakers[i] for i in parts["train"]}) > 2  # speakers enough to hold some out for dev
        return splits.from_column(values, name, speakers, seed, groups=whole)
    rows = np.arange(len(data))
    if not by_speaker and len(rows) < 10:
        raise ProbeError(f"A split drawn by seed needs at least 10 utterances, but there are {len(rows)}.")
    rest, test = splits.carve(rows, speakers, seed, 0.2, groups=by_speaker)
    groups = len({speakers[i] for i in rest}) > 1 and by_speaker
    train, dev = splits.carve(rest, speakers, seed + 1, splits.DEV_SHARE, groups=groups)
    return Split(train, dev, test, f"{'whole speakers' if by_speaker else 'utterances'}, by seed")


def shuffled(texts: Sequence[str], data: ProbeData, split: Split, seed: int) -> list[str]:
    """Transcripts of train and of dev permuted among clips of like length, so that labels still fit; test keeps its own."""
    out = list(texts)
    for rows in (split.train, split.dev):
        order = sorted(rows, key=lambda i: data.num_samples[int(i)])
        blocks = np.array_split(np.array(order, dtype=np.int64), max(1, len(order) // 16))
        out = splits.permuted(out, blocks, seed)
    return out


def run(
    data: ProbeData,
    inputs: Sequence[Source | Missing],
    seeds: Sequence[int],
    *,
    column: str,
    speaker_column: str,
    split_column: str | None,
    units: str,
    spm_size: int,
    context: int,
    epochs: int,
    device: str,
) -> Outcome:
    """Trains and scores every input for every seed; `data` comes from `prepare`.

    For each input the grid is tried with the first seed and its best pair used for all seeds; shuffled labels get the pair
    of the tokens. Raises ProbeError where
    labels or splits do not allow it.
    """
    texts = [normalise(str(v)) for v in data.values(column)]
    plans = [(seed, make_split(data, split_column, speaker_column, seed)) for seed in seeds]
    settings: dict[str, Any] = {
        "label_column": column,
        "normalisation": NORMALISATION,
        "units": units,
        "positions_per_second": data.meta.frame_rate * data.meta.num_groups,
        "context_frames": context,
        "epochs": epochs,
        "grid_lr_weight_decay": [list(pair) for pair in ctc.GRID],
        "decoding": "greedy, no language model",
    }
    rows: list[Row] = []
    examples: list[dict[str, str]] = []
    chosen: dict[str, tuple[float, float]] = {}
    unfit = 0
    jobs = [(source, source.name) for source in inputs]
    for source, name in [*jobs, (inputs[0], "shuffled")]:
        if isinstance(source, Missing):
            rows.append(Row(name, note=source.reason, available=False))
            continue
        row = Row(name, note=source.note)
        if name == "shuffled":
            row.note = (
                "tokens with transcripts permuted within train and dev, among clips of like length; true ones in test"
            )
        elif name == "logmel":
            row.note = "20 ms log-mels of the same frames through the same head"
        pair = None
        for seed, split in progress(plans, f"asr, {name}"):
            own = shuffled(texts, data, split, seed) if name == "shuffled" else texts
            known = _units(units, [own[i] for i in split.train], spm_size)
            frames, expand = source.frames(seed)
            clips = ctc.Clips(frames, expand, [[u + 1 for u in known.encode(t)] for t in own], data.meta.num_groups)
            _check_fit(clips, split)
            if name == "tokens" and seed == seeds[0]:
                unfit = sum(not clips.fits(int(i)) for i in split.train)
                settings["labels"] = known.size + 1
            options = {"size": known.size + 1, "context": context, "epochs": epochs, "seed": seed, "device": device}
            if name == "shuffled":
                pair = chosen["tokens"]
            if pair is None:
                pair, head = _tune(clips, split, own, known, options)
            else:
                head, _ = ctc.train(clips, split.train, split.dev, lr=pair[0], decay=pair[1], **options)
            chosen[name] = pair
            guess = [known.decode([u - 1 for u in path]) for path in ctc.transcribe(head, clips, split.test, device)]
            for metric, value in error_rates([texts[i] for i in split.test], guess).items():
                row.metrics.setdefault(metric, []).append(value)
            if name == "tokens" and seed == seeds[0]:
                examples = [{"id": data.ids[i], "truth": texts[i], "guess": g} for i, g in zip(split.test[:5], guess)]
        rows.append(row)
    settings["chosen"] = {name: list(pair) for name, pair in chosen.items()}
    settings["examples"] = examples
    rows += _baselines(texts, plans)
    return Outcome(
        task="asr",
        rows=rows,
        better={"wer": "lower", "cer": "lower"},
        splits=_describe(data, texts, plans[0][1], speaker_column),
        settings=settings,
        notes=_notes(texts, plans[0][1], unfit),
    )


def _units(kind: str, texts: Sequence[str], size: int) -> Units:
    return Characters(texts) if kind == "char" else SentencePieces(texts, size)


def _check_fit(clips: ctc.Clips, split: Split) -> None:
    for name in ("train", "dev"):
        part = getattr(split, name)
        if not any(clips.fits(int(i)) for i in part):
            raise ProbeError(
                f"No transcript of the {name} part fits its clip ({clips.slots} labels a frame at most); do text and audio belong together?"
            )


def _tune(
    clips: ctc.Clips, split: Split, texts: Sequence[str], units: Units, options: dict[str, Any]
) -> tuple[tuple[float, float], ctc.SlotHead]:
    """The pair of the grid with the least character error rate on dev (the least loss, where those are equal)."""
    found = []
    for lr, decay in ctc.GRID:
        head, loss = ctc.train(clips, split.train, split.dev, lr=lr, decay=decay, **options)
        paths = ctc.transcribe(head, clips, split.dev, options["device"])
        rates = error_rates([texts[i] for i in split.dev], [units.decode([u - 1 for u in p]) for p in paths])
        found.append(((rates["cer"], loss), (lr, decay), head))
    _, pair, head = min(found, key=lambda f: f[0])
    return pair, head


def _baselines(texts: Sequence[str], plans: Sequence[tuple[int, Split]]) -> list[Row]:
    chance = Row("chance", note="a transcript drawn from the training part for each clip")
    majority = Row(
        "majority", note="always the training part's most frequent transcript; saying nothing at all scores 1.000"
    )
    for seed, split in plans:
        rng = np.random.default_rng([seed, 7])
        truth = [texts[i] for i in split.test]
        drawn = [texts[int(i)] for i in rng.choice(split.train, len(truth))]
        most = Counter(texts[i] for i in split.train).most_common(1)[0][0]
        for row, guess in ((chance, drawn), (majority, [most] * len(truth))):
            for metric, value in error_rates(truth, guess).items():
                row.metrics.setdefault(metric, []).append(value)
    return [chance, majority]


def _describe(data: ProbeData, texts: Sequence[str], split: Split, speaker_column: str) -> dict[str, Any]:
    sizes = ", ".join(f"{len(getattr(split, name))} {name}" for name in ("train", "dev", "test"))
    words = sum(len(texts[i].split()) for i in split.test)
    out: dict[str, Any] = {
        "parts": f"{split.origin}: {sizes} utterances; {words} words in test",
        "ignored": split.ignored,
    }
    if data.has(speaker_column):
        speakers = data.values(speaker_column)
        both = {speakers[i] for i in split.train} & {speakers[i] for i in split.test}
        out["speakers_in_train_and_test"] = len(both)
    return out


def _notes(texts: Sequence[str], split: Split, unfit: int) -> list[str]:
    known = {texts[i] for i in split.train}
    seen = sum(texts[i] in known for i in split.test)
    notes = [f"text: {NORMALISATION}; greedy decoding without a language model"]
    if seen:
        notes.append(f"{seen} of {len(split.test)} test transcripts also occur in train: the error rates flatter")
    if unfit:
        notes.append(
            f"{unfit} of {len(split.train)} training clips are too short for their transcripts and were not trained on"
        )
    return notes
