"""Teaches the two pitch networks what to pass on, before stage 2 starts: they need no sound for it, only what the tracker tells of it.

N frames   W windows of 10 ms in a frame   P pitch dimensions   D dimensions
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn import functional as F

from jepa_tok.models.codec import Codec
from jepa_tok.models.fsq import EVEN_SCALE, FSQ
from jepa_tok.models.source import PITCH_PRICE, PitchDecoder, PitchEncoder
from jepa_tok.monitor import code_entropies
from tasks.codec.calibrate import rows_of_waves

BATCH = 256
"""Frames of a step."""

RATE, WARMUP = 2e-3, 100
"""Of AdamW at its highest, and the steps in which it rises to there; then it falls on half a cosine."""


def fit_pitch(codec: Codec, waves: Iterable[Tensor], frames: int, steps: int, seed: int) -> None:
    """Trains pitch encoder and pitch decoder of `codec` through the quantiser, on up to `frames` frames of `waves`.

    A tenth of the frames, the last ones, are held out and the errors on them logged. RecipeError where there is no clip, or no pitch.
    """
    encoder, decoder = codec.encoder.pitch, codec.generator.pitch
    if encoder is None or decoder is None:
        raise RecipeError(f"`pitch_steps` must be 0 for a model without `pitch_dims`, but is {steps} instead.")

    def tracked(wave: Tensor) -> Tensor:
        truth = [x[0].unflatten(0, (-1, decoder.windows)).float() for x in decoder.truth(wave, None)]
        return torch.cat([encoder.track(wave, None)[0], *truth], dim=-1)  # [T, 6 * W]

    rows = rows_of_waves(codec, tracked, waves, frames)
    if rows is None or len(rows) < 10:
        raise RecipeError(
            "the pitch networks cannot be fitted: there are not ten frames in the training files that can be read."
        )
    train, held = rows[: -len(rows) // 10], rows[-len(rows) // 10 :]
    rng = torch.Generator().manual_seed(seed)
    if codec.fsq.scale is not None and codec.fsq.bias is not None:  # as new: what the networks put out is spread evenly
        codec.fsq.scale.data[-decoder.dims :] = EVEN_SCALE
        codec.fsq.bias.data[-decoder.dims :] = 0.0
    parameters = [*encoder.parameters(), *decoder.parameters()]
    for p in parameters:  # a frozen encoder is frozen again by `Codec.freeze`, after this
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, RATE, betas=(0.8, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / WARMUP) * (0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    with torch.enable_grad():
        for _ in range(steps):
            pick = torch.randint(len(train), (BATCH,), generator=rng).to(train.device)
            pitch, voicing, _ = _errors(encoder, decoder, codec.fsq, train[pick])
            optimizer.zero_grad()
            (pitch / PITCH_PRICE + voicing).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        pitch, voicing, codes = _errors(encoder, decoder, codec.fsq, held)
    usage = code_entropies(codes.cpu(), codec.fsq.radices)[-decoder.dims :]
    log.info(
        "Pitch: fitted on {} frames; on {} others error {:.4f} nats, voicing {:.3f}; code usage {:.3f}, least {:.3f}.",
        len(train), len(held), float(pitch), float(voicing), float(usage.mean()), float(usage.min()),
    )  # fmt: skip


def _errors(encoder: PitchEncoder, decoder: PitchDecoder, fsq: FSQ, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [N, 6 * W] -> errors of pitch and voicing, and codes [N, D], of which the last P mean something."""
    told, *truth = rows.split([3 * decoder.windows, *[decoder.windows] * 3], dim=-1)
    z = encoder.encode(told)
    # The rest of a latent is normalised as well, so that any numbers of that kind stand for it.
    rest = torch.arange(fsq.config.dim - decoder.dims, device=rows.device, dtype=torch.float32)
    values, codes = fsq(torch.cat([F.layer_norm(rest, rest.shape).expand(len(z), -1), z], dim=-1))
    pitch, voiced, real = (x.flatten()[None] for x in truth)
    return *decoder.errors(values[None], pitch, voiced > 0.5, real > 0.5), codes
