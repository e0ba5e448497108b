"""Command line of the probes. Nothing heavy is imported before the arguments are known to be right."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from jepa_tok.errors import JepaTokError
from probes.options import Count, DecoderKind, Folds, HeadKind, Natural, UnitKind, wrong

_EXAMPLES = """examples:
  python -m probes speaker --tokens exp/tokens --labels data/manifest.jsonl --out exp/probes/speaker
  python -m probes emotion --tokens exp/tokens --labels data/manifest.jsonl --random-config tiny --out exp/probes/emotion
  python -m probes asr --tokens exp/tokens --units char --out exp/probes/asr
  python -m probes run --suite librispeech --tokenizers exp/tokenizer,random:small,melkm --data /corpora --out exp/probes/librispeech
  python -m probes study --suite librispeech --tokenizer exp/tokenizer --data /corpora --out exp/probes/librispeech
"""


# Arguments that each probe's `prepare` and `run` take, by name.
_CLASSIFY = ["column", "speaker_column", "split_column", "fold_column", "folds", "task"]
_PREPARE = {
    "asr": ["column"],
    "speaker": ["column", "rare"],
    "emotion": ["column", "speaker_column", "rare"],
    "classify": ["column", "speaker_column", "rare"],
}
_RUN = {
    "asr": [
        "column",
        "speaker_column",
        "split_column",
        "units",
        "spm_size",
        "head",
        "decoder",
        "lm",
        "context",
        "epochs",
        "device",
    ],
    "speaker": ["column", "split_column", "verification_column", "trials_file"],
    "emotion": _CLASSIFY,
    "classify": _CLASSIFY,
}
_MODULES = {"emotion": "classify"}  # the others have the name of their task


class _Parser(argparse.ArgumentParser):
    # Errors take one line, as those of the inputs do.
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    top = _Parser(
        prog="python -m probes",
        description="Linear probes on packed tokens, beside their controls: untrained tokenizer, log-mels, shuffled labels, chance.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = top.add_subparsers(dest="task", required=True, metavar="asr|speaker|emotion|classify|run|study")
    about = {
        "asr": "word and character error rates of a CTC head at 47.5 positions a second",
        "speaker": "closed-set identification accuracy, and verification EER and minDCF",
        "emotion": "unweighted average recall and macro F1 on speakers that were not trained on",
        "classify": "the same of any column: gender, language, keyword, sound event",
    }
    columns = {"asr": "text", "speaker": "speaker", "emotion": "emotion", "classify": "label"}
    for task, line in about.items():
        p = tasks.add_parser(
            task, help=line, description=line, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        p.add_argument("--tokens", required=True, help="folder of token shards, or one parquet file")
        p.add_argument(
            "--labels",
            help="JSONL or TSV manifest, or Kaldi data dir, with the same ids; default: the shards' own columns",
        )
        p.add_argument("--out", required=True, help="folder for results.json and results.md")
        p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
        p.add_argument(
            "--label-column",
            "--column",
            dest="column",
            default=columns[task],
            metavar="NAME",
            help=f"default: {columns[task]}",
        )
        p.add_argument(
            "--split-column", metavar="NAME", help="column with train, dev and test; default: see the probe's report"
        )
        control = p.add_mutually_exclusive_group()
        control.add_argument(
            "--random-tokens",
            metavar="DIR",
            help="tokens of the same audio by an untrained tokenizer of the same shape",
        )
        control.add_argument(
            "--random-config",
            metavar="NAME",
            help="make such tokens, one tokenizer a seed, from the labels' audio paths",
        )
        p.add_argument(
            "--tokenizer",
            metavar="DIR",
            help="the tokenizer that made the tokens: what it has before its quantiser is a control, too",
        )
        if task in ("asr", "emotion"):
            p.add_argument("--speaker-column", default="speaker", metavar="NAME", help="default: speaker")
        if task == "classify":
            p.add_argument(
                "--group",
                "--speaker-column",
                dest="speaker_column",
                metavar="NAME",
                help="column whose values are never both trained on and tested; default: utterances are divided",
            )
        if task != "asr":
            p.add_argument("--transitions", action="store_true", help="pool pairs of successive digits too")
            p.add_argument(
                "--drop-rare",
                dest="rare",
                action="store_true",
                help="leave classes of too few utterances out instead of refusing",
            )
        if task == "speaker":
            p.add_argument(
                "--verification-column",
                metavar="NAME",
                help="column that divides by speaker; default: `split` where it does",
            )
            p.add_argument(
                "--trials",
                dest="trials_file",
                metavar="FILE",
                help="verification trials: enroll id, test id, 1 for one speaker and 0 for two; default: drawn once, and written",
            )
        if task in ("emotion", "classify"):
            p.add_argument(
                "--folds", type=_number(Folds), default=5, metavar="N", help="default: 5, at most one a speaker"
            )
            p.add_argument("--fold-column", metavar="NAME", help="column whose values are the folds")
        if task == "asr":
            p.add_argument(
                "--units",
                choices=get_args(UnitKind),
                default="char",
                help="characters, or sentencepiece trained on the training transcripts",
            )
            p.add_argument(
                "--spm-size", type=_number(Count), default=128, metavar="N", help="sentencepiece units; default: 128"
            )
            p.add_argument(
                "--context",
                type=_number(Natural),
                metavar="N",
                help="neighbouring frames the linear head sees on each side; default: those of 400 ms",
            )
            p.add_argument(
                "--head",
                choices=get_args(HeadKind),
                default="linear",
                help="one projection, or two LSTM layers as in DASB; default: linear",
            )
            p.add_argument(
                "--decoder", choices=get_args(DecoderKind), default="greedy", help="beam: its width is tuned on dev"
            )
            p.add_argument(
                "--lm", metavar="FILE", help="ARPA n-gram for the beam, over words or units; its weight is tuned on dev"
            )
            p.add_argument(
                "--epochs",
                type=_number(Count),
                metavar="N",
                help="default: 15, or more where that makes less than 300 updates",
            )
            p.add_argument("--device", default="cpu", help="torch device; default: cpu")
    _add_run(tasks)
    _add_study(tasks)
    return top


def _add_run(verbs: Any) -> None:
    """The verb that measures a suite."""
    line = (
        "all tasks of a suite with several tokenizers: cached, resumed, one page of tables and plots (docs/probes.md)"
    )
    p = verbs.add_parser(
        "run", help=line, description=line, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_suite(p)
    p.add_argument(
        "--tokenizers",
        type=_specs,
        default=[],
        metavar="SPEC,...",
        help="tokenizer folders and adapters (docs/adapters.md); `latent:SPEC` is what one has before its quantiser",
    )
    p.add_argument(
        "--tokens",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="token shards of the whole suite, taken as they are; may be given several times",
    )
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    p.add_argument("--jobs", type=_number(Count), default=1, metavar="N", help="processes that measure; default: 1")


def _add_study(verbs: Any) -> None:
    """The verb that looks into one tokenizer."""
    line = (
        "which tokens, digits and frames carry what, and what DAAM gates follow: heat maps on one page (docs/probes.md)"
    )
    p = verbs.add_parser(
        "study", help=line, description=line, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_suite(p)
    p.add_argument("--tokenizer", required=True, metavar="SPEC", help="a tokenizer folder or an adapter")
    p.add_argument(
        "--control", metavar="SPEC", help="what stands beside it; default: for ours, an untrained one of its config"
    )
    p.add_argument("--seed", type=_number(Natural), default=0, metavar="N", help="default: 0")


def _add_suite(p: argparse.ArgumentParser) -> None:
    """What both verbs on suites take."""
    p.add_argument("--suite", required=True, metavar="NAME", help="a suite's name, or the .yaml file of one")
    p.add_argument("--data", default="data", metavar="ROOT", help="folder of the corpora; default: data")
    p.add_argument(
        "--tasks",
        type=_names,
        default=[],
        metavar="NAME,...",
        help="of the suite's tasks these alone, each as TASK or CORPUS.TASK; default: all",
    )
    p.add_argument("--out", required=True, metavar="DIR", help="folder of the results; a run with it again goes on")
    p.add_argument(
        "--fit", metavar="MANIFEST", help="audio for tokenizers that learn; default: the suite's training part"
    )
    p.add_argument("--cache", metavar="DIR", help="folder of codes and latents; default: OUT/cache")
    p.add_argument("--device", default="cpu", help="torch device; default: cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one probe or a suite; returns the exit status: 0, 1 where a part of a suite failed, 2 where input or arguments do not
    allow a start, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    try:
        if args.task == "run":
            from probes.run import run as run_suite

            return run_suite(args, given)
        if args.task == "study":
            from probes.studies import run as run_study

            return run_study(args, given)
        run(args, given)
    except KeyboardInterrupt:
        print("interrupted: what was finished stays, and the same command goes on from there", file=sys.stderr)
        return 130
    except JepaTokError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as e:
        if e.name not in ("sklearn", "jiwer", "sentencepiece", "pyarrow", "yaml"):
            raise
        print(
            f"error: The probes need the package `{e.name}`, which is not installed: pip install 'jepa-tok[probes]'.",
            file=sys.stderr,
        )
        return 2
    return 0


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Runs one probe, writes and prints its results, and returns them.

    Raises JepaTokError where tokens, labels, splits or the output folder do not allow it.
    """
    from jepa_tok.cli.common import torch_device
    from probes import data as d
    from probes import inputs, results

    start = time.monotonic()
    if len(set(args.seeds)) != len(args.seeds) or min(args.seeds) < 0:
        raise d.ProbeError(f"`--seeds` must be different numbers from 0 up, but are {' '.join(map(str, args.seeds))}.")
    out = Path(args.out)
    if hasattr(args, "device"):
        torch_device(args.device)
    results.check_out(out, args.task)
    data = d.load(args.tokens, args.labels)
    probe = importlib.import_module(f"probes.{_MODULES.get(args.task, args.task)}")
    data = probe.prepare(data, **{name: getattr(args, name) for name in _PREPARE[args.task]})
    sources = inputs.sources(
        data,
        random_tokens=args.random_tokens,
        random_config=args.random_config,
        tokenizer=args.tokenizer,
        transitions=getattr(args, "transitions", False),
    )
    outcome = probe.run(data, sources, args.seeds, **{name: getattr(args, name) for name in _RUN[args.task]})
    found = results.report(
        outcome,
        argv=list(argv),
        seeds=args.seeds,
        counts=data.counts,
        tokens={
            "path": str(args.tokens),
            "labels": args.labels,
            "hash": data.meta.hash,
            "frame_rate": data.meta.frame_rate,
        },
        seconds=time.monotonic() - start,
    )
    results.write(out, found, outcome.trials)
    print(results.console(found))
    print(f"written: {out / 'results.json'}, {out / 'results.md'}")
    return found


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names with commas between, but is {text!r}")
    return names


def _specs(text: str) -> list[str]:
    """Tokenizers with commas between; numbers belong to the one before, as in `melkm:40,8,8`."""
    found: list[str] = []
    for name in _names(text):
        if found and name.isdecimal():
            found[-1] += f",{name}"
        else:
            found.append(name)
    return found


def _number(kind: Any) -> Callable[[str], int]:
    """Reads a whole number of that kind, as a suite's file has it."""

    def read(text: str) -> int:
        text = text.strip()
        value = int(text) if text.isdecimal() and len(text) < 10 else text
        fault = wrong(value, kind)
        if fault:
            raise argparse.ArgumentTypeError(fault)
        return int(value)

    return read
