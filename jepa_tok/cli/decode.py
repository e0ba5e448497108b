"""`jepa-tok decode`: token shards to audio files."""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

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
    parser.add_argument("tokens", metavar="TOKENS", type=file_path, help="a .parquet shard or a folder of shards")
    parser.add_argument("out", metavar="OUT", type=file_path, help="folder for the audio")
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

    metadata = read_metadata(args.tokens)
    # A first pass finds every bad row, id and existing file before anything is decoded or written.
    targets, samples = _targets(args, read_shards(args.tokens))
    _check_apart(targets, args.tokens, args.out)
    _check_disk(targets.values(), args.out, args.overwrite)
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
    from jepa_tok.corpus.utterance import MAX_ID_PART, short

    wanted = set(args.id or ())
    targets: dict[str, Path] = {}
    samples = 0
    for row in rows:
        if wanted and row.id not in wanted:
            continue
        parts = PurePosixPath(row.id).parts
        if (
            not parts
            or ".." in parts
            or PurePosixPath(row.id).is_absolute()
            or "\0" in row.id
            or "\\" in row.id
            or any(len(part.encode("utf-8", "replace")) > MAX_ID_PART for part in parts)
        ):
            raise CorpusError(f"{args.tokens}: the id {short(row.id)} cannot name a file inside {args.out}; rename it.")
        if row.id in targets:
            raise CorpusError(f"{args.tokens}: the id '{row.id}' must be unique, but is there twice.")
        targets[row.id] = args.out.joinpath(*parts[:-1], f"{parts[-1]}.{args.format}")
        samples += row.num_samples
    missing = sorted(wanted - set(targets))
    if missing:
        raise CorpusError(f"{args.tokens}: there is no utterance '{missing[0]}'.")
    if not targets:
        raise CorpusError(f"{args.tokens}: there are no utterances.")
    return targets, samples


def _check_apart(targets: dict[str, Path], tokens: Path, out: Path) -> None:
    # Ids may differ where paths do not (`s/a` and `s//a`), and a file may stand where another id (`a.wav/b`) has its folder.
    folds = _folds_case(out)

    def place(path: Path) -> str:
        return unicodedata.normalize("NFC", str(path)).casefold() if folds else str(path)

    ids: dict[str, str] = {}
    for id, target in targets.items():
        other = ids.setdefault(place(target), id)
        if other != id:
            raise CorpusError(
                f"{tokens}: each utterance must have a file of its own, but '{other}' and '{id}' are both {target} on "
                "this disk; rename one, or decode it elsewhere with --id."
            )
    for id, target in targets.items():
        for folder in target.relative_to(out).parents[:-1]:
            other = ids.get(place(out / folder), id)
            if other != id:
                raise CorpusError(
                    f"{tokens}: {out / folder} must be the file of '{other}' and a folder for '{id}'; rename one, or "
                    "decode it elsewhere with --id."
                )


def _folds_case(folder: Path) -> bool:
    # Whether names that differ only in case are one file there, as is usual on macOS and Windows.
    folder = folder.absolute()
    while not folder.exists() or folder.name.swapcase() == folder.name:
        if folder == folder.parent:
            return False
        folder = folder.parent
    twin = folder.with_name(folder.name.swapcase())
    return twin.exists() and twin.samefile(folder)


def _check_disk(targets: Iterable[Path], out: Path, overwrite: bool) -> None:
    # Raises CorpusError where a file stands in the way of a folder, or of a target unless it may be overwritten.
    folders: set[Path] = set()
    for target in targets:
        for folder in target.parents:
            if folder in folders:
                break
            folders.add(folder)
            if folder.exists() and not folder.is_dir():
                what = "output" if folder == out else f"folder of {target}"
                raise CorpusError(f"{folder}: the {what} must be a folder, but is a file.")
        if target.exists():
            check_output(target, overwrite)
