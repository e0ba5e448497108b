"""One page of what a run of egs/librispeech found: EXP/results.md and EXP/results.json.

    python -m egs.librispeech.results EXP

Collects the last validation of both stages, the language model beside its baselines and the probes beside their controls, and
measures resynthesis on the validation readers: STOI and log-mel distance (docs/evaluation.md), beside two controls: the same
tokenizer untrained, and the resynthesis of another utterance. `jepa-tok eval` tells more.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from jepa_tok import SpeechTokenizer, load_audio
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.errors import CorpusError, JepaTokError
from jepa_tok.evaluation.clip import Clip
from jepa_tok.evaluation.metrics import Mel, Stoi
from jepa_tok.files import write_text
from jepa_tok.provenance import commit, machine, versions
from probes.results import markdown


def last_row(run: Path, name: str) -> dict[str, Any] | None:
    """The last line of a run's metrics (a resumed run repeats steps; the last is the one that counts)."""
    files = sorted(run.glob(f"metrics/**/{name}*.jsonl"))
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    return max((json.loads(line) for line in reversed(lines)), key=lambda row: row["Step"], default=None)


def resynthesis(exp: Path, limit: int = 40) -> dict[str, dict[str, dict[str, float]]]:
    """STOI and log-mel distance of resynthesised validation clips: mean and deviation over clips of each input."""
    tokenizer = SpeechTokenizer.from_pretrained(exp / "tokenizer")
    untrained = SpeechTokenizer.from_config(tokenizer.config, seed=0)
    clips = read_corpus(exp / "data" / "all.jsonl", split="dev")
    clips = clips[:: max(1, len(clips) // limit)][:limit]
    metrics, rate = (Stoi(), Mel()), tokenizer.sample_rate
    waves = [load_audio(clip.path) for clip in clips]
    made = {
        "trained": [tokenizer.decode(tokenizer.encode(w)) for w in waves],
        "untrained": [untrained.decode(untrained.encode(w)) for w in waves],
    }
    made["another utterance"] = made["trained"][1:] + made["trained"][:1]
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, outputs in made.items():
        scores: dict[str, list[float]] = {}
        for wave, output in zip(waves, outputs):
            n = min(len(wave), len(output))
            original, resynthesised = Clip(wave[:n], rate), Clip(output[:n], rate)
            for metric in metrics:
                for key, value in metric.score(original, resynthesised).values.items():
                    scores.setdefault(key, []).append(value)
        rows[name] = {
            key: {"mean": statistics.fmean(v), "std": statistics.stdev(v) if len(v) > 1 else 0.0, "clips": len(v)}
            for key, v in scores.items()
        }
    return rows


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


def metrics_table(row: dict[str, Any] | None) -> list[str]:
    """The numbers of one validation, or a line that says that there is none."""
    if row is None:
        return ["No validation was found."]
    skip = re.compile(r"Time$|^Batch Size|^Number of|^Elements|^Padding|Slot|^Uniform|^Unigram|^Bigram")
    cells = [[k, f"{v:.4g}"] for k, v in row.items() if isinstance(v, (int, float)) and not skip.search(k)]
    return table(["validation", "value"], cells)


def page(found: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    lines = [
        f"# LibriSpeech, `{found['tokenizer']['name']}`",
        "",
        f"Tokenizer {found['tokenizer']['hash']}. Commit {found['commit'] or 'unknown'}; "
        + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        + f"; {found['machine']}.",
        "",
        "One training seed: differences between this page and another run are not tested for significance.",
        "",
        "## Resynthesis, validation readers",
        "",
    ]
    cells = [
        [name, *(f"{scores[k]['mean']:.3f} ± {scores[k]['std']:.3f}" for k in ("stoi", "mel_db"))]
        for name, scores in found["resynthesis"].items()
    ]
    clips = next(iter(found["resynthesis"].values()))["stoi"]["clips"]
    lines += table(["output", "STOI (↑)", "log-mel distance, dB (↓)"], cells)
    lines += ["", f"Mean ± deviation over {clips} utterances of readers that were not trained on.", ""]
    lines += ["## Stage 1", "", *metrics_table(found["stage1"]), ""]
    lines += ["## Stage 2", "", *metrics_table(found["stage2"]), ""]
    lines += ["## Language model", "", *metrics_table(found["lm"]), ""]
    if found["baselines"]:
        counted = [
            [k, f"{v['bits_per_second']:.4g}"] for k, v in found["baselines"].items() if "bits_per_second" in str(v)
        ]
        lines += ["Counted on the same training tokens:", "", *table(["baseline", "bits/s"], counted), ""]
    for probe in found["probes"]:
        lines += ["#" + markdown(probe)]
    lines += ["## Commands", ""]
    rows = [
        [c["name"], str(c["seconds"]), c.get("commit") or "unknown", f"`{c['command']}`"] for c in found["commands"]
    ]
    lines += table(["step", "seconds", "commit", "command"], rows)
    return "\n".join(lines) + "\n"


def read_json(path: Path) -> Any:
    """A JSON file, or None where it is missing."""
    return json.loads(path.read_text()) if path.exists() else None


def collect(exp: Path) -> dict[str, Any]:
    """Everything the page shows; raises CorpusError where the run has no tokenizer yet."""
    if not (exp / "tokenizer" / "config.json").exists():
        raise CorpusError(
            f"{exp}: a run must have a tokenizer, but {exp / 'tokenizer'} is missing; run the stages before this one."
        )
    tokenizer = SpeechTokenizer.from_pretrained(exp / "tokenizer")
    commands = [json.loads(line) for line in (exp / "commands.jsonl").read_text().splitlines()]
    latest = {c["name"]: c for c in commands if c["status"] == 0 and c["name"] != "results"}
    return {
        "tokenizer": {"name": tokenizer.config.name, "hash": tokenizer.hash},
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "resynthesis": resynthesis(exp),
        "stage1": last_row(exp / "stage1", "valid"),
        "stage2": last_row(exp / "stage2", "valid"),
        "lm": last_row(exp / "lm", "valid"),
        "baselines": read_json(exp / "lm" / "baselines.json"),
        "probes": [json.loads(p.read_text()) for p in sorted(exp.glob("probes/*/results.json"))],
        "commands": list(latest.values()),
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m egs.librispeech.results",
        description="One page of what a run of egs/librispeech found.",
        epilog="example: python -m egs.librispeech.results exp/librispeech_tiny",
    )
    parser.add_argument("exp", type=Path, help="the run's folder")
    args = parser.parse_args()
    try:
        found = collect(args.exp)
    except JepaTokError as error:
        print(f"results: error: {error}", file=sys.stderr)
        return 2
    for name, text in (("results.json", json.dumps(found, indent=2) + "\n"), ("results.md", page(found))):
        write_text(args.exp / name, text)
    print(f"wrote {args.exp / 'results.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
