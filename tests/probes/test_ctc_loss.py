"""The CTC loss for CPUs: torch's own in double precision is the judge."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from probes import ctc_loss as module
from probes.ctc_loss import ctc_loss

Case = tuple[Tensor, list[list[int]], Tensor]


def _case(lengths: list[int], sizes: list[int], labels: int = 6, spread: float = 2.0, seed: int = 0) -> Case:
    """Logits [P, B, V], targets, and lengths."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(max(lengths), len(lengths), labels, generator=draw) * spread
    targets = [torch.randint(1, labels, (n,), generator=draw).tolist() for n in sizes]
    return logits, targets, torch.tensor(lengths)


def _torch(log_probs: Tensor, targets: list[list[int]], lengths: Tensor) -> Tensor:
    flat = torch.tensor([u for own in targets for u in own])
    return F.ctc_loss(log_probs, flat, lengths, torch.tensor([len(t) for t in targets]), reduction="none")


def _both(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Losses and gradients of logits, each clip weighed differently: ours in single precision, torch's in double."""
    found = []
    for function, dtype in ((ctc_loss, torch.float32), (_torch, torch.float64)):
        logits = case[0].to(dtype, copy=True).requires_grad_()
        losses = function(logits.log_softmax(-1), *case[1:])
        (losses * torch.arange(1, len(losses) + 1)).sum().backward()
        assert logits.grad is not None
        found.append((losses.detach().double(), logits.grad.double()))
    return found


CASES = {
    "one label": _case([1, 4], [1, 1]),
    "lengths and sizes of their own": _case([60, 31, 9, 47], [20, 3, 4, 11]),
    "as many labels as fit": ((lambda c: (c[0], [[1, 2, 1, 2], [1, 2]], c[2]))(_case([4, 2], [1, 1]))),
    "equal neighbours": ((lambda c: (c[0], [[3, 3, 3], [1, 1]], c[2]))(_case([5, 8], [1, 1]))),
    "longer than a scale": _case([500, 401], [160, 33], labels=29),
    "flat": _case([300, 40], [90, 2], spread=0.0),
    "peaked": _case([300, 40], [90, 20], spread=6.0),
}


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(module.F, "ctc_loss", refuse)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_torch(name: str) -> None:
    found, true = _both(CASES[name])
    assert torch.allclose(found[0], true[0], rtol=1e-5)
    assert torch.allclose(found[1], true[1], atol=2e-5 * len(CASES[name][1]))
    assert true[1].abs().max() > 1e-3


def test_torch_is_not_asked_for_what_does_not_underflow(no_fallback: None) -> None:
    for logits, targets, lengths in CASES.values():
        assert torch.isfinite(ctc_loss(logits.log_softmax(-1), targets, lengths)).all()


def test_without_gradients_the_losses_are_the_same() -> None:
    logits, targets, lengths = CASES["lengths and sizes of their own"]
    with torch.no_grad():
        alone = ctc_loss(logits.log_softmax(-1), targets, lengths)
    assert torch.equal(alone, ctc_loss(logits.clone().requires_grad_().log_softmax(-1), targets, lengths).detach())


def test_where_numbers_underflow_torch_does_it() -> None:
    """A head that is sure of the blank all along, where labels are to be heard at every other position."""
    logits = torch.zeros(900, 1, 3)
    logits[..., 0] = 60.0
    log_probs, targets, lengths = logits.log_softmax(-1), [[1, 2] * 200], torch.tensor([900])
    losses, _ = module._forward_backward(log_probs.numpy(), targets, [900], backward=True)
    assert not np.isfinite(losses).all()
    assert torch.equal(ctc_loss(log_probs, targets, lengths), _torch(log_probs, targets, lengths))


@pytest.mark.parametrize("labels", range(8, 15))
def test_where_digits_may_be_lost_torch_does_it(labels: int) -> None:
    """Labels that a head rules out, up to those whose probability float64 can't hold any more."""
    logits = torch.zeros(300, 2, 3)
    logits[..., 0] = 60.0
    case = logits, [([1, 2] * 7)[:labels], [2]], torch.tensor([300, 290])
    found, true = _both(case)
    assert torch.allclose(found[0], true[0], rtol=1e-5)
    assert torch.allclose(found[1], true[1], atol=1e-4)
    log_probs = logits.log_softmax(-1).numpy()
    for backward in (True, False):
        losses, _ = module._forward_backward(log_probs, case[1], [300, 290], backward=backward)
        assert np.isfinite(losses).all() == (labels < 12)


def test_where_odds_overflow_torch_does_it() -> None:
    """A head that rules the blank out at many positions in a row."""
    logits, targets, lengths = _case([60, 45], [20, 7])
    logits[..., 0] -= 95.0
    losses, _ = module._forward_backward(logits.log_softmax(-1).numpy(), targets, lengths.tolist(), backward=True)
    assert not np.isfinite(losses).any()
    found, true = _both((logits, targets, lengths))
    assert torch.allclose(found[0], true[0], rtol=1e-5)
    assert torch.allclose(found[1], true[1], atol=1e-4)


def test_no_gradient_past_the_end_of_a_clip() -> None:
    logits, targets, lengths = _case([83, 20, 7], [11, 5, 2])
    log_probs = logits.log_softmax(-1).requires_grad_()
    ctc_loss(log_probs, targets, lengths).sum().backward()
    assert log_probs.grad is not None
    for b, n in enumerate(lengths):
        assert not log_probs.grad[n:, b].any()
        assert torch.allclose(log_probs.grad[:n, b].sum(-1), -torch.ones(int(n)), atol=1e-5)
