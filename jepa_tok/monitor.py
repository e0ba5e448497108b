"""Collapse monitor: does z still depend on the sound, and do the codes use their levels?

A low loss is no sign of learning: the published objective can drive it to nothing while z depends on a frame's position
alone. These statistics show it, on a validation batch of several clips.

    B clips   T frames   D dimensions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepa_tok.models.encoder import Encoder
from jepa_tok.models.layers import sequence_mask


@torch.no_grad()
def collapse_stats(
    latents: Tensor, lengths: Tensor, codes: Tensor | None = None, radices: list[int] | None = None
) -> dict[str, float]:
    """Statistics of the frames of a batch.

    :param latents: [B, T, D].
    :param lengths: Frames of each clip [B].
    :param codes: Codes of the same frames [B, T, D], with their `radices` [D], for the usage entries.
    :returns: `std_mean`, `std_min` over dimensions; `effective_rank`, exp of the entropy of the covariance's spectrum, 1 to D
        (Roy and Vetterli, 2007); `between_clip_share`, the part of the variance that lies between clips at the same frame
        index: near 0 the output depends on position only. With codes: `code_usage`, mean entropy of a dimension's levels
        over its maximum, `code_usage_min`, that of the least used one, and `dead_dims`, dimensions that use a single level.
    """
    valid = sequence_mask(lengths, latents.shape[1])
    frames = latents.float()[valid]  # [N, D]
    centred = frames - frames.mean(0)
    std = centred.square().mean(0).sqrt()
    spectrum = torch.linalg.svdvals(centred).square()
    p = spectrum / spectrum.sum().clamp_min(1e-20)
    rank = float(torch.exp(-(p * p.clamp_min(1e-20).log()).sum()))

    # Clips that reach frame t are compared at t; an index with a single clip says nothing of variance between clips.
    counts = valid.sum(0)  # [T]
    shared = valid & (counts > 1)
    weight = shared[..., None].float()
    means = (latents.float() * weight).sum(0) / counts.clamp_min(1)[:, None]
    within = ((latents.float() - means).square() * weight).sum()
    total = (latents.float()[shared] - latents.float()[shared].mean(0)).square().sum() if shared.any() else within
    share = float(within / total.clamp_min(1e-20)) if shared.any() else math.nan

    stats = {
        "std_mean": float(std.mean()),
        "std_min": float(std.min()),
        "effective_rank": rank,
        "between_clip_share": share,
    }
    if codes is not None and radices is not None:
        entropies = code_entropies(codes[valid], radices)
        stats["code_usage"] = float(entropies.mean())
        stats["code_usage_min"] = float(entropies.min())
        stats["dead_dims"] = float((entropies == 0.0).sum())
    return stats


def code_entropies(codes: Tensor, radices: list[int]) -> Tensor:
    """Entropy of each dimension's levels over its maximum: codes [N, D] -> [D] in 0..1."""
    entropies = []
    for column, levels in zip(codes.T, radices):
        p = torch.bincount(column, minlength=levels).float() / max(len(column), 1)
        entropies.append(-(p * p.clamp_min(1e-20).log()).sum() / math.log(levels))
    return torch.stack(entropies).clamp(0.0, 1.0)


@torch.no_grad()
def stage_amplitudes(encoder: Encoder, wave: Tensor) -> list[float]:
    """Root mean square of what each stage of an encoder, and at last its output z, makes of clips [B, S] without padding.

    At initialisation it tells whether the signal reaches z: with weights of fixed deviation it fades stage by stage.
    """
    found: list[Tensor] = []

    def note(_module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor | None]) -> None:
        found.append(output[0].float().square().mean().sqrt())

    hooks = [stage.register_forward_hook(note) for stage in encoder.stages]
    try:
        z = encoder(wave).latents
    finally:
        for hook in hooks:
            hook.remove()
    return [float(x) for x in (*found, z.float().square().mean().sqrt())]
