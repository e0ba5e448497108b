"""Causal models: pieces change no bit, nothing is heard before it sounds or long after, contradictions are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok.config import EncoderConfig, GeneratorConfig
from jepa_tok.errors import ConfigError
from jepa_tok.inference import exact_inference
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.stream import StreamDecoder, StreamEncoder
from jepa_tok.presets import PRESETS, tokenizer_config
from jepa_tok.training_config import AnchorConfig, JepaConfig, MaskConfig, PredictorConfig
from tests.streams import (
    ENCODERS,
    GENERATORS,
    HOP,
    ISTFT,
    MEL,
    cut,
    encoder,
    generator,
    noise,
)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=25, deadline=None)
@given(samples=st.integers(1, 12 * HOP), cuts=st.lists(st.integers(0, 12 * HOP), max_size=6))
def test_a_streamed_clip_has_the_latents_of_the_whole(name: str, samples: int, cuts: list[int]) -> None:
    wave = noise(samples)
    with exact_inference(encoder(name), torch.device("cpu")):
        once = StreamEncoder(encoder(name))
        expected = torch.cat([once.push(wave), once.finish()])
        stream = StreamEncoder(encoder(name))
        pieces = torch.cat([*(stream.push(wave[a:b]) for a, b in cut(samples, cuts)), stream.finish()])
        whole = encoder(name)(wave[None]).latents[0]
    assert torch.equal(pieces, expected)
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_gates_are_streamed_too(name: str) -> None:
    wave = noise(3 * HOP + 100)
    with exact_inference(encoder(name), torch.device("cpu")):
        streamed = StreamEncoder(encoder(name)).hear(wave, last=True)
        whole = encoder(name)(wave[None], return_gates=True)
    assert streamed.lengths.tolist() == whole.lengths.tolist() == [4]
    for a, b in zip(streamed.gates or [], whole.gates or [], strict=True):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=5e-3)  # densities of windows that begin are steep


@pytest.mark.parametrize("name", GENERATORS)
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(0, 9), cuts=st.lists(st.integers(0, 9), max_size=4), excess=st.integers(0, HOP - 1))
def test_a_streamed_decoding_is_that_of_the_whole(name: str, frames: int, cuts: list[int], excess: int) -> None:
    values = noise(frames, 16) * 5
    delay = GENERATORS[name].delay
    with exact_inference(generator(name), torch.device("cpu")):
        stream = StreamDecoder(generator(name))
        waves = []
        for a, b in cut(frames, cuts):
            too_much = excess if a < b == frames else 0  # told with the last frames
            waves.append(stream.push(values[a:b], too_much))
            size = b * HOP - (excess if b == frames and frames else 0)
            assert sum(w.shape[0] for w in waves) == min(size, max(0, b * HOP - delay))
        waves.append(stream.finish())
        end = frames * HOP - excess if frames else 0
        whole = generator(name)(values[None])[0] if frames else torch.zeros(0)
    torch.testing.assert_close(torch.cat(waves), whole[:end], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=15, deadline=None)
@given(frame=st.integers(0, 7), offset=st.integers(0, HOP - 1))
def test_a_frame_hears_nothing_behind_its_last_sample(name: str, frame: int, offset: int) -> None:
    wave = noise(8 * HOP)
    changed = wave.clone()
    changed[frame * HOP + offset :] = noise(8 * HOP - frame * HOP - offset, seed=1)
    with torch.inference_mode():
        a, b = encoder(name)(torch.stack([wave, changed])).latents
    assert torch.equal(a[:frame], b[:frame])
    assert not torch.equal(a[frame:], b[frame:])


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("frame", [1, 4, 7])
def test_a_sample_depends_on_no_frame_later_than_the_delay(name: str, frame: int) -> None:
    values = noise(8, 16) * 5
    changed = values.clone()
    changed[frame:] = -changed[frame:]
    with torch.inference_mode():
        a, b = generator(name)(torch.stack([values, changed]))
    settled = max(0, frame * HOP - GENERATORS[name].delay)
    assert torch.equal(a[:settled], b[:settled])
    assert not torch.equal(a[settled : settled + 8], b[settled : settled + 8])  # and the delay is no longer than stated


@pytest.mark.parametrize("name", ENCODERS)
def test_a_frame_forgets_what_lies_before_its_receptive_field(name: str) -> None:
    field = encoder(name).receptive_field
    assert field is not None
    wave = noise(field + 20 * HOP)
    changed = wave.clone()
    changed[: 10 * HOP] = noise(10 * HOP, seed=1)
    with torch.inference_mode():
        a, b = encoder(name)(torch.stack([wave, changed])).latents
    heard = [t for t in range(len(a)) if (t + 1) * HOP - field < 10 * HOP]  # frames whose field reaches the change
    assert torch.equal(a[len(heard) :], b[len(heard) :]) and len(a) > len(heard)
    assert not torch.equal(a[len(heard) // 2], b[len(heard) // 2])


def test_an_edit_of_one_second_is_forgotten_within_forty() -> None:
    for name in PRESETS:
        config = tokenizer_config(name)
        with torch.device("meta"):
            field = Encoder(config.encoder).receptive_field
        assert (field is not None) == config.encoder.causal
        if field is not None:
            assert field <= (40 - 1) * config.encoder.sample_rate


def test_a_causal_encoder_learns_in_stage_one() -> None:
    torch.manual_seed(0)
    model = Jepa(
        JepaConfig(
            encoder=MEL,
            predictor=PredictorConfig(dim=16, heads=4),
            mask=MaskConfig(place="input"),
            anchor=AnchorConfig(clusters=4, subframes=4, n_mels=8),
        )
    )
    wave, lengths = noise(3, 10 * HOP), torch.tensor([10 * HOP, 5 * HOP + 7, 1])
    out = model(wave, lengths, model.sample_mask(-(-lengths // HOP)), anchor_weight=0.1)
    out.loss.backward()
    for parameter, values in model.encoder.named_parameters():
        assert values.grad is not None and values.grad.isfinite().all(), parameter
        assert values.grad.any() or parameter.endswith("qkv.bias"), parameter


@pytest.mark.parametrize(
    "config, field",
    [
        (replace(MEL, conformer_norm="clip"), "conformer_norm"),
        (replace(MEL, lookback=0.0), "lookback"),
        (replace(MEL, n_fft=32), "n_fft"),
        (replace(ISTFT, lookback=float("nan")), "lookback"),
    ],
)
def test_contradictions_are_refused_in_one_line(config: EncoderConfig | GeneratorConfig, field: str) -> None:
    with pytest.raises(ConfigError, match=field) as error:
        config.check()
    assert "\n" not in str(error.value)
