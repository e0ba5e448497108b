"""`jepa-tok export`: tokens from one format to another."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import add_overwrite_option, duration, place, positive


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "export",
        help="tokens to another format: bin, jsonl, kaldi, shar, parquet",
        description="Writes tokens to a new folder in another format; no audio and no model are needed.\n"
        "TOKENS may be in any of the formats. OUT appears whole or not at all. docs/corpora.md describes each format.",
        epilog="example: jepa-tok export tokens tokens_bin --to bin",
    )
    parser.add_argument(
        "tokens",
        metavar="TOKENS",
        type=place,
        help="a tokenized corpus, a .parquet shard, a folder of shards or an exported folder",
    )
    parser.add_argument("out", metavar="OUT", type=place, help="new folder")
    parser.add_argument(
        "--to", required=True, choices=("parquet", "bin", "jsonl", "kaldi", "shar"),
        help="bin: memory-mapped, for language models; jsonl; kaldi: text files; shar: Lhotse; parquet: shards",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="NAME,...", help="columns to carry through, besides ids and lengths (default: all)"
    )
    parser.add_argument(
        "--rows-per-shard", type=positive(int), default=500, help="utterances in a shard of parquet or shar (default: 500)"
    )  # fmt: skip
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Exports, then prints the summary."""
    from jepa_tok.corpus.export import export_tokens

    info = export_tokens(
        args.tokens,
        args.out,
        args.to,
        columns=None if args.columns is None else [c for c in args.columns.split(",") if c],
        rows_per_shard=args.rows_per_shard,
        overwrite=args.overwrite,
    )
    print(
        f"{args.out}: {info.layout}, {info.utterances} utterances, {duration(info.samples / info.metadata.sample_rate)}, "
        f"{info.frames} frames, {info.frames * info.metadata.num_groups} tokens, tokenizer {info.metadata.hash}"
    )
    return 0
