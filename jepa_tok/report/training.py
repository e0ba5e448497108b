"""Sections of the page that show how training went: stage 1, stage 2, language model."""

from __future__ import annotations

from html import escape
from typing import Any

from jepa_tok.report.charts import Level, Series, chart
from jepa_tok.report.rundir import Curve, RunDir, curve, number

Rows = list[dict[str, Any]]

BASELINES = (("unigram", "unigram"), ("bigram", "bigram"))


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    """A section of the page."""
    head = f"<p>{lead}</p>" if lead else ""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{head}{body}</section>'


def missing(what: str, where: str) -> str:
    """Says plainly that a part of the run is not there."""
    return f'<p class="missing">{escape(what)} not found in this run (expected in {escape(where)}).</p>'


def stage1(run: RunDir) -> str:
    """Losses, prediction R2 and the collapse monitor."""
    train, valid = _split(run.metrics("stage1"))
    if not train and not valid:
        return section("stage1", "Stage 1: JEPA pretraining", missing("Metrics of stage 1", "stage1/metrics"))
    panels = [
        chart(
            "Prediction loss",
            _pair(train, valid, r"prediction loss", r"loss"),
            zero=True,
            note="Masked frames against the EMA target. A low loss alone proves nothing: see the collapse monitor.",
        ),
        chart(
            "Mel anchor: its loss",
            _pair(train, valid, r"anchor kl.*", r"anchor loss"),
            note="How far what the frames tell of their log-mels is from them: squared error, or KL in nats where the anchor is on posteriors.",
        ),
        chart(
            "Prediction R²",
            _pair(train, valid, r"prediction r.?2"),
            top=1.0,
            note="Share of the target's variance that is predicted on masked frames.",
        ),
        chart(
            "Collapse monitor: share between clips",
            _pair([], valid, r"between.clip share"),
            zero=True,
            top=1.0,
            note="Part of z's variance that differs between clips at the same frame. Near 0 the output depends on position alone: collapse.",
        ),
        chart(
            "Collapse monitor: effective rank",
            _pair([], valid, r"effective rank"),
            zero=True,
            note="Of 128 dimensions.",
        ),
        chart(
            "Collapse monitor: deviation and code usage",
            [
                Series("std, mean", curve(valid, r"std mean"), 1, dots=True),
                Series("std, least", curve(valid, r"std min"), 2, dots=True),
                Series("code usage", curve(valid, r"code usage"), 3, dots=True),
            ],
            zero=True,
            note="Per dimension of z; code usage is the entropy of a dimension's levels over its maximum.",
        ),
    ]
    return section(
        "stage1",
        "Stage 1: JEPA pretraining",
        f'<div class="panels">{"".join(panels)}</div>',
        "The encoder learns frames that can be predicted from those around them. Thin lines: training; dots: unseen speakers and sentences.",
    )


def stage2(run: RunDir) -> str:
    """Reconstruction and adversarial losses, code usage."""
    train, valid = _split(run.metrics("stage2"))
    if not train and not valid:
        return section("stage2", "Stage 2: tokenizer and decoder", missing("Metrics of stage 2", "stage2/metrics"))
    panels = [
        chart("Waveform L1", _pair(train, valid, r"l1", r"l1 loss", r".*\bl1\b.*"), zero=True),
        chart("Multi-resolution STFT loss", _pair(train, valid, r"stft", r"stft loss", r".*stft.*"), zero=True),
        chart("Generator loss", _pair(train, valid, r"generator loss", r"generator.*", r"loss"), zero=True),
        chart(
            "Adversarial game (training)",
            [
                Series("discriminator", curve(train, r"discriminator loss", r"discriminator.*"), 1),
                Series("generator", curve(train, r"adversarial loss", r"adversarial.*"), 2),
                Series("feature matching", curve(train, r"feature.matching.*"), 3),
            ],
            zero=True,
            note="The generator's terms begin when the discriminators have warmed up.",
        ),
        chart(
            "Code usage",
            _pair([], valid or train, r"code usage"),
            zero=True,
            top=1.0,
            note="Entropy of a dimension's levels over its maximum, mean over dimensions.",
        ),
        chart("Effective rank of z", _pair([], valid, r"effective rank"), zero=True),
    ]
    return section(
        "stage2",
        "Stage 2: tokenizer and decoder",
        f'<div class="panels">{"".join(panels)}</div>',
        "FSQ codes and a GAN decoder learn to give the waveform back.",
    )


def language_model(run: RunDir) -> str:
    """Bits per second of audio against the counted baselines."""
    train, valid = _split(run.metrics("lm"))
    if not train and not valid:
        return section("lm", "Speech language model", missing("Metrics of the language model", "lm/metrics"))
    levels = baseline_levels(valid)
    panels = [
        chart(
            "Bits per second of audio",
            _pair(train, valid, r"bits/s", r"bits per second"),
            levels=levels,
            note="Lower is better; dashed: baselines counted on the same training tokens."
            if levels
            else "Lower is better.",
        ),
        chart(
            "Nats per token",
            _pair(train, valid, r"nats/token", r"nats per token"),
            note="For following the run only: nats per token compare nothing across tokenizers.",
        ),
    ]
    slots = slot_curve(valid)
    if slots:
        panels.append(
            chart(
                "Nats by place in the frame (last validation)",
                [Series("validation", slots, 1, dots=True)],
                zero=True,
                note="Horizontal axis: token 0 to 18 of a frame; the last holds two digits instead of seven.",
            )
        )
    return section("lm", "Speech language model", f'<div class="panels">{"".join(panels)}</div>')


def baseline_levels(valid: Rows) -> list[Level]:
    """The counted baselines, once each, from the validation rows."""
    names = list(dict.fromkeys(key for row in valid for key in row))
    levels = []
    for name in names:
        words = name.lower()
        if words.endswith("bits/s") and words != "bits/s" and not words.startswith("uniform"):
            values = curve(valid, name.replace("(", r"\(").replace(")", r"\)"))
            if values:
                levels.append(Level(words.removesuffix("bits/s").strip(), values.y[-1]))
    return levels


def slot_curve(valid: Rows) -> Curve:
    """nats_slot_00, nats_slot_01, ... of the last row, over the slot."""
    found = Curve()
    for row in reversed(valid):
        slots = sorted(key for key in row if key.lower().startswith("nats_slot_"))
        for key in slots:
            value = number(row[key])
            if value is not None:
                found.x.append(float(key.rsplit("_", 1)[1]))
                found.y.append(value)
        if found:
            break
    return found


def last(run: RunDir, stage: str, *patterns: str) -> float | None:
    """The latest validation value of a metric (else the latest training value)."""
    train, valid = _split(run.metrics(stage))
    for rows in (valid, train):
        values = curve(rows, *patterns)
        if values:
            return values.y[-1]
    return None


def _split(tables: dict[str, Rows]) -> tuple[Rows, Rows]:
    """Training rows and validation rows; recipes name the files `train` and `valid` or `valid/...`."""
    train = next((rows for name, rows in tables.items() if name.startswith("train")), [])
    valid = next((rows for name, rows in tables.items() if not name.startswith("train")), [])
    return train, valid


def _pair(train: Rows, valid: Rows, *patterns: str) -> list[Series]:
    """One metric in training (thin) and validation (dots)."""
    return [
        Series("training", curve(train, *patterns), 1, faint=True),
        Series("validation", curve(valid, *patterns), 1, dots=True),
    ]
