"""Parameters and arithmetic of the presets, counted without running them.

    python benchmarks/flops.py [--json FILE] [--seconds 10] [--stages] [NAME ...]

Counts convolutions, dense products and attention, two FLOPs for each multiplication with addition, on fake tensors: no
weights are made and nothing is computed, so the whole table takes seconds. FFTs, norms, activations and the mask arithmetic
are left out (together some per cent). The price of attention grows with the length of a clip: the length is in the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa_tok.config import TokenizerConfig
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.generator import Generator
from jepa_tok.models.logmel import LogMel
from jepa_tok.models.pitch import PitchTracker
from jepa_tok.presets import PRESETS, tokenizer_config

BUDGETS = {"small": (0.6, 2.0), "base": (3.0, 8.0)}
"""GFLOP per second of audio that encoding and decoding may cost."""


def count(module: nn.Module, call: Callable[[], Any]) -> dict[str, float]:
    """FLOPs of `call` by the sub-module of `module` that spent them; the key "" has the total."""
    # Fused attention kernels have no entry of their own in the counter on every device: the plain products do.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    root = type(module).__name__
    counts = {name: float(sum(ops.values())) for name, ops in counter.get_flop_counts().items()}
    return {"": float(counter.get_total_flops())} | {
        name.removeprefix(f"{root}."): flops for name, flops in counts.items() if name not in ("Global", root)
    }


def measure(config: TokenizerConfig, seconds: float = 10.0) -> dict[str, Any]:
    """Parameters and GFLOP per second of audio of encoder and generator on one clip of `seconds`."""
    hop, rate = config.encoder.hop, config.encoder.sample_rate
    samples = round(seconds * rate)
    frames = -(-samples // hop)
    result: dict[str, Any] = {"seconds": seconds}
    if config.encoder.front == "mel":  # its table of filters is cached for the process, so it must be a real one
        e = config.encoder
        LogMel(rate, e.n_fft, e.front_hop, e.n_mels)(torch.zeros(1, 1))
    if config.encoder.pitch_dims:  # so are the tracker's
        PitchTracker(rate)(torch.zeros(1, 1))
    with FakeTensorMode(allow_non_fake_inputs=True):
        encoder, generator = Encoder(config.encoder).eval(), Generator(config.generator).eval()
        wave, latents = torch.zeros(1, samples), torch.zeros(1, frames, config.generator.latent_dim)
        calls = {"encoder": (encoder, lambda: encoder(wave)), "generator": (generator, lambda: generator(latents))}
        for side, (module, call) in calls.items():
            by_module = {name: flops / 1e9 / seconds for name, flops in count(module, call).items()}
            parts = [n for n, m in module.named_modules() if n and _is_part(n, module)]
            result[side] = {
                "parameters": sum(p.numel() for p in module.parameters()),
                "gflop_per_second": by_module[""],
                "parts": {part: by_module.get(part, 0.0) for part in parts},
            }
    return result


def _is_part(name: str, module: nn.Module) -> bool:
    """Whether `name` is a direct child of `module` or of one of its lists (a list itself is never called)."""
    parent, _, _ = name.rpartition(".")
    is_list = isinstance(module.get_submodule(name), nn.ModuleList)
    return not is_list and (
        not parent or (parent.count(".") == 0 and isinstance(module.get_submodule(parent), nn.ModuleList))
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"presets; all of them if none ({', '.join(PRESETS)})")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip (default: 10)")
    parser.add_argument("--stages", action="store_true", help="also print what each stage costs")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    results = {name: measure(tokenizer_config(name), args.seconds) for name in args.names or list(PRESETS)}
    print(
        f"{'preset':<8} {'enc. params':>12} {'dec. params':>12} {'encode':>8} {'decode':>8}   GFLOP per second of audio"
    )
    for name, r in results.items():
        e, g = r["encoder"], r["generator"]
        limit = "budget {:.1f} and {:.1f}".format(*BUDGETS[name]) if name in BUDGETS else ""
        print(
            f"{name:<8} {e['parameters']:>12,} {g['parameters']:>12,} {e['gflop_per_second']:>8.3f} "
            f"{g['gflop_per_second']:>8.3f}   {limit}".rstrip()
        )
        if args.stages:
            for side in ("encoder", "generator"):
                parts = ", ".join(f"{part} {cost:.3f}" for part, cost in r[side]["parts"].items())
                print(f"{'':9}{side}: {parts}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
