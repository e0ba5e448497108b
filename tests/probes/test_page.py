"""Tables and the page: means and intervals over seeds, failures, what is missing; one file without requests."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from jepa_tok.report.charts import Dot, Level, dots
from probes import page, tables


def summary(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"mean": value, "std": 0.0, "values": [value], "low": low, "high": high, "speakers": 9, "by": "speaker"}


def results(**changes: Any) -> dict[str, Any]:
    merged = tables.merge([summary(0.5, 0.4, 0.6), summary(0.7, 0.6, 0.8)])
    shuffled = tables.merge([summary(0.2, 0.1, 0.3), summary(0.2, 0.1, 0.3)])
    own = {"bits_per_second": 640.0, "frame_rate": 2.5, "error": "", "note": ""}
    rows = [
        {
            "name": "exp/<tok>",
            "kind": "tokenizer",
            "metrics": {"uar": merged},
            "shuffled": {"uar": shuffled},
            "verdicts": {"uar": "ahead"},
            "signal": True,
        }
        | own,
        {"name": "bad|one", "kind": "tokenizer", "metrics": {}, "shuffled": {}, "verdicts": {}, "signal": None}
        | own
        | {"error": "2 of 2 seeds failed: the audio `x` is <cut>"},
        {
            "name": "logmel",
            "kind": "logmel",
            "metrics": {"uar": shuffled},
            "shuffled": {"uar": shuffled},
            "verdicts": {"uar": "level"},
            "signal": False,
        }
        | own,
        {"name": "chance", "kind": "chance", "metrics": {"uar": tables.merge([{"values": [0.1]}] * 2)}, "shuffled": {}}
        | own,
    ]
    table = {
        "corpus": "tones", "about": "a & b", "task": "speaker", "better": {"uar": "higher"}, "rows": rows,
        "splits": {"parts": "by `split`", "ignored": 0, "classes": {"no": 3, "yes": 4}}, "notes": ["uar: a note"], "settings": {},
    }  # fmt: skip
    return {
        "suite": "tones", "tables": [table], "failed": 2, "command": "python -m probes run --suite 'a b'", "commit": "abc",
        "commits_of_cells": ["abc", "def"], "seeds": [0, 1], "machine": "m", "versions": {"python": "3"}, "seconds": 1.0,
        "cpu_seconds": 1.0, "absent": [],
    } | changes  # fmt: skip


class Seen(HTMLParser):
    """Tags that are open, and all that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.asked, self.tags = [], [], []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.asked += [v for k, v in attrs if k in ("src", "href") and not v.startswith(("#", "data:"))]
        if tag not in ("meta", "link", "path", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag


def test_seeds_are_merged() -> None:
    found = tables.merge([summary(0.5, 0.4, 0.6), summary(0.7, 0.6, 0.9)])
    assert (found["mean"], found["low"], found["high"]) == (0.6, 0.5, 0.75)
    assert found["values"] == [0.5, 0.7] and found["std"] == pytest.approx(0.141421, abs=1e-6)
    assert (found["speakers"], found["by"]) == (9, "speaker")
    assert tables.merge([summary(0.5, 0.4, 0.6), summary(0.7)])["low"] is None


def test_page_is_well_formed_and_asks_for_nothing() -> None:
    text = page.render(results())
    seen = Seen()
    seen.feed(text)
    assert seen.open == [] and seen.asked == []
    assert "script" not in seen.tags and "default-src 'none'" in text
    assert "exp/&lt;tok&gt;" in text and "<tok>" not in text and "a &amp; b" in text
    assert "2 cells failed" in text and "the audio <code>x</code> is &lt;cut&gt;" in text
    assert "cannot be told from shuffled labels" in text and "ignored" not in text
    assert "classes: 3 no, 4 yes" in text
    assert "cells made at abc, def" in text and "python -m probes run --suite &#x27;a b&#x27;" in text


def test_plot_marks_values_controls_and_chance() -> None:
    text = page.render(results())
    svg = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(svg) == 1
    assert svg[0].count('class="dot') == 2 and svg[0].count('class="hollow"') == 2
    assert ">chance 0.1<" in svg[0]


def test_verification_has_a_plot_of_its_own_without_what_cannot_judge_trials() -> None:
    found = results()
    table = found["tables"][0]
    table["better"] = table["better"] | {"min_dcf_05_cosine": "lower", "eer": "lower"}
    table["rows"][0]["metrics"]["eer"] = summary(0.2, 0.1, 0.3)
    table["rows"].append({**table["rows"][0], "name": "majority", "kind": "majority", "metrics": {"uar": summary(0.3)}})
    text = page.render(found)
    first, second = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert "majority class" in first and "majority class" not in second
    assert "EER (lower is better)" in text and "minDCF 0.05, cosine" in text


def test_dots_keep_to_their_axis() -> None:
    text = dots(
        "t", [Dot("a", 0.5, 0.4, 0.9), Dot("b" * 50, None), Dot("c", 0.1, control=0.2)], level=Level("chance", 0.25)
    )
    places = [float(x) for x in re.findall(r'cx="([\d.]+)"', text)]
    ticks = [float(x) for x in re.findall(r'<path class="grid" d="M([\d.]+)', text)]
    assert len(places) == 3 and all(min(ticks) <= x <= max(ticks) for x in places)
    assert places[0] > places[1] > places[2]  # 0.5, the control of c at 0.2, its value
    assert "Nothing was measured" in dots("t", [Dot("a", None)])


def test_files_say_the_same(tmp_path: Path) -> None:
    found = results()
    page.write(tmp_path, found)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    text = (tmp_path / "results.md").read_text()
    assert "| exp/<tok> | 640 | 0.600 ± 0.141 [0.500, 0.700] |" in text
    assert "| - labels shuffled |  | 0.200 ± 0.000 [0.100, 0.300] |" in text
    assert "| bad\\|one (failed) | 640 | - |" in text and "- bad|one: 2 of 2 seeds failed" in text
    assert "| chance | 640 | 0.100 ± 0.000 |" in text
    assert "[low, high]: 95 % interval by bootstrap over 9 speakers for uar" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {4}
    assert tables.console(found).count("\n") == 8


def test_a_table_without_any_result_is_still_a_table(tmp_path: Path) -> None:
    found = results()
    table = found["tables"][0]
    table["rows"], table["better"], table["notes"] = [table["rows"][1]], {}, []
    page.write(tmp_path, found)
    assert "Every cell failed." in (tmp_path / "results.html").read_text()
    assert "| bad\\|one (failed) | 640 |\n" in (tmp_path / "results.md").read_text()
