"""Who speaks? Closed-set identification (accuracy) and verification (EER, minDCF) from pooled tokens.

N utterances   F features   P trials
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from probes import intervals, linear, splits, trials
from probes.data import ProbeData, ProbeError, drop_rare, labelled
from probes.inputs import SHUFFLED, Missing, Source, each, progress
from probes.options import File
from probes.recordings import recordings
from probes.results import Outcome, Row
from probes.splits import Split
from probes.trials import TrialList
from probes.verdicts import few_tested

HELD_SPEAKERS = 4
"""Fewer held-out speakers than this make no verification test."""

TRIAL_SEED = 0
"""Draws held-out speakers and trials, once for all seeds: lists of trials are fixed."""

P_TARGETS = {"min_dcf_05": 0.05, "min_dcf_01": 0.01}


@dataclass(frozen=True)
class Trials:
    """Rows that verification is trained on, rows that its trials may be made of, the trials; `reason` where there are none."""

    train: np.ndarray
    held: np.ndarray
    origin: str
    reason: str = ""
    list: TrialList | None = None

    def lda(self, speakers: Sequence[str]) -> bool:
        """Whether there are speakers enough to train LDA."""
        return len({speakers[i] for i in self.train}) >= trials.LDA_SPEAKERS


def prepare(data: ProbeData, *, column: str, rare: bool = False) -> ProbeData:
    """The utterances that have a speaker; with `rare`, without speakers of fewer than 3 utterances."""
    data = labelled(data, column)
    splits.check_labels([str(v) for v in data.values(column)], data.ids, column)
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
        parts = {splits.part_of(v) for v in values}
        if not column and not ("train" in parts and parts & {"dev", "test"}):
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
    data: ProbeData, speakers: Sequence[str], column: str | None, split: Split, file: str | None
) -> Trials:
    """Training rows and trials: those of `file`, else of the held-out utterances; see `_from_file` and `_held_out`.

    Raises ProbeError as these do.
    """
    if file:
        return _from_file(data, speakers, column, file)
    found = _held_out(data, speakers, column, split)
    return found if found.reason else replace(found, list=trials.draw(speakers, found.held, TRIAL_SEED))


def _from_file(data: ProbeData, speakers: Sequence[str], column: str | None, file: str) -> Trials:
    """The trials of a file; training on the train part of `column`, or where it is None on all speakers that are in no trial.

    Raises ProbeError where a speaker is in both, or nobody is left to train on.
    """
    given = trials.read(file, data.ids, speakers)
    tested = {speakers[i] for i in given.rows}
    origin = f"{len(given.same)} trials of '{file}', {len(tested)} speakers"
    if column:
        train = splits.by_column(labelled(data, column).values(column), column)["train"]
        both = sorted({speakers[i] for i in train} & tested)
        if both:
            raise ProbeError(
                f"The trials must not be of speakers that are trained on, but {len(both)} are in the train part of `{column}` too "
                f"(the first is '{both[0]}')."
            )
    else:
        train = np.array([i for i, s in enumerate(speakers) if s not in tested], dtype=np.int64)
    if len(train) < 2:
        raise ProbeError(f"The trials must leave speakers to train on, but '{file}' has trials of all {len(tested)}.")
    return Trials(train, given.rows, origin, list=given)


def _held_out(data: ProbeData, speakers: Sequence[str], column: str | None, split: Split) -> Trials:
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
                return Trials(rows, held, origin)
            if column:
                raise ProbeError(
                    f"Verification needs at least {HELD_SPEAKERS} held-out speakers with 2 utterances each, but split column "
                    f"`{name}` holds out {_repeated(speakers, held)}."
                )
    if len(set(speakers)) >= 2 * HELD_SPEAKERS:
        train, held = splits.carve(np.arange(len(speakers)), speakers, TRIAL_SEED, 0.5, groups=True)
        if _repeated(speakers, held) >= HELD_SPEAKERS:
            return Trials(train, held, f"{len({speakers[i] for i in held})} held-out speakers, drawn by seed")
    if _repeated(speakers, split.test) >= 2:
        rows = np.concatenate([split.train, split.dev])
        return Trials(
            rows, split.test, "held-out utterances of the speakers trained on (too few speakers to hold any out)"
        )
    none = np.zeros(0, dtype=np.int64)
    return Trials(none, none, "none", reason="no two speakers have 2 held-out utterances each")


def _parts(values: Sequence[str | None]) -> dict[str, np.ndarray] | None:
    """Rows of the parts of a column that nobody asked for; None where it is no split."""
    found = {splits.part_of(v) for v in values}
    return splits.by_column(values, "split") if "train" in found and found & {"dev", "test"} else None


def _repeated(speakers: Sequence[str], rows: np.ndarray) -> int:
    """How many speakers have at least two utterances among `rows`."""
    return sum(n > 1 for n in Counter(speakers[i] for i in rows).values())


def plan(
    data: ProbeData,
    seeds: Sequence[int],
    *,
    column: str,
    split_column: str | None,
    verification_column: str | None,
    trials_file: str | None,
) -> tuple[list[tuple[int, Split]], Trials]:
    """Each seed's split for identification, and the trials of all seeds. It takes labels alone; `data` comes from `prepare`.

    Raises ProbeError where labels, splits or trials do not allow it.
    """
    speakers = [str(v) for v in data.values(column)]
    plans = [(seed, identification_split(data, speakers, split_column, seed)) for seed in seeds]
    recorded = recordings(data)
    for _, split in plans:
        splits.check_parts(split, recorded)
    found = verification_trials(data, speakers, verification_column, plans[0][1], trials_file)
    if found.list is not None:
        none = np.zeros(0, dtype=np.int64)
        splits.check_parts(Split(found.train, none, found.held, f"verification: {found.origin}"), recorded)
        splits.check_apart([recorded[i] for i in found.held], "the utterances of trials")
    return plans, found


def run(
    data: ProbeData,
    inputs: Sequence[Source | Missing],
    seeds: Sequence[int],
    *,
    column: str,
    split_column: str | None = None,
    verification_column: str | None = None,
    trials_file: File | None = None,
) -> Outcome:
    """Fits and scores every input for every seed; `data` comes from `prepare`.

    Raises ProbeError as `plan` does.
    """
    speakers = [str(v) for v in data.values(column)]
    columns = {"split_column": split_column, "verification_column": verification_column}
    plans, verification = plan(data, seeds, column=column, **columns, trials_file=trials_file)
    first = plans[0][1]
    lda = verification.lda(speakers)

    rows: list[Row] = []
    chosen: dict[str, list[float]] = {}
    unconverged = 0
    note = f"{SHUFFLED}; speakers of trials permuted"
    for source, row, shuffle in each(inputs, rows, note):
        chosen[row.input] = []
        verified: tuple[Any, dict[str, intervals.Sample]] | None = None
        for seed, split in progress(plans, f"speaker, {row.input}"):
            x = source.pooled(seed)
            labels = splits.permuted(speakers, [split.train, split.dev, split.test], seed) if shuffle else speakers
            head = linear.fit(x, labels, split.train, split.dev, linear.accuracy)
            unconverged += head.unconverged
            chosen[row.input].append(head.c)
            known = [labels[i] for i in split.test]
            row.add(accuracy=intervals.accuracy(known, known, head.model.predict(x[split.test]).tolist()))
            if verification.list is None:
                continue
            if shuffle:
                judged = splits.permuted(speakers, [verification.train, verification.held], seed)
                row.add(
                    **_verify(x, judged, replace(verification, list=trials.draw(judged, verification.held, seed)), lda)
                )
            else:
                if verified is None or verified[0] is not x:  # seeds that share their features share their scores
                    verified = x, _verify(x, speakers, verification, lda)
                row.add(**verified[1])
    known_metrics = list(rows[0].metrics)
    return Outcome(
        task="speaker",
        rows=[*rows, *_baselines(speakers, [split for _, split in plans], known_metrics)],
        better={name: "higher" if name == "accuracy" else "lower" for name in known_metrics},
        splits={
            "identification": f"{first.origin}: {len(first.train)} train, {len(first.dev)} dev, {len(first.test)} test utterances",
            "verification": f"{verification.origin}: {len(verification.train)} training utterances, {len(verification.held)} held out, {_sizes(verification.list)}",
            "speakers": len(set(speakers)),
            "ignored": first.ignored,
        },
        settings={
            "label_column": column,
            "C_grid": list(linear.C_GRID),
            "C_chosen": chosen,
            "max_iter": linear.MAX_ITER,
            "p_target": P_TARGETS,
        },
        notes=[*_notes(verification, lda, unconverged), *few_tested(len(first.test))],
        trials=verification.list.text(data.ids) if verification.list is not None else "",
    )


def _verify(x: Any, speakers: Sequence[str], verification: Trials, lda: bool) -> dict[str, intervals.Sample]:
    """EER and minDCF by LDA and cosine, where there can be an LDA, and by cosine alone."""
    assert verification.list is not None
    pairs = verification.list
    enroll, test = [speakers[i] for i in pairs.enroll], [speakers[i] for i in pairs.test]
    found = {}
    for ending, with_lda in [("", True)] * lda + [("_cosine", False)]:
        scores = trials.cosines(x, speakers, verification.train, pairs, lda=with_lda)
        for name, measure in _MEASURES.items():
            metric = partial(_of_curve, scores, pairs.same, measure)
            found[name + ending] = intervals.trials(enroll, test, metric)
    return found


_MEASURES: dict[str, Callable[[trials.Curve], np.ndarray]] = {
    "eer": trials.equal_error,
    **{name: partial(trials.min_cost, p_target=p) for name, p in P_TARGETS.items()},
}


def _of_curve(
    scores: np.ndarray, same: np.ndarray, measure: Callable[[trials.Curve], np.ndarray], weights: np.ndarray
) -> np.ndarray:
    return measure(trials.curve(scores, same, weights))


def _sizes(pairs: TrialList | None) -> str:
    return (
        "no trials"
        if pairs is None
        else f"{int(pairs.same.sum())} trials of one speaker, {int((~pairs.same).sum())} of two"
    )


def _notes(verification: Trials, lda: bool, unconverged: int) -> list[str]:
    notes = [
        "accuracy: closed-set identification; eer, min_dcf: verification by LDA and cosine, `_cosine`: by cosine of centred, "
        "standardised features, no LDA",
        "min_dcf_01, min_dcf_05: minimum of the normalised detection cost at p_target 0.01 and 0.05, misses and false alarms "
        "costing 1 each; 1 is what saying always no costs",
    ]
    if verification.reason:
        notes.append(f"verification not available: {verification.reason}")
    elif not lda:
        notes.append(f"eer and min_dcf (LDA) not available: they need {trials.LDA_SPEAKERS} training speakers")
    if unconverged:
        notes.append(f"{unconverged} logistic regressions stopped at {linear.MAX_ITER} iterations")
    return notes


def _baselines(speakers: Sequence[str], parts: Sequence[Split], metrics: Sequence[str]) -> list[Row]:
    chance = Row("chance", note="a speaker drawn evenly; equal scores for all trials")
    majority = Row("majority", note="always the speaker with most training utterances")
    for split in parts:
        other = {name: 0.5 if name.startswith("eer") else 1.0 for name in metrics if name != "accuracy"}
        chance.add(accuracy=1.0 / len({speakers[i] for i in split.train}), **other)
        most = Counter(speakers[i] for i in split.train).most_common(1)[0][0]
        known = [speakers[i] for i in split.test]
        majority.add(accuracy=intervals.accuracy(known, known, [most] * len(known)))
    return [chance, majority]
