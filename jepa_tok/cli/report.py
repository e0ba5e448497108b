"""`jepa-tok report`: one self-contained HTML page of a run."""

from __future__ import annotations

import argparse
from typing import Any

from jepa_tok.cli.common import add_overwrite_option, check_output, file_path, place
from jepa_tok.errors import CorpusError


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "report",
        help="a page of curves, spectrograms and audio of a run",
        description="Makes one self-contained HTML page of a run's folder: training curves, spectrograms, audio, probes.",
        epilog="example: jepa-tok report runs/mini --out report.html",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=file_path, help="folder of the run")
    parser.add_argument("--out", metavar="OUT", type=file_path, help="the page (default: RUN_DIR/report.html)")
    parser.add_argument(
        "--compare", metavar="TOKENIZER", type=place, help="another tokenizer, folder or packaged name, to hear beside the run's own"
    )  # fmt: skip
    parser.add_argument(
        "--clip", metavar="FILE", type=file_path, action="append", default=[], help="an audio file to hear beside the corpus; may be repeated"
    )  # fmt: skip
    add_overwrite_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Builds the page."""
    if not args.run_dir.is_dir():
        raise CorpusError(
            f"{args.run_dir}: the run must be a folder, but is {'a file' if args.run_dir.exists() else 'not there'}."
        )
    out = args.out or args.run_dir / "report.html"
    check_output(out, args.overwrite, args.clip)
    from jepa_tok.report import build_report

    build_report(args.run_dir, out, args.compare, args.clip)
    print(out)
    return 0
