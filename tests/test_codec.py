"""Codec: who gets gradients from whom, switches, padding, learning, what is exported."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig
from jepa_tok.models.codec import Codec, CodecOutput
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.mel_head import MelHead
from jepa_tok.presets import codec_config
from jepa_tok.training_config import CodecConfig, DiscriminatorConfig

CONFIG = CodecConfig(
    tokenizer=TokenizerConfig(
        name="test",
        encoder=EncoderConfig(
            front_channels=8,
            channels=[8, 16],
            strides=[4, 10],
            blocks=[1, 1],
            stage_conformers=[0, 0],
            latent_dim=8,
            conformers=1,
            conformer_heads=2,
            conformer_kernel=3,
            init="scaled",
        ),
        quantizer=QuantizerConfig(dim=8, group_size=4, bound="norm"),
        generator=GeneratorConfig(
            latent_dim=8,
            input_channels=32,
            channels=[32, 32],
            strides=[2, 2],
            block="convnext",
            blocks=[1, 2],
            stage_conformers=[0, 0],
            head="istft",
            head_hop=10,
            n_fft=40,
        ),
    ),
    discriminator=DiscriminatorConfig(periods=[2, 3], scales=2, width=0.0625),
    stft_ffts=[256, 64],
)
FINE_TUNED = dataclasses.replace(CONFIG, freeze_encoder=False)
WITH_HEAD = dataclasses.replace(FINE_TUNED, mel_head_stage=1)
WITH_PITCH = dataclasses.replace(
    WITH_HEAD,
    tokenizer=dataclasses.replace(
        CONFIG.tokenizer,
        encoder=dataclasses.replace(CONFIG.tokenizer.encoder, strides=[24, 10], pitch_dims=2),
        generator=dataclasses.replace(CONFIG.tokenizer.generator, strides=[4, 6], pitch_dims=2),
    ),
)


def build(config: CodecConfig = CONFIG) -> Codec:
    torch.manual_seed(0)
    return Codec(config)


def sines(clips: int = 2, samples: int = 1990) -> torch.Tensor:
    t = torch.arange(samples) / 24_000
    return torch.stack([0.3 * torch.sin(2 * torch.pi * (300 + 200 * i) * t) for i in range(clips)])


def names(codec: Codec, loss: torch.Tensor) -> set[str]:
    """Names of the parameters that `loss` has a gradient for."""
    parameters = {n: p for n, p in codec.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
    return {n for n, g in zip(parameters, grads, strict=True) if g is not None}


def is_discriminator(name: str) -> bool:
    return re.match(r"(module\.)?discriminator\.", name) is not None


@pytest.mark.parametrize("config", [CONFIG, FINE_TUNED])
def test_each_loss_moves_its_own_side_only_and_all_of_it(config: CodecConfig) -> None:
    codec = build(config).train()
    out = codec(sines(), torch.tensor([1990, 1201]), adversarial=True)
    trained = {n for n, p in codec.named_parameters() if p.requires_grad}
    theirs = {n for n in trained if is_discriminator(n)}
    assert names(codec, out.discriminator_loss) == theirs
    assert names(codec, out.generator_loss) == trained - theirs
    assert names(codec, out.adversarial) == names(codec, out.feature_matching) == trained - theirs
    assert any(n.startswith("encoder.") for n in trained) != config.freeze_encoder


def test_one_backward_of_the_sum_equals_two() -> None:
    codec = build().train()
    out = codec(sines())
    (out.generator_loss + out.discriminator_loss).backward()
    together = {n: p.grad for n, p in codec.named_parameters() if p.grad is not None}
    codec.zero_grad()
    out = codec(sines())
    out.discriminator_loss.backward()
    out.generator_loss.backward()
    for name, p in codec.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, together[name], msg=name)


def test_during_warm_up_the_generator_does_not_hear_the_discriminators() -> None:
    codec = build().train()
    out = codec(sines(), adversarial=False)
    assert out.adversarial.item() == 0 and out.feature_matching.item() == 0
    assert out.discriminator_loss.item() > 0
    torch.testing.assert_close(out.generator_loss, out.l1 + 2.0 * out.stft)
    trained = {n for n, p in codec.named_parameters() if p.requires_grad}
    assert names(codec, out.generator_loss + out.discriminator_loss) == trained  # DDP wants a gradient for each


def test_discriminators_can_be_left_out() -> None:
    codec = build().train()
    codec.discriminator.forward = None  # type: ignore[assignment]  # a call would fail
    out = codec(sines(), adversarial=False, disc=False)
    assert out.discriminator_loss.item() == out.adversarial.item() == out.feature_matching.item() == 0
    assert out.l1.item() > 0


def test_the_generator_can_learn_from_fixed_discriminators() -> None:
    codec = build().train()
    out = codec(sines(), adversarial=True, disc=False)
    assert out.adversarial.item() > 0 and out.discriminator_loss.item() == 0
    assert not any(is_discriminator(n) for n in names(codec, out.generator_loss))


def test_generator_loss_is_the_weighted_sum() -> None:
    weights = {
        "l1": 3.0,
        "stft": 0.5,
        "mel": 0.7,
        "loudness": 0.6,
        "adversarial": 0.2,
        "usage": 0.3,
        "mel_head": 0.9,
    }
    config = dataclasses.replace(WITH_PITCH, **{f"{name}_weight": value for name, value in weights.items()})
    out = build(config)(sines())
    total = sum(value * getattr(out, name) for name, value in weights.items()) + 0.2 * out.feature_matching
    assert out.mel > 0 and out.loudness > 0 and out.usage > 0 and out.mel_head > 0 and out.pitch > 0 and out.voicing > 0
    torch.testing.assert_close(out.generator_loss, total)


def test_the_source_is_drawn_at_the_tracked_pitch_in_training_and_at_the_told_one_after_it() -> None:
    codec = build(WITH_PITCH)
    wave, lengths = sines(2, 24_000), torch.tensor([24_000, 17_000])
    decoder = codec.generator.pitch
    assert decoder is not None
    wave[0, :9_600] = 0.01 * torch.randn(9_600)  # has no pitch
    with torch.no_grad():
        decoder.layers[-1].bias.fill_(2.0)  # type: ignore[union-attr]  # voiced, at a pitch far from the tone's

    def heard(mode: bool) -> list[torch.Tensor]:
        drawn: list[torch.Tensor] = []
        head = codec.generator.head.register_forward_hook(
            lambda _, __, kwargs, ___: drawn.append(kwargs["source"]), with_kwargs=True
        )
        codec.train(mode)(wave, lengths)
        head.remove()
        return drawn

    with torch.no_grad():
        quantised = codec.fsq(codec.encoder(wave, lengths).latents)[0]
        frames = sequence_mask(codec.encoder.num_frames(lengths), quantised.shape[1])
        tracked, voiced, own = decoder.truth(wave * sequence_mask(lengths, 24_000), lengths)
        assert 0.3 < float((voiced & own).float().mean()) < 0.8
        tracked = torch.where(voiced & own, tracked, decoder(quantised)[0])
        told = decoder.source(quantised, frames)
        (trained,), (evaluated,) = heard(True), heard(False)
        assert torch.equal(evaluated, told) and told.abs().max() > 0.1
        assert torch.equal(trained, decoder.source(quantised, frames, pitch=tracked))
        assert not torch.allclose(trained, evaluated, atol=0.1)


def test_the_quantiser_keeps_what_the_pitch_networks_were_fitted_to() -> None:
    config = dataclasses.replace(WITH_PITCH, usage_weight=1.0)
    dims = config.tokenizer.encoder.pitch_dims
    codec = build(config).train()
    codec(sines()).generator_loss.backward()
    for parameter in (codec.fsq.scale, codec.fsq.bias):
        assert parameter is not None and parameter.grad is not None
        assert bool((parameter.grad[:-dims] != 0).all()) and bool((parameter.grad[-dims:] == 0).all())


@pytest.mark.parametrize("samples", [1, 39, 40, 41, 1000])
def test_any_length_is_reconstructed_exactly(samples: int) -> None:
    out: CodecOutput = build().eval()(sines(1, samples))
    frames = -(-samples // 40)
    assert out.reconstruction.shape == (1, samples)
    assert out.codes.shape == out.latents.shape == (1, frames, 8)
    assert out.frame_lengths.tolist() == [frames]
    for value in (out.generator_loss, out.discriminator_loss):
        assert value.isfinite() and value.dtype == torch.float32


def test_padding_changes_no_loss_and_no_sample() -> None:
    codec = build().eval()
    wave = sines(2, 800)
    alone = codec(wave[:1, :701])
    padded = codec(wave[:1], torch.tensor([701]))  # the tone goes on behind the end, and must not be heard
    for field in ("l1", "stft", "adversarial", "feature_matching", "discriminator_loss", "generator_loss"):
        torch.testing.assert_close(getattr(padded, field), getattr(alone, field), msg=field, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(padded.reconstruction[:, :701], alone.reconstruction, atol=1e-5, rtol=0)
    assert padded.reconstruction[:, 701:].eq(0).all()
    both = codec(wave, torch.tensor([701, 800]))
    torch.testing.assert_close(both.reconstruction[:1, :701], alone.reconstruction, atol=1e-5, rtol=0)
    assert both.frame_lengths.tolist() == [18, 20]


def test_the_encoder_stays_in_evaluation_mode_and_frozen_where_the_config_says_so() -> None:
    codec = build().train()
    assert codec.training and codec.generator.training and not codec.encoder.training
    assert torch.equal(codec(sines()).codes, codec(sines()).codes)  # dropout is off in the encoder
    codec.requires_grad_(True)  # as a trainer does that knows nothing of this
    codec.freeze()
    assert not any(p.requires_grad for p in codec.encoder.parameters())
    assert all(p.requires_grad for p in codec.generator.parameters())
    tuned = build(FINE_TUNED).train()
    assert not tuned.encoder.training and all(p.requires_grad for p in tuned.encoder.parameters())


def test_a_frozen_encoder_makes_the_tokenizer_s_codes_under_autocast_too() -> None:
    codec = build()
    wave = 0.1 * torch.randn(8, 1990)
    codec.fsq.calibrate(codec.encoder(wave).latents.flatten(0, 1).detach())
    with torch.autocast("cpu", torch.bfloat16):
        codes = codec(wave).codes
    assert torch.equal(codes, codec.fsq.quantize(codec.encoder(wave).latents))


def test_without_synthesis_the_mel_head_alone_teaches_what_lies_below_it() -> None:
    codec = build(WITH_HEAD).train()
    codec.generator.head.forward = None  # type: ignore[assignment]  # a call would fail
    out = codec(sines(), torch.tensor([1990, 1201]), adversarial=False, disc=False, synthesis=False)
    below = ("encoder.", "fsq.", "generator.project.", "generator.stages.0.", "mel_head.")
    expected = {n for n, _ in codec.named_parameters() if n.startswith(below)}
    assert names(codec, out.generator_loss) == expected
    assert out.reconstruction is None and out.l1.item() == out.stft.item() == out.mel.item() == 0
    torch.testing.assert_close(out.generator_loss, 4.0 * out.mel_head)


def test_the_mel_head_changes_no_reconstruction() -> None:
    plain, headed = build(FINE_TUNED).eval(), build(WITH_HEAD).eval()
    headed.load_state_dict(plain.state_dict(), strict=False)
    wave, lengths = sines(), torch.tensor([1990, 1201])
    torch.testing.assert_close(headed(wave, lengths).reconstruction, plain(wave, lengths).reconstruction)


def test_the_mel_head_s_loss_is_of_each_clip_s_own_windows() -> None:
    codec = build(WITH_HEAD).eval()
    wave = sines(2, 800)
    alone, padded = codec(wave[:1, :701]), codec(wave[:1], torch.tensor([701]))
    torch.testing.assert_close(padded.mel_head, alone.mel_head, atol=1e-5, rtol=1e-4)


def test_the_mel_head_takes_over_what_a_mel_front_has_heard() -> None:
    config = codec_config("tiny")
    config.mel_head_stage = 2
    codec = build(config).eval()
    assert isinstance(codec.mel_head, MelHead) and codec.mel_head.same_windows(config.tokenizer.encoder)
    wave, lengths = 0.1 * torch.randn(2, 24_000), torch.tensor([24_000, 14_321])
    out = codec(wave, lengths, adversarial=False, disc=False, synthesis=False)
    codec.mel_head.same_windows = lambda _: False  # type: ignore[method-assign,assignment]
    again = codec(wave, lengths, adversarial=False, disc=False, synthesis=False)
    torch.testing.assert_close(out.mel_head, again.mel_head)


def test_the_mel_head_learns_without_a_waveform() -> None:
    codec = build(WITH_HEAD).train()
    wave = sines(1, 2400)
    optimizer = torch.optim.AdamW([p for n, p in codec.named_parameters() if not is_discriminator(n)], lr=3e-3)
    losses = []
    for _ in range(30):
        out = codec(wave, adversarial=False, disc=False, synthesis=False)
        optimizer.zero_grad()
        out.generator_loss.backward()
        optimizer.step()
        losses.append(out.mel_head.item())
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


@pytest.mark.parametrize("config", [CONFIG, FINE_TUNED])
def test_evaluation_runs_with_the_moving_average(config: CodecConfig) -> None:
    codec = build(dataclasses.replace(config, average_decay=0.5)).train()
    codec.sync_average()
    parts = {"generator"} if config.freeze_encoder else {"encoder", "fsq", "generator"}
    start = {n: p.clone() for n, p in codec.named_parameters()}
    for updates in (1, 2):
        with torch.no_grad():
            for p in codec.generator.parameters():
                p.add_(1.0)
        codec.update_average()
        # (1 + n) / (10 + n) of the old at first: 2/11, then 3/12 of it, so that the start does not linger.
        weight = [2 / 11, 3 / 12][updates - 1]
        expected = (1 - weight) if updates == 1 else weight * (1 - 2 / 11) + (1 - weight) * 2
    for name, p in codec.named_parameters():
        if name.startswith("average.generator"):
            torch.testing.assert_close(p, start[name] + expected, atol=1e-5, rtol=1e-5)
    assert codec.average is not None and set(codec.average) == parts
    assert not any(p.requires_grad for p in codec.freeze().average.parameters())
    wave = sines(1, 777)
    trained = codec.reconstruct(wave)[2]
    averaged = codec.eval().reconstruct(wave)[2]
    codec.sync_average()
    assert not torch.equal(averaged, trained)
    torch.testing.assert_close(codec.reconstruct(wave)[2], trained)


def test_the_usage_penalty_spreads_a_dimension_over_its_levels() -> None:
    codec = build(dataclasses.replace(FINE_TUNED, usage_weight=1.0)).train()
    with torch.no_grad():
        codec.fsq.bias.fill_(3.0)  # all in the highest level
    wave, optimizer = 0.1 * torch.randn(4, 4000), torch.optim.Adam(codec.fsq.parameters(), lr=0.1)
    before = codec(wave, adversarial=False, disc=False)
    assert before.codes.eq(3).float().mean() > 0.9
    for _ in range(100):
        optimizer.zero_grad()
        codec(wave, adversarial=False, disc=False).usage.backward()
        optimizer.step()
    after = codec(wave, adversarial=False, disc=False)
    assert after.usage < 0.05 * before.usage and 0.1 < after.codes.eq(3).float().mean() < 0.4


@pytest.mark.parametrize("config", [CONFIG, FINE_TUNED])
def test_a_few_steps_bring_a_sine_nearer(config: CodecConfig) -> None:
    codec = build(config).train()
    wave = sines(1, 2400)
    before = {n: p.clone() for n, p in codec.named_parameters()}
    optimizer = torch.optim.AdamW(codec.parameters(), lr=3e-3, betas=(0.8, 0.99))
    losses = []
    for step in range(30):
        out = codec(wave, adversarial=step >= 10)
        optimizer.zero_grad()
        (out.generator_loss + out.discriminator_loss).backward()
        optimizer.step()
        losses.append((out.l1 + out.stft).item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    moved = {n.split(".")[0] for n, p in codec.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"generator", "discriminator"} | (set() if config.freeze_encoder else {"encoder", "fsq"})


def test_its_modules_rebuild_the_reconstruction_as_a_tokenizer_runs_them() -> None:
    codec = build().eval()
    encoder, fsq, generator = codec.encoder, codec.fsq, codec.generator
    wave = sines(1, 777)
    with torch.inference_mode():
        codes = fsq.quantize(encoder(wave).latents)
        expected = codec(wave)
        assert torch.equal(codes, expected.codes)
        torch.testing.assert_close(generator(fsq.dequantize(codes))[:, :777], expected.reconstruction)
