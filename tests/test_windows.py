"""Long clips: which window gives which frame, how waveforms are joined, and that the tokenizer holds to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jepa_tok import SpeechTokenizer, audio, load_audio, save_audio
from jepa_tok.audio import AudioFile, Resampler, resample
from jepa_tok.clips import read_ahead
from jepa_tok.config import TokenizerConfig, WindowConfig
from jepa_tok.errors import AudioError, ConfigError
from jepa_tok.presets import tokenizer_config
from jepa_tok.windows import Joiner, Window, cut_frames, cut_samples

RATE, HOP = 24_000, 9_600
SIZES = st.integers(1, 9).flatmap(lambda c: st.tuples(st.integers(2 * c + 1, 40), st.just(c)))


@pytest.fixture(scope="module")
def tiny() -> SpeechTokenizer:
    """`tiny` with windows of 4 s and 0.8 s of context, so that short clips are long."""
    config = replace(tokenizer_config("tiny"), window=WindowConfig(seconds=4.0, context=0.8))
    return SpeechTokenizer.from_config(config, seed=0)


def noise(seconds: float, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


# --- where windows lie


@given(SIZES, st.integers(1, 300))
def test_each_frame_is_given_once_with_context_on_both_sides(sizes: tuple[int, int], frames: int) -> None:
    size, context = sizes
    windows = list(cut_frames(frames, size, context))
    assert [t for w in windows for t in range(w.first, w.last)] == list(range(frames))
    for w in windows:
        assert w.size <= size and w.start >= 0 and w.start + w.size <= frames
        assert w.first - w.start == (context if w.index else 0)
        assert w.start + w.size - w.last == (0 if w is windows[-1] else context)
    assert len(windows) == 1 or frames > size


@given(SIZES, st.integers(1, 300))
def test_windows_of_a_longer_clip_begin_alike(sizes: tuple[int, int], frames: int) -> None:
    short, long = list(cut_frames(frames, *sizes)), list(cut_frames(frames + 100, *sizes))
    assert short[:-1] == long[: len(short) - 1]


@given(SIZES, st.integers(1, 700), st.lists(st.integers(1, 200), min_size=1, max_size=9))
def test_windows_are_cut_alike_from_any_blocks(sizes: tuple[int, int], samples: int, lengths: list[int]) -> None:
    hop = 4
    clip = torch.arange(samples, dtype=torch.float32)
    blocks, start = [], 0
    while start < samples:
        blocks.append(clip[start : start + lengths[len(blocks) % len(lengths)]])
        start += len(blocks[-1])
    made = list(cut_samples(blocks, *sizes, hop))
    assert [w for w, _ in made] == list(cut_frames(-(-samples // hop), *sizes))
    for w, heard in made:
        assert torch.equal(heard, clip[w.start * hop : (w.start + w.size) * hop])


def test_windows_of_the_config() -> None:
    config = WindowConfig()
    assert config.frames(2.5) == (75, 8)
    for broken in (
        WindowConfig(context=0.0),
        WindowConfig(seconds=6.4),
        WindowConfig(fade=7.0),
        WindowConfig(fade=-1.0),
    ):
        with pytest.raises(ConfigError, match="window"):
            TokenizerConfig(window=broken).check()


# --- how waveforms are joined


@given(SIZES, st.integers(1, 200), st.randoms())
def test_windows_that_agree_join_without_a_trace(sizes: tuple[int, int], frames: int, random: object) -> None:
    (size, context), hop, fade = sizes, 6, 10
    clip = torch.randn(frames * hop, generator=torch.Generator().manual_seed(0))
    windows = list(cut_frames(frames, *sizes))
    random.shuffle(windows)  # type: ignore[attr-defined]
    joiner = Joiner(hop, min(fade, 2 * context * hop, (size - 2 * context) * hop))
    parts = [x for w in windows for x in joiner.add(w, clip[w.start * hop : (w.start + w.size) * hop])]
    assert joiner.done
    torch.testing.assert_close(torch.cat(parts), clip, rtol=0, atol=1e-6)


def test_windows_that_differ_fade_over_linearly() -> None:
    first, second = cut_frames(10, 6, 1)
    assert (first, second) == (Window(0, 0, 6, 0, 5), Window(1, 4, 6, 5, 10))
    joiner = Joiner(hop=4, fade=4)
    joined = torch.cat([*joiner.add(first, torch.zeros(24)), *joiner.add(second, torch.ones(24))])
    expected = [0.0] * 18 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 18
    assert joined.tolist() == expected  # centred on sample 20, where frame 5 begins
    joiner = Joiner(hop=4, fade=0)
    joined = torch.cat([*joiner.add(first, torch.zeros(24)), *joiner.add(second, torch.ones(24))])
    assert joined.tolist() == [0.0] * 20 + [1.0] * 20


# --- encoding


def test_a_clip_of_up_to_a_window_is_encoded_whole(tiny: SpeechTokenizer) -> None:
    for seconds in (0.01, 1.3, 4.0):
        wave = noise(seconds)
        with torch.inference_mode():
            z = tiny.encoder(wave[None]).latents[0]
        assert torch.equal(tiny.latents(wave), z)


def test_a_longer_clip_is_encoded_window_by_window(tiny: SpeechTokenizer) -> None:
    wave = noise(9.3)
    pieces = []
    for w in cut_frames(24, 10, 2):
        heard = wave[w.start * HOP : (w.start + w.size) * HOP]
        pieces.append(tiny.latents(heard)[w.kept])
    assert len(pieces) == 4
    assert torch.equal(tiny.latents(wave), torch.cat(pieces))
    tokens = tiny.encode(wave)
    assert (tokens.num_samples, tokens.num_frames) == (len(wave), 24)
    whole = tiny.encoder(wave[None], return_gates=True)
    gates = tiny.gates(wave)
    assert [len(g) for g in gates] == [g.shape[1] for g in whole.gates or []]


def test_long_clips_are_the_same_in_company_and_from_files(tiny: SpeechTokenizer, tmp_path) -> None:
    waves = [noise(9.3), noise(0.5, 1), noise(13.7, 2), noise(4.1, 3)]
    alone = [tiny.encode(wave) for wave in waves]
    assert tiny.encode(waves) == alone
    for seconds in (4.0, 9.0, 100.0):
        codes = [
            torch.stack([a.codes != b.codes]).float().mean()
            for a, b in zip(tiny.encode(waves, batch_seconds=seconds), alone)
        ]
        assert max(codes) < 1e-3
    soundfile.write(tmp_path / "long.wav", waves[2].numpy(), RATE, subtype="FLOAT")
    assert tiny.encode(tmp_path / "long.wav") == tiny.encode(AudioFile(tmp_path / "long.wav")) == alone[2]
    with pytest.raises(AudioError, match="must be read at 24000 Hz, but is at 16000"):
        tiny.encode(AudioFile(tmp_path / "long.wav", 16_000))
    with pytest.raises(AudioError, match="knows its sample rate"):
        tiny.encode(AudioFile(tmp_path / "long.wav"), sample_rate=24_000)


def test_an_edit_stays_local(tiny: SpeechTokenizer) -> None:
    wave = noise(40.0)
    edited = wave.clone()
    edited[20 * RATE : 21 * RATE] = noise(1.0, 9)
    changed = (tiny.encode(wave).ids != tiny.encode(edited).ids).any(1).nonzero().flatten() / tiny.frame_rate
    assert 16.0 <= float(changed.min()) <= 20.0 <= float(changed.max()) <= 25.0  # a window, 4 s, to either side


def test_a_long_file_is_read_as_it_is_encoded(tiny: SpeechTokenizer) -> None:
    taken = encoded = 0

    class Endless(AudioFile):
        def __iter__(self) -> Iterator[Tensor]:
            nonlocal taken
            for i in range(40):
                taken += 1
                assert taken - encoded <= 8  # blocks of a second: a window of 4 s and what is read ahead
                yield noise(1.0, i)

    def count(*_: object) -> None:
        nonlocal encoded
        encoded = taken

    handle = tiny.encoder.register_forward_hook(count)
    try:
        assert tiny.encode(Endless("nowhere.wav")).num_frames == 100
    finally:
        handle.remove()


# --- decoding


def test_decoding_joins_the_windows(tiny: SpeechTokenizer) -> None:
    tokens = tiny.encode(noise(9.3))
    wave = tiny.decode(tokens)
    assert wave.shape == (tokens.num_samples,)
    joiner = Joiner(HOP, 480)
    parts = []
    for w in cut_frames(24, 10, 2):
        ids = tokens.ids[w.start : w.start + w.size]
        parts += joiner.add(w, tiny.decode(tiny.tokens(ids)))
    assert torch.equal(wave, torch.cat(parts)[: len(wave)])


def test_decoding_in_blocks_and_batches(tiny: SpeechTokenizer, tmp_path) -> None:
    clips = [tiny.encode(noise(s, i)) for i, s in enumerate((9.3, 0.4, 13.7))]
    waves = tiny.decode(clips)
    for clip, wave, batched in zip(clips, waves, tiny.decode(clips, batch_seconds=20.0)):
        blocks = list(tiny.decode_blocks(clip))
        assert torch.equal(torch.cat(blocks), wave)
        assert max(map(len, blocks)) <= 4 * RATE and not blocks[0].is_inference()
        torch.testing.assert_close(batched, wave, rtol=0, atol=1e-5)
    blocks = tiny.decode_blocks(clips[0])
    next(blocks)
    assert not torch.is_inference_mode_enabled()
    save_audio(tmp_path / "long.flac", tiny.decode_blocks(clips[0]))
    save_audio(tmp_path / "whole.flac", waves[0])
    assert (tmp_path / "long.flac").read_bytes() == (tmp_path / "whole.flac").read_bytes()


def test_an_edit_of_tokens_stays_local(tiny: SpeechTokenizer) -> None:
    tokens = tiny.encode(noise(40.0))
    ids = tokens.ids.clone()
    ids[50] = 0
    before, after = tiny.decode(tokens), tiny.decode(tiny.tokens(ids, tokens.num_samples))
    changed = (before != after).nonzero().flatten() / RATE
    assert 16.0 <= float(changed.min()) <= 20.0 <= float(changed.max()) <= 24.5


# --- files in blocks


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_099, 48_000])
def test_a_file_is_the_same_in_any_blocks(rate: int, tmp_path, monkeypatch) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 2 + 17, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav")
    assert torch.equal(
        whole, resample(torch.from_numpy(samples.mean(1, dtype=np.float64).astype(np.float32)), rate, RATE)
    )
    for size in (7, 1_000, 9_999):
        monkeypatch.setattr(audio, "BLOCK", size)
        assert torch.equal(load_audio(tmp_path / "a.wav"), whole)
        part = load_audio(tmp_path / "a.wav", start=0.1, end=0.3)
        assert part.shape in ((4_800,), (4_801,))


def test_resampler_of_pieces() -> None:
    wave = noise(1.0)
    for cut in (1, 10, 12_345):
        resampler = Resampler(RATE, 16_000)
        pieces = [resampler.push(wave[:cut]), resampler.push(wave[cut:]), resampler.finish()]
        assert torch.equal(torch.cat(pieces), resample(wave, RATE, 16_000))


def test_a_block_that_breaks_a_rule_leaves_no_file(tmp_path) -> None:
    with pytest.raises(AudioError, match="finite"):
        save_audio(tmp_path / "a.wav", iter([torch.zeros(10), torch.tensor([float("nan")])]))
    with pytest.raises(AudioError, match="but has"):
        save_audio(tmp_path / "a.wav", iter([]))
    assert not list(tmp_path.iterdir())


def test_more_than_a_wav_holds(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(audio, "MAX_WAV", 1_000)
    save_audio(tmp_path / "a.flac", iter([torch.zeros(400), torch.zeros(400)]))
    with pytest.raises(AudioError, match=r"write \.flac"):
        save_audio(tmp_path / "a.wav", iter([torch.zeros(400), torch.zeros(400)]))
    assert [p.name for p in tmp_path.iterdir()] == ["a.flac"]


def test_reading_ahead_hands_on_errors() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise AudioError("gone")

    items = read_ahead(broken())
    assert next(items) == 1
    with pytest.raises(AudioError, match="gone"):
        next(items)
    assert list(read_ahead([])) == []


# --- causal models need no windows


@pytest.fixture(scope="module")
def causal() -> SpeechTokenizer:
    """`tiny` in the causal layout, with windows of 4 s for batches."""
    config = tokenizer_config("tiny")
    encoder = replace(config.encoder, causal=True, conformer_kernel=9)
    generator = replace(config.generator, causal=True)
    window = WindowConfig(seconds=4.0, context=0.8)
    return SpeechTokenizer.from_config(
        replace(config, name="tiny-causal", encoder=encoder, generator=generator, window=window), seed=0
    )


def test_a_causal_tokenizer_gives_what_its_stream_gives(causal: SpeechTokenizer) -> None:
    waves = [noise(s, i) for i, s in enumerate((9.3, 0.4, 4.0, 0.01))]
    alone = [causal.encode(wave) for wave in waves]
    assert causal.encode(waves) == alone
    for wave, tokens, decoded in zip(waves, alone, causal.decode(alone)):
        with causal.streaming() as stream:
            stream.push(wave)
            stream.finish()
            assert stream.tokens == tokens
            spoken = torch.cat([stream.decode(tokens.ids), stream.flush()])
        assert torch.equal(spoken[: len(wave)], decoded) and torch.equal(causal.decode(tokens), decoded)
        assert [len(g) for g in causal.gates(wave)] == [
            g.shape[1] for g in causal.encoder(wave[None], return_gates=True).gates or []
        ]


def test_a_causal_tokenizer_in_batches(causal: SpeechTokenizer) -> None:
    waves = [noise(s, i) for i, s in enumerate((9.3, 0.4, 4.0, 2.0, 0.01))]
    latents = causal.latents(waves)
    sizes: list[int] = []
    handle = causal.encoder.register_forward_hook(lambda module, given, out: sizes.append(given[0].shape[0]))
    try:
        for batched, z in zip(causal.latents(waves, batch_seconds=16.0), latents):
            torch.testing.assert_close(batched, z, rtol=1e-3, atol=1e-4)
    finally:
        handle.remove()
    assert max(sizes) == 4 and sizes.count(1) == 24  # the long clip's frames, and four clips at once
    tokens = causal.encode(waves)
    for batched, wave in zip(causal.decode(tokens, batch_seconds=16.0), causal.decode(tokens)):
        torch.testing.assert_close(batched, wave, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 9_600, 9_601, 24_000])
def test_a_causal_tokenizer_writes_clips_of_any_length(causal: SpeechTokenizer, tmp_path, samples: int) -> None:
    tokens = causal.encode(noise(2.0)[:samples])
    blocks = list(causal.decode_blocks(tokens))
    assert all(len(block) for block in blocks) and torch.equal(torch.cat(blocks), causal.decode(tokens))
    save_audio(tmp_path / "a.wav", causal.decode_blocks(tokens))
    assert len(load_audio(tmp_path / "a.wav")) == samples


def test_a_stream_keeps_no_view_of_the_callers_buffer(causal: SpeechTokenizer) -> None:
    wave, buffer = noise(1.3), torch.empty(480)
    with causal.streaming() as stream:
        for chunk in wave.split(480):
            stream.push(buffer[: len(chunk)].copy_(chunk))
        stream.finish()
        assert stream.tokens == causal.encode(wave)
