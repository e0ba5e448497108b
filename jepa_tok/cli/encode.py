"""`jepa-tok encode`: a few audio files to one token shard."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import (
    add_batch_option,
    add_overwrite_option,
    add_tokenizer_options,
    check_output,
    duration,
    file_path,
    load_tokenizer,
)
from jepa_tok.errors import CorpusError

OTHER_FORMATS = (".json", ".jsonl", ".txt", ".npy", ".npz", ".pt", ".bin", ".ark", ".wav", ".flac")
"""Suffixes that would make a strange name for a folder."""


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "encode",
        help="audio files to tokens",
        description="Encodes audio files to one shard of tokens (parquet; an id is a file's name without suffix).\n"
        "Stops at the first bad file and writes nothing; `jepa-tok tokenize` is for corpora: it resumes and skips.",
        epilog="example: jepa-tok encode a.wav b.flac -o tokens.parquet --tokenizer my_tokenizer",
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=file_path, help="audio: wav, flac, ogg, opus, mp3, ..."
    )
    parser.add_argument(
        "-o", "--out", metavar="OUT", type=file_path, required=True, help="a .parquet file, or a folder, which gets one shard"
    )  # fmt: skip
    add_batch_option(parser)
    add_overwrite_option(parser)
    add_tokenizer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encodes all files, then writes them at once."""
    from tqdm import tqdm

    from jepa_tok.corpus.encode import encode_utterances
    from jepa_tok.corpus.manifest import Unique, Utterance
    from jepa_tok.corpus.schema import ShardMetadata, TokenRow
    from jepa_tok.corpus.shards import CORPUS_FILE, list_shards, write_numbered_shard, write_shard
    from jepa_tok.errors import AudioError

    out, old = args.out, []
    if out.suffix == ".parquet":
        check_output(out, args.overwrite, args.files)
    elif out.suffix in OTHER_FORMATS or (out.exists() and not out.is_dir()):
        raise CorpusError(f"{out}: the output must be a folder or end in .parquet, but is another file.")
    elif (out / CORPUS_FILE).exists():
        raise CorpusError(f"{out}: the folder holds a tokenized corpus; take another.")
    else:
        old = list(list_shards(out).values())
        if old and not args.overwrite:
            raise CorpusError(f"{out}: the folder holds token shards already; take another, or --overwrite them.")
    ids = Unique()
    utterances = [Utterance(ids.check(f.stem, str(f)), str(f)) for f in args.files]

    tokenizer = load_tokenizer(args)
    metadata = ShardMetadata.of(tokenizer)
    rows: dict[int, TokenRow] = {}
    with tqdm(total=len(utterances), unit="file", desc="encode", disable=None) as bar:
        for at, result in encode_utterances(utterances, tokenizer, args.batch_seconds):
            if isinstance(result, AudioError):
                raise result
            rows[at] = TokenRow(utterances[at].id, result.ids, result.num_samples)
            bar.update()
    in_order = [rows[at] for at in range(len(utterances))]
    if out.suffix == ".parquet":
        write_shard(out, in_order, metadata)
    else:
        out = write_numbered_shard(out, 0, in_order, metadata)
        for path in old:
            if path != out:
                path.unlink()

    seconds = sum(r.num_samples for r in rows.values()) / tokenizer.sample_rate
    frames = sum(len(r.ids) for r in rows.values())
    print(
        f"{out}: {len(rows)} clips, {duration(seconds)}, {frames} frames, {frames * tokenizer.num_groups} tokens, "
        f"tokenizer {tokenizer.hash}"
    )
    return 0
