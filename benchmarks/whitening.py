"""Would decorrelated dimensions hold more at the same bits? Codes as they are beside codes of whitened latents.

    python -m benchmarks.whitening exp/tokenizer corpus.jsonl [--json FILE]

Latents of low effective rank make the codes of a frame repeat each other. Here the quantiser's normalised latents are
rotated to their principal components, each divided by its deviation, but by no less than `floor` of the largest (`pca`;
`zca` rotates back), quantised at the same number of levels, and read by the ridge regression of
`benchmarks.latent_readout` from a frame and its two neighbours. Needs a tokenizer with the `norm` bound.

    T frames of a clip   D latent dimensions
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import readout_command
from benchmarks.latent_readout import load_waves, mels, readout
from jepa_tok import SpeechTokenizer
from jepa_tok.models.fsq import EVEN_SCALE

FLOORS = (0.3, 0.1, 0.03, 0.01, 0.003)
PENALTIES = (10.0, 100.0, 1e3, 1e4, 1e5)
"""Of the ridge regression: codes that repeat each other want strong ones."""


def effective_rank(eigenvalues: Tensor) -> float:
    """exp of the entropy of the shares of variance (Roy and Vetterli, EUSIPCO 2007)."""
    shares = (eigenvalues / eigenvalues.sum()).clamp_min(1e-12)
    return float(torch.exp(-(shares * shares.log()).sum()))


def whitening(eigenvalues: Tensor, axes: Tensor, floor: float, back: bool) -> Tensor:
    """[D, D], applied from the right: to components of deviation 1 where it is above `floor` of the largest."""
    deviations = eigenvalues.clamp_min(0.0).sqrt()
    rotated = axes / deviations.clamp_min(floor * deviations.max())
    return rotated @ axes.T if back else rotated


def with_neighbours(frames: Tensor) -> Tensor:
    """[T, D] -> [T, 3 D]: the frame before, the frame, the frame after; zeros beyond the clip."""
    padded = F.pad(frames, (0, 0, 1, 1))
    return torch.cat([padded[:-2], padded[1:-1], padded[2:]], dim=1)


@torch.inference_mode()
def run(tokenizer: SpeechTokenizer, manifest: Path, limit: int) -> dict[str, Any]:
    """R2 of each way, and the effective rank of the normalised latents."""
    config, fsq = tokenizer.config.encoder, tokenizer.fsq
    levels = fsq.radices[0]
    waves = {split: load_waves(manifest, split, n, config) for split, n in (("train", limit), ("dev", limit // 4))}
    latents = {split: [tokenizer.encoder(w[None]).latents[0] for w in clips] for split, clips in waves.items()}
    sound = {split: mels(clips, config) for split, clips in waves.items()}

    train = torch.cat([fsq.normalise(z) for z in latents["train"]]).double()
    mean = train.mean(0)
    eigenvalues, axes = torch.linalg.eigh((train - mean).T @ (train - mean) / len(train))

    def whitened(floor: float, back: bool) -> Callable[[Tensor], Tensor]:
        matrix = whitening(eigenvalues, axes, floor, back)

        def quantise(z: Tensor) -> Tensor:
            bounded = torch.tanh(EVEN_SCALE * ((fsq.normalise(z) - mean) @ matrix))
            codes = ((bounded + 1) * 0.5 * levels).floor().clamp(0, levels - 1)
            return ((2 * codes + 1) / levels - 1).float()

        return quantise

    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "latents": lambda z: fsq.normalise(z),
        "codes as they are": lambda z: fsq.dequantize(fsq.quantize(z)),
    }
    for floor in FLOORS:
        for kind in ("pca", "zca"):
            ways[f"codes, {kind}, floor {floor}"] = whitened(floor, kind == "zca")

    def features(way: Callable[[Tensor], Tensor], split: str) -> np.ndarray:
        return torch.cat([with_neighbours(way(z)) for z in latents[split]]).numpy()

    rows = [
        {
            "reader of": name,
            **readout(features(w, "train"), sound["train"], features(w, "dev"), sound["dev"], PENALTIES),
        }
        for name, w in ways.items()
    ]
    rank = effective_rank(eigenvalues)
    return {"train_frames": len(train), "dimensions": len(mean), "effective_rank": rank, "rows": rows}


def fault(tokenizer: SpeechTokenizer) -> str:
    """Why `run` cannot be had of a tokenizer; empty where it can."""
    fits = tokenizer.config.quantizer.bound == "norm" and len(set(tokenizer.fsq.radices)) == 1
    return "" if fits else "the quantizer must have the `norm` bound and equal levels, but has not."


def main() -> int:
    """Command line; see the module's docstring."""
    return readout_command(
        "whitening",
        "Linear readout from codes of whitened latents.",
        "folder or packaged name of a tokenizer with the `norm` bound",
        run,
        lambda f: f"{f['train_frames']} training frames; effective rank {f['effective_rank']:.1f} of {f['dimensions']}",
        fault,
    )


if __name__ == "__main__":
    sys.exit(main())
