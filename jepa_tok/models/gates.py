"""Gates that can close an encoder stage: the paper's (`models/daam.py`) and what it is compared with.

Each multiplies its input by 1 + alpha * g, alpha learned from 0.05 on as in DAAM, and differs in what g looks at. With C channels
and K Gaussians the parameters are

    daam             C + 2K + 2   density of a step's score under a mixture on the clip's own statistics, one g a step
    sigmoid          C + 2        sigmoid of a step's score, one g a step: DAAM without statistics
    squeeze-excite   2C + 2       the clip's mean through a bottleneck of one unit (arXiv 1709.01507), one g a channel
    static           C + 1        learned, the same for every step and clip, one g a channel: a gate that looks at nothing

    B clips   L steps
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.config import EncoderConfig
from jepa_tok.models.causal import StreamState
from jepa_tok.models.daam import DaamGate


class _Gate(nn.Module):
    """What the gates that DAAM is compared with share: float32 under autocast, and no density to show."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.05))

    def scale(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """g of x [B, C, L], broadcast to it."""
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None, state: StreamState | None = None) -> tuple[Tensor, None]:
        """Gates x [B, C, L]; mask [B, L], True on a clip's own steps. Takes and gives what `DaamGate` does, without its density."""
        with torch.autocast(x.device.type, enabled=False):
            h = x.float()
            gated = h * (1.0 + self.alpha.float() * self.scale(h, mask))
        return gated.to(x.dtype), None


class SigmoidGate(_Gate):
    """The sigmoid of a learned projection of the step, for all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv1d(channels, 1, 1)

    def scale(self, x: Tensor, mask: Tensor | None) -> Tensor:
        weight, bias = self.project.weight, self.project.bias
        assert bias is not None
        return torch.sigmoid(F.conv1d(x, weight.float(), bias.float()))  # [B, 1, L]


class SqueezeExciteGate(_Gate):
    """The clip's mean over its own steps, squeezed to one unit and spread over the channels; it hears the whole clip.

    The unit is a tanh: a single ReLU, as in the paper, would be dead from the start for half of the seeds.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, 1)
        self.excite = nn.Linear(1, channels, bias=False)

    def scale(self, x: Tensor, mask: Tensor | None) -> Tensor:
        own = x.new_ones(x.shape[0], x.shape[2]) if mask is None else mask.to(x.dtype)
        mean = (x * own[:, None]).sum(2) / own.sum(1, keepdim=True).clamp_min(1.0)  # [B, C]
        unit = torch.tanh(F.linear(mean, self.squeeze.weight.float(), self.squeeze.bias.float()))  # [B, 1]
        return torch.sigmoid(F.linear(unit, self.excite.weight.float()))[..., None]  # [B, C, 1]


class StaticGate(_Gate):
    """A sigmoid of one learned number a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(channels))

    def scale(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.sigmoid(self.logits.float())[:, None]  # [C, 1]


def make_gate(config: EncoderConfig, channels: int, context: int | None) -> nn.Module | None:
    """The gate of a stage, as the config says; None where it has none.

    :param context: Causal: earlier steps that statistics are taken over; None: the clip's.
    """
    if not config.daam:
        return None
    if config.gate == "daam":
        return DaamGate(channels, config.num_gaussians, context)
    kinds = {"sigmoid": SigmoidGate, "squeeze-excite": SqueezeExciteGate, "static": StaticGate}
    return kinds[config.gate](channels)
