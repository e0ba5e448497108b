"""Tables of several tokenizers side by side, from what `jepa-tok eval` wrote of each on the same utterances.

    python -m egs.librispeech.compare RESULTS.json[,RESULTS.json ...] ... [--beside "Codec2 700C"]
    python -m egs.librispeech.compare --pair A/utterances.jsonl B/utterances.jsonl

The first prints a row for each tokenizer's tokens and unquantised latents, then the bounds, then each tokenizer minus `--beside`, utterance
by utterance; results with a comma between are of one tokenizer. The second prints A's tokens minus B's, utterance by utterance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from egs.librispeech.model_card import read_json
from jepa_tok.errors import ConfigError, JepaTokError
from jepa_tok.evaluation.intervals import bootstrap, drawn_by_speaker, weighted_mean
from jepa_tok.evaluation.merge import merge
from jepa_tok.evaluation.table import column_titles, figure_cell, rate_cell, table

OWN = ("tokens", "latents")
"""Rows of a tokenizer itself; all others are bounds, the same for all tokenizers."""


def side_by_side(reports: Sequence[dict[str, Any]], beside: str) -> list[str]:
    """Lines of Markdown; raises ConfigError where the reports are of other utterances, or none has the row `beside`."""
    first = reports[0]
    for report in reports[1:]:
        if any(report.get(key) != first.get(key) for key in ("corpus", "source", "where")):
            raise ConfigError(
                f"results must be of the same utterances, but are of {first['corpus']} and {report['corpus']}."
            )
    columns = {key: column for report in reports for key, column in report["columns"].items()}
    titles = column_titles(columns)
    rows = [row for report in reports for row in report["rows"] if _is_own(row)]
    bounds: dict[str, dict[str, Any]] = {}
    for row in (row for report in reports for row in report["rows"] if not _is_own(row)):
        known = bounds.setdefault(row["system"], {**row, "figures": {}})
        known["figures"] = row["figures"] | known["figures"]
    order = [row["system"] for row in max(reports, key=lambda r: len(r["rows"]))["rows"] if row["system"] in bounds]
    body = [
        [row["system"], rate_cell(row), *(figure_cell(row["figures"], k, 3) for k in columns)]
        for row in (*rows, *(bounds[name] for name in order))
    ]
    lines = [*table(["", "bit/s", *titles], body), ""]
    gaps = [
        (report["rows"][0]["system"], row["differences"])
        for report in reports
        for row in report["rows"]
        if row["system"] == beside
    ]
    if not gaps:
        raise ConfigError(f"`--beside` must be a row of the results ({', '.join(bounds)}), but is '{beside}'.")
    body = [[name, *(figure_cell(found, k, 3, "+") for k in columns)] for name, found in gaps]
    return [*lines, *table([f"minus {beside}", *titles], body), ""]


def _is_own(row: dict[str, Any]) -> bool:
    return any(word in row["system"] for word in OWN)


def pair(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: the first system of A minus that of B, rows being lines of `utterances.jsonl`."""
    systems = (a[0]["system"], b[0]["system"])
    own, other = ({r["id"]: r for r in rows if r["system"] == name} for rows, name in zip((a, b), systems))
    body = []
    for key in a[0]["scores"]:
        ids = [i for i in own if key in own[i]["scores"] and i in other and key in other[i]["scores"]]
        if not ids:
            continue
        weights = [_weight(own[i], key) for i in ids]
        values = [own[i]["scores"][key] - other[i]["scores"][key] for i in ids]
        speakers = [str(own[i].get("speaker") or "") for i in ids]
        by_speaker = drawn_by_speaker(speakers)
        interval = bootstrap(values, speakers if by_speaker else ids, weights)
        over = f"{len(set(speakers))} speakers" if by_speaker else f"{len(ids)} utterances"
        figure = {"mean": weighted_mean(values, weights), "interval": interval and [interval.low, interval.high]}
        body.append([key, str(len(ids)), figure_cell({key: figure}, key, 3, "+"), over])
    return [*table([f"{systems[0]} minus {systems[1]}", "utterances", "difference", "interval over"], body), ""]


def _weight(row: dict[str, Any], key: str) -> float:
    """Words of the reference, for error rates; else one."""
    counts = [v for k, v in row.items() if k.endswith((f"_{key}_equal", f"_{key}_delete", f"_{key}_replace"))]
    return float(sum(counts)) if counts else 1.0


def read_utterances(path: Path) -> list[dict[str, Any]]:
    """Rows of `utterances.jsonl`; raises ConfigError where it holds none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if rows and all(isinstance(row["scores"], dict) and row["id"] and row["system"] for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f"'{path}' must be the utterances.jsonl of an evaluation, but is not.")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m egs.librispeech.compare", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "results", metavar="RESULTS.json,...", nargs="*", help="of one tokenizer each, what has commas being joined"
    )
    parser.add_argument("--beside", default="Codec2 700C", metavar="ROW", help="default: Codec2 700C")
    parser.add_argument(
        "--pair", nargs=2, type=Path, metavar="UTTERANCES.jsonl", help="two tokenizers, utterance by utterance"
    )
    args = parser.parse_args(argv)
    try:
        if bool(args.results) == bool(args.pair):
            raise ConfigError("either RESULTS.json or --pair must be given.")
        if args.pair:
            lines = pair(*map(read_utterances, args.pair))
        else:
            reports = [merge([read_json(Path(name)) for name in given.split(",")]) for given in args.results]
            lines = side_by_side(reports, args.beside)
    except JepaTokError as error:
        print(f"compare: error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
