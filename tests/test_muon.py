"""Muon: orthogonal steps for matrices, AdamW for the rest, one optimizer."""

from __future__ import annotations

import copy
import dataclasses
from typing import Literal

import pytest
import torch
from torch import nn

from jepa_tok._fairseq2.lm import ARCHS, create_lm
from jepa_tok._fairseq2.muon import ADAMW_RMS, Muon, MuonConfig, linear_weights, orthogonal
from jepa_tok.models.codec import Codec
from jepa_tok.presets import codec_config


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(16, 32, 1), nn.Flatten(), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    torch.manual_seed(1)
    x = torch.randn(64, 16, 1)
    y = torch.tanh(x[:, :, 0] @ torch.randn(16, 16))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("shape", [(3, 32, 64), (2, 64, 32), (1, 48, 48)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = 1e-3 * torch.randn(shape)
    made = orthogonal(matrices)
    assert made.shape == shape
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    kept = u.mT @ made.float() @ v.mT  # diagonal, were the vectors kept exactly
    values = kept.diagonal(dim1=1, dim2=2)
    strong = s > 0.05 * s[:, :1]
    assert values[strong].min() > 0.5 and values.max() < 1.3
    exact = made.dtype == torch.float32  # bf16 on CPUs that multiply in it
    assert (kept - torch.diag_embed(values)).abs().max() < (1e-3 if exact else 3e-2)


def test_cpus_that_do_not_multiply_in_bf16_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = torch.randn(2, 32, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    exact = orthogonal(matrices)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    rough = orthogonal(matrices)
    assert (exact.dtype, rough.dtype) == (torch.float32, torch.bfloat16)
    assert (rough.float() - exact).norm() < 0.02 * exact.norm()


def test_matrices_and_the_rest_are_groups_of_their_own() -> None:
    net = model()
    first, second, third = net[0], net[2], net[4]
    groups = [{"params": [*first.parameters(), *second.parameters()], "lr": 0.5}, {"params": list(third.parameters())}]
    optimizer = Muon(groups, MuonConfig(lr=0.1, matrix_lr_scale=3.0), linear_weights(net))
    found = [(g["matrices"], g["lr"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [(True, 1.5, 1), (False, 0.5, 3), (True, pytest.approx(0.3), 1), (False, 0.1, 1)]


@pytest.mark.parametrize("kind", ["factorised", "full"])
def test_of_a_language_model_only_weights_of_linear_layers_are_matrices(kind: Literal["factorised", "full"]) -> None:
    net = create_lm(dataclasses.replace(ARCHS["tiny"](), embedding=kind, head=kind))
    names = {p: name for name, p in net.named_parameters()}
    optimizer = Muon(net.parameters(), MuonConfig(), linear_weights(net))
    matrices, others = ([names[p] for p in g["params"]] for g in optimizer.param_groups)
    # 4 projections of attention and 3 of the feed-forward layer in each of 4 layers; tables, biases and heads are in neither.
    assert len(matrices) == 28 and all(name.startswith("decoder.layers.") for name in matrices)
    assert {name for name in others if not name.startswith("decoder.")} >= {"embedding.slot", "head.weight"}


def test_of_a_codec_all_weights_of_two_dimensions_are_matrices() -> None:
    net = Codec(dataclasses.replace(codec_config("tiny"), mel_head_stage=2))
    assert [id(w) for w in linear_weights(net)] == [id(p) for p in net.parameters() if p.ndim == 2]


def test_a_matrix_moves_by_the_size_of_an_adamw_step() -> None:
    net = nn.Linear(64, 256, bias=False)
    before = net.weight.detach().clone()
    optimizer = Muon(net.parameters(), MuonConfig(lr=1e-2, matrix_lr_scale=1.0, weight_decay=0.0), linear_weights(net))
    net(torch.randn(512, 64)).square().mean().backward()
    optimizer.step()
    moved = (net.weight.detach() - before).square().mean().sqrt().item()
    assert moved == pytest.approx(1e-2 * ADAMW_RMS, rel=0.25)


def test_what_is_no_matrix_moves_as_with_adamw() -> None:
    net = nn.Conv1d(8, 8, 3)
    twin = copy.deepcopy(net)
    ours = Muon(net.parameters(), MuonConfig(lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1), linear_weights(net))
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.8, 0.99), weight_decay=0.1)
    for i in range(5):
        torch.manual_seed(i)
        x = torch.randn(4, 8, 20)
        for n, optimizer in ((net, ours), (twin, theirs)):
            optimizer.zero_grad()
            n(x).square().mean().backward()
            optimizer.step()
    for p, q in zip(net.parameters(), twin.parameters()):
        torch.testing.assert_close(p, q)


def test_it_learns_and_goes_on_from_its_state_as_if_never_stopped() -> None:
    whole, config = model(), MuonConfig(lr=3e-3)
    optimizer = Muon(whole.parameters(), config, linear_weights(whole))
    losses = train(whole, optimizer, 60)
    assert losses[-1] < 0.3 * losses[0]
    first = model()
    half = Muon(first.parameters(), config, linear_weights(first))
    assert train(first, half, 30) == losses[:30]
    second = model()
    second.load_state_dict(first.state_dict())
    resumed = Muon(second.parameters(), config, linear_weights(second))
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    assert train(second, resumed, 30) == pytest.approx(losses[30:], rel=1e-5)


def test_what_has_no_gradient_stays() -> None:
    net = model()
    before = net[4].weight.detach().clone()
    optimizer = Muon(net.parameters(), MuonConfig(), linear_weights(net))
    net[:4](torch.randn(2, 16, 1)).sum().backward()
    optimizer.step()
    assert torch.equal(net[4].weight, before) and net[4].weight not in optimizer.state
