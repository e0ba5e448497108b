"""What the benchmarks share: the head of every result, verbs in processes of their own, tables, JSON."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_tok import provenance
from jepa_tok.errors import JepaTokError
from jepa_tok.files import write_text

if TYPE_CHECKING:
    from jepa_tok import SpeechTokenizer


def machine() -> dict[str, Any]:
    """What a figure needs beside it: command, commit, machine, versions, and what else kept the machine busy (1 min load)."""
    module = sys.modules["__main__"].__spec__
    name = f"-m {module.name}" if module else sys.argv[0]
    return {
        "command": f"python {name} {shlex.join(sys.argv[1:])}",
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def tokenizer_parser(description: str) -> argparse.ArgumentParser:
    """A parser with --tokenizer or --random-init, and --out."""
    parser = argparse.ArgumentParser(description=description)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--tokenizer", metavar="FOLDER", help="a trained tokenizer")
    given.add_argument(
        "--random-init", metavar="PRESET", help="untrained weights (seed 0), for what does not depend on them"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    return parser


def load_tokenizer(args: argparse.Namespace) -> tuple[SpeechTokenizer, list[str]]:
    """The tokenizer that the options name, and those options for `jepa-tok`."""
    from jepa_tok import SpeechTokenizer  # needs soundfile, which benchmarks on noise do not

    if args.tokenizer:
        return SpeechTokenizer.from_pretrained(args.tokenizer), ["--tokenizer", args.tokenizer]
    return SpeechTokenizer.from_config(args.random_init), ["--tokenizer", args.random_init, "--random-init"]


def run_main(main: Callable[[], int]) -> None:
    """Ends the process with the status of `main`, or with an error in one line."""
    try:
        sys.exit(main())
    except JepaTokError as error:
        print(f"{Path(sys.argv[0]).stem}: error: {error}", file=sys.stderr)
        sys.exit(2)


VERB = """
import sys
from jepa_tok.cli import main
status = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(status)
"""
# Not `getrusage`: what it tells of a child includes the memory of the process that it was forked from.


def run_verb(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of `jepa-tok ...` in a process of its own (Linux)."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", VERB, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise JepaTokError(f"`jepa-tok {' '.join(arguments)}` failed: {done.stderr.splitlines()[-1]}")
    return time.monotonic() - began, int(done.stdout.split()[-1]) / 1024


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Prints rows of the same keys in columns, at once."""
    cells = [[str(key) for key in rows[0]], *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for row in cells:
        print(
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))),
            flush=True,
        )


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Writes a result, whole or not at all."""
    write_text(path, json.dumps(found, indent=1) + "\n")


def readout_command(
    name: str,
    description: str,
    tokenizer_help: str,
    run: Callable[[SpeechTokenizer, Path, int], dict[str, Any]],
    summary: Callable[[dict[str, Any]], str],
    fault: Callable[[SpeechTokenizer], str] = lambda _: "",
) -> int:
    """Command line of a benchmark that reads what a tokenizer holds of the clips of a manifest; returns the exit status.

    :param run: Of tokenizer, manifest and number of training clips; its `rows` are printed and all that it returns is written.
    :param summary: The line above the rows.
    :param fault: Why a tokenizer cannot be read so; empty where it can.
    """
    from jepa_tok import SpeechTokenizer

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("tokenizer", help=tokenizer_help)
    parser.add_argument("manifest", type=Path, help="manifest with the splits train and dev")
    parser.add_argument("--limit", type=int, default=480, help="training clips (default: 480)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    try:
        tokenizer = SpeechTokenizer.from_pretrained(args.tokenizer).eval()
        if fault(tokenizer):
            raise JepaTokError(f"{args.tokenizer}: {fault(tokenizer)}")
        found = run(tokenizer, args.manifest, args.limit)
    except JepaTokError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    print(summary(found))
    print_table(found["rows"])
    if args.json:
        write_json(args.json, {"machine": machine(), "tokenizer": args.tokenizer, **found})
    return 0


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "" if value is None else str(value)
