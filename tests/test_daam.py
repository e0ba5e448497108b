"""DAAM gate: against the equations written out, its masks, its causal windows and its stability."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_tok.models.daam import DaamGate


def by_hand(gate: DaamGate, x: torch.Tensor) -> torch.Tensor:
    """Density of each step of one clip [C, L], term by term from the paper's equations, in float64."""
    w, b = gate.project.weight.double()[0, :, 0], gate.project.bias.double()[0]
    score = [sum(w[c] * x[c, t] for c in range(len(w))) + b for t in range(x.shape[1])]
    mean = sum(score) / len(score)
    deviation = max(sum((s - mean) ** 2 for s in score) / len(score), torch.tensor(1e-6)) ** 0.5
    densities = []
    for s in score:
        total = 0.0
        for offset, nu in zip(gate.offset.tolist(), gate.nu.tolist()):
            sigma = math.log1p(math.exp(nu)) + 1e-3
            z = (s - (mean + offset)) / (deviation * sigma)
            total += math.exp(-0.5 * z * z) / (sigma * math.sqrt(2 * math.pi))
        densities.append(total / len(gate.offset))
    return torch.tensor(densities)


def make(channels: int = 3, context: int | None = None) -> DaamGate:
    torch.manual_seed(0)
    gate = DaamGate(channels, context=context)
    torch.nn.init.normal_(gate.offset)
    torch.nn.init.normal_(gate.nu)
    return gate


def test_equals_the_equations_written_out() -> None:
    gate, x = make(), torch.randn(1, 3, 7)
    gated, density = gate(x)
    expected = by_hand(gate, x[0].double())
    torch.testing.assert_close(density[0].double(), expected.double(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gated, x * (1 + 0.05 * density[:, None]))


def test_statistics_are_taken_over_real_steps_only() -> None:
    gate, x = make(), torch.randn(2, 3, 9)
    mask = torch.arange(9) < torch.tensor([[9], [4]])
    _, together = gate(x, mask)
    _, alone = gate(x[1:, :, :4])
    torch.testing.assert_close(together[1, :4], alone[0])
    assert not together[1, 4:].any()


@pytest.mark.parametrize("context", [1, 3, 20])
@pytest.mark.parametrize("level", [0.0, 1000.0])
def test_causal_statistics_are_those_of_each_steps_window(context: int, level: float) -> None:
    gate, x = make(context=context), torch.randn(2, 3, 12) + level
    mask = torch.arange(12) < torch.tensor([[12], [5]])
    _, density = gate(x, mask)
    for t in range(12):
        window = x[0, :, max(0, t - context) : t + 1].double()
        # float32 scores near 1000 hold four decimals; a deviation of about one divides the rest.
        torch.testing.assert_close(
            density[0, t].double(), by_hand(gate, window)[-1].double(), atol=5e-3 if level else 1e-4, rtol=5e-3
        )
    torch.testing.assert_close(density[1, :5], gate(x[1:, :, :5])[1][0])
    assert not density[1, 5:].any()


@pytest.mark.parametrize("context", [None, 2])
@pytest.mark.parametrize("value", [0.0, 3.0, 1e4])
def test_a_constant_or_single_step_is_finite_with_finite_gradients(value: float, context: int | None) -> None:
    gate = make(context=context)
    for steps in (1, 5):
        x = torch.full((1, 3, steps), value, requires_grad=True)
        gated, density = gate(x)
        gated.sum().backward()
        assert torch.isfinite(gated).all() and torch.isfinite(density).all()
        assert all(torch.isfinite(p.grad).all() for p in gate.parameters())
        assert torch.isfinite(x.grad).all()


def test_computed_in_float32_under_autocast() -> None:
    gate, x = make(), torch.randn(1, 3, 50)
    with torch.autocast("cpu", torch.bfloat16):
        _, density = gate(x)
    assert density.dtype == torch.float32
    torch.testing.assert_close(density, gate(x)[1])
