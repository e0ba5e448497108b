"""Pitch: the tracker finds it, a frame's last dimensions hold it alone, the source sounds at it, and a generator and its streams use it."""

from __future__ import annotations

import math

import pytest
import torch

from jepa_tok.config import EncoderConfig, GeneratorConfig, TokenizerConfig
from jepa_tok.errors import ConfigError
from jepa_tok.models.causal import StreamState
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.generator import Generator
from jepa_tok.models.pitch import PitchTracker
from jepa_tok.models.source import MIDDLE, PitchDecoder, PitchEncoder, harmonics
from jepa_tok.presets import tokenizer_config
from tests.tokenizers import voice

PITCHES = [70.0, 110.0, 180.0, 250.0, 380.0]


def encoder_config(causal: bool = False) -> EncoderConfig:
    return EncoderConfig(
        front="mel", front_hop=240, front_channels=16, channels=[16], strides=[20], blocks=[1], block="convnext", daam=False,
        stage_conformers=[0], latent_dim=16, conformers=0, conformer_norm="step", init="scaled", pitch_dims=6, causal=causal,
    )  # fmt: skip


def generator_config(causal: bool = False) -> GeneratorConfig:
    return GeneratorConfig(
        latent_dim=16, input_channels=16, channels=[16, 16], strides=[5, 4], block="convnext", blocks=[1, 1],
        stage_conformers=[0, 0], head="istft", head_hop=240, pitch_dims=6, causal=causal,
    )  # fmt: skip


def make_generator(causal: bool = False) -> Generator:
    torch.manual_seed(0)
    return Generator(generator_config(causal)).eval()


def test_silence_is_not_voiced_and_noise_hardly() -> None:
    torch.manual_seed(0)
    tracker = PitchTracker(24_000)
    assert not tracker(torch.zeros(1, 5_000))[2].any()
    assert not tracker(1e-5 * voice(100.0)[None])[2].any()
    assert tracker(0.05 * torch.randn(1, 240_000))[2].float().mean() < 0.15


@pytest.mark.parametrize("pitch", PITCHES)
@pytest.mark.parametrize("causal", [False, True])
def test_the_tracker_finds_a_steady_pitch(pitch: float, causal: bool) -> None:
    told, periodicity, voiced = PitchTracker(24_000, causal)(voice(pitch)[None])
    assert told.shape == periodicity.shape == voiced.shape == (1, 100) and voiced[:, 5:95].all()
    assert (told[:, 5:95] - math.log(pitch)).abs().max() < 0.01
    assert periodicity[:, 5:95].min() > 0.5


def test_the_tracker_follows_a_glide_and_tells_where_it_stands() -> None:
    pitch = 100.0 * 2 ** torch.linspace(0, 1, 24_000, dtype=torch.float64)
    wave = voice(pitch)
    wave[12_000:16_800] = 0.0
    told, _, voiced = PitchTracker(24_000)(wave[None])
    assert voiced[0, 5:48].all() and not voiced[0, 54:66].any() and voiced[0, 74:95].all()
    at = math.log(100.0) + math.log(2.0) * (torch.arange(100) * 240 + 120) / 24_000
    sure = voiced & (told - told.roll(1) < 0.1)
    assert (told - at)[sure].abs().max() < 0.03
    later, _, _ = PitchTracker(24_000, ahead=480)(wave[None])
    torch.testing.assert_close(later[0, 15:35], told[0, 17:37])


def test_company_and_padding_move_no_window() -> None:
    """A window at a clip's end asks neighbours inside it alone."""
    tracker, wave = PitchTracker(24_000), voice(140.0, 5_003)[None]
    padded = torch.cat([torch.cat([wave, torch.zeros(1, 4_000)], dim=1), torch.randn(1, 9_003)])
    alone, company = tracker(wave), tracker(padded, torch.tensor([5_003, 9_003]))
    assert alone[0].shape == (1, 21) and company[0].shape == (2, 38)
    for a, b in zip(alone, company):
        torch.testing.assert_close(b[:1, :21], a)


@pytest.mark.parametrize("pitch", PITCHES)
def test_the_source_is_the_sum_of_the_harmonics(pitch: float) -> None:
    made = harmonics(torch.full((1, 20), pitch), torch.ones(1, 20), 240, 24_000)[0, 240:]
    t = torch.arange(241, 4801, dtype=torch.float64) / 24_000
    count = int(11_500 / pitch)
    part = 11_500 / pitch - count
    sums = [torch.cos(2 * math.pi * pitch * k * t) * (1.0 if k <= count else part) for k in range(1, count + 2)]
    torch.testing.assert_close(
        made, (torch.stack(sums).sum(0) * math.sqrt(2 * pitch / 11_500)).float(), atol=2e-3, rtol=0
    )
    assert made.square().mean() == pytest.approx(1.0, rel=0.1)


def test_phase_starts_anew_where_sound_does() -> None:
    """So that a wave depends on nothing behind the last silence: what lies before one may change."""
    hertz, loudness = torch.full((2, 60), 130.0), torch.ones(2, 60)
    hertz[0, :20] = 97.0
    loudness[:, 20:23] = 0.0
    a, b = harmonics(hertz, loudness, 240, 24_000)
    assert not torch.equal(a[:4_800], b[:4_800])
    torch.testing.assert_close(a[21 * 240 :], b[21 * 240 :])
    assert (a[21 * 240 : 23 * 240] == 0.0).all()


def test_a_source_in_pieces_is_that_of_the_whole() -> None:
    torch.manual_seed(0)
    hertz, loudness = 80.0 + 200.0 * torch.rand(1, 120), (torch.rand(1, 120) - 0.3).clamp_min(0.0)
    whole, state = harmonics(hertz, loudness, 240, 24_000), StreamState()
    pieces = [harmonics(h, v, 240, 24_000, state) for h, v in zip(hertz.split(7, 1), loudness.split(7, 1))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=0)


def test_the_two_networks_learn_to_pass_the_pitch_on() -> None:
    torch.manual_seed(0)
    waves = torch.stack([voice(f) for f in (90.0, 120.0, 160.0, 240.0)])
    waves[:, 9_600:14_400] = 0.0
    lengths = torch.tensor([24_000, 24_000, 24_000, 12_000])
    waves[3, 12_000:] = 0.0
    encoder, decoder = PitchEncoder(encoder_config()), PitchDecoder(generator_config())
    truth = decoder.truth(waves, lengths)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
    errors: list[tuple[float, float]] = []
    for _ in range(150):
        optimizer.zero_grad()
        pitch, voicing = decoder.errors(torch.tanh(encoder(waves, lengths)), *truth)
        (pitch / 0.1 + voicing).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append((pitch.item(), voicing.item()))
    assert errors[0][0] > 0.2 and errors[0][1] > 0.5
    assert errors[-1][0] < 0.03 and errors[-1][1] < 0.1


@pytest.mark.parametrize("causal", [False, True])
def test_only_the_last_dimensions_follow_the_pitch_and_each_frame_tells_its_own(causal: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(encoder_config(causal)).eval()
    with torch.no_grad():
        low, high = (encoder(voice(f, 48_000)[None]).latents[0] for f in (110.0, 121.0))
        for p in encoder.pitch.parameters():  # type: ignore[union-attr]
            p.zero_()
        silent = encoder(voice(110.0, 48_000)[None]).latents[0]
    assert low.shape == (10, 16) and torch.equal(silent[:, :10], low[:, :10]) and (silent[:, 10:] == 0).all()
    assert (low - high)[1:9, 10:].abs().max() > 1e-3
    torch.testing.assert_close(
        low[2:8, 10:], low[2:3, 10:].expand(6, 6), atol=1e-2, rtol=0
    )  # a steady voice's frames are alike
    torch.testing.assert_close(low.mean(-1), torch.zeros(10), atol=1e-5, rtol=0)


def test_latents_of_a_clip_are_the_same_alone_and_in_company() -> None:
    torch.manual_seed(0)
    encoder, wave = Encoder(encoder_config()).eval(), voice(140.0, 12_345)[None]
    with torch.no_grad():
        alone = encoder(wave).latents
        company = encoder(torch.cat([torch.cat([wave, torch.zeros(1, 9_000)], 1), torch.randn(1, 21_345)]), torch.tensor([12_345, 21_345]))  # fmt: skip
    torch.testing.assert_close(company.latents[:1, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    assert (company.latents[0, alone.shape[1] :] == 0.0).all()


def test_a_stream_of_a_causal_encoder_hears_as_the_whole() -> None:
    torch.manual_seed(0)
    encoder, wave, state = Encoder(encoder_config(causal=True)).eval(), voice(140.0, 24_001)[None], StreamState()
    with torch.no_grad():
        whole = encoder(wave).latents
        pieces = torch.cat([encoder(piece, state=state).latents for piece in wave.split(4_800, 1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)


def test_a_causal_window_hears_no_further_than_it_says() -> None:
    tracker, wave = PitchTracker(24_000, causal=True), voice(140.0)[None]
    other = wave.clone()
    other[:, : 24_000 - 240 - tracker.context] = voice(211.0, 24_000 - 240 - tracker.context)
    for a, b in zip(tracker(wave), tracker(other)):
        torch.testing.assert_close(b[:, -1], a[:, -1])
    assert not torch.equal(tracker(other)[0][:, -9], tracker(wave)[0][:, -9])
    assert tracker.context < (Encoder(encoder_config(causal=True)).receptive_field or 0)


def test_a_generator_speaks_at_the_pitch_it_is_told() -> None:
    """Where the source has all of each bin."""
    made = make_generator()
    with torch.no_grad():
        told = made.pitch.layers[-1]  # type: ignore[union-attr, index]
        told.weight.zero_()
        told.bias[:20], told.bias[20:] = 0.0, 4.0  # MIDDLE, voiced
        made.head.share.bias.fill_(6.0)  # type: ignore[union-attr, operator]
        wave = made(torch.randn(1, 4, 16))
    pitch, _, voiced = PitchTracker(24_000)(wave)
    assert voiced[:, 5:75].all() and (pitch[:, 5:75] - MIDDLE).abs().max() < 0.02


def test_a_clip_sounds_the_same_alone_and_padded() -> None:
    made, latents = make_generator(), torch.randn(1, 3, 16)
    with torch.no_grad():
        alone = made(latents)
        padded = made(torch.cat([latents, torch.randn(1, 2, 16)], 1), torch.tensor([3]))
    torch.testing.assert_close(padded[:, : alone.shape[1]], alone, atol=1e-5, rtol=0)
    assert (padded[:, alone.shape[1] :] == 0.0).all()


def test_a_stream_of_a_causal_generator_sounds_as_the_whole() -> None:
    made, latents, state = make_generator(causal=True), torch.randn(1, 6, 16), StreamState()
    delay = made.config.delay
    with torch.no_grad():
        whole = made(latents)
        pieces = torch.cat([made(piece, state=state) for piece in latents.split(1, 1)], dim=1)
    assert whole.abs().max() > 0.0
    torch.testing.assert_close(pieces[:, delay:], whole[:, :-delay], atol=1e-4, rtol=0)


def test_what_pitch_asks_for() -> None:
    with pytest.raises(ConfigError, match="generator `pitch_dims` must be 0 for the `wave` head"):
        GeneratorConfig(pitch_dims=23).check()
    with pytest.raises(ConfigError, match=r"encoder `pitch_dims` must be 0 or lie in \[2, 126\]"):
        EncoderConfig(pitch_dims=127).check()
    with pytest.raises(ConfigError, match="no whole number of 10 ms"):
        EncoderConfig(pitch_dims=23, strides=[8, 8, 5, 5, 7]).check()
    config: TokenizerConfig = tokenizer_config("tiny")
    config.generator.pitch_dims = 0
    with pytest.raises(ConfigError, match="must have the same `pitch_dims`, but have 23 and 0"):
        config.check()
