"""`jepa-tok tokenize`: a corpus to token shards."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from jepa_tok.cli.common import (
    add_batch_option,
    add_tokenizer_options,
    complain,
    duration,
    load_tokenizer,
    place,
    positive,
)

if TYPE_CHECKING:
    from jepa_tok.corpus import TokenizeSummary

SHOWN = 10
"""Skipped files that are named on stderr; the rest are in skipped.jsonl."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "tokenize",
        help="a corpus to token shards, resumable",
        description="Tokenizes a corpus to parquet shards. Interrupted or killed and run again, it goes on where it was.\n"
        "Bad files, and rows of SRC that break a rule, are skipped, named and listed with their reason in\n"
        "OUT/skipped.jsonl. Exit status: 0 all done, 1 done but for what was skipped, 2 an error, 130 interrupted.",
        epilog="example: jepa-tok tokenize corpus.jsonl tokens --where split=train --tokenizer my_tokenizer",
    )
    parser.add_argument(
        "source", metavar="SRC", type=place,
        help="a .jsonl or .tsv manifest, a Kaldi data folder, a folder of audio, .parquet with audio in it, or .tar shards; "
        "may be a URL (s3://..., hf://...)",
    )  # fmt: skip
    parser.add_argument("out", metavar="OUT", type=place, help="folder for the shards; may be a URL")
    parser.add_argument("--split", metavar="NAME", help="short for --where split=NAME")
    parser.add_argument(
        "--where", metavar="COLUMN=VALUE", action="append",
        help="only utterances with this value; again on the same column: any of the values, on another: both",
    )  # fmt: skip
    parser.add_argument(
        "--allow-pipes", action="store_true", help="run the commands in a Kaldi wav.scp; only for data that you trust"
    )
    parser.add_argument(
        "--rows-per-shard", metavar="N", type=positive(int), default=500, help="utterances in a shard (default: 500)"
    )
    add_batch_option(parser)
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="ray: on the Ray cluster at hand (RAY_ADDRESS), or on all of this machine (default: local)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", metavar="N", type=positive(int),
        help="local: threads that read audio (default: 2); ray: processes that tokenize (default: one for each CPU, or with "
        "--device cuda GPU)",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="stop at the first bad file or row")
    parser.add_argument("--retry-skipped", action="store_true", help="make shards with skipped files anew")
    parser.add_argument("--overwrite", action="store_true", help="make all shards anew, whatever OUT was made of")
    parser.add_argument("--progress", action="store_true", help="show progress even where stderr is no terminal")
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Tokenizes, then prints the summary; 1 where something was skipped."""
    from jepa_tok.corpus import spool_corpus, tokenize_corpus
    from jepa_tok.corpus.folder import check_apart

    logging.getLogger("jepa_tok").handlers = [_Complaints()]
    # Before the model: a bad manifest answers at once.
    check_apart(args.source, args.out)
    utterances = spool_corpus(
        args.source, split=args.split, where=args.where, allow_pipes=args.allow_pipes, strict=args.strict
    )
    summary = tokenize_corpus(
        utterances,
        args.out,
        load_tokenizer(args),
        name=args.source,
        batch_seconds=args.batch_seconds,
        rows_per_shard=args.rows_per_shard,
        strict=args.strict,
        retry_skipped=args.retry_skipped,
        overwrite=args.overwrite,
        progress=args.progress or None,
        engine=args.engine,
        workers=args.workers,
    )
    if summary.skipped:
        _name_skipped(summary)
    print(
        f"{summary.out}: {summary.written} of {summary.utterances} clips in {summary.num_shards} shards, "
        f"{duration(summary.hours * 3600)}, {summary.tokens} tokens in {summary.frames} frames, "
        f"{summary.times_real_time:.3g}x real time, {summary.skipped} skipped, tokenizer {summary.hash}"
    )
    return 1 if summary.skipped else 0


class _Complaints(logging.Handler):
    """What is logged, as lines of `jepa-tok`."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def _name_skipped(summary: TokenizeSummary) -> None:
    import json

    from jepa_tok.corpus.run import SKIPPED_FILE
    from jepa_tok.files import as_path

    path = as_path(summary.out) / SKIPPED_FILE
    with path.open(encoding="utf-8") as file:
        for _, line in zip(range(SHOWN), file):
            bad = json.loads(line)
            complain(f"skipped '{bad['id']}': {bad['reason']}")
    more = f" ({summary.skipped - SHOWN} more)" if summary.skipped > SHOWN else ""
    again = "; the same command with --retry-skipped takes up files that are mended or back"
    again = again if summary.skipped > summary.refused else ""
    complain(f"skipped {summary.skipped}{more}: each with its reason in {path}{again}")
