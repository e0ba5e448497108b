"""Folders that a run writes, and the arguments that name them: what is wrong with one is told in one line, at the start where it can be."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from jepa_tok.cli.common import file_path, place, torch_device
from jepa_tok.files import final_name
from probes.data import ProbeError


class StorageError(ProbeError):
    """A folder of results or codes cannot be written or read, be it that the disk is full: no more can be done in this run."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns an OSError of the block, which writes in `folder`, into a StorageError of one line."""
    try:
        yield
    except OSError as error:
        # Files are written beside their place and then renamed: what a user knows is the place.
        name = final_name(os.fspath(error.filename)) if isinstance(error.filename, (str, os.PathLike)) else folder
        raise StorageError(
            f"'{name}' must be readable and writable, but is not: {error.strerror or error}; what was made stays, and the same "
            "command goes on from there."
        ) from None


def check_given(args: argparse.Namespace, argv: Sequence[str]) -> Path:
    """Sees that the device is there, and that results can be told and kept; the folder of codes and latents, which may not be there.

    Raises ConfigError for a device that this machine lacks, ProbeError for an argument that is not UTF-8 (results hold the command),
    and for an `--out`, `--cache` or `--fit` that is empty, or a URL where a folder is wanted.
    """
    torch_device(args.device)
    option = "an argument"
    try:
        for given in filter(None, argv):
            place(given)
        for option, check in (("out", file_path), ("cache", file_path), ("fit", place)):
            if getattr(args, option) is not None:
                check(getattr(args, option))
    except argparse.ArgumentTypeError as error:
        what = f"`--{option}`" if option in ("out", "cache", "fit") else option
        raise ProbeError(f"{what}: {error}.") from None
    return Path(args.cache) if args.cache else Path(args.out) / "cache"


def check_writable(folder: Path, option: str) -> None:
    """Makes the folder that `option` names; raises ProbeError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ProbeError(
            f"`{option}` must be a folder that can be written, but '{folder}' is not: {error.strerror}."
        ) from None
