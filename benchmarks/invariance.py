"""Do codes depend on anything but the sound? The same clips alone and in batches, in other orders, on more threads, in bf16.

    python -m benchmarks.invariance --audio CORPUS ... [--models small base] [--clips 500] [--out FILE.json]
    python -m benchmarks.invariance --audio CORPUS ... --models paper --partners near --batch-seconds 160
    python -m benchmarks.invariance --audio CORPUS ... --models small paper --threads 1 --device cuda
    python -m benchmarks.invariance --audio CORPUS ... --models encodec mimi dac --clips 100 --sizes 2 8

Each clip is encoded alone, on one thread, in float32; then alone in reverse order and on two threads, and in padded batches of each
of --sizes with random partners in random order, on one thread and on two. Printed is how many codes differ from those of
the clip alone. In bf16 all is compared twice: with bf16 alone (invariance) and with float32 alone (precision).

Lengths run from 0.05 to 35 s, most of them short as in corpora, some longer than a tokenizer's window; the same for all. Peers get
the padding mask where their API has one, and adapters (docs/adapters.md), which have no batches, run clip by clip. Without --audio the clips are made up: it shows that the code
runs and nothing else.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.clips import read_clips
from benchmarks.common import machine, print_table, run_main, write_json
from benchmarks.peers import Codec, make_codec

SHORT, LONG = (0.05, 4.0), (4.0, 35.0)
"""Seconds of nine clips in ten, and of the tenth."""


def spread_lengths(clips: int, seed: int) -> list[float]:
    """Seconds of each clip, in random order: evenly spaced on a logarithmic scale from SHORT[0] on, shortest and longest among them."""
    long = max(1, clips // 10)
    lengths = [_between(SHORT, i / max(clips - long, 1)) for i in range(clips - long)]
    lengths += [_between(LONG, i / max(long - 1, 1)) for i in reversed(range(long))]
    random.Random(seed).shuffle(lengths)
    return lengths


def _between(bounds: tuple[float, float], part: float) -> float:
    low, high = bounds
    return low * (high / low) ** part


def make_batches(
    clips: Sequence[Tensor], size: int, partners: str, limit: float, draw: random.Random
) -> list[list[int]]:
    """Random batches of `size` clips, fewer where they would hold more than `limit` samples with padding.

    `partners`: `any`; or `near`, from an eighth of the clips by length, so that less is padded.
    """
    order = list(range(len(clips)))
    draw.shuffle(order)
    if partners == "near":
        rank = {
            index: place * 8 // len(clips) for place, index in enumerate(sorted(order, key=lambda i: len(clips[i])))
        }
        order.sort(key=lambda i: rank[i])
    batches: list[list[int]] = []
    longest = 0
    for index in order:
        longest = max(longest, len(clips[index]))
        if not batches or len(batches[-1]) == size or (len(batches[-1]) + 1) * longest > limit:
            batches.append([])
            longest = len(clips[index])
        batches[-1].append(index)
    draw.shuffle(batches)
    return batches


def encode(codec: Codec, clips: Sequence[Tensor], batches: Sequence[Sequence[int]]) -> list[Tensor]:
    """Codes of each clip, in the clips' order."""
    codes: dict[int, Tensor] = {}
    for batch in batches:
        codes.update(zip(batch, codec.encode([clips[i] for i in batch]), strict=True))
    return [codes[i] for i in range(len(clips))]


def compare(codes: Sequence[Tensor], alone: Sequence[Tensor]) -> dict[str, Any]:
    """How many codes, frames and clips differ; frames behind those of the clip alone (DAC has one less, in a batch) are left out."""
    different = [a[: len(b)] != b for a, b in zip(codes, alone, strict=True)]
    total = sum(d.numel() for d in different)
    changed = sum(int(d.sum()) for d in different)
    return {
        "codes": total, "differ": changed, "per 100,000": 1e5 * changed / total,
        "frames": sum(len(d) for d in different), "frames differ": sum(int(d.any(1).sum()) for d in different),
        "clips differ": sum(bool(d.any()) for d in different),
    }  # fmt: skip


def measure(codec: Codec, clips: list[Tensor], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each condition."""
    singles = [[i] for i in range(len(clips))]
    limit = args.batch_seconds * 24_000
    reference: list[Tensor] | None = None
    for dtype in ["fp32", "bf16"] if args.bf16 and codec.casts else ["fp32"]:
        codec.to(args.device)
        if dtype == "bf16":
            codec.to(torch.bfloat16)
        torch.set_num_threads(1)
        alone = encode(codec, clips, singles)
        if reference is None:
            reference = alone
        else:
            yield {
                "codec": codec.name,
                "dtype": dtype,
                "condition": "alone, against fp32",
                "threads": 1,
                **compare(alone, reference),
            }
        draw = random.Random(args.seed)
        runs: list[tuple[str, int, list[list[int]]]] = [("alone, reverse order", 1, singles[::-1])]
        runs += [("alone", threads, singles) for threads in args.threads if threads > 1]
        for size in args.sizes:
            batches = make_batches(clips, size, args.partners, limit, draw)
            runs += [
                (f"batches of {size}", threads, batches)
                for threads in args.threads
                if threads == 1 or size in args.threaded
            ]
        for condition, threads, batches in runs:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            codes = encode(codec, clips, batches)
            yield {
                "codec": codec.name, "dtype": dtype, "condition": condition, "threads": threads, **compare(codes, alone),
                "clips a batch": len(clips) / len(batches), "s": time.perf_counter() - began,
            }  # fmt: skip


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--audio", nargs="+", type=Path, default=[], metavar="CORPUS", help="recordings (default: made-up sound)"
    )
    parser.add_argument("--models", nargs="+", default=["small", "base"], metavar="NAME",
                        help="presets with random weights, tokenizers' folders, encodec, mimi, dac, adapters as `melkm` (default: small base)")  # fmt: skip
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 8, 32], help="of batches (default: 2 8 32)")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="(default: 1 2)")
    parser.add_argument(
        "--threaded",
        nargs="+",
        type=int,
        default=[8],
        metavar="SIZE",
        help="batches also run on more threads (default: 8)",
    )
    parser.add_argument(
        "--partners", choices=["any", "near"], default="any", help="who shares a batch: any clips, or of like length"
    )
    parser.add_argument(
        "--batch-seconds", type=float, default=math.inf, help="of a batch with its padding, at most: bounds memory"
    )
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="float32 only")
    parser.add_argument("--device", default="cpu", help="where our models run, `cuda` for one (default: cpu)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = machine()
    clips = read_clips(args.audio, spread_lengths(args.clips, args.seed), seed=args.seed)
    seconds = sorted(len(clip) / 24_000 for clip in clips)
    facts = {"clips": len(clips), "seconds": sum(seconds), "shortest": seconds[0], "median": seconds[len(seconds) // 2],
             "longest": seconds[-1], "over 30 s": sum(s > 30 for s in seconds)}  # fmt: skip
    print(f"{'recordings' if args.audio else 'made-up sound, which shows only that the code runs'}:")
    print_table([facts])
    rows = []
    for name in args.models:
        codec = make_codec(name, clips[:32])
        found = []
        for row in measure(codec, clips, args):
            found.append({**row, "weights": codec.weights})
            print(" ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)
            if args.out:  # a long run is of use as far as it came
                write_json(args.out, {**head, "audio": [str(p) for p in args.audio] or "made up", "seed": args.seed, "device": args.device, "partners": args.partners,
                                      "batch_seconds": None if math.isinf(args.batch_seconds) else args.batch_seconds, "lengths": facts, "rows": rows + found})  # fmt: skip
        print_table(
            [
                {
                    k: r.get(k, "-")
                    for k in (
                        "codec",
                        "dtype",
                        "condition",
                        "threads",
                        "codes",
                        "differ",
                        "per 100,000",
                        "clips differ",
                    )
                }
                for r in found
            ]
        )
        rows += found
    return 0


if __name__ == "__main__":
    run_main(main)
