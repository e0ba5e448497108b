"""Results of several runs on the same utterances as one."""

from __future__ import annotations

import copy

import pytest

from jepa_tok.errors import ConfigError
from jepa_tok.evaluation.merge import merge
from jepa_tok.evaluation.table import quality


def figure(mean):
    return {"mean": mean, "std": 0.0, "interval": None, "utterances": 2, "failed": 0}


def report(metric, systems, **changes):
    rows = [
        {"system": name, "bit_rate": 640.0, "delay_ms": None, "real_time_factor": {}, "figures": {metric: figure(0.5 + i)},
         "differences": {metric: figure(-i)} if i else {}, "failures": {}}
        for i, name in enumerate(systems)
    ]  # fmt: skip
    return {
        "tokenizer": {"name": "t", "hash": "abc"}, "corpus": {"utterances": 2, "seconds": 60.0, "speakers": 2, "intervals_over": "utterances"},
        "columns": {metric: {"title": metric.upper(), "better": "higher"}}, "rows": rows, "source": "a.jsonl", "where": ["split=dev"],
        "command": f"jepa-tok eval --metrics {metric}", "commit": "c1", "skipped": [], "unavailable": {"systems": {}, "metrics": {}},
        "settings": {"recognizer": f"of {metric}", "seed": 0}, **changes,
    }  # fmt: skip


def test_columns_and_rows_of_all_are_there():
    found = merge([report("stoi", ["tokens", "original", "opus"]), report("wer", ["tokens", "original"], commit="c2")])
    assert list(found["columns"]) == ["stoi", "wer"] and [r["system"] for r in found["rows"]] == [
        "tokens",
        "original",
        "opus",
    ]
    assert found["rows"][1]["figures"] == {"stoi": figure(1.5), "wer": figure(1.5)}
    assert found["rows"][1]["differences"] == {"stoi": figure(-1), "wer": figure(-1)}
    assert found["settings"]["recognizer"] == "of wer" and found["commit"].split() == ["c1", "c2"]
    assert "--metrics stoi" in found["command"] and "--metrics wer" in found["command"]
    assert "| opus | 640 | 2.500 |  |" in quality(found)  # no words were measured, which is no failure


def test_one_report_stays_as_it_is():
    own = report("stoi", ["tokens", "original"])
    assert merge([copy.deepcopy(own)]) == own


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (report("wer", ["tokens"], tokenizer={"name": "t", "hash": "other"}), "`tokenizer`"),
        (report("wer", ["tokens"], where=["split=test"]), "`where`"),
        (report("stoi", ["tokens"]), "`stoi` is in two"),
    ],
)
def test_results_of_other_things_are_refused(other, told):
    with pytest.raises(ConfigError, match=told):
        merge([report("stoi", ["tokens", "original"]), other])


def test_what_one_run_lacked_and_another_had_is_not_missing():
    lacking = {
        "systems": {"opus": "no opusenc"},
        "metrics": {"stoi": "not available: pip install pystoi", "pesq": "not available"},
    }
    runs = [
        report("stoi", ["tokens", "opus"], unavailable={"systems": {}, "metrics": {"pesq": "not available"}}),
        report("wer", ["tokens"], unavailable=lacking),
    ]
    assert merge(runs)["unavailable"] == {"systems": {}, "metrics": {"pesq": "not available"}}
