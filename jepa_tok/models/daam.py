"""Density Adaptive Attention gates (DAAM): loud where a step is typical of its clip, quiet where it stands out.

Paper, section 3.2; mechanism from arXiv 2401.11143.

    B clips   C channels   L steps   K Gaussians
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.models.causal import StreamState, look_back


class DaamGate(nn.Module):
    """Scales each step by 1 + alpha * density, the density of a learned projection under a mixture of K Gaussians.

    The mixture stands on the clip's own statistics: component k has its mean at (clip mean + offset_k) and the deviation
    (clip deviation * sigma_k), sigma_k = softplus(nu_k) + 1e-3. Statistics are taken over the clip's own steps only. Costs
    C + 1 + 2K + 1 parameters.

    :param context: Causal: the statistics of a step are those of itself and this many steps before it. None: of the clip.
    """

    VARIANCE_FLOOR = 1e-6

    def __init__(self, channels: int, num_gaussians: int = 4, context: int | None = None) -> None:
        super().__init__()
        self.context = context
        self.project = nn.Conv1d(channels, 1, 1)
        self.offset = nn.Parameter(torch.zeros(num_gaussians))
        self.nu = nn.Parameter(torch.full((num_gaussians,), math.log(0.5)))
        self.alpha = nn.Parameter(torch.tensor(0.05))

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> tuple[Tensor, Tensor]:
        """Gates x.

        :param x: [B, C, L].
        :param mask: Bool [B, L], True on a clip's own steps; None if every step is.
        :returns: Gated x [B, C, L] and the gate [B, L] (float32, zero outside the mask).
        """
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.project.weight, self.project.bias
            assert bias is not None
            score = F.conv1d(x.float(), weight.float(), bias.float()).squeeze(1)  # [B, L]
            gate = self._density(score, mask, state)
            gated = x.float() * (1.0 + self.alpha.float() * gate)[:, None, :]
        return gated.to(x.dtype), gate

    def _density(self, score: Tensor, mask: Tensor | None, state: StreamState | None) -> Tensor:
        """Mixture density of each score [B, L] against its own clip, paper equations 3 to 6."""
        real = torch.ones_like(score) if mask is None else mask.to(score.dtype)
        if self.context is None:
            count = real.sum(1, keepdim=True).clamp_min(1.0)
            mean = (score * real).sum(1, keepdim=True) / count  # [B, 1]
            variance = ((score - mean).square() * real).sum(1, keepdim=True) / count
        else:
            mean, variance = self._running_statistics(score, real, self.context, state)  # [B, L]
        deviation = variance.clamp_min(self.VARIANCE_FLOOR).sqrt()
        sigma = F.softplus(self.nu.float()) + 1e-3  # [K]
        z = ((score - mean)[..., None] - self.offset.float()) / (deviation[..., None] * sigma)  # [B, L, K]
        log_density = -0.5 * z.square() - sigma.log() - 0.5 * math.log(2.0 * math.pi)
        gate = torch.exp(torch.logsumexp(log_density, dim=-1) - math.log(sigma.numel()))
        return gate * real

    def _running_statistics(
        self, score: Tensor, real: Tensor, context: int, state: StreamState | None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance [B, L] of the real scores among each step and the `context` before it.

        In float64, where the difference of squares keeps more digits than float32 has; and each window is summed by itself,
        not as a difference of cumulative sums, so that what lies outside it does not change a bit.
        """
        score = look_back(score * real, context, state, (self, "score")).double()
        real = look_back(real, context, state, (self, "real")).double()
        share, mean, square = F.avg_pool1d(torch.stack([real, score, score.square()]), context + 1, stride=1)
        share = share.clamp_min(1.0 / (context + 1))
        mean = mean / share
        return mean.float(), (square / share - mean.square()).float()
