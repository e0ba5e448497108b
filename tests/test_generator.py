"""Generator: size of the published one, exact lengths, independence of padding, the inverse STFT."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok.config import GeneratorConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.generator import Generator
from jepa_tok.models.stft import istft, stft
from jepa_tok.presets import tokenizer_config

MRF = GeneratorConfig(
    latent_dim=8,
    input_channels=16,
    channels=[12, 8, 8],
    strides=[3, 5, 2],
    kernels=[3, 7],
    dilations=[1, 3],
    blocks=[1, 2, 1],
    stage_conformers=[0, 0, 0],
)
CONVNEXT = dataclasses.replace(
    MRF, block="convnext", stage_conformers=[1, 0, 0], conformer_heads=4, head="istft", head_hop=6, n_fft=16, daam=True
)
CONVNEXT_WAVE = dataclasses.replace(MRF, block="convnext")
MRF_ISTFT = dataclasses.replace(MRF, head="istft", head_hop=5, n_fft=32)
CAUSAL = dataclasses.replace(CONVNEXT, causal=True, lookback=0.01)
CAUSAL_MRF = dataclasses.replace(MRF, causal=True)


def build(config: GeneratorConfig) -> Generator:
    torch.manual_seed(0)
    generator = Generator(config).eval()
    with torch.no_grad():  # biases start at zero, where a forgotten mask would not show
        for name, p in generator.named_parameters():
            if name.endswith("bias"):
                p.uniform_(-0.3, 0.3)
    return generator


def test_paper_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        generator = Generator(GeneratorConfig())
    assert sum(p.numel() for p in generator.parameters()) == 69_291_649


@pytest.mark.parametrize("name", ["paper", "base", "small", "small-causal", "tiny"])
def test_presets_build_and_give_9600_samples_a_frame(name: str) -> None:
    with torch.device("meta"):
        generator = Generator(tokenizer_config(name).generator)
        wave = generator(torch.zeros(2, 3, 128))
    assert generator.hop == 9600
    assert wave.shape == (2, 3 * 9600)


@pytest.mark.parametrize("config", [MRF, CONVNEXT, CONVNEXT_WAVE, MRF_ISTFT, CAUSAL, CAUSAL_MRF])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_length_is_exact_at_odd_strides(config: GeneratorConfig, frames: int) -> None:
    wave = build(config)(torch.randn(2, frames, 8))
    assert wave.shape == (2, frames * config.hop)
    assert wave.dtype == torch.float32
    assert wave.isfinite().all()
    assert wave.std() > 0


@pytest.mark.parametrize("config", [MRF, CONVNEXT, CONVNEXT_WAVE, MRF_ISTFT, CAUSAL, CAUSAL_MRF])
def test_padding_changes_nothing(config: GeneratorConfig) -> None:
    generator = build(config)
    latents = torch.randn(3, 7, 8)
    lengths = torch.tensor([7, 1, 4])
    with torch.inference_mode():
        batch = generator(latents, lengths)  # what lies past a clip's end is noise here, and must not be heard
        for i, n in enumerate(lengths.tolist()):
            alone = generator(latents[i : i + 1, :n])
            torch.testing.assert_close(batch[i : i + 1, : n * config.hop], alone, atol=1e-5, rtol=0)
            assert batch[i, n * config.hop :].eq(0).all()


@pytest.mark.parametrize("config", [MRF, CONVNEXT, CAUSAL, CAUSAL_MRF])
def test_every_parameter_learns(config: GeneratorConfig) -> None:
    generator = build(config).train()
    generator(torch.randn(2, 4, 8), torch.tensor([4, 2])).square().mean().backward()
    for name, p in generator.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        # A constant on a DAAM score goes with the clip's mean: its gradient is rounding, or nothing.
        assert p.grad.abs().sum() > 0 or name.endswith("gate.project.bias"), name


def test_bfloat16_weights_give_a_float32_wave() -> None:
    generator = build(CONVNEXT)
    latents = torch.randn(1, 4, 8)
    with torch.inference_mode():
        reference = generator(latents)
        wave = generator.bfloat16()(latents)
    assert wave.dtype == torch.float32
    assert (wave - reference).abs().mean() < 0.2 * reference.abs().mean()


@given(
    steps=st.integers(1, 12),
    hop=st.integers(1, 24),
    half=st.integers(0, 24),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_istft_is_the_inverse_of_stft(steps: int, hop: int, half: int, seed: int) -> None:
    n_fft = 2 * (hop + half)
    wave = torch.randn(2, steps * hop, generator=torch.Generator().manual_seed(seed))
    spectrum = stft(wave, n_fft, hop)
    assert spectrum.shape == (2, n_fft // 2 + 1, steps)
    back = istft(spectrum, n_fft, hop)
    # Where n_fft is 2 * hop a sample at the edge is seen by one window alone, near its zero: compare inside, all else exactly.
    edge = 0 if n_fft >= 3 * hop else hop
    torch.testing.assert_close(
        back[:, edge : steps * hop - edge], wave[:, edge : steps * hop - edge], atol=1e-3, rtol=0
    )
    assert back.shape == wave.shape


def test_istft_rebuilds_a_sine_from_magnitude_and_phase() -> None:
    t = torch.arange(4800) / 24_000
    wave = 0.5 * torch.sin(2 * torch.pi * 440 * t)[None]
    spectrum = stft(wave, 1024, 240)
    magnitude, phase = spectrum.abs(), spectrum.angle()
    back = istft(torch.polar(magnitude, phase), 1024, 240)
    torch.testing.assert_close(back, wave, atol=1e-5, rtol=0)


def test_stft_agrees_with_torch_where_the_grids_meet() -> None:
    wave = torch.randn(1, 64)
    # hop 16, window 32: step i starts at 16 * i - 8; torch.stft without centring starts at 16 * i
    ours = stft(wave, 32, 16)
    theirs = torch.stft(wave[:, 8:], 32, 16, window=torch.hann_window(32), center=False, return_complex=True)
    torch.testing.assert_close(ours[..., 1:3], theirs[..., :2])


def test_istft_envelope_is_each_clips_own() -> None:
    spectrum = torch.randn(2, 17, 6, dtype=torch.complex64)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    wave = istft(spectrum, 32, 8, mask)
    torch.testing.assert_close(wave[1:, :24], istft(spectrum[1:, :, :3], 32, 8))
    assert wave[1, 24:].eq(0).all()


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"n_fft": 15}, "n_fft"),
        ({"n_fft": 10}, "n_fft"),
        ({"kernels": [3, 4]}, "kernels"),
        ({"conformer_heads": 5}, "conformer_heads"),
        ({"channels": [8]}, "channels"),
    ],
)
def test_contradictions_are_refused_in_one_line(changes: dict, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        Generator(dataclasses.replace(CONVNEXT, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["base", "small", "small-causal", "tiny"])
def test_istft_head_starts_at_the_level_of_speech(name: str) -> None:
    """The loss need not first find the volume: log-magnitudes of read speech average about -3 on this grid."""
    torch.manual_seed(0)
    generator = Generator(tokenizer_config(name).generator).eval()
    with torch.no_grad():
        log_magnitude = stft(generator(torch.rand(1, 4, 128) * 2 - 1), 1024, 240).abs().log()
    assert log_magnitude.mean().item() == pytest.approx(-3.0, abs=0.75)
    assert 0.3 < log_magnitude.std().item() < 2.0
