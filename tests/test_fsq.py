"""FSQ: bins, straight-through gradient, both bounds, and independence of dtype, autocast and padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok.config import QuantizerConfig
from jepa_tok.errors import ConfigError, TokenError
from jepa_tok.models.fsq import FSQ
from jepa_tok.monitor import code_entropies


def fsq(**overrides):
    return FSQ(QuantizerConfig(**{"dim": 16, **overrides}))


def noise(*shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_values_of_the_paper():
    codes = torch.arange(4).repeat(4)[None]
    assert fsq().dequantize(codes)[0, :4].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_bins_are_those_of_the_nearest_value():
    z = noise(2, 50, 16, scale=1.5)
    values, codes = fsq()(z)
    nearest = (torch.tanh(z)[..., None] - torch.tensor([-0.75, -0.25, 0.25, 0.75])).abs().argmin(-1)
    assert torch.equal(codes, nearest)
    assert torch.equal(values, fsq().dequantize(codes))


@given(st.lists(st.integers(2, 11), min_size=1, max_size=8), st.integers(0, 2**31))
def test_level_k_is_the_middle_of_its_bin(levels, seed):
    """For even and odd level counts, and one count per dimension."""
    quantizer = fsq(dim=len(levels), levels=levels)
    codes = torch.stack([torch.randint(0, n, (20,), generator=torch.Generator().manual_seed(seed)) for n in levels], -1)
    values = quantizer.dequantize(codes)
    assert values.dtype == torch.float32 and values.abs().max() < 1
    assert torch.allclose(values, -1 + (2 * codes + 1) / torch.tensor(levels))
    # what lies within the bin gets its code, right up to the edges
    for shift in (-0.99, 0.0, 0.99):
        assert torch.equal(
            quantizer.quantize(torch.atanh(values.double() + shift / torch.tensor(levels)).float()), codes
        )
    assert torch.equal(quantizer.unpack(quantizer.pack(codes)), codes)


def test_saturated_and_huge_input_stays_in_range():
    z = torch.tensor([-1e30, -20.0, 20.0, 1e30]).repeat(4)[None, None]
    values, codes = fsq()(z)
    assert codes[0, 0, :4].tolist() == [0, 0, 3, 3]
    assert values[0, 0, :4].tolist() == [-0.75, -0.75, 0.75, 0.75]


@pytest.mark.parametrize("bound", ["tanh", "norm"])
def test_gradient_is_that_of_the_bounded_value(bound):
    quantizer = fsq(bound=bound)
    weight = noise(2, 5, 16, seed=1)
    z = noise(2, 5, 16, scale=2.0).requires_grad_()
    (quantizer(z)[0] * weight).sum().backward()
    through = z.grad.clone()
    z.grad = None
    (quantizer.bound(z) * weight).sum().backward()
    assert torch.equal(through, z.grad)


def test_gradient_fades_where_tanh_is_flat():
    z = torch.tensor([0.0, 9.0] * 8)[None, None].requires_grad_()
    fsq()(z)[0].sum().backward()
    assert z.grad[0, 0, 0] == 1.0
    assert z.grad[0, 0, 1] < 1e-6


def test_scale_and_bias_of_norm_learn():
    quantizer = fsq(bound="norm")
    quantizer(noise(2, 5, 16))[0].square().sum().backward()
    assert quantizer.scale.grad.abs().min() > 0 and quantizer.bias.grad.abs().min() > 0


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_norm_uses_the_levels_evenly_whatever_the_scale(scale):
    codes = fsq(dim=128, bound="norm").quantize(noise(1, 2000, 128, scale=scale))
    usage = torch.bincount(codes.flatten(), minlength=4) / codes.numel()
    assert (usage - 0.25).abs().max() < 0.01


def test_tanh_saturates_where_norm_does_not():
    z = noise(1, 100, 128, scale=30.0)
    usage = torch.bincount(fsq(dim=128).quantize(z).flatten(), minlength=4) / z.numel()
    assert usage[1:3].sum() < 0.05


@pytest.mark.parametrize("bound", ["tanh", "norm"])
def test_codes_depend_on_the_frame_alone(bound):
    quantizer, z = fsq(bound=bound), noise(3, 7, 16)
    codes = quantizer.quantize(z)
    padded = torch.nn.functional.pad(z, (0, 0, 0, 4))
    assert torch.equal(quantizer.quantize(padded)[:, :7], codes)
    assert torch.equal(quantizer.quantize(z[1, 3]), codes[1, 3])


@pytest.mark.parametrize("bound", ["tanh", "norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_whatever_the_model_or_autocast(bound, dtype):
    z = noise(2, 9, 16)
    reference = fsq(bound=bound)
    values, codes = reference(z)
    cast = fsq(bound=bound).to(dtype)
    assert all(p.dtype == torch.float32 for p in cast.parameters())
    assert torch.equal(cast(z)[1], codes)
    assert torch.equal(cast(z.to(dtype))[1], reference.quantize(z.to(dtype).float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        auto_values, auto_codes = reference(z)
    assert auto_values.dtype == torch.float32
    assert torch.equal(auto_codes, codes) and torch.equal(auto_values, values)


def test_state_dict():
    assert list(fsq().state_dict()) == []
    assert list(fsq(bound="norm").state_dict()) == ["scale", "bias"]


def test_meta_device():
    with torch.device("meta"):
        quantizer = fsq(bound="norm")
    quantizer.to_empty(device="cpu").reset_parameters()
    z = noise(1, 4, 16)
    assert torch.equal(quantizer.quantize(z), fsq(bound="norm").quantize(z))


def test_refusals():
    with pytest.raises(TokenError, match=r"^`codes\[0, 1\]` must lie in 0\.\.3, but is 4 instead\.$"):
        fsq(dim=2).dequantize(torch.tensor([[0, 4]]))
    with pytest.raises(TokenError, match="must have 16 values on the last axis"):
        fsq().dequantize(torch.zeros(3, 15, dtype=torch.int64))
    with pytest.raises(ConfigError, match="`bound` must be `tanh` for `dim` 1"):
        fsq(dim=1, bound="norm")
    with pytest.raises(ConfigError, match="must be `tanh` or `norm`"):
        fsq(bound="clip")


def test_calibration_uses_every_dimension_evenly_whatever_its_mean_and_spread() -> None:
    torch.manual_seed(0)
    spread = torch.logspace(-2, 0.5, 16)
    frames = torch.randn(4000, 16) * spread + torch.randn(16)
    fsq = FSQ(QuantizerConfig(dim=16, bound="norm"))
    before = code_entropies(fsq.quantize(frames), fsq.radices)
    fsq.calibrate(frames)
    after = code_entropies(fsq.quantize(frames), fsq.radices)
    assert before.min() < 0.5 and after.min() > 0.95
    tanh = FSQ(QuantizerConfig(dim=16))
    tanh.calibrate(frames)
    assert not tanh.state_dict()


def test_calibration_of_some_dimensions_leaves_the_others() -> None:
    torch.manual_seed(0)
    frames = torch.randn(400, 16)
    fsq, dims = FSQ(QuantizerConfig(dim=16, bound="norm")), torch.arange(16) % 3 == 0
    scale, bias = fsq.scale.clone(), fsq.bias.clone()
    fsq.calibrate(frames, dims)
    assert torch.equal(fsq.scale != scale, dims) and torch.equal(fsq.bias != bias, dims)


def test_calibration_on_a_constant_dimension_stays_finite() -> None:
    fsq = FSQ(QuantizerConfig(dim=4, bound="norm"))
    fsq.calibrate(torch.ones(10, 4))
    assert all(bool(t.isfinite().all()) for t in fsq.state_dict().values())
    assert fsq.quantize(torch.ones(3, 4)).shape == (3, 4)


@pytest.mark.parametrize("count", [12, 13, 14, 15])
def test_no_frame_of_the_calibration_lies_on_an_edge(count):
    """A latent on an edge would change its code with the last bit of a float, which differs between batches."""
    fsq = FSQ(QuantizerConfig(dim=4, bound="norm")).requires_grad_(False)
    z = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    fsq.calibrate(z)
    for nudge in (1 - 1e-6, 1 + 1e-6):
        assert torch.equal(fsq.quantize(z + (nudge - 1) * torch.arange(4)), fsq.quantize(z))
