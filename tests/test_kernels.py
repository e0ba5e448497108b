"""The fused kernels against the plain block: interpreted on the CPU, and as they are where there is a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from jepa_tok.models.layers import HifiGanResBlock, meeting_taps, sequence_mask

pytest.importorskip("triton")


def make_block(channels: int, kernel: int, dilations: list[int], causal: bool) -> HifiGanResBlock:
    torch.manual_seed(0)
    block = HifiGanResBlock(channels, kernel, dilations, causal)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=1.0 / p[0].numel() ** 0.5 if p.dim() > 1 else 0.3)
    return block


def inputs(channels: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, C, L], zero outside the mask [B, L], and a gradient that is not."""
    mask = sequence_mask(torch.tensor([steps, steps // 2 + 1]), steps)
    x, up = torch.randn(2, 2, channels, steps)
    return x * mask[:, None], mask, up


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double().cpu() - b.double()).norm() / b.double().norm())


CASES = [(16, 3, [1, 3, 9], False), (48, 3, [1, 25], True), (32, 7, [2], False), (160, 3, [1], False)]


@pytest.fixture(scope="module")
def interpreted() -> list[dict[str, float]]:
    """Relative errors of the kernels under Triton's interpreter, which has to be asked for before Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_interpreted_kernels_are_the_block(interpreted: list[dict[str, float]], case: int) -> None:
    errors = interpreted[case]
    assert len(errors) == 2 + 4 * len(CASES[case][2])
    assert max(errors.values()) < 1e-5


def interpret(channels: int, kernel: int, dilations: list[int], causal: bool) -> dict[str, float]:
    """Relative errors, in float32, of the block's output and gradients."""
    from jepa_tok.models.kernels import residual_pair

    block = make_block(channels, kernel, dilations, causal)
    x, mask, up = inputs(channels, 140 if channels < 100 else 20)
    h = x.transpose(1, 2).contiguous().requires_grad_()
    x.requires_grad_()
    wanted = block(x, mask)
    lengths = mask.sum(1, dtype=torch.int32)
    out = h
    for dilated, plain in zip(block.dilated, block.plain):
        (w1, own1), (w2, own2) = (meeting_taps(conv, x.shape[2]) for conv in (dilated, plain))
        out = residual_pair(out, lengths, w1, dilated.bias, w2, plain.bias, dilated.dilation[0], (own1, own2))
    out = out.transpose(1, 2)
    names, weights = zip(*block.named_parameters())
    expected = torch.autograd.grad(wanted, [x, *weights], up)
    found = torch.autograd.grad(out, [h, *weights], up)
    errors = {name: relative(a, b) for name, a, b in zip(names, found[1:], expected[1:])}
    return {"out": relative(out, wanted), "x": relative(found[0].transpose(1, 2), expected[0]), **errors}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("channels", "steps", "dilations"), [(128, 3001, [1, 27, 125]), (384, 500, [1, 81, 625]), (64, 70, [1, 3, 5])])  # fmt: skip
def test_kernels_on_the_gpu_are_the_block(channels: int, steps: int, dilations: list[int]) -> None:
    block = make_block(channels, 3, dilations, causal=False).double()
    x, mask, up = inputs(channels, steps)
    x = x.double().requires_grad_()
    expected = block(x, mask)
    wanted = torch.autograd.grad(expected, [x, *block.parameters()], up.double())
    block.float().cuda().compile()
    h = x.detach().float().cuda().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        out = block(h, mask.cuda())
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out, [h, *block.parameters()], up.cuda().bfloat16())
    # Three pairs in bf16, with a few leaky ReLUs on the other side of zero.
    assert relative(out, expected) < 1e-2 and max(relative(a, b) for a, b in zip(found, wanted)) < 5e-2
    assert torch.equal(out[:, :, steps // 2 + 1 :][1], torch.zeros_like(out[1, :, steps // 2 + 1 :]))
    with torch.autocast("cuda", torch.bfloat16):
        alone = block(h[1:, :, : steps // 2 + 1], mask[1:, : steps // 2 + 1].cuda())
    assert torch.equal(alone[0], out[1, :, : steps // 2 + 1])


if __name__ == "__main__":
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def patch(tensor: type) -> None:
        patched(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.item())  # type: ignore[attr-defined]  # for NumPy 2.4

    interpreter._patch_lang_tensor = patch
    print(json.dumps([interpret(*case) for case in CASES]))
