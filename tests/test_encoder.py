"""Encoder: published sizes, exact frame counts, padding that never reaches a frame, signal that survives."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok.config import EncoderConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.daam import DaamGate
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.jepa import Predictor
from jepa_tok.models.layers import TimeConv, apply_mask, dilated_conv, sequence_mask
from jepa_tok.presets import tokenizer_config
from jepa_tok.training_config import PredictorConfig

PRESETS = ["tiny", "small", "small-causal", "base", "paper"]
KINDS = ["mel", "wave", "mel-causal", "wave-causal"]


def toy(kind: str = "mel", **overrides: object) -> EncoderConfig:
    """A few thousand parameters, hop 240 (mel) or 24 (wave)."""
    front, causal = kind.removesuffix("-causal"), kind.endswith("-causal")
    values: dict = dict(
        front=front, front_hop=60 if front == "mel" else 1, n_fft=256, n_mels=16, front_channels=8, channels=[8, 12], strides=[2, 2],
        blocks=[1, 1], block="convnext", stage_conformers=[0, 1], latent_dim=16, conformers=1, conformer_heads=4,
        conformer_kernel=5, conformer_norm="step", init="scaled",
    )  # fmt: skip
    if front == "wave":
        values |= dict(strides=[8, 3], block="hifigan", blocks=[2, 3], conformer_norm="clip", init="trunc_normal")
    if causal:
        values |= dict(causal=True, lookback=0.02, conformer_norm="step")
    return EncoderConfig(**(values | overrides))  # type: ignore[arg-type]


def test_paper_has_exactly_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig())
        predictor = Predictor(PredictorConfig(), EncoderConfig())
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(encoder) == 118_512_562
    assert count(predictor) == 3_177_600
    assert sum(count(m) for m in encoder.modules() if isinstance(m, DaamGate)) == 1_842


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_token_contract(name: str) -> None:
    config = tokenizer_config(name)
    config.check()
    assert config.encoder.frame_rate == 2.5
    assert config.encoder.hop == config.generator.hop == 9600
    assert config.quantizer.radices == [4] * 128
    assert config.quantizer.vocab_sizes == [16384] * 18 + [16]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 3000))
def test_frames_are_samples_over_hop_rounded_up(kind: str, samples: int) -> None:
    encoder = _cached(kind)
    with torch.inference_mode():
        out = encoder(torch.zeros(1, samples))
    frames = -(-samples // encoder.config.hop)
    assert out.latents.shape == (1, frames, 16)
    assert out.lengths.tolist() == [frames] == encoder.num_frames(torch.tensor([samples])).tolist()


_ENCODERS: dict[str, Encoder] = {}


def _cached(kind: str) -> Encoder:
    if kind not in _ENCODERS:
        torch.manual_seed(0)
        _ENCODERS[kind] = Encoder(toy(kind)).eval()
    return _ENCODERS[kind]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 2500), min_size=1, max_size=4), extra=st.integers(0, 1500), seed=st.integers(0, 99)
)
def test_a_padded_batch_equals_single_clips(kind: str, lengths: list[int], extra: int, seed: int) -> None:
    encoder = _cached(kind)
    generator = torch.Generator().manual_seed(seed)
    clips = [0.1 * torch.randn(n, generator=generator) for n in lengths]
    # Noise, not zeros, past each end: what lies there must not matter.
    batch = torch.randn(len(clips), max(lengths) + extra, generator=generator)
    for row, clip in zip(batch, clips):
        row[: len(clip)] = clip
    with torch.inference_mode():
        together = encoder(batch, torch.tensor(lengths), return_gates=True)
        for i, clip in enumerate(clips):
            alone = encoder(clip[None], return_gates=True)
            frames = alone.latents.shape[1]
            torch.testing.assert_close(together.latents[i, :frames], alone.latents[0], atol=2e-4, rtol=0)
            assert not together.latents[i, frames:].any()
            for many, one in zip(together.gates, alone.gates):
                # A density over a clip of few, nearly equal steps divides float noise by their tiny deviation.
                torch.testing.assert_close(many[i, : one.shape[1]], one[0], atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_masking_at_the_input_hides_what_is_masked(kind: str) -> None:
    encoder = _cached(kind)
    hop = encoder.config.hop
    wave = 0.1 * torch.randn(2, 6 * hop)
    changed = wave.clone()
    changed[:, 2 * hop : 4 * hop] += torch.randn(2, 2 * hop)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[:, 2:4] = True
    embedding = torch.randn(8)
    with torch.inference_mode():
        a = encoder(wave, mask=mask, mask_embedding=embedding).latents
        b = encoder(changed, mask=mask, mask_embedding=embedding).latents
        heard = encoder(changed).latents
    assert torch.equal(a, b)
    assert not torch.allclose(a, heard)


@pytest.mark.parametrize("name", ["tiny", "small", "small-causal", "base"])
def test_signal_survives_every_stage_at_initialisation(name: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(tokenizer_config(name).encoder).eval()
    seen: list[torch.Tensor] = []
    hooks = [s.register_forward_hook(lambda _, __, out: seen.append(out[0])) for s in encoder.stages]
    time = torch.arange(48_000) / 24_000
    loud = 0.1 * torch.stack([torch.sin(2 * torch.pi * f * time) * (1 + torch.sin(5 * time)) for f in (150.0, 420.0)])
    with torch.inference_mode():
        out = encoder(loud)
    for hook in hooks:
        hook.remove()
    for x in seen:
        assert 0.3 < float(x.std()) < 10.0
    # Two sounds must differ in z by much more than float noise: the output depends on the sound.
    assert float((out.latents[0] - out.latents[1]).square().mean().sqrt()) > 0.1


def test_dead_taps_are_skipped_without_changing_the_result() -> None:
    torch.manual_seed(0)
    for dilation, causal in itertools.product((1, 5, 6, 9, 10, 11, 1000), (False, True)):
        conv = TimeConv(4, 4, 3, dilation=dilation, causal=causal)
        x = torch.randn(2, 4, 11)
        torch.testing.assert_close(dilated_conv(x[:, :, None], conv)[:, :, 0], conv(x), atol=1e-6, rtol=0)


def test_contradicting_config_is_told_in_one_line() -> None:
    for wrong in (toy(blocks=[1]), toy("wave", front_hop=60), toy(channels=[8, 10])):
        with pytest.raises(ConfigError, match="but") as error:
            Encoder(wrong)
        assert "\n" not in str(error.value)


def test_daam_off_removes_the_gates() -> None:
    torch.manual_seed(0)
    encoder = Encoder(toy(daam=False))
    assert not any(isinstance(m, DaamGate) for m in encoder.modules())
    assert encoder(torch.zeros(1, 500), return_gates=True).gates == []


def test_front_and_first_conv_are_one_product_with_the_same_result() -> None:
    torch.manual_seed(0)
    encoder = Encoder(toy("wave"))
    stage, size = encoder.stages[0], 400
    assert encoder.front.conv.bias is not None
    torch.nn.init.normal_(encoder.front.conv.bias)  # what would leak from behind a clip's end
    mask = sequence_mask(torch.tensor([size, 251, 1]), size)
    wave = torch.randn(3, size) * mask
    samples, basis = encoder.front.factors(wave)
    whole = encoder.front(wave, mask, None)
    torch.testing.assert_close(basis @ samples, whole)
    expected = stage.conv(apply_mask(whole, mask))
    torch.testing.assert_close(stage.conv(apply_mask(samples, mask), None, basis), expected, atol=1e-5, rtol=1e-4)
