"""`jepa-tok verify`: whether tokens on disk are whole and sound."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import add_tokenizer_options, complain, load_tokenizer, place, positive

SHOWN = 20
"""Failures that are told; the rest are counted."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "verify",
        help="check a tokenized corpus, and with its audio a sample of tokens",
        description="Checks state, shards, hashes, every row, ids and totals of a tokenized corpus, a folder of shards or an\n"
        "export; with --tokenizer and --source, encodes a sample again. Writes nothing. Exit status: 0 sound, 1 not, 2 an error.",
        epilog="example: jepa-tok verify tokens --tokenizer my_tokenizer --source corpus.jsonl",
    )
    parser.add_argument(
        "tokens", metavar="TOKENS", type=place, help="a tokenized corpus, shards, or an exported folder"
    )
    parser.add_argument(
        "--source", metavar="SRC", type=place, help="what was tokenized: a manifest, a Kaldi data folder, ..."
    )
    parser.add_argument("--split", metavar="NAME", help="as it was tokenized with")
    parser.add_argument("--where", metavar="COLUMN=VALUE", action="append", help="as it was tokenized with")
    parser.add_argument(
        "--allow-pipes", action="store_true", help="run the commands in a Kaldi wav.scp; only for data that you trust"
    )
    parser.add_argument(
        "--sample", metavar="N", type=positive(int), default=20, help="utterances to encode again (default: 20)"
    )
    parser.add_argument("--sample-seed", metavar="N", type=int, default=0, help="of the draw (default: 0)")
    add_tokenizer_options(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Checks, prints a line a check, and tells the failures; 1 where there are any."""
    from jepa_tok.corpus.verify import verify_tokens

    report = verify_tokens(
        args.tokens,
        tokenizer=None if args.tokenizer is None else load_tokenizer(args),
        source=args.source,
        split=args.split,
        where=args.where,
        allow_pipes=args.allow_pipes,
        sample=args.sample,
        seed=args.sample_seed,
    )
    width = max(len(name) for name in report.checks)
    for name, found in report.checks.items():
        word = "FAILED" if name in report.failed else "-" if found.startswith("not checked") else "ok"
        print(f"{name:{width}}  {word:6}  {found}")
    for line in report.failures[:SHOWN]:
        complain(line)
    total = sum(report.failed.values())
    if total > SHOWN:
        complain(f"{total - SHOWN} more failures are not told.")
    print(f"{args.tokens}: " + ("sound" if report.sound else f"NOT sound: {total} failures"))
    return 0 if report.sound else 1
