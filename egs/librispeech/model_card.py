"""The model card of a tokenizer that is to be shipped: FOLDER/README.md, of measured figures and nothing else.

    python -m egs.librispeech.model_card FOLDER --eval RESULTS.json ... --training TRAINING.json

RESULTS.json, one or several of the same utterances, is what `jepa-tok eval FOLDER ...` wrote, of speakers that were not trained on: results of another tokenizer are refused.
TRAINING.json tells how it came to be, all fields required:

    {"licence": "CC BY 4.0", "hardware": "1 x NVIDIA H100 80 GB",
     "data": [{"name": "LibriSpeech train-clean-5", "hours": 1.2, "speakers": 16, "licence": "CC BY 4.0", "credit": "Panayotov et al., 2015"}],
     "stages": [{"name": "stage 1", "steps": 9000, "audio_hours": 120.0, "minutes": 4.1, "commit": "...", "command": "python -m recipes.jepa ..."}],
     "limits": ["Six hours of read English ..."]}

`audio_hours` are hours of audio that the stage was shown, repetitions counted. What the tokenizer is worse at than codecs of up to twice
its bit rate is told without being asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jepa_tok import SpeechTokenizer
from jepa_tok.errors import ConfigError, JepaTokError
from jepa_tok.evaluation.merge import merge
from jepa_tok.evaluation.table import quality, table, tokens
from jepa_tok.files import write_text

FIELDS: dict[str, type | tuple[type, ...]] = {
    "licence": str,
    "hardware": str,
    "data": list,
    "stages": list,
    "limits": list,
}
DATA: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "hours": (int, float),
    "speakers": int,
    "licence": str,
    "credit": str,
}
STAGE: dict[str, type | tuple[type, ...]] = {
    "name": str, "steps": int, "audio_hours": (int, float), "minutes": (int, float), "commit": str, "command": str,
}  # fmt: skip


def model_card(tokenizer: SpeechTokenizer, report: dict[str, Any], training: dict[str, Any]) -> str:
    """The card as Markdown; raises ConfigError for results of another tokenizer and for lacking facts.

    :param report: Content of `results.json` (`jepa_tok.evaluation.evaluate`).
    :param training: Content of TRAINING.json.
    """
    if report.get("tokenizer", {}).get("hash") != tokenizer.hash:
        raise ConfigError(
            f"results must be of tokenizer {tokenizer.hash}, but are of {report.get('tokenizer', {}).get('hash')} instead; "
            "evaluate the folder that is to be shipped (rounding makes another tokenizer)."
        )
    check_training(training)
    config, data = tokenizer.config, training["data"]
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (tokenizer.encoder, tokenizer.generator)]
    of = f"source `{Path(report['source']).name}`" if report.get("source") else "utterances given by a program"
    where = f", where {' and '.join(report['where'])}" if report.get("where") else ""
    lines = [
        f"# `{config.name}`",
        "",
        f"Speech tokenizer {tokenizer.hash}: {sizes[0]:.1f} M + {sizes[1]:.1f} M parameters, {tokenizer.frame_rate:g} frames of "
        f"{tokenizer.num_groups} tokens a second, {report['rows'][0]['bit_rate']:.0f} bit/s"
        + (", causal: it runs on streams." if config.encoder.causal and config.generator.causal else "."),
        "",
        "```python",
        "from jepa_tok import SpeechTokenizer",
        "",
        f'tokenizer = SpeechTokenizer.from_pretrained("{config.name}")',
        "```",
        "",
        f"Licence of the weights: {training['licence']}.",
        "",
        "## Trained on",
        "",
        *table(
            ["data", "hours", "speakers", "licence", "credit"],
            [[d["name"], f"{d['hours']:.1f}", str(d["speakers"]), d["licence"], d["credit"]] for d in data],
        ),
        "",
        f"{sum(d['hours'] for d in data):.1f} hours in all.",
        "",
        "## Training",
        "",
        *table(
            ["stage", "steps", "hours of audio shown", "minutes", "commit"],
            [
                [s["name"], f"{s['steps']:,}", f"{s['audio_hours']:.0f}", f"{s['minutes']:.1f}", s["commit"]]
                for s in training["stages"]
            ],
        ),
        "",
        f"Hardware: {training['hardware']}.",
        "",
        *(f"    {s['command']}" for s in training["stages"]),
        "",
        "## Quality",
        "",
        f"Measured on {of}{where} (docs/evaluation.md), at commit {', '.join((report.get('commit') or 'unknown').split())}:",
        "",
        f"    {report.get('command', 'jepa_tok.evaluation.evaluate')}",
        "",
        *quality(report),
        *(["## Tokens", "", *tokens(report)] if report.get("tokens") else []),
        "## Limits",
        "",
        *(f"- {limit}" for limit in [*comparisons(report), *training["limits"]]),
        "",
    ]
    return "\n".join(lines)


def comparisons(report: dict[str, Any]) -> list[str]:
    """A sentence for each codec of up to twice the bit rate: where it is better than the tokenizer, and where worse."""
    ours, *others = report["rows"]
    told = []
    for row in others:
        if row["bit_rate"] is None or row["bit_rate"] > 2 * ours["bit_rate"]:
            continue
        better, worse = [], []
        for key, column in report["columns"].items():
            a, b = ours["figures"].get(key), row["figures"].get(key)
            if a is None or b is None or a["mean"] == b["mean"]:
                continue
            ahead = (a["mean"] > b["mean"]) == (column["better"] == "higher")
            (better if ahead else worse).append(column["title"])
        told.append(
            f"Beside {row['system']} ({row['bit_rate']:.0f} bit/s): worse in {', '.join(worse) or 'nothing measured'}; "
            f"better in {', '.join(better) or 'nothing measured'}."
        )
    return told


def check_training(training: Any) -> None:
    """Raises ConfigError where a fact is missing, empty or of a wrong type."""
    _check("training", training, FIELDS)
    for key, fields in (("data", DATA), ("stages", STAGE)):
        for i, entry in enumerate(training[key]):
            _check(f"training `{key}[{i}]`", entry, fields)
    if not all(isinstance(limit, str) and limit for limit in training["limits"]):
        raise ConfigError("training `limits` must be sentences, but an entry is not.")


def _check(name: str, values: Any, fields: dict[str, Any]) -> None:
    if not isinstance(values, dict) or set(values) != set(fields):
        found = ", ".join(values) if isinstance(values, dict) else repr(values)
        raise ConfigError(f"{name} must have the fields {', '.join(fields)}, but has {found or 'none'} instead.")
    for key, kind in fields.items():
        value = values[key]
        if not isinstance(value, kind) or isinstance(value, bool) or value in ("", []):
            raise ConfigError(f"{name} `{key}` must be given, but is {value!r} instead.")


def read_json(path: Path) -> Any:
    """A JSON file; raises ConfigError, naming it, where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' must be a JSON file, but cannot be read: {error}.") from None


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m egs.librispeech.model_card",
        description="The model card of a tokenizer that is to be shipped.",
        epilog="example: python -m egs.librispeech.model_card jepa_tok/checkpoints/small --eval exp/eval/results.json --training training.json",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the tokenizer; its README.md is written")
    parser.add_argument(
        "--eval",
        metavar="RESULTS.json",
        type=Path,
        required=True,
        nargs="+",
        help="what `jepa-tok eval` wrote of it; several of the same utterances are one table",
    )
    parser.add_argument(
        "--training", metavar="TRAINING.json", type=Path, required=True, help="how it came to be; see the module"
    )
    args = parser.parse_args(argv)
    try:
        report = merge([read_json(path) for path in args.eval])
        card = model_card(SpeechTokenizer.from_pretrained(args.folder), report, read_json(args.training))
        write_text(args.folder / "README.md", card)
    except (JepaTokError, OSError) as error:
        print(f"model_card: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
