"""`jepa-tok decode`: token shards to audio files."""

from __future__ import annotations

import argparse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jepa_tok.cli.common import (
    add_batch_option,
    add_overwrite_option,
    add_tokenizer_options,
    check_output,
    duration,
    load_tokenizer,
)
from jepa_tok.errors import CorpusError

if TYPE_CHECKING:
    from jepa_tok.corpus.schema import TokenRow


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "decode",
        help="tokens to audio files",
        description="Decodes a shard of tokens, or a folder of shards, to OUT/ID.wav (16 bits; folders in ids are made).",
        epilog="example: jepa-tok decode tokens.parquet wavs --tokenizer my_tokenizer",
    )
    parser.add_argument("tokens", metavar="TOKENS", type=Path, help="a .parquet shard or a folder of shards")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the audio")
    parser.add_argument("--id", metavar="ID", action="append", help="decode only this utterance; may be given again")
    parser.add_argument("--format", choices=("wav", "flac"), default="wav", help="of the audio (default: wav)")
    add_batch_option(parser)
    add_overwrite_option(parser)
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Decodes batch by batch, in the shards' order."""
    from tqdm import tqdm

    from jepa_tok.audio import save_audio
    from jepa_tok.corpus.encode import READ_AHEAD
    from jepa_tok.corpus.shards import read_metadata, read_shards

    if args.out.exists() and not args.out.is_dir():
        raise CorpusError(f"{args.out}: the output must be a folder, but is a file.")
    metadata = read_metadata(args.tokens)
    # A first pass finds every bad row, id and existing file before anything is decoded or written.
    targets, samples = _targets(args, read_shards(args.tokens))
    tokenizer = load_tokenizer(args)
    if tokenizer.hash != metadata.hash:
        raise CorpusError(
            f"{args.tokens}: made by tokenizer {metadata.hash}, but --tokenizer is {tokenizer.hash}; give the one that made it."
        )
    # So many seconds are held in memory at a time; how many share a padded batch is --batch-seconds' affair.
    limit = max(READ_AHEAD, args.batch_seconds or 0.0) * metadata.sample_rate
    group: list[TokenRow] = []

    def flush() -> None:
        tokens = [metadata.tokens(row) for row in group]
        if len(tokens) == 1:  # perhaps of hours: written as it is made
            waves: list[Any] = [tokenizer.decode_blocks(tokens[0], batch_seconds=args.batch_seconds)]
        else:
            waves = tokenizer.decode(tokens, batch_seconds=args.batch_seconds)
        for row, wave in zip(group, waves, strict=True):
            targets[row.id].parent.mkdir(parents=True, exist_ok=True)
            save_audio(targets[row.id], wave, metadata.sample_rate)
            bar.update()
        group.clear()

    with tqdm(total=len(targets), unit="clip", desc="decode", disable=None) as bar:
        for row in read_shards(args.tokens):
            if row.id in targets:
                if sum(r.num_samples for r in group) + row.num_samples > limit:
                    flush()
                group.append(row)
        flush()
    print(f"{args.out}: {len(targets)} clips, {duration(samples / metadata.sample_rate)}")
    return 0


def _targets(args: argparse.Namespace, rows: Any) -> tuple[dict[str, Path], int]:
    # File of each utterance and all their samples; raises CorpusError for ids that no file can have.
    wanted = set(args.id or ())
    targets: dict[str, Path] = {}
    samples = 0
    for row in rows:
        if wanted and row.id not in wanted:
            continue
        parts = PurePosixPath(row.id).parts
        if not parts or ".." in parts or PurePosixPath(row.id).is_absolute() or "\0" in row.id or "\\" in row.id:
            raise CorpusError(f"{args.tokens}: the id {row.id!r} cannot name a file inside {args.out}; rename it.")
        if row.id in targets:
            raise CorpusError(f"{args.tokens}: the id '{row.id}' must be unique, but is there twice.")
        target = args.out.joinpath(*parts[:-1], f"{parts[-1]}.{args.format}")
        if target.exists():
            check_output(target, args.overwrite)
        targets[row.id] = target
        samples += row.num_samples
    missing = sorted(wanted - set(targets))
    if missing:
        raise CorpusError(f"{args.tokens}: there is no utterance '{missing[0]}'.")
    if not targets:
        raise CorpusError(f"{args.tokens}: there are no utterances.")
    return targets, samples
