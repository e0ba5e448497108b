"""`jepa-tok eval`: how well speech survives a tokenizer, beside reference systems."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import add_overwrite_option, complain, duration, file_path, load_tokenizer, positive
from jepa_tok.presets import PRESETS


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "eval",
        help="quality of the resynthesis, beside other codecs",
        description="Resynthesises a corpus and measures what is left of it, with codecs and controls beside: OUT/results.md is\n"
        "the table, OUT/results.json all figures, OUT/utterances.jsonl and OUT/versa/ single utterances. docs/evaluation.md\n"
        "says what each figure is. Exit status: 0 done, 1 done but for files that could not be read, 2 an error.",
        epilog="example: jepa-tok eval my_tokenizer corpus.jsonl out --where split=dev",
    )
    parser.add_argument(
        "tokenizer", metavar="TOKENIZER", help="a folder that save_pretrained wrote, or the name of a packaged one"
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a corpus, as for jepa-tok tokenize, with `text` and `speaker` if it is to be of most use",
    )
    parser.add_argument(
        "out", metavar="OUT", type=file_path, help="folder for the results; a run that was killed goes on there"
    )
    parser.add_argument(
        "--where",
        metavar="COLUMN=VALUE",
        action="append",
        help="only utterances with this value, as for jepa-tok tokenize",
    )
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        type=_names,
        help="of stoi,pesq,speaker,dnsmos,wer,f0,mel (default: all that are installed)",
    )
    parser.add_argument(
        "--bounds", metavar="NAMES", type=_names, help="of latents,original,codec2,opus,griffinlim,other (default: all)"
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive(int), help="at most N utterances, evenly spaced over the corpus"
    )
    parser.add_argument(
        "--recognizer", metavar="NAME", default="pocketsphinx",
        help="for WER: an entry point of jepa_tok.recognizers, or module:function (default: pocketsphinx, which is rough)",
    )  # fmt: skip
    parser.add_argument("--save-audio", action="store_true", help="write what every system gave, for listening")
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")
    parser.add_argument(
        "--random-init",
        action="store_true",
        help=f"take TOKENIZER as a preset ({', '.join(PRESETS)}) with untrained weights",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of --random-init (default: 0)")
    parser.add_argument(
        "--device", default="cpu", help="where the tokenizer runs: cpu, cuda, cuda:1, ... (default: cpu)"
    )
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluates, then prints the table's place; 1 where something was skipped."""
    import shlex
    import sys

    from jepa_tok.corpus import read_corpus
    from jepa_tok.evaluation import evaluate

    utterances = read_corpus(args.source, where=args.where)  # before the model: a bad corpus answers at once
    report = evaluate(
        load_tokenizer(args),
        utterances,
        args.out,
        metrics=args.metrics,
        bounds=args.bounds,
        recognizer=args.recognizer,
        limit=args.limit,
        audio=args.save_audio,
        overwrite=args.overwrite,
        seed=args.seed,
        progress=args.progress or None,
        about={"source": args.source, "where": args.where, "command": shlex.join(["jepa-tok", *sys.argv[1:]])},
    )
    for bad in report["skipped"]:
        complain(f"skipped '{bad['id']}': {bad['reason']}")
    for name, reason in (report["unavailable"]["systems"] | report["unavailable"]["metrics"]).items():
        complain(f"{name} is {reason}")
    corpus = report["corpus"]
    print(
        f"{args.out / 'results.md'}: {len(report['rows'])} systems, {len(report['columns'])} figures, "
        f"{corpus['utterances']} utterances, {duration(corpus['seconds'])}, {len(report['skipped'])} skipped"
    )
    return 1 if report["skipped"] else 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
