"""Verdicts beside shuffled labels, and what tables tell of who was left out."""

from __future__ import annotations

from typing import Any

import pytest

from probes import verdicts


def metric(low: float | None, high: float | None, *values: float) -> dict[str, Any]:
    return {"mean": 0.5, "low": low, "high": high, "values": list(values)}


@pytest.mark.parametrize(
    ("way", "own", "control", "found"),
    [
        ("higher", metric(0.5, 0.6), metric(0.1, 0.2), "ahead"),
        ("higher", metric(0.15, 0.6), metric(0.1, 0.2), "level"),
        ("lower", metric(0.5, 0.6), metric(0.7, 0.9), "ahead"),
        ("lower", metric(0.5, 0.6), metric(0.1, 0.2), "level"),
        ("higher", metric(None, None, 0.5, 0.6), metric(0.1, 0.2, 0.1, 0.2), "ahead in all seeds"),
        ("higher", metric(None, None, 0.5, 0.6), metric(None, None, 0.1, 0.5), "not ahead in all seeds"),
        ("lower", metric(None, None, 0.5, 0.6), metric(None, None, 0.7, 0.8), "ahead in all seeds"),
        ("higher", metric(None, None, 0.5), metric(None, None, 0.1), None),
        ("higher", metric(0.5, 0.6), None, None),
    ],
)
def test_verdicts(way: str, own: Any, control: Any, found: str | None) -> None:
    assert verdicts.verdict(own, control, way) == found


def test_sentences_are_of_the_first_metric_and_those_that_tell_more() -> None:
    def row(name: str, **told: str) -> dict[str, Any]:
        metrics: dict[str, Any] = {metric: {} for metric in ("wer", "cer", "nats")}
        return {"name": name, "metrics": metrics, "shuffled": metrics, "verdicts": told}

    rows = [
        row("a", wer="level", cer="level", nats="ahead"),
        row("b", wer="level", nats="not ahead in all seeds"),
        row("c"),
    ]
    rows.append({"name": "chance", "metrics": {"wer": {}}, "shuffled": {}})
    found = verdicts.sentences({"better": {"wer": "lower", "cer": "lower", "nats": "lower"}, "rows": rows})
    assert found == [
        "cannot be told from shuffled labels (wer): `a`, `b`",
        "no verdict beside shuffled labels (wer; neither intervals nor several seeds): `c`",
        "not ahead of shuffled labels in all seeds (nats, no intervals): `b`",
        "no verdict beside shuffled labels (nats; neither intervals nor several seeds): `c`",
    ]


def test_rows_that_were_left_out_are_told() -> None:
    counts = {
        "utterances": 9,
        "without_label": 2,
        "without_words": 0,
        "dropped_utterances": 1,
        "dropped_classes": ["x"],
    }
    assert verdicts.left_out(counts, {"ignored": 3}) == [
        "left out: 2 of 9 utterances have no label, or none that was asked for",
        "left out: 1 of 9 utterances are of rare classes (x)",
        "left out: 3 of 9 utterances are blank in the split column",
    ]
    assert verdicts.left_out({"utterances": 9}, {}) == []


def test_few_tested_utterances_are_told() -> None:
    assert verdicts.few_tested(20) == [] and "only 1 utterances" in verdicts.few_tested(1)[0]
