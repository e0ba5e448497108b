"""Where a clip's encoding and decoding spend their time, by parts of the models, beside their arithmetic.

    python -m benchmarks.parts (--tokenizer FOLDER | --random-init PRESET) [--audio CORPUS ...] [--batch 1] [--out FILE.json]

One thread. Parts are timed by hooks around them while `SpeechTokenizer.encode` and `decode` run; a part's share is of the whole call, and
`rest` is what no part covers: the quantiser, packing, masks, layouts. `of GEMM` is a part's own products against the
rate of a 1024 x 1024 product in the same round, so a part of few products has little of it however well it runs. Medians over rounds.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clips import read_clips
from benchmarks.common import load_tokenizer, machine, print_table, run_main, tokenizer_parser, write_json
from benchmarks.flops import count
from benchmarks.speed import gemm, gemm_flops
from jepa_tok import SpeechTokenizer


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """Children of a model by name, those of lists one by one."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            parts |= {f"{name}.{i}": one for i, one in enumerate(child)}
        else:
            parts[name] = child
    return parts


@contextmanager
def timed(parts: dict[str, nn.Module]) -> Iterator[dict[str, float]]:
    """Seconds spent in each part within the block."""
    spent = dict.fromkeys(parts, 0.0)
    began: dict[str, float] = {}
    hooks = []
    for name, module in parts.items():

        def before(*_: Any, name: str = name) -> None:
            began[name] = time.perf_counter()

        def after(*_: Any, name: str = name) -> None:
            spent[name] += time.perf_counter() - began[name]

        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def measure(model: nn.Module, call: Callable[[], Any], rounds: int) -> list[dict[str, Any]]:
    """A row for each part of `model`, for what is left, and for the whole of `call`."""
    parts = parts_of(model)
    flops = count(model, call)
    product = gemm(torch.float32)
    times: dict[str, list[float]] = {name: [] for name in [*parts, "rest", "whole"]}
    rates = []
    for turn in range(rounds + 1):
        began = time.perf_counter()
        product()
        rate = gemm_flops() / (time.perf_counter() - began)
        with timed(parts) as spent:
            began = time.perf_counter()
            call()
            whole = time.perf_counter() - began
        if turn:  # the first is not counted
            rates.append(rate)
            for name, seconds in {**spent, "rest": whole - sum(spent.values()), "whole": whole}.items():
                times[name].append(seconds)
    rate = statistics.median(rates)
    rows = []
    for name, own in times.items():
        seconds = statistics.median(own)
        done = flops[""] if name == "whole" else flops.get(name, 0.0)
        rows.append({
            "part": name, "ms": 1e3 * seconds, "share": seconds / statistics.median(times["whole"]), "GFLOP": done / 1e9,
            "share of GFLOP": done / flops[""], "of GEMM": done / seconds / rate,
        })  # fmt: skip
    return rows


def both_sides(tokenizer: SpeechTokenizer, clips: list[Tensor], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """`encode` and `decode` of the clips, in one batch where there are several."""
    together = None if len(clips) == 1 else math.inf
    tokens = tokenizer.encode(clips, batch_seconds=together)
    return {
        "encode": measure(tokenizer.encoder, lambda: tokenizer.encode(clips, batch_seconds=together), rounds),
        "decode": measure(tokenizer.generator, lambda: tokenizer.decode(tokens, batch_seconds=together), rounds),
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = tokenizer_parser((__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--audio", nargs="+", type=Path, default=[], metavar="CORPUS", help="clips' source (default: made up)"
    )
    parser.add_argument("--batch", type=int, default=1, help="clips at once (default: 1)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (default: 10)")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = machine()
    tokenizer, _ = load_tokenizer(args)
    clips = read_clips(args.audio, [args.seconds] * args.batch)
    found = both_sides(tokenizer, clips, args.rounds)
    for side, rows in found.items():
        print(f"{side}, {args.batch} x {args.seconds:g} s")
        print_table(rows)
    if args.out:
        facts = {
            "tokenizer": tokenizer.config.name,
            "hash": tokenizer.hash,
            "batch": args.batch,
            "seconds": args.seconds,
        }
        write_json(args.out, {**head, **facts, "rounds": args.rounds, **found})
    return 0


if __name__ == "__main__":
    run_main(main)
