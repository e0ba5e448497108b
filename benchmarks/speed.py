"""What `benchmarks.encode` and `benchmarks.decode` share: codecs timed in turn, ratios within a round, the machine's own GEMM rate.

In every round each codec encodes (or decodes) the same clips once, one after the other, and the machine multiplies two
matrices; a ratio is the median over rounds of the ratio within a round, so that what slows the machine down for a while
slows both. `spread` is (max - min) / median of the times.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clips import read_clips
from benchmarks.common import machine, print_table, write_json
from benchmarks.peers import Codec, Ours, make_codec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEERS = ["encodec", "mimi", "dac"]
ONCE = ("dac",)
"""Measured with one clip and one thread only: a call takes ten to twenty seconds."""
ALONE = ("dac", "paper")
"""Prefixes of those that are measured with one clip only."""
GEMM = 1024
"""Rows and columns of the matrices whose product gives the machine's rate."""


class Entry:
    """A codec as it is timed: `NAME[:bf16][:compile]`."""

    def __init__(self, spec: str, clips: list[Tensor]) -> None:
        name, *options = spec.split(":")
        self.spec = spec
        self.codec: Codec = make_codec(name, clips[:2])
        self.dtype = "bf16" if "bf16" in options else "fp32"
        if self.dtype == "bf16":
            self.codec.to(torch.bfloat16)
        self.compiled = "compile" in options
        if self.compiled:
            assert isinstance(self.codec, Ours), "only our models are compiled"
            self.codec.tokenizer.encoder.compile(dynamic=False)
            self.codec.tokenizer.generator.compile(dynamic=False)

    @property
    def plain(self) -> str:
        """The entry that this one is compared with for what its options change."""
        name = self.spec.split(":")[0]
        return name.removesuffix("-naive").removesuffix("-taps").removesuffix("-last")


def run_rounds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one call of each that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - began)
    return times


def gemm(dtype: torch.dtype) -> Callable[[], Any]:
    """Ten products of square matrices."""
    a, b = torch.randn(2, GEMM, GEMM).to(dtype)

    def call() -> None:
        for _ in range(10):
            torch.mm(a, b)

    return call


def gemm_flops() -> float:
    """FLOPs of a call of `gemm`."""
    return 10.0 * 2 * GEMM**3


def measure(side: str, specs: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """All that is printed, as plain values."""
    head = machine()
    clips = read_clips(args.audio, [args.seconds] * max(args.batches), seed=args.seed)
    entries = {spec: Entry(spec, clips) for spec in specs}
    inputs: dict[str, list[Tensor]] = {}
    facts = []
    torch.set_num_threads(max(args.threads))
    for spec, entry in entries.items():
        codes = entries[entry.plain].codec.encode(clips[:1]) if side == "decode" and entry.plain in entries else None
        inputs[spec] = clips if side == "encode" else (codes or entry.codec.encode(clips[:1])) * len(clips)
        facts.append(_facts(side, entry, inputs[spec], args.seconds))
    _compare(side, entries, inputs, facts)

    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for batch in args.batches:
            chosen = [spec for spec in specs if args.all or _is_affordable(spec, batch, threads)]
            calls = {spec: partial(getattr(entries[spec].codec, side), inputs[spec][:batch]) for spec in chosen}
            rates = {f"gemm {name}": gemm(dtype) for name, dtype in DTYPES.items()}
            times = run_rounds({**calls, **rates}, args.rounds)
            best = {n: gemm_flops() / 1e9 / statistics.median(times[f"gemm {n}"]) for n in DTYPES}
            part = [_row(spec, batch, threads, times, args.seconds) for spec in chosen]
            for row in part:
                fact = next(f for f in facts if f["codec"] == row["codec"])
                row["GFLOP/s"] = fact["GFLOP/s of audio"] * row["x real time"]
                row["of GEMM"] = row["GFLOP/s"] / best[entries[row["codec"]].dtype]
            print(
                f"{threads} thread(s), batch {batch}; GEMM "
                + ", ".join(f"{n} {r:.0f} GFLOP/s" for n, r in best.items())
            )
            print_table(part)
            rows += [{**row, "gemm": best} for row in part]
    return {**head, "side": side, "audio": [str(p) for p in args.audio] or "made up", "seconds": args.seconds,
            "rounds": args.rounds, "codecs": facts, "rows": rows}  # fmt: skip


def _is_affordable(spec: str, batch: int, threads: int) -> bool:
    return not (batch > 1 and spec.startswith(ALONE)) and not (threads > 1 and spec in ONCE)


def _facts(side: str, entry: Entry, inputs: list[Tensor], seconds: float) -> dict[str, Any]:
    codec = entry.codec
    first: dict[str, float] = {}
    if entry.compiled:
        began = time.perf_counter()
        getattr(codec, side)(inputs[:1])
        first = {"compile, s": time.perf_counter() - began}
        gflop = 0.0  # as of the plain entry; see _compare
    else:
        gflop = codec.gflop(lambda: getattr(codec, side)(inputs[:1])) / seconds
    return {"codec": entry.spec, "weights": codec.weights, "parameters": codec.parameters(), "bit/s": codec.bits_per_second,
            "codes a frame": codec.codes_per_frame, "frames/s": codec.frame_rate, "GFLOP/s of audio": gflop, **first}  # fmt: skip


def _compare(
    side: str, entries: dict[str, Entry], inputs: dict[str, list[Tensor]], facts: list[dict[str, Any]]
) -> None:
    """Adds to the facts of bf16, compiled and ported entries what they change in the output of their plain one."""
    named = {fact["codec"]: fact for fact in facts}
    plain: dict[str, list[Tensor]] = {}
    for spec, entry in entries.items():
        fact, base = named[spec], entry.plain
        if spec == base or base not in entries:
            continue
        fact["GFLOP/s of audio"] = fact["GFLOP/s of audio"] or named[base]["GFLOP/s of audio"]
        own = inputs[spec] if side == "encode" else inputs[spec][:1]
        if base not in plain:
            plain[base] = [getattr(entries[base].codec, side)([x])[0] for x in own]
        pairs = list(zip([getattr(entry.codec, side)([x])[0] for x in own], plain[base], strict=True))
        if side == "encode":
            fact["codes"] = sum(b.numel() for _, b in pairs)
            fact["changed codes"] = sum(int((a != b).sum()) for a, b in pairs)
        else:
            noise, signal = (sum(float(x.square().sum()) for x in xs) for xs in zip(*((a - b, b) for a, b in pairs)))
            fact["difference, dB"] = 10 * math.log10(max(noise, 1e-30) / max(signal, 1e-30))


def _row(spec: str, batch: int, threads: int, times: dict[str, list[float]], seconds: float) -> dict[str, Any]:
    own = times[spec]
    middle = statistics.median(own)
    row: dict[str, Any] = {
        "codec": spec, "batch": batch, "threads": threads, "s": middle, "spread": (max(own) - min(own)) / middle,
        "x real time": batch * seconds / middle,
    }  # fmt: skip
    for other in [*PEERS, "paper-naive"]:
        ratios = [b / a for a, b in zip(own, times.get(other, []))]
        row[f"x {other}"] = statistics.median(ratios) if ratios else "-"
    return row


def main(side: str, default: list[str], doc: str | None) -> int:
    """Command line of both scripts."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=default, metavar="NAME",
                        help=f"encodec, mimi, dac, a preset, a preset's port (paper-naive, paper-taps, paper-last) or a tokenizer's folder, with :bf16 "
                             f"or :compile behind it (default: {' '.join(default)})")  # fmt: skip
    parser.add_argument(
        "--audio", nargs="+", type=Path, default=[], metavar="CORPUS", help="clips' source (default: made up)"
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (default: 10)")
    parser.add_argument("--all", action="store_true", help="also the slowest with batches and threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    found = measure(side, args.models, args)
    extra = [
        {k: v for k, v in fact.items() if k in ("codec", "parameters", "bit/s", "GFLOP/s of audio")}
        for fact in found["codecs"]
    ]
    print_table(extra)
    for fact in found["codecs"]:
        if "changed codes" in fact:
            print(
                f"{fact['codec']}: {fact['changed codes']} of {fact['codes']} codes differ from {fact['codec'].split(':')[0].split('-')[0]}'s"
            )
        if "difference, dB" in fact:
            print(f"{fact['codec']}: difference to the plain decoder {fact['difference, dB']:.0f} dB")
    if args.out:
        write_json(args.out, found)
    return 0
