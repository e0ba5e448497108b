"""What a training step costs: time, audio per second, memory, and the share of the machine's matrix rate that it reaches (MFU).

    python -m benchmarks.train_step [--models paper base small] [--stages 1 2-mel 2 2-gan] [--device cuda] [--out FILE.json]
    python -m benchmarks.train_step --models paper --stages 1 --batch 64 --seconds 15 --compile --profile paper.txt

A step is the recipes': forward and backward under bf16 autocast with float32 weights (or float32), gradient norm, fused AdamW, the
moving average. Stage 1 masks and predicts as the preset does; stage 2 freezes or fine-tunes as `--fine-tune` says; `2-mel` makes
no waveform, its mel head stands on the second stage; `2-gan` adds the discriminators, on segments of --segment seconds. Waves are noise: time does not depend on what they hold, weights are random.
`--compile` and `--recompute` are the recipes' `model.compile` and `trainer.activation_checkpointing`.

FLOPs are what convolutions, products and attention take, forward and backward, two for a multiplication with addition; nothing is
counted for recomputation. The machine's rates are measured in the same run: the best of a few square products in the same dtype, and a
copy. `bound` is the MFU that no schedule of these operations can exceed, each by itself: every one takes as long as its arithmetic at
the matrix rate or its operands at the copy's rate, whichever is longer, and all else takes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.common import machine, print_table, run_main, write_json
from jepa_tok.files import write_text
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.regions import block_lists, compile_regions
from jepa_tok.presets import PRESETS, codec_config, jepa_config

RATE = 24_000
STAGES = ("1", "2-mel", "2", "2-gan")


class Step:
    """A model with its optimizer; a call is one training step."""

    def __init__(self, preset: str, stage: str, args: argparse.Namespace) -> None:
        self._device, self._bf16 = torch.device(args.device), args.dtype == "bf16"
        torch.manual_seed(0)
        self._wave = 0.1 * torch.randn(args.batch, round(args.seconds * RATE), device=self._device)
        self._lengths = torch.full((args.batch,), self._wave.shape[1], device=self._device)
        self.model, self._loss, self._follow = (self._stage1 if stage == "1" else self._stage2)(preset, stage, args)
        self._weights = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self._weights)
        if args.recompute:
            for blocks in list(block_lists(self.model)):
                for i, block in enumerate(blocks):
                    blocks[i] = checkpoint_wrapper(block)
        if args.compile:
            compile_regions(self.model, dynamic=False)
        self._optimizer = torch.optim.AdamW(
            self._weights, lr=1e-5, betas=(0.8, 0.99), fused=self._device.type == "cuda"
        )

    def _stage1(self, preset: str, stage: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor], Any]:
        model = Jepa(jepa_config(preset)).to(self._device)
        hop = model.config.encoder.hop
        mask = model.sample_mask(torch.full((args.batch,), -(-self._wave.shape[1] // hop))).to(self._device)
        return model, lambda: model(self._wave, self._lengths, mask, 0.5).loss, model.update_target

    def _stage2(self, preset: str, stage: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor], Any]:
        config = codec_config(preset)
        config.freeze_encoder, config.average_decay = not args.fine_tune, 0.999
        config.mel_weight, config.adversarial_seconds = 4.0, args.segment
        synthesis, gan = stage != "2-mel", stage == "2-gan"
        config.mel_head_stage = 0 if synthesis else 2
        model = Codec(config).to(self._device)

        def loss() -> Tensor:
            out = model(self._wave, self._lengths, adversarial=gan, disc=gan, synthesis=synthesis)
            return out.generator_loss + out.discriminator_loss

        return model, loss, model.update_average

    def __call__(self) -> None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss = self._loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, 5.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._follow()


class Products(TorchDispatchMode):
    """Notes FLOPs and bytes of operands and results of each convolution and product while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket
        if name in flop_registry:
            if name is torch.ops.aten.convolution_backward:
                # The registry's own count forgets groups: a depthwise weight gradient would cost as much as a dense one.
                gradient, x, weight, transposed, sides = args[0], args[1], args[2], args[7], args[-1]
                flops = (sides[0] + sides[1]) * convolution_flops(x if transposed else gradient, weight)
            elif name is torch.ops.aten.convolution:
                flops = convolution_flops(args[0] if args[6] else out, args[1])
            else:
                flops = float(flop_registry[name](*args, **(kwargs or {}), out_val=out))
            tensors = [x for x in tree_leaves((args, out)) if isinstance(x, Tensor)]
            self.found.append((flops, float(sum(x.numel() * x.element_size() for x in tensors))))
        return out


def convolution_flops(many: Tensor, weight: Tensor) -> float:
    """FLOPs of a convolution: each step of its output (of its input, if transposed) meets every weight of its group once.

    :param many: Output [B, C', ...], or the input of a transposed one [B, C, ...]; `weight` begins with that C.
    """
    return 2.0 * many.numel() * weight[0].numel()


def count_products(preset: str, stage: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """FLOPs and bytes of each product of a step with `args.batch` clips, from steps with one clip and with two."""
    found = []
    for batch in (1, 2):
        step = Step(
            preset, stage, argparse.Namespace(**{**vars(args), "batch": batch, "compile": False, "recompute": False})
        )
        # Fused attention has no entry in the registry on every device: the plain products do.
        with Products() as products, sdpa_kernel(SDPBackend.MATH):
            step()
        found.append(products.found)
    # Both grow by the same amount with each clip; what does not are the bytes of weights.
    more = args.batch - 1
    return [(f1 + more * (f2 - f1), b1 + more * (b2 - b1)) for (f1, b1), (f2, b2) in zip(*found, strict=True)]


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], Any], device: str, rounds: int) -> list[float]:
    """Of each of `rounds` calls, after two that are not counted."""
    times = []
    for i in range(rounds + 2):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        if i > 1:
            times.append(time.perf_counter() - began)
    return times


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of square products, the best of three sizes."""
    rounds = 10 if device == "cuda" else 3
    best = 0.0
    for size in (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2.0 * size**3 / statistics.median(seconds(partial(torch.mm, a, b), device, rounds)))
    return best


def copy_rate(device: str) -> float:
    """Bytes per second that a copy reads and writes, together."""
    a, b = torch.randn(2, 2**28 if device == "cuda" else 2**23, device=device)
    return 2 * 4 * a.numel() / statistics.median(seconds(lambda: b.copy_(a), device, 10 if device == "cuda" else 3))


def measure(preset: str, stage: str, args: argparse.Namespace, rate: float, bandwidth: float) -> dict[str, Any]:
    """A row of the table; what does not fit into memory is told as such."""
    row: dict[str, Any] = {"model": preset, "stage": stage, "clips": args.batch, "seconds": args.seconds}
    cuda = args.device == "cuda"
    torch.compiler.reset()  # the last row's compiled model would stay in memory
    try:
        products = count_products(preset, stage, args)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step = Step(preset, stage, args)
        for _ in range(args.warm_up):
            step()
        wait(args.device)
        start = time.perf_counter() - began
        times = seconds(step, args.device, args.steps)
        if args.profile:
            write_text(args.profile, profile(step, args.device))
    except torch.OutOfMemoryError:
        return {**row, "ms": "out of memory"}
    median = statistics.median(times)
    audio = args.batch * args.seconds
    flops = sum(f for f, _ in products)
    return {
        **row,
        "parameters, M": step.parameters / 1e6,
        "start, s": start,
        "ms": 1e3 * median,
        "least ms": 1e3 * min(times),
        "most ms": 1e3 * max(times),
        "audio s/s": audio / median,
        "GFLOP per s": flops / audio / 1e9,
        "TFLOP/s": flops / median / 1e12,
        "MFU": flops / median / rate,
        "bound": flops / rate / sum(max(f / rate, b / bandwidth) for f, b in products),
        "GiB": torch.cuda.max_memory_allocated() / 2**30 if cuda else "-",
    }


def profile(step: Step, device: str) -> str:
    """The 25 operations that take most of the device's time in three steps."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(3):
            step()
        wait(device)
    order = f"self_{device}_time_total"
    return found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70) + "\n"


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["paper", "base", "small"], choices=list(PRESETS), metavar="NAME", help="presets (default: paper base small)")  # fmt: skip
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--batch", type=int, default=16, help="clips (default: 16)")
    parser.add_argument("--seconds", type=float, default=4.8, help="of each clip (default: 4.8)")
    parser.add_argument("--segment", type=float, default=1.2, help="what the discriminators judge of it (default: 1.2)")
    parser.add_argument("--fine-tune", action="store_true", help="stage 2 trains the encoder too")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument(
        "--compile", action="store_true", help="compile blocks, activations, gates; fused HiFi-GAN blocks"
    )
    parser.add_argument("--recompute", action="store_true", help="keep only the inputs of blocks for the backward pass")
    parser.add_argument("--warm-up", type=int, default=5, metavar="STEPS")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write the last row's most costly operations here")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    head = machine()
    if args.device == "cuda":
        head["device"] = torch.cuda.get_device_name()
        torch.backends.fp32_precision = "tf32"  # fairseq2's default: a frozen encoder runs in float32
    rate = matrix_rate(args.device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    bandwidth = copy_rate(args.device)
    print(f"matrix products in {args.dtype}: {rate / 1e12:.3g} TFLOP/s, copies: {bandwidth / 1e12:.3g} TB/s")
    rows = []
    for preset in args.models:
        for stage in args.stages:
            rows.append(measure(preset, stage, args, rate, bandwidth))
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
            if args.out:  # of use as far as it came
                write_json(args.out, {**head, "dtype": args.dtype, "segment": args.segment, "fine_tune": args.fine_tune,
                                      "compile": args.compile, "recompute": args.recompute, "matrix_tflops": rate / 1e12,
                                      "copy_tbytes": bandwidth / 1e12, "warm_up": args.warm_up, "steps": args.steps, "rows": rows})  # fmt: skip
    print_table([{key: row.get(key, "-") for key in max(rows, key=len)} for row in rows])
    return 0


if __name__ == "__main__":
    run_main(main)
