"""Parses the command line, runs a verb, and tells every error that a user can cause in one line.

Exit status: 0 done; 1 done, but files were skipped (tokenize) or checks failed (verify); 2 an error; 130 interrupted;
141 whoever read the output went away.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from jepa_tok.errors import JepaTokError
from jepa_tok.files import final_name

VERBS = ("encode", "decode", "resynth", "tokenize", "export", "verify", "vocabulary", "info", "report", "eval")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors take one line and whose help keeps the line breaks of its example."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"jepa-tok: error: {' '.join(message.split())} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    # Read when asked for: importlib.metadata costs more than all else that --help needs.
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import jepa_tok

        print(f"jepa-tok {jepa_tok.__version__}")
        parser.exit()


def make_parser() -> Parser:
    """The parser with all verbs; a verb's `run(args) -> exit status` is in `args.run`."""
    parser = Parser(
        prog="jepa-tok",
        description="Speech in, tokens, speech out.",
        epilog="example: jepa-tok resynth in.wav out.wav --tokenizer my_tokenizer\n\n"
        "jepa-tok VERB --help describes a verb.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=Parser)
    for verb in VERBS:
        import_module(f"jepa_tok.cli.{verb}").add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `jepa-tok` with `argv` (default: the process's own) and returns its exit status."""
    _mend_streams()
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
    try:
        args = make_parser().parse_args(argv)
        status = args.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's shutdown
        return status
    except BrokenPipeError:
        # What is still buffered goes nowhere, or the interpreter would complain when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except JepaTokError as e:
        return _fail(str(e))
    except OSError as e:  # a full disk, a folder without permission
        # Output is written beside its place and then renamed: what the user named is the place.
        name = f"{final_name(str(e.filename))}: " if e.filename else ""
        return _fail(f"{name}{e.strerror or e}")
    finally:
        sys.unraisablehook = hook


def _mend_streams() -> None:
    """Makes printing safe where streams are closed (`>&-`) or know fewer characters than paths and ids have."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the lowest free number, which is the closed one's: no shard may have it, as libraries write to it.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _interrupt_again(lost: Any) -> None:
    # Ctrl-C while a finaliser or a weak reference's callback runs is only reported by Python, and the program would go on.
    if issubclass(lost.exc_type, KeyboardInterrupt):
        import _thread
        import threading

        threading.Timer(0.01, _thread.interrupt_main).start()  # when the callback is over
    else:
        sys.__unraisablehook__(lost)


def _fail(message: str, status: int = 2) -> int:
    from jepa_tok.cli.common import complain

    complain("error: " * (status == 2) + message)
    return status
