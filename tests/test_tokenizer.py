"""`SpeechTokenizer`: the public contract."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jepa_tok
from jepa_tok import SpeechTokenizer, Tokens, load_audio
from jepa_tok.audio import resample
from jepa_tok.errors import AudioError, ConfigError, TokenError
from tests.tokenizers import HOP, one_line, speech

# --- importing


def test_import_does_not_wait_for_torch():
    code = "import sys, jepa_tok; assert 'torch' not in sys.modules; from jepa_tok import *; print(SpeechTokenizer, Tokens)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_public_names():
    assert {"SpeechTokenizer", "Tokens", "load_audio"} <= set(jepa_tok.__all__) <= set(dir(jepa_tok))
    assert jepa_tok.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jepa_tok.nothing


# --- the contract


def test_what_a_language_model_needs_to_know(tiny):
    assert tiny.sample_rate == 24_000
    assert tiny.frame_rate == 2.5
    assert tiny.hop == HOP
    assert tiny.num_groups == 19
    assert tiny.vocab_sizes == [16384] * 18 + [16]
    assert len(tiny.hash) == 16 and int(tiny.hash, 16) >= 0
    assert tiny.device == torch.device("cpu") and tiny.dtype == torch.float32
    assert "tiny" in repr(tiny) and "\n" not in repr(tiny)


def test_general_layout(thin):
    assert thin.frame_rate == 50 and thin.num_groups == 3
    assert thin.vocab_sizes == [4 * 4 * 4 * 2 * 3, 8 * 5 * 4 * 4 * 4, 16]
    tokens = thin.encode(speech(1000))
    assert tokens.ids.shape == (3, 3) and tokens.radices == tuple(thin.config.quantizer.radices)
    assert thin.decode(tokens).shape == (1000,)


@pytest.mark.parametrize("size", [1, 2, 240, 9599, 9600, 9601, 24_000, 30_000])
def test_lengths(tiny, size):
    tokens = tiny.encode(speech(size))
    assert isinstance(tokens, Tokens)
    assert tokens.ids.dtype == torch.int64 and tokens.ids.shape == (-(-size // HOP), 19)
    assert tokens.codes.shape == (-(-size // HOP), 128) and 0 <= tokens.codes.min() <= tokens.codes.max() <= 3
    assert tokens.num_samples == size and tokens.tokenizer == tiny.hash
    wave = tiny.decode(tokens)
    assert wave.shape == (size,) and wave.dtype == torch.float32 and wave.device.type == "cpu"
    assert wave.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4000), st.integers(4_000, 192_000))
def test_any_length_and_rate(thin, size, rate):
    tokens = thin.encode(speech(size), sample_rate=rate)
    samples = -(-size * 24_000 // rate)
    assert tokens.num_samples == samples and tokens.num_frames == -(-samples // thin.hop)
    assert thin.decode(tokens).shape == (samples,)


def test_codes_are_those_of_the_latents(tiny, thin):
    for tokenizer in (tiny, thin):
        wave = speech(20_000)
        z, tokens = tokenizer.latents(wave), tokenizer.encode(wave)
        assert z.shape == (tokens.num_frames, tokenizer.config.quantizer.dim) and z.dtype == torch.float32
        assert torch.equal(tokenizer.fsq.quantize(z), tokens.codes)


def test_gates(tiny, thin):
    for tokenizer, steps in ((tiny, [100, 50, 25, 13, 3]), (thin, [3000, 600, 50])):
        gates = tokenizer.gates(speech(24_000))
        assert [len(g) for g in gates] == steps
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gates)
    assert [len(g) for g in tiny.gates([speech(24_000), speech(9600)])] == [5, 5]


def test_what_it_returns_can_be_trained_on(tiny):
    """Neither inference tensors, which autograd refuses, nor views that hold a whole batch in memory."""
    tokens = tiny.encode(speech(12_000))
    for tensor in (tokens.ids, tiny.decode(tokens), tiny.latents(speech(12_000)), *tiny.gates(speech(12_000))):
        assert not tensor.is_inference() and not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    torch.nn.Embedding(16384, 2)(tokens.ids).sum().backward()


# --- what a clip may be


def test_the_same_clip_in_every_form(tiny, tmp_path):
    wave = (speech(12_000) * 2**15).round().clamp(-(2**15), 2**15 - 1) / 2**15
    tokens = tiny.encode(wave)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave.numpy(), 24_000, subtype="PCM_16")
    for form in (
        wave[None],
        torch.stack([wave, wave]),
        wave.numpy(),
        wave.double(),
        wave.tolist(),
        tuple(wave.tolist()),
    ):
        assert tiny.encode(form, sample_rate=24_000) == tokens
    assert tiny.encode((wave * 2**15).to(torch.int16)) == tokens
    assert tiny.encode(path) == tiny.encode(str(path)) == tiny.encode(load_audio(path)) == tokens
    assert tiny.encode([path, wave]) == [tokens, tokens]
    assert tiny.encode((wave,)) == [tokens]


def test_the_rate_is_heeded(tiny):
    wave = speech(8000)
    assert tiny.encode(wave, sample_rate=16_000) == tiny.encode(resample(wave, 16_000, 24_000))
    assert tiny.encode([wave], 16_000)[0].num_samples == 12_000


def test_empty_list(tiny):
    assert tiny.encode([]) == [] and tiny.decode([]) == []


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (torch.zeros(0), None, "audio must have at least one sample"),
        (torch.tensor([0.0, float("nan")]), None, "audio must be finite, but sample 1 is nan instead."),
        (torch.tensor([0.0, 30_000.0]), None, "audio must lie in [-1, 1], but reaches 30000 instead"),
        (torch.zeros(2, 1, 100), None, "audio must have shape [S] or [C, S]"),
        (torch.zeros(100, 2), None, "audio must have shape [C, S] with at most 64 channels, but has [100, 2] instead; transpose it."),
        (torch.zeros(10), 100, "audio must have a sample rate from 4000 to 192000 Hz, but it is 100 instead."),
        ([torch.zeros(10), torch.zeros(0)], None, "clip 1 of the list must have at least one sample"),
        ([torch.zeros(10), None], None, "clip 1 of the list must be a tensor, array or rectangular list"),
        (iter([torch.zeros(10)]), None, "audio must be one clip or a list of clips, but is list_iterator instead."),
        ({"a": 1}, None, "audio must be one clip or a list of clips, but is dict instead."),
        (None, None, "audio must be a tensor, array or rectangular list"),
        ("missing.wav", None, "'missing.wav' must be an audio file, but does not exist."),
        ("missing.wav", 24_000, "'missing.wav' knows its sample rate; leave `sample_rate` out for files."),
    ],
)  # fmt: skip
def test_refused_audio(thin, wave, rate, message):
    with pytest.raises(AudioError) as caught:
        thin.encode(wave, rate)
    assert one_line(caught, AudioError).startswith(message)


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), "10", True])
def test_refused_batch_seconds(thin, seconds):
    with pytest.raises(ConfigError, match="`batch_seconds` must be a positive number"):
        thin.encode([speech(10)], batch_seconds=seconds)


# --- decoding


def test_bare_ids(tiny):
    tokens = tiny.encode(speech(20_000))
    again = tiny.tokens(tokens.ids.tolist(), num_samples=20_000)
    assert again == tokens
    whole = tiny.tokens(tokens.ids)
    assert whole.num_samples == 3 * HOP and torch.allclose(tiny.decode(whole)[:20_000], tiny.decode(tokens))
    for ids, samples in (
        (torch.zeros(2, 18, dtype=torch.long), None),
        (torch.full((1, 19), -1), None),
        (tokens.ids, 9600),
        ([], None),
        (3, None),
    ):
        with pytest.raises(TokenError) as caught:
            tiny.tokens(ids, samples)
        one_line(caught, TokenError)


def test_tokens_of_another_tokenizer_are_refused(tiny, thin):
    tokens = tiny.encode(speech(12_000))
    with pytest.raises(TokenError) as caught:
        thin.decode(tokens)
    assert one_line(caught, TokenError) == (
        "tokens must have 12 dimensions of mixed levels in groups of 5, but has 128 dimensions of 4 levels in groups of 7 instead; "
        "they are of another tokenizer."
    )
    other = SpeechTokenizer.from_config("tiny", seed=1)
    with pytest.raises(TokenError) as caught:
        other.decode([tokens])
    message = one_line(caught, TokenError)
    assert (
        message.startswith("tokens 0 of the list")
        and tiny.hash in message
        and other.hash in message
        and "check=False" in message
    )
    assert other.decode(tokens, check=False).shape == (12_000,)
    assert other.decode(dataclasses.replace(tokens, tokenizer="")).shape == (12_000,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 9600}, "tokens must have 1 frames for its 9600 samples, but has 2 instead."),
        ({"num_samples": 19_201}, "tokens must have 3 frames for its 19201 samples, but has 2 instead."),
        (
            {"sample_rate": 16_000},
            "tokens must be of 24000 Hz audio, but is of 16000 Hz instead; they are of another tokenizer.",
        ),
    ],
)
def test_tokens_that_do_not_add_up(tiny, change, message):
    tokens = dataclasses.replace(tiny.encode(speech(12_000)), **change)
    with pytest.raises(TokenError) as caught:
        tiny.decode(tokens)
    assert str(caught.value) == message


def test_decode_wants_tokens(tiny):
    for bad in (torch.zeros(1, 19, dtype=torch.long), [torch.zeros(1, 19, dtype=torch.long)], None, "x"):
        with pytest.raises(TokenError, match=r"must be Tokens.*`tokenizer.tokens\(ids\)`"):
            tiny.decode(bad)
