"""Streaming sessions: any chunks give the ids of the whole clip, memory stays bounded, misuse is told in one line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa_tok.audio import prepare_wave
from jepa_tok.errors import AudioError, ConfigError, JepaTokError, TokenError
from jepa_tok.models.generator import Generator
from jepa_tok.streaming import StreamingSession
from jepa_tok.tokenizer import SpeechTokenizer
from tests.streams import (
    HOP,
    ISTFT,
    cut,
    noise,
    tokenizer,
)


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
