"""How far are tokens from what their bits could hold? A decoder's steps beside principal components of the log-mels.

    python -m benchmarks.headroom tiny corpus.jsonl [--json FILE]

All is told of the log-mels that stage 2's mel head answers for (128 filters, windows of 10 ms), on `dev` rows of other speakers: R2, and the mel head's
own measure, mean absolute error in nats, weighed by loudness within each clip (`models/mel_head.py`).

Components are those of whole training frames, as many as given, as real numbers; and at the bits of the tokenizer's dimensions but those of the pitch, by the
rate-distortion function of independent normal values (reverse water-filling; Cover & Thomas, Elements of Information Theory, 10.3.3). They know neither
neighbours nor anything that is not linear: a yardstick, not a bound. Steps behind the decoder's second stage, made of tokens or of unquantised latents,
are read by one linear layer fitted on those made of tokens: by ridge regression for R2, from there by Adam for the weighed error.

    N frames   L steps   W windows of a step   M filters   F = 40 windows x M of a frame   C channels
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import readout_command
from benchmarks.latent_readout import load_waves
from jepa_tok import SpeechTokenizer
from jepa_tok.models.logmel import LogMel
from jepa_tok.models.mel_head import MelHead

COMPONENTS = (16, 32, 64, 96, 128, 256)
STAGES = 2
"""Of the generator, behind which its steps are read."""

EXPONENT = 0.46
"""`mel_head_exponent` of the packaged tokenizers."""

STEPS, RATE, BATCH = 1_000, 1e-3, 512
"""Of Adam, on half a cosine."""


@dataclass
class Sound:
    """What is to be told of a split, and what tells it."""

    logmel: Tensor
    """[L, W * M], in the units of `LogMel`."""

    weights: Tensor
    """The same shape, of mean 1 in each clip."""

    steps: dict[str, Tensor]
    """[L, C] by what they were made of: `tokens`, `latents`."""

    def frames(self, steps_of_frame: int) -> tuple[Tensor, Tensor]:
        """Log-mels and weights of whole frames, [N, F] each."""
        return self.logmel.reshape(-1, steps_of_frame * self.logmel.shape[1]), self.weights.reshape(-1, steps_of_frame * self.logmel.shape[1])  # fmt: skip


def r2(told: Tensor, truth: Tensor) -> float:
    """Share of the variance of `truth` [N, F] about its mean that `told` tells."""
    return 1.0 - float((told - truth).square().sum() / (truth - truth.mean(0)).square().sum())


def weighed_error(told: Tensor, truth: Tensor, weights: Tensor) -> float:
    """Mean absolute error in nats."""
    return float(((told - truth).abs() * weights).mean()) * LogMel.DEVIATION


def distortion(variances: Tensor, bits: float) -> float:
    """Least mean squared error, summed over them, of independent normal values of these variances at `bits` in sum."""
    low, high = 0.0, float(variances.max())
    for _ in range(200):  # the level of the water
        level = (low + high) / 2.0
        spent = float((0.5 * (variances / level).log2()).clamp_min(0.0).sum())
        low, high = (low, level) if spent < bits else (level, high)
    return float(variances.clamp_max(high).sum())


def components(train: Tensor, dev: Tensor, weights: Tensor, bits: float) -> list[dict[str, Any]]:
    """Rows of dev frames [N', F], their weights of the same shape, told by components of training frames [N, F]."""
    mean = train.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        axes = torch.svd_lowrank(train - mean, min(COMPONENTS[-1] + 20, *train.shape), 4)[2]
    values = (dev - mean) @ axes
    rows = []
    for k in (k for k in COMPONENTS if k <= values.shape[1]):
        told = mean + values[:, :k] @ axes[:, :k].T
        rows.append({"what": f"{k} components", "r2": r2(told, dev), "nats": weighed_error(told, dev, weights)})
    squares = values.square().mean(0)
    rest = float((dev - mean).square().sum(1).mean() - squares.sum())
    lost = (distortion(squares, bits) + rest) / float((dev - dev.mean(0)).square().sum(1).mean())
    return [*rows, {"what": f"components at {bits:.0f} bits", "r2": 1.0 - lost, "nats": None}]


def fit(head: MelHead, steps: Tensor, sound: Sound, seed: int = 0) -> None:
    """Trains a head that ridge regression has set, on training steps [L, C], by the weighed error."""
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(head.parameters(), RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            pick = torch.randint(len(steps), (BATCH,), generator=draws)
            loss = ((read(head, steps[pick]) - sound.logmel[pick]).abs() * sound.weights[pick]).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()


def read(head: MelHead, steps: Tensor) -> Tensor:
    """[L, C] -> [L, W * M]."""
    return head(steps[:, :, None]).flatten(1)


@torch.no_grad()
def run(tokenizer: SpeechTokenizer, manifest: Path, limit: int) -> dict[str, Any]:
    """All rows, and how many frames they are of."""
    config, fsq, generator = tokenizer.config.encoder, tokenizer.fsq, tokenizer.generator
    head = MelHead(tokenizer.config.generator, STAGES, EXPONENT)
    sounds = {}
    for split, count in (("train", limit), ("dev", limit // 4)):
        logmels, weights, steps = [], [], {"tokens": [], "latents": []}
        for wave in load_waves(manifest, split, count, config):
            logmel = head.logmel(wave[None])[0]
            weight = (EXPONENT * LogMel.DEVIATION * logmel).exp()
            logmels.append(logmel.reshape(-1, head.windows * logmel.shape[1]))
            weights.append((weight / weight.mean()).reshape(logmels[-1].shape))
            z = tokenizer.encoder(wave[None]).latents
            for name, values in (("tokens", fsq(z)[0]), ("latents", fsq.bound(z))):
                x, mask = generator.begin(values, None)
                steps[name].append(generator.upsample(x, mask, end=STAGES)[0][0].T)
        sounds[split] = Sound(torch.cat(logmels), torch.cat(weights), {k: torch.cat(v) for k, v in steps.items()})

    train, dev = sounds["train"], sounds["dev"]
    steps_of_frame = math.prod(tokenizer.config.generator.strides[:STAGES])
    bits = sum(math.log2(radix) for radix in fsq.radices[: config.latent_dim - config.pitch_dims])
    frames, (dev_frames, dev_weights) = train.frames(steps_of_frame)[0], dev.frames(steps_of_frame)
    rows = components(frames, dev_frames, dev_weights, bits)
    head.fit(train.steps["tokens"], train.logmel)
    by_ridge = {name: r2(read(head, x), dev.logmel) for name, x in dev.steps.items()}
    fit(head, train.steps["tokens"], train)
    for name, x in dev.steps.items():
        rows.append({"what": f"decoder's steps, of {name}", "r2": by_ridge[name], "nats": weighed_error(read(head, x), dev.logmel, dev.weights)})  # fmt: skip
    return {
        "tokenizer": tokenizer.hash,
        "train_frames": len(frames),
        "dev_frames": len(dev_frames),
        "bits": bits,
        "rows": rows,
    }


def main() -> int:
    """Command line; see the module's docstring."""
    return readout_command(
        "headroom",
        "What tokens tell of log-mels, beside principal components.",
        "folder or packaged name of a tokenizer with the `mel` front",
        run,
        lambda f: f"{f['train_frames']} training and {f['dev_frames']} dev frames, {f['bits']:.0f} bits a frame",
    )


if __name__ == "__main__":
    sys.exit(main())
