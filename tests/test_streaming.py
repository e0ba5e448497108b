"""Streams: the pieces change no bit, whole clips and streams agree, nothing is heard before it sounds, memory stays bounded."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa_tok.audio import prepare_wave
from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig
from jepa_tok.errors import AudioError, ConfigError, JepaTokError, TokenError
from jepa_tok.inference import exact_inference
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.generator import Generator
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.stream import StreamDecoder, StreamEncoder
from jepa_tok.presets import PRESETS, tokenizer_config
from jepa_tok.streaming import StreamingSession
from jepa_tok.tokenizer import SpeechTokenizer
from jepa_tok.training_config import AnchorConfig, JepaConfig, MaskConfig, PredictorConfig

HOP = 240
MEL = EncoderConfig(
    front="mel", front_hop=60, n_fft=256, n_mels=16, front_channels=8, channels=[8, 12], strides=[1, 4], blocks=[1, 1],
    block="convnext", stage_conformers=[0, 1], latent_dim=16, conformers=1, conformer_heads=4, conformer_kernel=5,
    conformer_norm="step", init="scaled", causal=True, lookback=0.05,
)  # fmt: skip
WAVE = replace(
    MEL, front="wave", front_hop=1, strides=[16, 15], block="hifigan", blocks=[2, 3], stage_conformers=[0, 0]
)
ISTFT = GeneratorConfig(
    latent_dim=16, input_channels=16, channels=[12, 8], strides=[2, 2], block="convnext", blocks=[1, 2],
    stage_conformers=[1, 0], conformer_heads=4, head="istft", head_hop=60, n_fft=256, daam=True, causal=True, lookback=0.05,
)  # fmt: skip
MRF = replace(
    ISTFT, strides=[15, 16], block="mrf", kernels=[3, 7], dilations=[1, 3], head="wave", head_hop=1, daam=False
)
LONG_WINDOW = replace(ISTFT, n_fft=1000)  # its delay is longer than a frame

ENCODERS = {"mel": MEL, "wave": WAVE}
GENERATORS = {"istft": ISTFT, "mrf": MRF, "long": LONG_WINDOW}


@cache
def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(ENCODERS[name]).eval()


@cache
def generator(name: str) -> Generator:
    torch.manual_seed(0)
    made = Generator(GENERATORS[name]).eval()
    with torch.no_grad():  # biases start at zero, where a forgotten mask would not show
        for parameter, values in made.named_parameters():
            if parameter.endswith("bias"):
                values.uniform_(-0.3, 0.3)
    return made


@cache
def tokenizer(causal: bool = True) -> SpeechTokenizer:
    config = TokenizerConfig(
        name="toy",
        encoder=replace(MEL, causal=causal),
        quantizer=QuantizerConfig(dim=16, bound="norm"),
        generator=replace(ISTFT, causal=causal),
    )
    return SpeechTokenizer.from_config(config)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(length: int, cuts: list[int]) -> list[tuple[int, int]]:
    """Pieces of [0, length) between the cuts; equal cuts make empty ones."""
    edges = [0, *sorted(min(c, length) for c in cuts), length]
    return list(pairwise(edges))


# --- models


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


# --- sessions


def stream(wave: object, edges: list[tuple[int, int]], rate: int) -> tuple[StreamingSession, Tensor, Tensor]:
    """Encodes and decodes pieces of `wave`, the last axis of which is time."""
    ids, waves = [], []
    with StreamingSession(tokenizer(), rate) as session:
        for a, b in edges:
            ids.append(session.push(wave[..., a:b]))  # type: ignore[index]
            waves.append(session.decode(ids[-1]))
        ids.append(session.finish())
        waves += [session.decode(ids[-1]), session.flush()]
    return session, torch.cat(ids), torch.cat(waves)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 4000),
    cuts=st.lists(st.integers(0, 4000), max_size=8),
    rate=st.sampled_from([8000, 16_000, 24_000, 44_100, 48_000]),
    kind=st.sampled_from(["float", "int16", "stereo", "array"]),
)
def test_any_chunks_give_the_ids_of_encode(samples: int, cuts: list[int], rate: int, kind: str) -> None:
    wave = noise(2, samples, seed=samples) if kind == "stereo" else noise(samples, seed=samples)
    if kind == "int16":
        wave = (wave * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    source = wave.numpy() if kind == "array" else wave
    session, ids, decoded = stream(source, cut(samples, cuts), rate)
    expected = tokenizer().encode(source, rate)
    assert torch.equal(ids, expected.ids)
    assert session.tokens == expected
    _, _, once = stream(source, [(0, samples)], rate)
    assert torch.equal(decoded, once)
    assert decoded.shape == (ids.shape[0] * HOP,)
    torch.testing.assert_close(decoded[: expected.num_samples], tokenizer().decode(expected), atol=1e-5, rtol=0)


def test_single_samples_make_frames_as_soon_as_they_are_complete() -> None:
    wave = noise(2 * HOP + 3)
    with StreamingSession(tokenizer()) as session:
        frames = [session.push(sample[None]).shape[0] for sample in wave]
        assert session.finish().shape == (1, tokenizer().num_groups)
    assert [i for i, made in enumerate(frames) if made] == [HOP - 1, 2 * HOP - 1]
    assert session.tokens.ids.shape[0] == 3 and session.tokens.num_samples == len(wave)


def test_memory_does_not_grow_with_the_stream() -> None:
    sizes = []
    with StreamingSession(tokenizer()) as session:
        for i in range(60):
            session.decode(session.push(noise(HOP, seed=i)))
            sizes.append(session.state_bytes)
    assert len(set(sizes)) == 1 and sizes[0] > 0


def test_ids_may_come_from_elsewhere_and_streams_follow_each_other() -> None:
    ids = torch.randint(0, 256, (3, tokenizer().num_groups), generator=torch.Generator().manual_seed(0)) % torch.tensor(
        tokenizer().vocab_sizes
    )
    with StreamingSession(tokenizer()) as session:
        assert session.flush().shape == (0,)
        first = torch.cat([session.decode(ids.tolist()), session.flush()])
        second = torch.cat([session.decode(ids[:1]), session.decode(ids[1:].numpy()), session.flush()])
    assert torch.equal(first, second)


@pytest.mark.parametrize("length", [1, HOP - 1, HOP, HOP + 1, 3 * HOP + 100])
def test_told_the_length_a_decoded_stream_ends_with_the_clip(length: int) -> None:
    with StreamingSession(tokenizer()) as session:
        ids = torch.cat([session.push(noise(length)), session.finish()])
        expected, size = tokenizer().decode(session.tokens), session.tokens.num_samples
        for _ in range(2):  # the length is forgotten with the clip
            first, last = session.decode(ids[:-1]), session.decode(ids[-1:], size)
            with pytest.raises(JepaTokError, match="`flush` first"):
                session.decode(ids)
            assert torch.equal(torch.cat([first, last, session.flush()]), expected)
            assert session.decode(ids).shape[0] + session.flush().shape[0] == len(ids) * HOP
        session.decode(ids)
        for bad in (0, (len(ids) - 1) * HOP, len(ids) * HOP - 1, len(ids) * HOP + 1, -5):
            with pytest.raises(TokenError, match="`num_samples` must end in"):
                session.decode(ids[:0], bad)
        assert session.decode(ids[:0], len(ids) * HOP).shape == (0,)


def test_the_callers_settings_change_nothing_and_stay() -> None:
    wave, tok = noise(5 * HOP), tokenizer()
    _, expected, _ = stream(wave, [(0, len(wave))], 24_000)
    tok.train()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            _, ids, decoded = stream(wave, [(0, len(wave))], 24_000)
        assert tok.training and tok.encoder.training
    finally:
        tok.eval()
    assert torch.equal(ids, expected)
    with StreamingSession(tok) as session:
        ids = session.push(wave)
        decoded = session.decode(ids)
    assert not ids.is_inference() and not decoded.is_inference() and not decoded.requires_grad


def test_a_refused_chunk_leaves_the_stream_as_it_was() -> None:
    wave = noise(3 * HOP)
    _, expected, _ = stream(wave, [(0, len(wave))], 24_000)
    with StreamingSession(tokenizer()) as session:
        ids = [session.push(wave[:300])]
        for bad, message in [
            (torch.tensor([0.0, torch.nan]), "sample 301 is nan"),
            (torch.zeros(2, 2, 2), r"shape \[S\] or \[C, S\]"),
            (np.zeros(4, np.uint8), "dtype"),
            (torch.full((4,), 1000.0), "full scale"),
            ("speech.wav", "samples"),
            ([[0.0, 0.0], [0.0]], "rectangular"),
        ]:
            with pytest.raises(AudioError, match=message) as error:
                session.push(bad)
            assert "the stream" in str(error.value) and "\n" not in str(error.value)
        for empty in ([], torch.zeros(0), np.zeros((2, 0), np.int16)):
            assert session.push(empty).shape == (0, tokenizer().num_groups)
        ids += [session.push(wave[300:]), session.finish()]
    assert torch.equal(torch.cat(ids), expected)


def test_an_empty_stream_has_no_frames_and_no_tokens() -> None:
    with StreamingSession(tokenizer(), 16_000) as session:
        assert session.finish().shape == (0, tokenizer().num_groups)
        with pytest.raises(AudioError, match="at least one sample"):
            _ = session.tokens


def test_misuse_is_told_in_one_line() -> None:
    for rate in (0, 3999, 16_000.5, "16000", True):
        with pytest.raises(AudioError, match="sample rate"):
            StreamingSession(tokenizer(), rate)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`small-causal`"):
        StreamingSession(tokenizer(causal=False))
    with StreamingSession(tokenizer()) as session:
        session.push(noise(10))
        with pytest.raises(JepaTokError, match="`finish`"):
            _ = session.tokens
        session.finish()
        for call in (session.finish, lambda: session.push(noise(1))):
            with pytest.raises(JepaTokError, match="begin another"):
                call()
        groups = tokenizer().num_groups
        for ids in (torch.zeros(groups, dtype=torch.int64), torch.zeros(1, groups + 1, dtype=torch.int64)):
            with pytest.raises(TokenError, match="must have shape"):
                session.decode(ids)
        for ids in (torch.zeros(1, groups), torch.full((1, groups), 2**20)):
            with pytest.raises(TokenError):
                session.decode(ids)
        for length in (1.5, "1", True, float("nan"), 0, HOP + 1):
            with pytest.raises(TokenError, match="`num_samples` must"):
                session.decode(torch.zeros(1, groups, dtype=torch.int64), length)
        assert session.flush().shape == (0,)  # nothing that was refused has been decoded
    for call in (session.flush, session.finish, lambda: session.decode(torch.zeros(0, groups, dtype=torch.int64))):
        with pytest.raises(JepaTokError, match="`with` block"):
            call()


def test_a_decoder_that_is_not_causal_still_lets_the_encoder_stream() -> None:
    causal = tokenizer()
    mixed = SpeechTokenizer.from_modules(
        replace(causal.config, generator=replace(ISTFT, causal=False)),
        causal.encoder,
        causal.fsq,
        Generator(replace(ISTFT, causal=False)).eval(),
    )
    wave = noise(HOP)
    with StreamingSession(mixed) as session:
        ids = session.push(wave)
        with pytest.raises(ConfigError, match="generator `causal`"):
            session.decode(ids)
    assert torch.equal(ids, causal.encode(prepare_wave(wave, 24_000)).ids)


def test_broken_weights_are_told_not_streamed() -> None:
    tok = SpeechTokenizer.from_config(tokenizer().config)
    with torch.no_grad():
        tok.encoder.project.bias.fill_(torch.nan)  # type: ignore[union-attr]
        tok.generator.project.bias.fill_(torch.nan)  # type: ignore[union-attr]
    with StreamingSession(tok) as session:
        with pytest.raises(JepaTokError, match="finite latents"):
            session.push(noise(HOP))
        with pytest.raises(JepaTokError, match="finite audio"):
            session.decode(torch.zeros(2, tok.num_groups, dtype=torch.int64))


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
