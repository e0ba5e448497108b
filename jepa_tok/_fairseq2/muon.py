"""`optimizer.name: muon`: momentum made orthogonal for weights of linear layers, AdamW for all else.

Muon (K. Jordan, 2024; with decoupled decay and the step's size matched to AdamW's in arXiv 2502.16982, section 2.2). torch.optim.Muon
takes matrices alone and multiplies in bf16 whatever the device, which CPUs without bf16 take hundreds of times as long for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq2.nn import ColumnShardedLinear, Linear, RowShardedLinear
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import Default, ParameterGroupConfig, default
from fairseq2.recipe.error import RecipeError
from fairseq2.recipe.optim import prepare_parameter_groups
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz iteration, tuned for speed: singular values end between .7 and 1.2, not at 1 (Muon)."""

ITERATIONS = 5

ADAMW_RMS = 0.2
"""Root mean square of a step of AdamW at its rate, which Muon's steps are scaled to (arXiv 2502.16982, equation 4)."""

LEAST_SIDE = 16
"""Matrices with a shorter side go to AdamW."""


@dataclass(kw_only=True)
class MuonGroupConfig(ParameterGroupConfig):
    """Parameters with settings of their own."""

    lr: float | Default = default
    weight_decay: float | Default = default


@dataclass(kw_only=True)
class MuonConfig:
    """Settings of both halves."""

    lr: float = 1e-3
    """Learning rate of AdamW."""

    matrix_lr_scale: float = 2.0
    """Learning rate of matrices, as a multiple of their group's."""

    momentum: float = 0.95
    """Of matrices (Nesterov's)."""

    betas: tuple[float, float] = (0.8, 0.99)
    """Of AdamW."""

    eps: float = 1e-8
    weight_decay: float = 1e-3
    groups: Sequence[MuonGroupConfig] = field(default_factory=list)


class Muon(Optimizer):
    """Both halves as one optimizer, so that one schedule and one checkpoint hold them.

    Each group given becomes up to two: its matrices, and all else.

    :param params: Parameters, or groups of them as torch's optimizers take them.
    :param matrices: Which of them get orthogonal steps, [R, C] each; see `linear_weights`.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: MuonConfig, matrices: Iterable[Tensor]
    ) -> None:
        own = set(matrices)
        groups = list(params)
        if groups and isinstance(groups[0], Tensor):
            groups = [{"params": groups}]
        parts: list[dict[str, Any]] = []
        for group in groups:
            assert isinstance(group, dict)
            weights = list(group["params"])
            lr = group.get("lr", config.lr)
            for wanted in (True, False):
                chosen = [p for p in weights if (p in own) == wanted]
                if chosen:
                    rate = lr * config.matrix_lr_scale if wanted else lr
                    parts.append({**group, "params": chosen, "lr": rate, "matrices": wanted})
        defaults = {
            "lr": config.lr,
            "momentum": config.momentum,
            "betas": config.betas,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
            "matrices": False,
        }
        super().__init__(parts, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if group["matrices"]:
                self._step_matrices(group, weights)
            elif weights:
                self._step_others(group, weights)
        return loss

    def _step_matrices(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        alike: dict[tuple[Any, ...], list[Tensor]] = {}
        for p in weights:  # those of one shape in one batch of products
            alike.setdefault((p.shape, p.device, p.dtype), []).append(p)
        for some in alike.values():
            for p in some:
                if "momentum" not in self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            gradients = [p.grad for p in some]
            momenta = [self.state[p]["momentum"] for p in some]
            torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])  # type: ignore[arg-type]
            ahead = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # type: ignore[arg-type]
            steps = orthogonal(ahead) * (ADAMW_RMS * max(ahead.shape[1:]) ** 0.5)
            torch._foreach_mul_(some, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(some, list(steps.to(some[0].dtype).unbind(0)), alpha=-group["lr"])

    def _step_others(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        for p in weights:
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        states = [self.state[p] for p in weights]
        adamw(
            weights,
            [p.grad for p in weights if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def linear_weights(model: nn.Module) -> list[Tensor]:
    """Weights [R, C] of the linear layers of `model`, R and C at least LEAST_SIDE.

    The layer's type decides and not the shape: biases, embeddings and heads that hold a row for each slot or id are of two
    dimensions too, and an orthogonal step would move rare rows as far as common ones. 1x1 convolutions stay with AdamW: here
    they are projections at the ends and heads, which Muon's even steps serve badly.
    """
    kinds = (nn.Linear, Linear, ColumnShardedLinear, RowShardedLinear)
    weights = [layer.weight for layer in model.modules() if isinstance(layer, kinds)]
    return [w for w in weights if min(w.shape) >= LEAST_SIDE]


def _multiplies_in_bf16(device: torch.device) -> bool:
    # No public name tells it of a CPU; where torch drops this one, float32 is right, and slower.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return device.type == "cuda" or (device.type == "cpu" and supported())


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly U V' of each matrix U S V' of [N, R, C], in bf16 on GPUs and CPUs that multiply in it, in float32 elsewhere."""
    x = matrices.bfloat16() if _multiplies_in_bf16(matrices.device) else matrices.float()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def register_muon(container: DependencyContainer) -> None:
    """Makes the name known to every recipe."""

    def create(resolver: DependencyResolver, config: MuonConfig) -> Optimizer:
        model = resolver.resolve(nn.Module)
        if any(isinstance(p, DTensor) for p in model.parameters()):
            raise RecipeError(
                "`optimizer.name` must be 'adamw' with sharded parameters (fsdp), but is 'muon' instead: it needs whole matrices."
            )
        return Muon(prepare_parameter_groups(model, config.groups), config, linear_weights(model))  # type: ignore[arg-type]

    register_component(container, Optimizer, "muon", config_kls=MuonConfig, factory=create)
