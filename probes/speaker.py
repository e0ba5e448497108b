"""Who speaks? Closed-set identification (accuracy) and verification (EER) from pooled tokens.

N utterances   F features
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes import linear, splits, trials
from probes.data import ProbeData, ProbeError, drop_rare, labelled
from probes.inputs import Missing, Source, progress
from probes.results import Outcome, Row
from probes.splits import Split

HELD_SPEAKERS = 4
"""Fewer held-out speakers than this make no verification test."""


@dataclass(frozen=True)
class Trials:
    """Rows that verification is trained on and rows that its trials are made of; `reason` where there are none."""

    train: np.ndarray
    held: np.ndarray
    origin: str
    lda: bool = True
    reason: str = ""


def prepare(data: ProbeData, *, column: str, rare: bool) -> ProbeData:
    """The utterances that have a speaker; with `rare`, without speakers of fewer than 3 utterances."""
    data = labelled(data, column)
    data = drop_rare(data, column, 3) if rare else data
    splits.check_classes([str(v) for v in data.values(column)], f"{column}")
    return data


def identification_split(data: ProbeData, speakers: Sequence[str], column: str | None, seed: int) -> Split:
    """The column asked for; else `split_utt`, else `split`, where their test speakers are all trained on; else by seed.

    Raises ProbeError where the column asked for tests speakers that its training part lacks.
    """
    for name in [column] if column else ["split_utt", "split"]:
        if column and not data.has(name):
            labelled(data, name)  # raises
        if not data.has(name):
            continue
        values = data.values(name)
        parts = {(v or "").lower() for v in values}
        if not column and not (parts & {"train"} and parts & {"dev", "test", "valid"}):
            continue
        split = splits.from_column(values, name, speakers, seed, groups=False)
        new = sorted({speakers[i] for i in split.test} - {speakers[i] for i in split.train})
        if not new:
            return split
        if column or name == "split_utt":
            raise ProbeError(
                f"Closed-set identification must test speakers that it trains on, but split column `{name}` has {len(new)} "
                f"test speakers without training utterances (the first is '{new[0]}'); name a column that divides by utterance."
            )
    return splits.stratified(speakers, seed)


def verification_trials(
    data: ProbeData, speakers: Sequence[str], column: str | None, split: Split, seed: int
) -> Trials:
    """Held-out speakers: those of the column (`split` unless told otherwise), else half of them by seed, else nobody.

    With fewer than 8 speakers trials are made of the held-out utterances of the speakers trained on.
    Raises ProbeError where the column asked for shares speakers between its parts or holds out too few.
    """
    name = column or "split"
    if column:
        labelled(data, column)  # raises where it is absent
    if data.has(name):
        parts = splits.by_column(data.values(name), name) if column else _parts(data.values(name))
        if parts is not None:
            held = parts["test"] if len(parts["test"]) else parts["dev"]
            whole = Split(parts["train"], parts["dev"] if len(parts["test"]) else parts["train"][:0], held, "")
            if column:
                splits.check_disjoint(whole, speakers, name)
            rows = np.concatenate([whole.train, whole.dev])
            disjoint = not {speakers[i] for i in rows} & {speakers[i] for i in held}
            if disjoint and _repeated(speakers, held) >= HELD_SPEAKERS:
                origin = f"{len({speakers[i] for i in held})} speakers held out by column `{name}`"
                return Trials(rows, held, origin, len({speakers[i] for i in rows}) >= trials.LDA_SPEAKERS)
            if column:
                raise ProbeError(
                    f"Verification needs at least {HELD_SPEAKERS} held-out speakers with 2 utterances each, but split column "
                    f"`{name}` holds out {_repeated(speakers, held)}."
                )
    if len(set(speakers)) >= 2 * HELD_SPEAKERS:
        train, held = splits.carve(np.arange(len(speakers)), speakers, seed, 0.5, groups=True)
        if _repeated(speakers, held) >= HELD_SPEAKERS:
            return Trials(train, held, f"{len({speakers[i] for i in held})} held-out speakers, drawn by seed")
    if _repeated(speakers, split.test) >= 2:
        rows = np.concatenate([split.train, split.dev])
        lda = len({speakers[i] for i in rows}) >= trials.LDA_SPEAKERS
        return Trials(
            rows, split.test, "held-out utterances of the speakers trained on (too few speakers to hold any out)", lda
        )
    none = np.zeros(0, dtype=np.int64)
    return Trials(none, none, "none", reason="no two speakers have 2 held-out utterances each")


def _parts(values: Sequence[str | None]) -> dict[str, np.ndarray] | None:
    try:
        return splits.by_column(values, "split")
    except ProbeError:  # a column that nobody asked for and that is no split
        return None


def _repeated(speakers: Sequence[str], rows: np.ndarray) -> int:
    """How many speakers have at least two utterances among `rows`."""
    return sum(n > 1 for n in Counter(speakers[i] for i in rows).values())


def run(
    data: ProbeData,
    inputs: Sequence[Source | Missing],
    seeds: Sequence[int],
    *,
    column: str,
    split_column: str | None,
    verification_column: str | None,
) -> Outcome:
    """Fits and scores every input for every seed; `data` comes from `prepare`.

    Raises ProbeError where labels or splits do not allow it.
    """
    speakers = [str(v) for v in data.values(column)]
    plans = []
    for seed in seeds:
        split = identification_split(data, speakers, split_column, seed)
        plans.append((seed, split, verification_trials(data, speakers, verification_column, split, seed)))

    rows: list[Row] = []
    chosen: dict[str, list[float]] = {}
    unconverged = 0
    jobs = [(source, source.name) for source in inputs]
    for source, name in [*jobs, (inputs[0], "shuffled")]:
        if isinstance(source, Missing):
            rows.append(Row(name, note=source.reason, available=False))
            continue
        row = Row(name, note=source.note)
        if name == "shuffled":
            row.note = "tokens with speakers permuted within train, dev and test; the same pipeline"
        chosen[name] = []
        for seed, split, plan in progress(plans, f"speaker, {name}"):
            x = source.pooled(seed)
            truth, judged = speakers, speakers
            if name == "shuffled":
                truth = splits.permuted(speakers, [split.train, split.dev, split.test], seed)
                judged = splits.permuted(speakers, [plan.train, plan.held], seed)
            head = linear.fit(x, truth, split.train, split.dev, linear.accuracy)
            unconverged += head.unconverged
            chosen[name].append(head.c)
            guess = head.model.predict(x[split.test]).tolist()
            _add(row, accuracy=linear.accuracy([truth[i] for i in split.test], guess))
            if not plan.reason:
                if plan.lda:
                    _add(row, eer=trials.score(x, judged, plan.train, plan.held, seed, lda=True))
                _add(row, eer_cosine=trials.score(x, judged, plan.train, plan.held, seed, lda=False))
        rows.append(row)
    known = next(row.metrics for row in rows if row.input == "tokens")
    rows += _baselines(speakers, plans)
    for row in rows:  # chance needs no trials, but says nothing where there are none
        row.metrics = {name: values for name, values in row.metrics.items() if name in known}
    _, split, plan = plans[0]
    notes = [
        "accuracy: closed-set identification; eer: verification by LDA and cosine; eer_cosine: verification by cosine of centred, "
        "standardised features, no LDA",
    ]
    if plan.reason:
        notes.append(f"verification not available: {plan.reason}")
    elif not plan.lda:
        notes.append(f"eer (LDA) not available: it needs {trials.LDA_SPEAKERS} training speakers")
    if unconverged:
        notes.append(f"{unconverged} logistic regressions stopped at {linear.MAX_ITER} iterations")
    better = {"accuracy": "higher", "eer": "lower", "eer_cosine": "lower"}
    return Outcome(
        task="speaker",
        rows=rows,
        better={name: way for name, way in better.items() if name in known},
        splits={
            "identification": f"{split.origin}: {len(split.train)} train, {len(split.dev)} dev, {len(split.test)} test utterances",
            "verification": f"{plan.origin}: {len(plan.train)} training utterances, {len(plan.held)} held out",
            "speakers": len(set(speakers)),
            "ignored": split.ignored,
        },
        settings={
            "label_column": column,
            "C_grid": list(linear.C_GRID),
            "C_chosen": chosen,
            "max_iter": linear.MAX_ITER,
        },
        notes=notes,
    )


def _add(row: Row, **metrics: float) -> None:
    for name, value in metrics.items():
        row.metrics.setdefault(name, []).append(value)


def _baselines(speakers: Sequence[str], plans: list[tuple[int, Split, Trials]]) -> list[Row]:
    chance = Row("chance", note="a speaker drawn evenly; a coin for each trial")
    majority = Row("majority", note="always the speaker with most training utterances")
    for _, split, _ in plans:
        _add(chance, accuracy=1.0 / len({speakers[i] for i in split.train}), eer=0.5, eer_cosine=0.5)
        most = Counter(speakers[i] for i in split.train).most_common(1)[0][0]
        _add(majority, accuracy=float(np.mean([speakers[i] == most for i in split.test])))
    return [chance, majority]
