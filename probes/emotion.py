"""Which emotion? Unweighted average recall from pooled tokens, always tested on speakers that were not trained on.

N utterances   F features   K classes
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from probes import linear, splits
from probes.data import ProbeData, ProbeError, drop_rare, labelled
from probes.inputs import Missing, Source, progress
from probes.results import Outcome, Row
from probes.splits import Split


def prepare(data: ProbeData, *, column: str, speaker_column: str, rare: bool) -> ProbeData:
    """The utterances that have an emotion and a speaker; with `rare`, without emotions of fewer than 2 utterances.

    Raises ProbeError for fewer than two classes, a class of one utterance, or fewer than three speakers.
    """
    data = labelled(data, column, speaker_column)
    data = drop_rare(data, column, 2) if rare else data
    splits.check_classes([str(v) for v in data.values(column)], column)
    speakers = sorted({str(v) for v in data.values(speaker_column)})
    if len(speakers) < 3:
        raise ProbeError(
            f"Emotion is trained, tuned and tested on different speakers, which takes at least 3, but `{speaker_column}` has "
            f"{len(speakers)} ({', '.join(speakers)})."
        )
    return data


def make_folds(
    data: ProbeData,
    labels: Sequence[str],
    speakers: Sequence[str],
    column: str | None,
    speaker_column: str,
    folds: int,
    seed: int,
) -> list[Split]:
    """Speaker-disjoint folds, each with dev speakers of its own; or the one split of `column`.

    Raises ProbeError where `column` shares speakers between parts, or a training part has fewer than two emotions.
    """
    if column:
        values = labelled(data, column).values(column) if not data.has(column) else data.values(column)
        out = [splits.from_column(values, column, speakers, seed, groups=True)]
        splits.check_disjoint(out[0], speakers, column)
    else:
        out = []
        for k, test in enumerate(splits.group_folds(speakers, folds, seed)):
            rest = np.setdiff1d(np.arange(len(speakers)), test)
            train, dev = splits.carve(rest, speakers, seed + 1000 * k, 0.2, groups=True)
            out.append(Split(train, dev, test, f"folds over `{speaker_column}`; dev: a fifth of the other speakers"))
    for split in out:
        if len({labels[i] for i in split.train}) < 2:
            raise ProbeError(
                "Each training part must have at least 2 emotions, but one has fewer; use fewer `--folds`."
            )
    return out


def run(
    data: ProbeData,
    inputs: Sequence[Source | Missing],
    seeds: Sequence[int],
    *,
    column: str,
    speaker_column: str,
    split_column: str | None,
    folds: int,
) -> Outcome:
    """Fits and scores every input for every seed; `data` comes from `prepare`.

    Every utterance of a fold's test part is judged once, and the metrics are taken over all folds together. Seeds draw
    which speakers fall in which fold. Raises ProbeError where labels or splits do not allow it.
    """
    emotions = [str(v) for v in data.values(column)]
    speakers = [str(v) for v in data.values(speaker_column)]
    plans = [(s, make_folds(data, emotions, speakers, split_column, speaker_column, folds, s)) for s in seeds]

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
            row.note = "tokens with emotions permuted over all utterances; the same pipeline"
        chosen[name] = []
        for seed, parts in progress(plans, f"emotion, {name}"):
            x = source.pooled(seed)
            truth = emotions
            if name == "shuffled":
                whole = (
                    [np.arange(len(emotions))]
                    if split_column is None
                    else [parts[0].train, parts[0].dev, parts[0].test]
                )
                truth = splits.permuted(emotions, whole, seed)
            expected, guessed = [], []
            for split in parts:
                head = linear.fit(x, truth, split.train, split.dev, linear.unweighted_recall, balanced=True)
                unconverged += head.unconverged
                chosen[name].append(head.c)
                guessed += head.model.predict(x[split.test]).tolist()
                expected += [truth[i] for i in split.test]
            row.metrics.setdefault("uar", []).append(linear.unweighted_recall(expected, guessed))
            row.metrics.setdefault("macro_f1", []).append(linear.macro_f1(expected, guessed))
        rows.append(row)
    rows += _baselines(emotions, plans)
    parts = plans[0][1]
    sizes = f"{len(parts[0].train)} train, {len(parts[0].dev)} dev, {len(parts[0].test)} test utterances"
    notes = ["uar: unweighted average recall; both metrics over the test utterances of all folds together"]
    if unconverged:
        notes.append(f"{unconverged} logistic regressions stopped at {linear.MAX_ITER} iterations")
    return Outcome(
        task="emotion",
        rows=rows,
        better={"uar": "higher", "macro_f1": "higher"},
        splits={
            "speaker_disjoint": f"{parts[0].origin}; {len(parts)} in all, the first with {sizes}",
            "speakers": len(set(speakers)),
            "classes": dict(sorted(Counter(emotions).items())),
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


def _baselines(emotions: Sequence[str], plans: list[tuple[int, list[Split]]]) -> list[Row]:
    """Chance is the expectation of an even draw; the majority class is each fold's own."""
    chance = Row("chance", note="an emotion drawn evenly (expected values)")
    majority = Row("majority", note="always the emotion with most training utterances")
    for _, parts in plans:
        truth = [emotions[i] for split in parts for i in split.test]
        guess = []
        for split in parts:
            most = Counter(emotions[i] for i in split.train).most_common(1)[0][0]
            guess += [most] * len(split.test)
        k, times = len(set(emotions)), Counter(truth)
        shares = [n / len(truth) for n in times.values()]
        chance.metrics.setdefault("uar", []).append(1.0 / k)
        chance.metrics.setdefault("macro_f1", []).append(float(np.mean([2 * p / k / (p + 1 / k) for p in shares])))
        majority.metrics.setdefault("uar", []).append(linear.unweighted_recall(truth, guess))
        majority.metrics.setdefault("macro_f1", []).append(linear.macro_f1(truth, guess))
    return [chance, majority]
