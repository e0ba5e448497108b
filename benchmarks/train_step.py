"""What a training step costs: time, audio per second, memory, and the share of the machine's matrix rate that it reaches (MFU).

    python -m benchmarks.train_step [--models paper base small] [--stages 1 2 2-gan] [--device cuda] [--out FILE.json]
    python -m benchmarks.train_step --models paper --stages 1 --batch 16 --seconds 15 --profile paper.txt

A step is the recipes': forward and backward under bf16 autocast with float32 weights (or float32), fused AdamW, the moving
average. Stage 1 masks and predicts as the preset does; stage 2 freezes or fine-tunes as `--fine-tune` says; `2-gan` adds the
discriminators, on segments of --segment seconds. Waves are noise: time does not depend on what they hold, weights are random.

FLOPs are what convolutions, products and attention take, forward and backward, two for a multiplication with addition; nothing is
counted for recomputation. The matrix rate is measured in the same run and dtype: the best of a few square products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import machine, print_table, run_main, write_json
from jepa_tok.files import write_text
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.presets import PRESETS, codec_config, jepa_config

RATE = 24_000
STAGES = ("1", "2", "2-gan")


class Step:
    """A model with its optimizer; a call is one training step."""

    def __init__(self, preset: str, stage: str, args: argparse.Namespace) -> None:
        self._device, self._bf16 = torch.device(args.device), args.dtype == "bf16"
        torch.manual_seed(0)
        self._wave = 0.1 * torch.randn(args.batch, round(args.seconds * RATE), device=self._device)
        self._lengths = torch.full((args.batch,), self._wave.shape[1], device=self._device)
        self.model, self._loss, self._follow = (self._stage1 if stage == "1" else self._stage2)(preset, stage, args)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in weights)
        self._optimizer = torch.optim.AdamW(weights, lr=1e-5, betas=(0.8, 0.99), fused=self._device.type == "cuda")

    def _stage1(self, preset: str, stage: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor], Any]:
        model = Jepa(jepa_config(preset)).to(self._device)
        hop = model.config.encoder.hop
        mask = model.sample_mask(torch.full((args.batch,), -(-self._wave.shape[1] // hop))).to(self._device)
        return model, lambda: model(self._wave, self._lengths, mask, 0.5).loss, model.update_target

    def _stage2(self, preset: str, stage: str, args: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor], Any]:
        config = codec_config(preset)
        config.freeze_encoder, config.average_decay = not args.fine_tune, 0.999
        config.mel_weight, config.adversarial_seconds = 4.0, args.segment
        model, gan = Codec(config).to(self._device), stage == "2-gan"

        def loss() -> Tensor:
            out = model(self._wave, self._lengths, adversarial=gan, disc=gan)
            return out.generator_loss + out.discriminator_loss

        return model, loss, model.update_average

    def __call__(self) -> None:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss = self._loss()
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._follow()


def wait(device: str) -> None:
    """Until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of square products, the best of three sizes."""
    best = 0.0
    for size in (4096, 8192, 16384) if device == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(2):
            a @ b
        wait(device)
        began, rounds = time.perf_counter(), 10 if device == "cuda" else 3
        for _ in range(rounds):
            a @ b
        wait(device)
        best = max(best, rounds * 2.0 * size**3 / (time.perf_counter() - began))
    return best


def measure(preset: str, stage: str, args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """A row of the table; what does not fit into memory is told as such."""
    row: dict[str, Any] = {"model": preset, "stage": stage, "clips": args.batch, "seconds": args.seconds}
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = Step(preset, stage, args)
        with FlopCounterMode(display=False) as counter:
            step()
        flops = float(counter.get_total_flops())
        for _ in range(args.warm_up):
            step()
        times = []
        for _ in range(args.steps):
            wait(args.device)
            began = time.perf_counter()
            step()
            wait(args.device)
            times.append(time.perf_counter() - began)
        if args.profile:
            write_text(args.profile, profile(step, args.device))
    except torch.OutOfMemoryError:
        return {**row, "ms": "out of memory"}
    median = statistics.median(times)
    audio = args.batch * args.seconds
    return {
        **row,
        "parameters, M": step.parameters / 1e6,
        "ms": 1e3 * median,
        "least ms": 1e3 * min(times),
        "most ms": 1e3 * max(times),
        "audio s/s": audio / median,
        "GFLOP per s": flops / audio / 1e9,
        "TFLOP/s": flops / median / 1e12,
        "MFU": flops / median / rate,
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
    parser.add_argument("--warm-up", type=int, default=5, metavar="STEPS")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write the last row's most costly operations here")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    head = machine()
    if args.device == "cuda":
        head["device"] = torch.cuda.get_device_name()
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rate = matrix_rate(args.device, torch.bfloat16 if args.dtype == "bf16" else torch.float32)
    print(f"matrix products in {args.dtype}: {rate / 1e12:.3g} TFLOP/s")
    rows = []
    for preset in args.models:
        for stage in args.stages:
            rows.append(measure(preset, stage, args, rate))
            print(" ".join(f"{key} {value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
            if args.out:  # of use as far as it came
                write_json(args.out, {**head, "dtype": args.dtype, "segment": args.segment, "fine_tune": args.fine_tune,
                                      "matrix_tflops": rate / 1e12, "warm_up": args.warm_up, "steps": args.steps, "rows": rows})  # fmt: skip
    print_table([{key: row.get(key, "-") for key in max(rows, key=len)} for row in rows])
    return 0


if __name__ == "__main__":
    run_main(main)
