"""`jepa-tok tokenize`: a corpus to token shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jepa_tok.cli.common import add_batch_option, add_tokenizer_options, complain, duration, load_tokenizer, positive

SHOWN = 10
"""Skipped files that are named on stderr; the rest are in skipped.jsonl."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "tokenize",
        help="a corpus to token shards, resumable",
        description="Tokenizes a corpus to parquet shards. Killed and run again, it goes on where it was.\n"
        "Bad files are skipped, named and listed in OUT/skipped.jsonl; the exit status is then 1.",
        epilog="example: jepa-tok tokenize corpus.jsonl tokens --where split=train --tokenizer my_tokenizer",
    )
    parser.add_argument(
        "source", metavar="SRC", type=Path, help="a .jsonl or .tsv manifest, a Kaldi data folder, or a folder of audio"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    parser.add_argument(
        "--where", metavar="COLUMN=VALUE", action="append",
        help="only utterances with this value; again on the same column: any of the values, on another: both",
    )  # fmt: skip
    parser.add_argument(
        "--rows-per-shard", type=positive(int), default=500, help="utterances in a shard (default: 500)"
    )
    add_batch_option(parser)
    parser.add_argument("--workers", type=positive(int), default=2, help="threads that read audio (default: 2)")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad file")
    parser.add_argument("--retry-skipped", action="store_true", help="make shards with skipped files anew")
    parser.add_argument("--overwrite", action="store_true", help="make all shards anew, whatever OUT was made of")
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tokenizes, then prints the summary; 1 where files were skipped."""
    import json

    from jepa_tok.corpus import read_corpus, tokenize_corpus
    from jepa_tok.corpus.run import SKIPPED_FILE

    utterances = read_corpus(args.source, where=args.where)  # before the model: a bad manifest answers at once
    summary = tokenize_corpus(
        utterances,
        args.out,
        load_tokenizer(args),
        name=str(args.source),
        batch_seconds=args.batch_seconds,
        rows_per_shard=args.rows_per_shard,
        strict=args.strict,
        retry_skipped=args.retry_skipped,
        overwrite=args.overwrite,
        progress=args.progress or None,
        workers=args.workers,
    )
    if summary.skipped:
        with (args.out / SKIPPED_FILE).open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number == SHOWN:
                    complain(f"skipped {summary.skipped - SHOWN} more; see {args.out / SKIPPED_FILE}")
                    break
                bad = json.loads(line)
                complain(f"skipped '{bad['id']}': {bad['reason']}")
    print(
        f"{args.out}: {summary.written} of {summary.utterances} utterances in {summary.num_shards} shards, "
        f"{duration(summary.hours * 3600)}, {summary.frames} frames, {summary.tokens} tokens, {summary.skipped} skipped, "
        f"{summary.hours_per_second * 3600:.3g}x real time, tokenizer {summary.hash}"
    )
    return 1 if summary.skipped else 0
