"""Which class? Emotion, gender, language, keyword or sound event from pooled tokens: unweighted recall, macro F1, accuracy.

With `speaker_column` the head is always tested on speakers, or whatever the column tells apart, that were not trained on.

N utterances   F features   K classes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from probes import intervals, linear, splits
from probes.data import ProbeData, ProbeError, drop_rare, labelled
from probes.inputs import SHUFFLED, Missing, Source, each, progress
from probes.options import Folds
from probes.recordings import recordings
from probes.results import Outcome, Row
from probes.splits import Split
from probes.verdicts import few_tested

METRICS = {
    "uar": intervals.unweighted_recall,
    "macro_f1": intervals.macro_f1,
    "accuracy": intervals.accuracy,
}


def prepare(data: ProbeData, *, column: str, speaker_column: str | None = None, rare: bool = False) -> ProbeData:
    """The utterances that have a label and, where it is asked for, a speaker; with `rare`, without classes of one utterance.

    Raises ProbeError for fewer than two classes, a class of one utterance, labels that are the ids, or fewer than three speakers.
    """
    data = labelled(data, column, *([speaker_column] if speaker_column else []))
    splits.check_labels([str(v) for v in data.values(column)], data.ids, column)
    data = drop_rare(data, column, 2) if rare else data
    splits.check_classes([str(v) for v in data.values(column)], column)
    if speaker_column:
        speakers = sorted({str(v) for v in data.values(speaker_column)})
        if len(speakers) < 3:
            raise ProbeError(
                f"Training, tuning and testing on different speakers takes at least 3, but `{speaker_column}` has "
                f"{len(speakers)} ({', '.join(speakers)})."
            )
    return data


def make_folds(
    data: ProbeData,
    labels: Sequence[str],
    *,
    speaker_column: str | None,
    split_column: str | None,
    fold_column: str | None,
    folds: int,
    seed: int,
) -> list[Split]:
    """The one split of `split_column`; else a fold for each value of `fold_column`; else folds over speakers, or over utterances.

    Raises ProbeError where a column shares speakers between parts, or a training part has fewer than two classes.
    """
    speakers = [str(v) for v in data.values(speaker_column)] if speaker_column else None
    column = split_column or fold_column
    if column and not data.has(column):
        labelled(data, column)  # raises
    if split_column:
        values = data.values(split_column)
        out = [splits.from_column(values, split_column, speakers or labels, seed, groups=speakers is not None)]
    elif fold_column:
        out = _given_folds([str(v) for v in labelled(data, fold_column).values(fold_column)], len(data), fold_column)
    else:
        tests = splits.group_folds(speakers, folds, seed) if speakers else splits.utterance_folds(labels, folds, seed)
        out = []
        for k, test in enumerate(tests):
            rest = np.setdiff1d(np.arange(len(data)), test)
            train, dev = splits.carve(rest, speakers or labels, seed + 1000 * k, 0.2, groups=speakers is not None)
            how = (
                f"over `{speaker_column}`; dev: a fifth of the other speakers"
                if speakers
                else "over utterances, by seed"
            )
            out.append(Split(train, dev, test, f"folds {how}"))
    recorded = recordings(data)
    for split in out:
        splits.check_parts(split, recorded)
        if speakers:
            splits.check_disjoint(split, speakers, column or str(speaker_column))
        if len({labels[i] for i in split.train}) < 2:
            raise ProbeError(
                "Each training part must have at least 2 classes, but one has fewer; use more folds (`folds`), or other parts."
            )
        unheard = sorted({labels[i] for i in split.test} - {labels[i] for i in split.train})
        if unheard:
            raise ProbeError(
                f"Each class that is tested must be trained on, but {len(unheard)} are not ({split.origin}; the first is '{unheard[0]}'); "
                "leave such classes out (in a suite: `classes`), or divide the corpus in another way."
            )
    return out


def _given_folds(values: Sequence[str], size: int, column: str) -> list[Split]:
    """Each value's rows are tested once; the next value's are the dev part of that fold."""
    names = sorted(set(values))
    if len(names) < 3 or len(values) < size:
        raise ProbeError(
            f"`{column}` must put every utterance in one of at least 3 folds, but has {len(names)} and leaves out {size - len(values)}."
        )
    parts = [np.array([i for i, v in enumerate(values) if v == name], dtype=np.int64) for name in names]
    out = []
    for k, test in enumerate(parts):
        dev = parts[(k + 1) % len(parts)]
        train = np.setdiff1d(np.arange(size), np.concatenate([test, dev]))
        out.append(Split(train, dev, test, f"folds of column `{column}`; dev: the next fold"))
    return out


def plan(
    data: ProbeData,
    seeds: Sequence[int],
    *,
    column: str,
    speaker_column: str | None,
    split_column: str | None,
    fold_column: str | None,
    folds: int,
) -> list[tuple[int, list[Split]]]:
    """Each seed's folds, or its one split. It takes labels alone; `data` comes from `prepare`. Raises as `make_folds` does."""
    labels = [str(v) for v in data.values(column)]
    columns = {"speaker_column": speaker_column, "split_column": split_column, "fold_column": fold_column}
    return [(seed, make_folds(data, labels, **columns, folds=folds, seed=seed)) for seed in seeds]


def run(
    data: ProbeData,
    inputs: Sequence[Source | Missing],
    seeds: Sequence[int],
    *,
    column: str,
    speaker_column: str | None = None,
    split_column: str | None = None,
    fold_column: str | None = None,
    folds: Folds = 5,
    task: str = "classify",
) -> Outcome:
    """Fits and scores every input for every seed; `data` comes from `prepare`, `task` names the results.

    Every utterance of a fold's test part is judged once, and the metrics are taken over all folds together. Seeds draw the folds,
    or the dev part. Raises ProbeError where labels or splits do not allow it.
    """
    labels = [str(v) for v in data.values(column)]
    owners, by = splits.owners(data, speaker_column)
    columns = {"speaker_column": speaker_column, "split_column": split_column, "fold_column": fold_column}
    plans = plan(data, seeds, column=column, **columns, folds=folds)

    def score(row: Row, tested: list[int], truth: list[str], guess: list[str]) -> None:
        names = [owners[i] for i in tested]
        row.add(**{name: metric(names, truth, guess, by) for name, metric in METRICS.items()})

    rows: list[Row] = []
    chosen: dict[str, list[float]] = {}
    unconverged = 0
    for source, row, shuffle in each(inputs, rows, SHUFFLED):
        chosen[row.input] = []
        for seed, parts in progress(plans, f"{task}, {row.input}"):
            x = source.pooled(seed)
            tested: list[int] = []
            truth: list[str] = []
            guessed: list[str] = []
            for k, split in enumerate(parts):
                whole = [split.train, split.dev, split.test]
                known = splits.permuted(labels, whole, seed + 1000 * k) if shuffle else labels
                head = linear.fit(x, known, split.train, split.dev, linear.unweighted_recall, balanced=True)
                unconverged += head.unconverged
                chosen[row.input].append(head.c)
                guessed += head.model.predict(x[split.test]).tolist()
                tested += split.test.tolist()
                truth += [known[i] for i in split.test]
            score(row, tested, truth, guessed)
    chance = Row("chance", note="a class drawn evenly (expected values)")
    majority = Row("majority", note="always the class with most training utterances")
    for _, parts in plans:
        tested = [int(i) for split in parts for i in split.test]
        guessed = [
            name
            for split in parts
            for name in [Counter(labels[i] for i in split.train).most_common(1)[0][0]] * len(split.test)
        ]
        truth = [labels[i] for i in tested]
        chance.add(**_expected(truth, len(set(labels))))
        score(majority, tested, truth, guessed)
    parts = plans[0][1]
    sizes = f"{len(parts[0].train)} train, {len(parts[0].dev)} dev, {len(parts[0].test)} test utterances"
    notes = ["uar: unweighted average recall; all metrics over the test utterances of all folds together"]
    notes += few_tested(sum(len(split.test) for split in parts))
    if unconverged:
        notes.append(f"{unconverged} logistic regressions stopped at {linear.MAX_ITER} iterations")
    described = f"{parts[0].origin}; {len(parts)} in all, the first with {sizes}"
    return Outcome(
        task=task,
        rows=[*rows, chance, majority],
        better=dict.fromkeys(METRICS, "higher"),
        splits={
            "speaker_disjoint" if speaker_column else "parts": described,
            f"{by}s": len(set(owners)),
            "classes": dict(sorted(Counter(labels).items())),
            "ignored": parts[0].ignored,
        },
        settings={
            "label_column": column,
            "speaker_column": speaker_column,
            "C_grid": list(linear.C_GRID),
            "C_chosen": chosen,
            "class_weight": "balanced",
            "max_iter": linear.MAX_ITER,
        },
        notes=notes,
    )


def _expected(truth: Sequence[str], k: int) -> dict[str, float]:
    """What an even draw of one of K classes scores in the mean."""
    shares = [n / len(truth) for n in Counter(truth).values()]
    f1 = float(np.mean([2 * p / k / (p + 1 / k) for p in shares]))
    return {"uar": 1.0 / k, "macro_f1": f1, "accuracy": 1.0 / k}
