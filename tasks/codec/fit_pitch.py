"""Teaches the two pitch networks what to pass on, before stage 2 starts: they need no sound for it, only what the tracker tells of it.

N frames   L windows of 10 ms   W windows in a frame   P pitch dimensions   D dimensions
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
from jepa_tok.models.losses import unevenness
from jepa_tok.models.source import PitchDecoder, PitchEncoder
from jepa_tok.monitor import code_entropies
from tasks.codec.calibrate import rows_of_waves

PITCH_SECONDS = 30.0
"""At most so much of a clip is listened to."""

PITCH_FRAMES = 60_000
"""At most so many frames are listened to: 6.7 hours."""

PITCH_PRICE = 0.1
"""Error of log pitch, in nats (a semitone and three quarters), that counts as much as a nat of voicing."""

USAGE_PRICE = 1.0
"""Of uneven use of a dimension's levels, beside a nat of voicing."""

BATCH = 256
"""Frames of a step."""

RATE, WARMUP = 2e-3, 100
"""Of AdamW at its highest, and the steps in which it rises to there; then it falls on half a cosine."""


def fit_pitch(codec: Codec, waves: Iterable[Tensor], steps: int, seed: int, frames: int = PITCH_FRAMES) -> None:
    """Trains pitch encoder and pitch decoder of `codec` through the quantiser, on up to `frames` frames of `waves`.

    A step's frames begin at any window, where clips are cut into frames from their start: so there is more to learn from. A tenth of
    what is heard, the last, is held out and the errors on its frames logged.

    RecipeError where there are not two frames.
    """
    encoder, decoder = codec.encoder.pitch, codec.generator.pitch
    assert encoder is not None and decoder is not None
    windows = decoder.windows

    def tracked(wave: Tensor) -> Tensor:
        told = encoder.track(wave, None)[0].unflatten(-1, (3, windows)).transpose(1, 2).flatten(0, 1)  # [T * W, 3]
        truth = torch.stack([x[0].float() for x in decoder.truth(wave, None)], dim=-1)
        # Padded by a frame, so that one that begins near a clip's end does not reach into the next clip.
        return F.pad(torch.cat([told, truth], dim=-1), (0, 0, 0, windows))

    rows = rows_of_waves(codec, tracked, waves, frames * windows)  # [L, 6], the last column: whether it is a clip's own
    own = torch.zeros(0) if rows is None else rows[:, -1].nonzero()[:, 0]
    if rows is None or len(own) < 2 * windows:
        raise RecipeError(
            "the pitch networks cannot be fitted: there are not two frames in the training files that can be read."
        )
    cut = int(own[-max(len(own) // 10, windows)]) // windows * windows  # clips begin at whole frames
    held = rows[cut:].unflatten(0, (-1, windows))
    held = held[held[..., -1].any(1)]
    starts = own[own <= cut - windows]
    frame = torch.arange(windows, device=rows.device)
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
    # Mean square of values that use their levels evenly.
    even = (1.0 - torch.tensor(codec.fsq.radices[-decoder.dims :], device=rows.device).float() ** -2.0) / 3.0
    with torch.enable_grad():
        for _ in range(steps):
            pick = starts[torch.randint(len(starts), (BATCH, 1), generator=rng).to(rows.device)]
            pitch, voicing, values, _ = _errors(encoder, decoder, codec.fsq, rows[pick + frame])
            optimizer.zero_grad()
            uneven = unevenness(values.mean(0), values.square().mean(0), even)
            (pitch / PITCH_PRICE + voicing + USAGE_PRICE * uneven).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    codec.zero_grad(set_to_none=True)  # the quantiser has got some, too, and the trainer would take them for its own
    with torch.no_grad():
        pitch, voicing, _, codes = _errors(encoder, decoder, codec.fsq, held)
    usage = code_entropies(codes.cpu(), codec.fsq.radices)[-decoder.dims :]
    log.info(
        "Pitch: fitted on {} frames; on {} others error {:.4f} nats, voicing {:.3f}; code usage {:.3f}, least {:.3f}.",
        len(starts) // windows, len(held), float(pitch), float(voicing), float(usage.mean()), float(usage.min()),
    )  # fmt: skip


def _errors(
    encoder: PitchEncoder, decoder: PitchDecoder, fsq: FSQ, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows of frames [N, W, 6] -> errors of pitch and voicing, values of the P dimensions [N, P] and codes [N, D], of which the last P mean something."""
    told, truth = rows.split(3, dim=-1)
    z = encoder.encode(told.transpose(1, 2).flatten(1))
    # The rest of a latent is normalised as well, so that any numbers of that kind stand for it.
    rest = torch.arange(fsq.config.dim - decoder.dims, device=rows.device, dtype=torch.float32)
    values, codes = fsq(torch.cat([F.layer_norm(rest, rest.shape).expand(len(z), -1), z], dim=-1))
    pitch, voiced, real = (x.flatten()[None] for x in truth.unbind(-1))
    return *decoder.errors(values[None], pitch, voiced > 0.5, real > 0.5), values[:, -decoder.dims :], codes
