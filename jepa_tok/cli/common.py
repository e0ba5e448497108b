"""What verbs share: the tokenizer's options, guards of output paths, messages."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_tok.errors import ConfigError, CorpusError
from jepa_tok.files import as_path, is_url
from jepa_tok.presets import PRESETS

if TYPE_CHECKING:
    from jepa_tok.tokenizer import SpeechTokenizer


def complain(message: str) -> None:
    """One line on stderr, whatever line breaks the message has."""
    with contextlib.suppress(OSError):
        print(f"jepa-tok: {' '.join(message.split())}", file=sys.stderr, flush=True)


def add_tokenizer_options(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """--tokenizer, --random-init, --seed, --device."""
    group = parser.add_argument_group("tokenizer")
    group.add_argument(
        "--tokenizer", metavar="NAME_OR_FOLDER", type=place, required=required, help="a folder that save_pretrained wrote, or the name of a packaged one"
    )  # fmt: skip
    group.add_argument(
        "--random-init", action="store_true", help=f"for trials: take --tokenizer as a preset ({', '.join(PRESETS)}) with untrained weights"
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of --random-init (default: 0)")
    group.add_argument("--device", default="cpu", help="where the model runs: cpu, cuda, cuda:1, ... (default: cpu)")


def add_overwrite_option(parser: argparse.ArgumentParser) -> None:
    """--overwrite."""
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there already")


def add_batch_option(parser: argparse.ArgumentParser) -> None:
    """--batch-seconds."""
    parser.add_argument(
        "--batch-seconds", metavar="S", type=positive(float),
        help="pad clips into batches of up to so many seconds: faster on a GPU, equal but for the last bits of a float "
        "(default: one clip at a time)",
    )  # fmt: skip


def place(text: str) -> str:
    """An argparse type: a path or a URL, which '' is not, though `Path` takes it for the working folder.

    Nor is what is not UTF-8: corpus.json and messages could not hold it.
    """
    if not text:
        raise argparse.ArgumentTypeError("a path must not be empty")
    if not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text):
        shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise argparse.ArgumentTypeError(f"a path must be UTF-8, but is '{shown}' instead; rename it")
    return text


def file_path(text: str) -> Path:
    """An argparse type: a local path, which a URL is not, though `Path` takes `s3://x` for `s3:/x`."""
    if is_url(place(text)):
        raise argparse.ArgumentTypeError(
            f"must be a local path, but is the URL '{text}'; copy it to this machine first"
        )
    return as_path(text)


def positive(kind: type) -> Any:
    """An argparse type: numbers of `kind` greater than 0."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def load_tokenizer(args: argparse.Namespace) -> SpeechTokenizer:
    """The tokenizer that the options name, on its device; untrained weights are announced on stderr.

    Raises ConfigError for an unknown tokenizer, preset or device, and for a preset without --random-init.
    """
    device = torch_device(args.device)
    from jepa_tok.tokenizer import SpeechTokenizer

    if args.random_init:
        tokenizer = SpeechTokenizer.from_config(args.tokenizer, seed=args.seed)
        complain(f"warning: '{args.tokenizer}' has UNTRAINED weights (seed {args.seed}): its tokens mean nothing.")
    else:
        from jepa_tok.hub import find_pretrained

        if args.tokenizer in PRESETS and find_pretrained(args.tokenizer) is None and not Path(args.tokenizer).exists():
            raise ConfigError(
                f"no trained tokenizer is packaged as '{args.tokenizer}'; give --tokenizer a folder that "
                "`python -m recipes.codec.export` wrote, or add --random-init for a trial with untrained weights."
            )
        tokenizer = SpeechTokenizer.from_pretrained(args.tokenizer)
    return tokenizer.to(device)


def torch_device(name: str) -> Any:
    """The device of that name; raises ConfigError where this machine has none such."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # the meta device makes tensors, but holds no values
    except (RuntimeError, AssertionError) as e:  # torch raises AssertionError where it was built without CUDA
        reason = str(e).splitlines()[0].rstrip(".")
        raise ConfigError(f"`--device` must be a device of this machine, but is '{name}' instead: {reason}.") from None
    return device


def check_output(path: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Raises CorpusError where `path` is an input or a folder, exists and may not be overwritten, or has no folder to be in."""
    if path.exists() and any(given.exists() and path.samefile(given) for given in inputs):
        raise CorpusError(
            f"{path}: the output must not be the input itself, which it would replace; take another name."
        )
    if path.is_dir():
        raise CorpusError(f"{path}: the output must be a file, but is a folder.")
    if path.exists() and not overwrite:
        raise CorpusError(f"{path}: exists already; take another name, or --overwrite it.")
    if not path.parent.is_dir():
        what = "be a folder, but is a file" if path.parent.exists() else "exist, but does not; make it first"
        raise CorpusError(f"{path}: the folder {path.parent} must {what}.")
    if not os.access(path.parent, os.W_OK):
        raise CorpusError(f"{path}: the folder {path.parent} must be writable, but is not.")


def duration(seconds: float) -> str:
    """Seconds in the unit that a reader would choose."""
    return (
        f"{seconds:.2f} s"
        if seconds < 60
        else f"{seconds / 60:.1f} min"
        if seconds < 3600
        else f"{seconds / 3600:.2f} h"
    )
