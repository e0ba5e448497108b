"""The page of a study: heat maps of what parts of a frame carry, and dots of what gates follow."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from jepa_tok.report.charts import Dot, Level, dots, heat
from jepa_tok.report.document import document
from jepa_tok.report.results import metric_name
from probes import gates, slots

LEAD = "Which tokens, digits and neighbouring frames carry what, and what the encoder's gates follow."


def render(study: dict[str, Any]) -> str:
    """The whole page as text."""
    names = study["names"]
    links = ", ".join(f'<a href="#{escape(c["corpus"])}">{escape(c["corpus"])}</a>' for c in study["corpora"])
    control = (
        f"Beside it, <code>{escape(names[1])}</code>: the same architecture, untrained."
        if len(names) > 1 and names[1].startswith("random:")
        else f"Beside it, <code>{escape(names[1])}</code>."
        if len(names) > 1
        else "There is no control."
    )
    head = (
        f"<header><h1>Study: {escape(names[0])}</h1><p class=lead>{LEAD}</p><p>{control} What both can do is no merit of training.</p>"
        f"<p>{links}</p></header>"
    )
    facts = {"commit": study["commit"] or "unknown", "seed": str(study["seed"]), "machine": study["machine"]}
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in study["versions"].items())
    listed = "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    how = f'<section id="how"><h2>How</h2><p><code>{escape(study["command"])}</code></p><dl class="facts">{listed}</dl></section>'
    body = "\n".join(_corpus(corpus, names) for corpus in study["corpora"])
    return document(
        f"Study: {names[0]}",
        head + body + how,
        "Made by <code>python -m probes study</code>. This page needs no network.",
    )


def _corpus(found: dict[str, Any], names: Sequence[str]) -> str:
    parts = [_groups(found, names), _digits(found, names), _mels(found, names), _gates(found, names)]
    return (
        f'<section id="{escape(found["corpus"])}"><h2>{escape(found["corpus"])}</h2><p>{escape(found["about"])}</p>'
        f"{''.join(parts)}</section>"
    )


def _groups(found: dict[str, Any], names: Sequence[str]) -> str:
    """A row a task and tokenizer: its probe on each group alone, shaded from chance to 1."""
    rows, shades, texts = [], [], []
    metrics = []
    for task, by_name in found["tasks"].items():
        for name in names:
            read = by_name[name]
            values = [part["mean"] for part in read["parts"]]
            worst, best = (read["chance"], 1.0) if read["better"] == "higher" else (read["chance"], 0.0)
            rows.append(f"{task}: {name}")
            shades.append([(v - worst) / (best - worst) if best != worst else 0.0 for v in values])
            texts.append([_bounds(part) for part in read["parts"]])
        shuffled = by_name[names[0]]["shuffled"]
        metrics.append(
            f"{task}: {metric_name(by_name[names[0]]['metric'])}, chance {by_name[names[0]]['chance']:.2f}, shuffled labels "
            f"{sum(shuffled) / len(shuffled):.2f} in the mean"
        )
    columns = _numbers(max(len(sizes) for sizes in found["groups"].values()))
    note = f"{'; '.join(metrics)}. Shades run from chance to 1; seed and head are the probe's own, pooling is of the group's digits alone."
    return heat("What a probe reads from each token alone", rows, columns, shades, texts, note)


def _bounds(part: dict[str, Any]) -> str:
    known = part.get("low") is not None
    return f"{part['mean']:.3f}" + (f" [{part['low']:.3f}, {part['high']:.3f}]" if known else "")


def _digits(found: dict[str, Any], names: Sequence[str]) -> str:
    """For each task and tokenizer a map of digits of a token by tokens; one scale a task."""
    out = []
    for task, by_name in found["tasks"].items():
        top = max(max(by_name[name]["by_digit"]) for name in names)
        for name in names:
            sizes = found["groups"][name]
            if max(sizes) == 1:
                continue
            starts = [sum(sizes[:k]) for k in range(len(sizes))]
            share = by_name[name]["by_digit"]
            grid = [[share[s + d] if d < n else None for s, n in zip(starts, sizes)] for d in range(max(sizes))]
            mean = sum(share) / len(share)
            out.append(
                heat(
                    f"{task}, digit by digit: {name}",
                    [f"digit {d + 1}" for d in range(max(sizes))],
                    _numbers(len(sizes)),
                    [[None if v is None else max(0.0, v) / (top or 1.0) for v in row] for row in grid],
                    [["" if v is None else f"{v:.3f}" for v in row] for row in grid],
                    f"Omega squared: share of the variance between clips that {task} explains in the digit's mean value; "
                    f"{mean:.3f} in the mean, 0 is expected of chance. Shades to {top:.3f} in both maps.",
                    labels=False,
                )
            )
    return f'<div class="pairs">{"".join(out)}</div>'


def _mels(found: dict[str, Any], names: Sequence[str]) -> str:
    out = []
    every = [v for n in names for kind in ("subframes", "offsets") for row in found["mels"][n][kind] for v in row if v]
    top = max(1e-3, *every)
    for kind, title, columns in (
        ("subframes", "log-mels within the frame", None),
        ("offsets", "log-mels of frames around", [f"{o:+d}" if o else "0" for o in slots.OFFSETS]),
    ):
        across = (
            "steps of the frame in their order" if columns is None else "frames before and behind the token's own, 0"
        )
        for name in names:
            read = found["mels"][name]
            grid = read[kind]
            whole = read.get("all")
            empty = " Empty: clips are too short." if any(v is None for row in grid for v in row) else ""
            all_digits = f" All digits of the frame: {_bounds(whole)}." if whole else ""
            out.append(
                heat(
                    f"{title}: {name}",
                    _numbers(len(grid)),
                    columns or _numbers(len(grid[0])),
                    [[None if v is None else max(0.0, v) / top for v in row] for row in grid],
                    [["" if v is None else f"{v:.3f}" for v in row] for row in grid],
                    f"R² of a linear map from a token's one-hot digits, on speakers it was not fitted on. Rows: tokens; columns: {across}. "
                    f"Shades to {top:.2f} in all four maps.{empty}{all_digits}",
                    labels=False,
                )
            )
    return f'<div class="pairs">{"".join(out)}</div>'


def _gates(found: dict[str, Any], names: Sequence[str]) -> str:
    own = found["gates"][names[0]]
    if not own:
        return ""
    control = found["gates"].get(names[1]) if len(names) > 1 else None
    out = []
    for signal, (what, level) in gates.SIGNALS.items():
        rows = []
        for k, row in enumerate(own):
            measured, other = row[signal], control[k][signal] if control and k < len(control) else None
            value, low, high = (measured[key] for key in ("mean", "low", "high")) if measured else (None, None, None)
            label = f"stage {row['stage']}, {row['steps_per_second']:g} steps/s, \u03b1 {row['alpha']:.3f}"
            rows.append(Dot(label, value, low, high, other["mean"] if other else None))
        bars = "; bars: 95 % intervals by bootstrap over speakers" if any(row.low is not None for row in rows) else ""
        hollow = f" Hollow: {names[1]}." if control else ""
        empty = (
            " Stages without a dot: clips have fewer than three steps." if any(r.value is None for r in rows) else ""
        )
        note = f"Mean over clips{bars}.{hollow}{empty}"
        out.append(dots(f"DAAM gate, {signal}: {what}", rows, level=Level("no relation", level), note=note))
    return "".join(out)


def _numbers(count: int) -> list[str]:
    return [str(k + 1) for k in range(count)]
