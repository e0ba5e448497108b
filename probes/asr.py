"""What is said? A CTC head over the token stream, scored by word and character error rates, and by nats a character: minus the
logarithm of the probability that the head gives to the true text. It tells heads apart whose best guess is silence or a few letters.

N utterances   T frames   V labels, the blank among them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from jepa_tok.transcripts import NORMALISATION, normalise
from probes import ctc, decoding, intervals, splits
from probes.data import ProbeData, ProbeError, labelled
from probes.decoding import Search
from probes.inputs import Missing, Source, each, progress
from probes.options import Count, DecoderKind, File, HeadKind, Natural, UnitKind
from probes.recordings import recordings
from probes.results import Outcome, Row
from probes.splits import Split
from probes.text import Characters, SentencePieces, Units, edits, error_rates
from probes.verdicts import few_tested

Choice = tuple[float, float, Search]
"""Learning rate, weight decay and search that did best on dev."""


SHUFFLED = (
    "the first input with transcripts permuted within train and dev, among clips of like length; true ones in test"
)


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


def plan(
    data: ProbeData,
    seeds: Sequence[int],
    *,
    column: str,
    speaker_column: str,
    split_column: str | None,
    units: UnitKind,
    spm_size: int,
    decoder: DecoderKind,
    lm: str | None,
) -> list[tuple[int, Split]]:
    """Each seed's split. It takes labels alone; `data` comes from `prepare`.

    Raises ProbeError where a split, the units of its training part, or the search with them cannot be made.
    """
    decoding.check(decoder, lm)
    plans = [(seed, make_split(data, split_column, speaker_column, seed)) for seed in seeds]
    recorded = recordings(data)
    texts = [normalise(str(v)) for v in data.values(column)]
    tried: set[bytes] = set()
    for _, split in plans:
        splits.check_parts(split, recorded)
        if split.train.tobytes() not in tried:  # seeds may share their training part
            known = _units(units, tuple(texts[i] for i in split.train), spm_size)
            if not tried:
                decoding.make_decoder(known, decoding.searches(decoder, lm)[0], lm)
            tried.add(split.train.tobytes())
    return plans


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
    speaker_column: str = "speaker",
    split_column: str | None = None,
    units: UnitKind = "char",
    spm_size: Count = 128,
    head: HeadKind = "linear",
    decoder: DecoderKind = "greedy",
    lm: File | None = None,
    context: Natural | None = None,
    epochs: Count | None = None,
    device: str = "cpu",
) -> Outcome:
    """Trains and scores every input for every seed; `data` comes from `prepare`.

    For each input the grids are tried with the first seed and their best used for all seeds; shuffled labels get the choice
    of the first input. `context` is `ctc.default_context` unless told otherwise. Raises ProbeError as `plan` does, and where no text
    of a part fits its clip.
    """
    plans = plan(
        data,
        seeds,
        column=column,
        speaker_column=speaker_column,
        split_column=split_column,
        units=units,
        spm_size=spm_size,
        decoder=decoder,
        lm=lm,
    )
    texts = [normalise(str(v)) for v in data.values(column)]
    owners, by = splits.owners(data, speaker_column if data.has(speaker_column) else None)
    settings: dict[str, Any] = {
        "label_column": column,
        "normalisation": NORMALISATION,
        "units": units,
        "head": head,
        "positions_per_second": data.meta.frame_rate * data.meta.num_groups,
        "epochs": epochs or ctc.EPOCHS,
        "least_updates": None if epochs else ctc.LEAST_UPDATES,
        "most_updates": ctc.MOST_UPDATES,
        "grid_lr_weight_decay": [list(pair) for pair in ctc.GRIDS[head]],
        "decoding": decoder if decoder == "greedy" else f"beam search, language model: {lm or 'none'}",
    }

    def score(row: Row, split: Split, guess: Sequence[str]) -> None:
        own = edits([texts[i] for i in split.test], guess)
        names = [owners[i] for i in split.test]
        row.add(
            wer=intervals.ratio(names, own.words, own.length_words, by),
            cer=intervals.ratio(names, own.characters, own.length_characters, by),
        )

    rows: list[Row] = []
    examples: list[dict[str, str]] = []
    chosen: dict[str, Choice] = {}
    unfit = 0
    first = inputs[0].name
    for source, row, shuffle in each(inputs, rows, SHUFFLED):
        choice = chosen[first] if shuffle else None
        for seed, split in progress(plans, f"asr, {row.input}"):
            own = shuffled(texts, data, split, seed) if shuffle else texts
            known = _units(units, tuple(own[i] for i in split.train), spm_size)
            frames, expand = source.frames(seed)
            labels = [[u + 1 for u in known.encode(t)] for t in own]
            clips = ctc.Clips(frames, expand, labels, data.meta.num_groups, data.meta.frame_rate)
            _check_fit(clips, split)
            options = {
                "kind": head,
                "size": known.size + 1,
                "context": ctc.default_context(clips) if context is None else context,
                "epochs": epochs,
                "seed": seed,
                "device": device,
            }
            if choice is None:
                choice, model = _tune(clips, split, own, known, decoding.searches(decoder, lm), lm, options)
            else:
                model, _ = ctc.train(clips, split.train, split.dev, lr=choice[0], decay=choice[1], **options)
            chosen[row.input] = choice
            decode = decoding.make_decoder(known, choice[2], lm)
            found = ctc.emissions(model, clips, split.test, device)
            guess = [decode(x) for x in found]
            score(row, split, guess)
            fit = [(int(i), x) for i, x in zip(split.test, found) if clips.fits(int(i))]
            lost = ctc.nats([x for _, x in fit], [labels[i] for i, _ in fit])
            row.add(nats=intervals.ratio([owners[i] for i, _ in fit], lost, [len(texts[i]) for i, _ in fit], by))
            if row.input == first and seed == seeds[0]:
                unfit = sum(not clips.fits(int(i)) for i in split.train)
                settings.update(labels=known.size + 1, context_frames=options["context"])
                examples = [{"id": data.ids[i], "truth": texts[i], "guess": g} for i, g in zip(split.test[:5], guess)]
    settings["chosen"] = {
        name: {"lr": lr, "weight_decay": decay, "beam": search.width, "lm_weight": search.lm_weight}
        for name, (lr, decay, search) in chosen.items()
    }
    settings["examples"] = examples
    chance = Row("chance", note="a transcript drawn from the training part for each clip")
    majority = Row(
        "majority", note="always the training part's most frequent transcript; saying nothing at all scores 1.000"
    )
    for seed, split in plans:
        drawn = np.random.default_rng([seed, 7]).choice(split.train, len(split.test))
        score(chance, split, [texts[int(i)] for i in drawn])
        score(majority, split, [Counter(texts[i] for i in split.train).most_common(1)[0][0]] * len(split.test))
    return Outcome(
        task="asr",
        rows=[*rows, chance, majority],
        better={"wer": "lower", "cer": "lower", "nats": "lower"},
        splits=_describe(data, texts, plans[0][1], speaker_column),
        settings=settings,
        notes=_notes(texts, plans[0][1], unfit, settings["decoding"]),
    )


@lru_cache(maxsize=8)  # `plan` tries them, and each cell of a split has the same
def _units(kind: UnitKind, texts: tuple[str, ...], size: int) -> Units:
    return Characters(texts) if kind == "char" else SentencePieces(texts, size)


def _check_fit(clips: ctc.Clips, split: Split) -> None:
    for name in ("train", "dev"):
        part = getattr(split, name)
        if not any(clips.fits(int(i)) for i in part):
            raise ProbeError(
                f"No transcript of the {name} part fits its clip ({clips.slots} labels a frame at most); do text and audio belong together?"
            )


def _tune(
    clips: ctc.Clips,
    split: Split,
    texts: Sequence[str],
    units: Units,
    searches: Sequence[Search],
    lm: str | None,
    options: dict[str, Any],
) -> tuple[Choice, ctc.Head]:
    """The choice for dev, and its head: the head with the least loss, which says more than the text where little is spelled right; then
    the search with the least character error rate.
    """
    truth = [texts[i] for i in split.dev]

    def rate(found: Sequence[Any], search: Search) -> float:
        decode = decoding.make_decoder(units, search, lm)
        return error_rates(truth, [decode(x) for x in found])["cer"]

    heads = []
    for lr, decay in ctc.GRIDS[options["kind"]]:
        head, loss = ctc.train(clips, split.train, split.dev, lr=lr, decay=decay, **options)
        heads.append((loss, (lr, decay), head))
    _, (lr, decay), head = min(heads, key=lambda h: h[0])
    if len(searches) == 1:
        return (lr, decay, searches[0]), head
    found = ctc.emissions(head, clips, split.dev, options["device"])
    return (lr, decay, min(searches, key=lambda s: rate(found, s))), head


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


def _notes(texts: Sequence[str], split: Split, unfit: int, how: str) -> list[str]:
    known = {texts[i] for i in split.train}
    seen = sum(texts[i] in known for i in split.test)
    notes = [f"text: {NORMALISATION}; decoding: {how}", *few_tested(len(split.test))]
    if seen:
        notes.append(f"{seen} of {len(split.test)} test transcripts also occur in train: the error rates flatter")
    if unfit:
        notes.append(
            f"{unfit} of {len(split.train)} training clips are too short for their transcripts and were not trained on"
        )
    return notes
