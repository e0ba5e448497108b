"""Results of several runs of `jepa-tok eval` on the same utterances as one: words take ten times as long as all else, so that they are
often measured apart, beside fewer bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jepa_tok.errors import ConfigError

_SAME = ("tokenizer", "corpus", "source", "where")


def merge(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One report with the columns and rows of all, `results.json` as `evaluate` gives it; a figure that no run took is absent.

    What runs have in common is the first's. `command` and `commit` are those of all, a line each. Raises ConfigError where they are of other
    tokenizers or utterances, or two of them have the same column: which figure holds could not be told.
    """
    first, *others = reports
    for other in others:
        for key in _SAME:
            if other.get(key) != first.get(key):
                raise ConfigError(
                    f"results must be of the same `{key}`, but are of {first.get(key)} and {other.get(key)}."
                )
    columns: dict[str, Any] = {}
    for report in reports:
        twice = sorted(set(columns) & set(report["columns"]))
        if twice:
            raise ConfigError(f"each figure must be in one of the results, but `{twice[0]}` is in two.")
        columns |= report["columns"]
    labels = list(dict.fromkeys(row["system"] for report in reports for row in report["rows"]))
    out = {**first, "columns": columns, "rows": [_row(label, reports) for label in labels]}
    for key in ("command", "commit"):
        out[key] = "\n    ".join(dict.fromkeys(str(r[key]) for r in reports if r.get(key))) or None
    lacking = [report["unavailable"] for report in reports]
    out["unavailable"] = {
        # What one run lacked another may have had.
        "systems": {k: v for k, v in _joined(r["systems"] for r in lacking).items() if k not in labels},
        "metrics": {
            k: v for k, v in _joined(r["metrics"] for r in lacking).items() if all(k in r["metrics"] for r in lacking)
        },
    }
    words = next((r for r in reports if "wer" in r["columns"]), first)
    out["settings"] = {**first["settings"], "recognizer": words["settings"]["recognizer"]}
    out["skipped"] = list({s["id"]: s for r in reports for s in r["skipped"]}.values())
    return out


def _row(label: str, reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One system's row: what each run found of it."""
    own = [row for report in reports for row in report["rows"] if row["system"] == label]
    kinds = ("figures", "differences", "failures")
    return own[0] | {kind: _joined(row[kind] for row in own) for kind in kinds}


def _joined(parts: Any) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}
