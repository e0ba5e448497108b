"""Variance and covariance terms of VICReg (arXiv 2105.04906, section 4.1), over frames.

B clips   T frames   D dimensions
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def variance_covariance(latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms over all real frames of a batch, in float32.

    :param latents: [B, T, D].
    :param valid: Bool [B, T], True on frames of a clip's own.
    :returns: The mean over dimensions of max(0, 1 - deviation), and the squared covariances of different dimensions, summed
        and divided by D.
    """
    with torch.autocast(latents.device.type, enabled=False):
        own = valid[..., None].float()
        count = own.sum()
        z = latents.float()
        centred = ((z - (z * own).sum((0, 1)) / count.clamp_min(1.0)) * own).flatten(0, 1)  # [B * T, D]
        covariance = centred.T @ centred / (count - 1.0).clamp_min(1.0)  # [D, D]
        variance = covariance.diagonal()
        spread = F.relu(1.0 - (variance + 1e-4).sqrt()).mean()
        return spread, (covariance.square().sum() - variance.square().sum()) / len(variance)
