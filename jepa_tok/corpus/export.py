"""Tokens from one format to another, without audio: parquet shards, bin, JSONL, Kaldi text, Lhotse Shar.

Rows are read, checked and written one by one, so memory does not grow with the corpus. The folder is built beside its place and
then renamed, so that it is there whole or not at all, whenever the process ends. To a URL, files are uploaded below OUT/.export.tmp
and copied into place by the store: an upload that breaks off leaves an earlier export as it was, and what ends during the copying
is refused by readers and cleared up by the next export.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jepa_tok.corpus.formats import FORMATS, ExportInfo, RowWriter, TokenSource, open_tokens
from jepa_tok.corpus.formats.common import METADATA_FILE, RowsDigest, format_module
from jepa_tok.corpus.schema import TokenRow
from jepa_tok.corpus.shards import CORPUS_FILE, CORPUS_FORMAT, writing
from jepa_tok.corpus.utterance import reading
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, is_url, lock_folder, unlock, write_text

STAGING = ".export.tmp"
"""Folder in OUT, where that is a URL, for files until all are uploaded."""


def export_tokens(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str,
    *,
    columns: Sequence[str] | None = None,
    rows_per_shard: int = 500,
    overwrite: bool = False,
    progress: bool | None = None,
) -> ExportInfo:
    """Writes the tokens in `source` (see `open_tokens`) to the new folder `out` in the format `to` (one of FORMATS).

    `columns` are those to carry through, by default all. `rows_per_shard` matters to parquet and shar. `overwrite` replaces an
    earlier export, and no other folder. `progress`: None shows a bar on terminals, True always.

    Raises CorpusError where the source breaks a rule or is not whole, where the format cannot hold an id or a value, where
    `out` holds files, and where it cannot be written; `out` is then as it was.
    """
    if to not in FORMATS:
        raise CorpusError(f"`to` must be one of {', '.join(FORMATS)}, but is {to!r} instead.")
    if rows_per_shard < 1:
        raise CorpusError(f"`rows_per_shard` must be at least 1, but is {rows_per_shard} instead.")
    source, out = as_path(source), as_path(out)
    with reading(str(out)):
        check_target(source, out, overwrite)
    with reading(str(source)):
        tokens = open_tokens(source)
    kept = _choose(tokens, columns)
    with writing(out), _scratch_folder(out) as scratch:
        writer: RowWriter = format_module(to).Writer(scratch, tokens.metadata, kept, rows_per_shard)
        try:
            utterances, frames, samples, digest = _copy(tokens, kept, writer, progress)
        finally:
            writer.close()
        info = ExportInfo(to, tokens.metadata, kept, utterances, frames, samples, writer.dtype, digest)
        write_text(scratch / METADATA_FILE, info.to_json())
        _publish(scratch, out)
    return info


def check_target(source: Path, out: Path, overwrite: bool) -> None:
    """Raises CorpusError where an export from `source` may not be written to `out`."""
    if not out.name or out.name == "..":
        raise CorpusError(f"{out}: the output must be a folder with a name.")
    if out.exists() and not out.is_dir():
        raise CorpusError(f"{out}: the output must be a folder, but is a file.")
    places = [p if is_url(p) else p.resolve() for p in (source, out)]
    for inner, outer in (places, places[::-1]):
        if inner == outer or outer in inner.parents:
            raise CorpusError(f"{out}: the output must lie neither in {source} nor around it; take another folder.")
    if out.exists() and any(out.iterdir()):
        if (out / STAGING).exists() and not (out / METADATA_FILE).exists():
            return  # what an export left that broke off
        if not overwrite:
            raise CorpusError(
                f"{out}: the folder must be new or empty, but holds files; take another, or --overwrite it."
            )
        if not (out / METADATA_FILE).exists():
            raise CorpusError(
                f"{out}: only an earlier export is overwritten, and this folder has no {METADATA_FILE}; take another."
            )
        ExportInfo.read(out)


def _choose(tokens: TokenSource, columns: Sequence[str] | None) -> dict[str, str]:
    if columns is None:
        return tokens.columns
    for name in columns:
        if name not in tokens.columns:
            known = ", ".join(tokens.columns) or "none"
            raise CorpusError(f"{tokens.path}: there is no column `{name}` to keep; there are: {known}.")
    return {name: kind for name, kind in tokens.columns.items() if name in columns}


def _copy(
    tokens: TokenSource, kept: dict[str, str], writer: RowWriter, progress: bool | None
) -> tuple[int, int, int, str]:
    # Utterances, frames and samples that were written, and the digest of the rows.
    from dataclasses import replace

    from tqdm import tqdm

    utterances = frames = samples = 0
    digest = RowsDigest()
    disable = None if progress is None else not progress  # None: tqdm looks whether stderr is a terminal
    for row in tqdm(_rows(tokens), total=tokens.num_rows, unit="utt", desc="export", disable=disable):
        if len(kept) < len(tokens.columns):
            row = replace(row, info={name: value for name, value in row.info.items() if name in kept})
        writer.add(row)
        digest.add(row)
        utterances, frames, samples = utterances + 1, frames + row.ids.shape[0], samples + row.num_samples
    if not utterances:
        raise CorpusError(f"{tokens.path}: there must be at least one utterance to export, but there is none.")
    return utterances, frames, samples, digest.hexdigest()


def _rows(tokens: TokenSource) -> Iterator[TokenRow]:
    with reading(str(tokens.path)):
        yield from tokens.rows()


# The folder appears whole ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """A local folder to build `out` in, on its own disk where that is local; gone when the block ends.

    What a killed process left is removed by the next export to the same place.
    """
    if is_url(out):
        with tempfile.TemporaryDirectory(prefix="jepa-tok-export-") as folder:
            yield Path(folder)
        return
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.parent / f".{out.name}.export.tmp"
    busy = f"{out}: another process is exporting to this folder; wait for it or end it."
    if scratch.exists():
        unlock(lock_folder(scratch, busy))
        shutil.rmtree(scratch)
    scratch.mkdir()
    descriptor = lock_folder(scratch, busy)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        unlock(descriptor)


def _publish(scratch: Path, out: Path) -> None:
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    if is_url(out):
        _upload([file.relative_to(scratch).as_posix() for file in files], scratch, out)
        return
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    old = out.absolute().parent / f".{out.name}.old.tmp"
    if out.exists():
        # No system call swaps two folders everywhere: for an instant neither is there, but never a mixture.
        shutil.rmtree(old, ignore_errors=True)
        os.replace(out, old)
    os.replace(scratch, out)
    shutil.rmtree(old, ignore_errors=True)


def _upload(names: list[str], scratch: Path, out: Path) -> None:
    # Stores do not rename folders. Nothing of an earlier export is touched before all of the new one is there.
    fs: Any = out.fs  # type: ignore[attr-defined]
    root = fs._strip_protocol(str(out)).rstrip("/")
    staging = f"{root}/{STAGING}"
    found = [path[len(root) + 1 :] for path in fs.find(root)] if out.exists() else []
    earlier = [path for path in found if not path.startswith(f"{STAGING}/")]
    try:
        for name in names:
            _put(scratch / name, out / STAGING / name)
    except BaseException:
        with contextlib.suppress(Exception):
            _remove_folder(fs, staging)
        raise

    # While files are exchanged the folder is marked unfinished, so that plain shards, which are read without metadata.json,
    # are not; metadata.json goes first and comes last.
    state = {"format": CORPUS_FORMAT, "state": "running", "num_shards": len(names) - 1}
    write_text(out / CORPUS_FILE, json.dumps(state))
    for path in sorted(earlier, key=lambda path: path != METADATA_FILE):
        if path != CORPUS_FILE and (path == METADATA_FILE or path not in names):
            fs.rm_file(f"{root}/{path}")
    for name in sorted(names, key=lambda name: name == METADATA_FILE):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            fs.cp_file(f"{staging}/{name}", f"{root}/{name}")
        except NotImplementedError:
            _put(scratch / name, out / name)
    fs.rm_file(f"{root}/{CORPUS_FILE}")
    _remove_folder(fs, staging)


def _remove_folder(fs: Any, folder: str) -> None:
    # File by file: `fs.rm` takes `[`, `?` and `*` in the folder's name for a pattern.
    found = fs.find(folder, withdirs=True, detail=True)
    for path in (p for p in found if found[p]["type"] == "file"):
        fs.rm_file(path)
    for path in [*sorted((p for p in found if found[p]["type"] != "file"), reverse=True), folder]:
        with contextlib.suppress(Exception):  # most stores have no folders to remove
            fs.rmdir(path)


def _put(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as local, target.open("wb") as remote:
        shutil.copyfileobj(local, remote)
