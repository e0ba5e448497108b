"""The same clip gives the same tokens, whatever is in the call and whatever the caller has set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok import SpeechTokenizer
from jepa_tok.clips import Piece, padded_batches, split_by_length
from jepa_tok.errors import AudioError, JepaTokError
from jepa_tok.windows import Window
from tests.tokenizers import one_line, paper_layout, speech

# --- the same tokens every time


@pytest.fixture(params=["tiny", "thin"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)


SIZES = [24_000, 1, 9600, 30_001, 9601, 5000]


def test_alone_in_a_list_and_in_padded_batches(any_tokenizer):
    waves = [speech(n, seed=n) for n in SIZES]
    alone = [any_tokenizer.encode(w) for w in waves]
    assert any_tokenizer.encode(waves) == alone
    assert any_tokenizer.encode(waves[::-1]) == alone[::-1]
    latents = [any_tokenizer.latents(w) for w in waves]
    for seconds in (0.1, 2.0, 100.0):
        batched = any_tokenizer.encode(waves, batch_seconds=seconds)
        assert [(len(t), t.num_samples) for t in batched] == [(len(t), t.num_samples) for t in alone]
        for z, expected in zip(any_tokenizer.latents(waves, batch_seconds=seconds), latents):
            assert torch.allclose(z, expected, atol=1e-4)
        flips = sum(int((a.codes != b.codes).sum()) for a, b in zip(batched, alone))
        assert flips <= 2  # a last bit at the edge of a bin; a layer that sees padding flips hundreds
    decoded = [any_tokenizer.decode(t) for t in alone]
    for together in (any_tokenizer.decode(alone), any_tokenizer.decode(alone, batch_seconds=100.0)):
        for wave, expected in zip(together, decoded):
            assert wave.shape == expected.shape and torch.allclose(wave, expected, atol=1e-5)


def test_threads_do_not_matter(any_tokenizer, threads_as_they_were):
    waves = [speech(n, seed=n) for n in SIZES]
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append([any_tokenizer.encode(w) for w in waves])
    flips = sum(int((a.codes != b.codes).sum()) for a, b in zip(*found, strict=True))
    assert flips <= 2  # as above


def piece(clip, length):
    return Piece(clip, Window.whole(length), torch.zeros(length))


@given(st.lists(st.integers(1, 50), max_size=60), st.floats(0.1, 30))
def test_batches_hold_each_clip_once_and_keep_the_limit(sizes, seconds):
    clips = [piece(i, n) for i, n in enumerate(sizes)]
    batches = list(padded_batches(clips, seconds, rate=2.0))
    assert sorted(c.clip for batch in batches for c in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(c.length for c in batch) <= seconds * 2.0
    assert [[c.clip for c in batch] for batch in padded_batches(clips, None, 2.0)] == [[i] for i in range(len(sizes))]


@given(st.lists(st.floats(0, 100), max_size=40), st.floats(0, 200))
def test_groups_of_like_length_hold_each_item_once_within_the_limit(lengths, limit):
    groups = list(split_by_length(range(len(lengths)), lambda i: lengths[i], limit))
    assert [i for group in groups for i in group] == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for group, following in zip(groups, [*groups[1:], []]):
        assert len(group) == 1 or len(group) * lengths[group[-1]] <= limit
        assert not following or (len(group) + 1) * lengths[following[0]] > limit  # none could hold one more


def test_a_stream_is_a_batch_of_its_own_and_waits_for_nobody():
    clips = [piece(0, 5), piece(1, 5), Piece(2, Window.whole(5), torch.zeros(5), rest=iter(())), piece(3, 5)]
    assert [[c.clip for c in batch] for batch in padded_batches(clips, 100.0, 1.0)] == [[2], [0, 1, 3]]


def test_files_are_read_as_they_are_needed():
    """A list of a million paths must not be a million waves in memory."""
    taken = []

    def clips():
        for i in range(1000):
            taken.append(i)
            yield piece(i, 10)

    next(padded_batches(clips(), 20.0, 1.0))
    assert len(taken) < 50


def test_training_mode_dropout_and_gradients_do_not_matter(any_tokenizer):
    wave = speech(20_000)
    tokens, decoded = any_tokenizer.encode(wave), any_tokenizer.decode(any_tokenizer.encode(wave))
    any_tokenizer.encoder.train()
    any_tokenizer.generator.stages[0].train()
    flags = [m.training for m in any_tokenizer.modules()]
    assert any(flags)
    try:
        with torch.enable_grad():
            assert any_tokenizer.encode(wave) == tokens == any_tokenizer.encode(wave)
        out = any_tokenizer.decode(tokens)
        assert torch.equal(out, decoded) and not out.requires_grad
        assert [m.training for m in any_tokenizer.modules()] == flags
        with pytest.raises(AudioError):  # put back after an error too
            any_tokenizer.encode([wave, torch.zeros(0)])
        assert [m.training for m in any_tokenizer.modules()] == flags
    finally:
        any_tokenizer.eval()
    assert not torch.is_inference_mode_enabled()


def test_autocast_and_fast_products_do_not_matter(any_tokenizer):
    wave = speech(20_000)
    tokens, decoded, z = (
        any_tokenizer.encode(wave),
        any_tokenizer.decode(any_tokenizer.encode(wave)),
        any_tokenizer.latents(wave),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert any_tokenizer.encode(wave) == tokens
        assert torch.equal(any_tokenizer.decode(tokens), decoded)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(any_tokenizer.latents(wave), z)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_default_dtype_and_device_do_not_matter(any_tokenizer):
    wave = speech(6000)
    tokens, decoded = any_tokenizer.encode(wave, 16_000), any_tokenizer.decode(any_tokenizer.encode(wave, 16_000))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = SpeechTokenizer.from_config(any_tokenizer.config)
            assert made.hash == any_tokenizer.hash
            for tokenizer in (made, any_tokenizer):
                assert tokenizer.encode(wave, 16_000) == tokens
                out = tokenizer.decode(tokens)
                assert out.dtype == torch.float32 and torch.equal(out, decoded)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_model_dtype_cannot_break_ids(dtype):
    wave = speech(24_000)
    tokenizer = SpeechTokenizer.from_config("tiny")
    expected = tokenizer.encode(wave)
    tokenizer = tokenizer.to(dtype)
    assert tokenizer.dtype == dtype and tokenizer.fsq.scale.dtype == torch.float32
    tokens = tokenizer.encode(wave)  # Tokens checks every id's range
    assert (
        tokens.codes != expected.codes
    ).float().mean() < 0.05  # near the edges of bins, where the model's rounding shows
    assert torch.equal(tokenizer.fsq.pack(tokens.codes), tokens.ids)
    assert tokenizer.decode(tokens).dtype == torch.float32
    assert tokens.tokenizer == tokenizer.hash != expected.tokenizer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(any_tokenizer):
    waves = [speech(n, seed=n) for n in SIZES]
    expected = any_tokenizer.encode(waves)
    try:
        any_tokenizer.to("cuda")
        tokens = any_tokenizer.encode(waves)
        assert tokens == [any_tokenizer.encode(w) for w in waves]
        assert all(t.ids.device.type == "cpu" and t.tokenizer == e.tokenizer for t, e in zip(tokens, expected))
        flips = sum(int((t.codes != e.codes).sum()) for t, e in zip(tokens, expected))
        assert flips <= 1e-3 * sum(t.codes.numel() for t in tokens)
        assert all(w.device.type == "cpu" for w in any_tokenizer.decode(tokens))
    finally:
        any_tokenizer.to("cpu")


def test_non_finite_weights_are_told(tmp_path):
    tokenizer = SpeechTokenizer.from_config(paper_layout())
    tokens = tokenizer.encode(speech(3000))
    with torch.no_grad():
        tokenizer.encoder.project.bias[0] = float("nan")
        tokenizer.generator.project.bias[0] = float("nan")
    with pytest.raises(JepaTokError) as caught:
        tokenizer.encode([speech(3000)])
    assert one_line(caught, JepaTokError).startswith(
        "clip 0 of the list must have finite latents, but the encoder in float32"
    )
    with pytest.raises(JepaTokError) as caught:
        tokenizer.decode(tokens, check=False)
    assert one_line(caught, JepaTokError).startswith("tokens must decode to finite audio")
