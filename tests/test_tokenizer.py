"""`SpeechTokenizer`: the public contract, the same ids under every circumstance, and folders that are whole or refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import jepa_tok
from jepa_tok import SpeechTokenizer, Tokens, hub, load_audio
from jepa_tok.audio import resample
from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig, to_dict
from jepa_tok.errors import AudioError, ConfigError, JepaTokError, TokenError
from jepa_tok.inference import padded_batches

HOP = 9600


def speech(samples, seed=0):
    """Noise under a slow envelope: unlike a sine, no frame is like another."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    return 0.1 * noise * (1.2 + torch.sin(torch.arange(samples) / 3000 + seed))


def paper_layout():
    """The published layout (samples in, MRF and tanh out, tanh bound), thin, at 50 Hz, with mixed levels."""
    return TokenizerConfig(
        name="thin",
        encoder=EncoderConfig(
            front_channels=4,
            channels=[8, 8, 12],
            strides=[8, 5, 12],
            blocks=[1, 1, 2],
            stage_conformers=[0, 0, 0],
            latent_dim=12,
            conformers=1,
            conformer_heads=2,
        ),
        quantizer=QuantizerConfig(dim=12, levels=[4, 4, 4, 2, 3, 8, 5, 4, 4, 4, 4, 4], group_size=5),
        generator=GeneratorConfig(
            latent_dim=12,
            input_channels=12,
            channels=[8, 8, 4],
            strides=[12, 5, 8],
            blocks=[1, 1, 1],
            stage_conformers=[0, 0, 0],
        ),
    )


@pytest.fixture(scope="module")
def tiny():
    return SpeechTokenizer.from_config("tiny")


@pytest.fixture(scope="module")
def thin():
    return SpeechTokenizer.from_config(paper_layout())


def one_line(error, kind):
    assert isinstance(error.value, kind)
    assert "\n" not in str(error.value)
    return str(error.value)


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


@given(st.lists(st.integers(1, 50), max_size=60), st.floats(0.1, 30))
def test_batches_hold_each_clip_once_and_keep_the_limit(sizes, seconds):
    clips = [(i, torch.zeros(n)) for i, n in enumerate(sizes)]
    batches = list(padded_batches(clips, seconds, rate=2.0))
    assert sorted(i for batch in batches for i, _ in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(c.shape[0] for _, c in batch) <= seconds * 2.0
    assert [[i for i, _ in batch] for batch in padded_batches(clips, None, 2.0)] == [[i] for i in range(len(sizes))]


def test_files_are_read_as_they_are_needed():
    """A list of a million paths must not be a million waves in memory."""
    taken = []

    def clips():
        for i in range(1000):
            taken.append(i)
            yield i, torch.zeros(10)

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


# --- making


def test_seeds_and_the_global_random_state(thin):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = SpeechTokenizer.from_config(paper_layout()), SpeechTokenizer.from_config(paper_layout(), seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.hash == thin.hash != other.hash
    assert not any(m.training for m in again.modules())


@pytest.mark.parametrize("seed", [1.5, "1", None, True, 2**64, -(2**63) - 1])
def test_seeds_that_are_none(seed):
    with pytest.raises(ConfigError, match="`seed` must be a whole number") as caught:
        SpeechTokenizer.from_config("tiny", seed=seed)
    one_line(caught, ConfigError)


def test_whoever_reads_the_config_reads_the_weights(thin, tmp_path):
    folder = thin.save_pretrained(tmp_path / "t")
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_configs_as_dict_name_and_object(thin):
    config = paper_layout()
    assert SpeechTokenizer.from_config(to_dict(config)).hash == thin.hash
    made = SpeechTokenizer.from_config(config)
    config.quantizer.levels = [4]  # the caller's object may change afterwards
    assert made.config == paper_layout() and made.hash == thin.hash
    for bad in (
        "huge",
        3,
        {"nmae": "x"},
        {"encoder": {"strides": [2]}},
        {"quantizer": {"levels": ["a"]}},
        {"quantizer": {"dim": "many"}},
    ):
        with pytest.raises(ConfigError) as caught:
            SpeechTokenizer.from_config(bad)
        one_line(caught, ConfigError)


def test_from_modules_shares_them(thin):
    made = SpeechTokenizer.from_modules(thin.config, thin.encoder, thin.fsq, thin.generator)
    assert made.encoder is thin.encoder and made.hash == thin.hash


def test_hash_follows_the_weights():
    tokenizer = SpeechTokenizer.from_config(paper_layout())
    first = tokenizer.hash
    assert tokenizer.hash == first
    optimizer = torch.optim.AdamW(tokenizer.parameters(), lr=1e-3)
    tokenizer.encoder(speech(3000)[None]).latents.sum().backward()
    optimizer.step()
    second = tokenizer.hash
    assert second != first and tokenizer.encode(speech(100)).tokenizer == second
    tokenizer.load_state_dict(SpeechTokenizer.from_config(paper_layout()).state_dict())
    assert tokenizer.hash == first
    assert pickle.loads(pickle.dumps(tokenizer)).hash == first


def test_hash_is_of_names_dtypes_shapes_and_bytes(thin):
    config, tensors = thin.config, dict(thin.state_dict())
    name, tensor = next(iter(tensors.items()))
    base = hub.tokenizer_hash(config, tensors)
    assert base == thin.hash == hub.tokenizer_hash(config, dict(reversed(tensors.items())))
    changed = [
        {**tensors, name: tensor + 1},
        {**tensors, name: tensor.double()},
        {**tensors, name: tensor.reshape(-1)},
        {k + "x" * (k == name): v for k, v in tensors.items()},
    ]
    assert len({base, *(hub.tokenizer_hash(config, t) for t in changed)}) == 5
    assert hub.tokenizer_hash(dataclasses.replace(config, name="other"), tensors) != base


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


# --- folders


@pytest.fixture
def folder(thin, tmp_path):
    return thin.save_pretrained(tmp_path / "tok")


def test_round_trip(thin, folder):
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    record = json.loads((folder / "config.json").read_text())
    assert record["format"] == "jepa-tok/1" and record["hash"] == thin.hash
    state = torch.get_rng_state()
    loaded = SpeechTokenizer.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.hash == thin.hash and loaded.config == thin.config and loaded.device.type == "cpu"
    assert not any(m.training for m in loaded.modules())
    tokens = thin.encode(speech(5000))
    assert loaded.encode(speech(5000)) == tokens
    assert torch.equal(loaded.decode(tokens), thin.decode(tokens))


def test_what_the_quantiser_learned_is_saved(tmp_path):
    tokenizer = SpeechTokenizer.from_config("tiny")
    with torch.no_grad():
        tokenizer.fsq.scale.mul_(1.5)
        tokenizer.fsq.bias.add_(0.1)
    loaded = SpeechTokenizer.from_pretrained(str(tokenizer.save_pretrained(tmp_path / "a")))
    assert torch.equal(loaded.fsq.scale, tokenizer.fsq.scale) and torch.equal(loaded.fsq.bias, tokenizer.fsq.bias)
    assert loaded.encode(speech(12_000)) == tokenizer.encode(speech(12_000))


def test_half_precision_survives(tmp_path):
    tokenizer = SpeechTokenizer.from_config("tiny").to(torch.bfloat16)
    loaded = SpeechTokenizer.from_pretrained(tokenizer.save_pretrained(tmp_path / "a"))
    assert loaded.dtype == torch.bfloat16 and loaded.fsq.scale.dtype == torch.float32
    assert loaded.hash == tokenizer.hash and loaded.encode(speech(12_000)) == tokenizer.encode(speech(12_000))


def test_the_folder_may_move_and_be_trained_on(thin, folder, tmp_path):
    moved = folder.rename(tmp_path / "moved")
    loaded = SpeechTokenizer.from_pretrained(moved)
    assert loaded.hash == thin.hash
    loaded.encoder(speech(3000)[None]).latents.sum().backward()
    assert loaded.encoder.project.weight.grad is not None


def test_saving_over(thin, folder, tmp_path):
    (folder / "README.md").write_text("kept")
    other = SpeechTokenizer.from_config(paper_layout(), seed=1)
    other.save_pretrained(folder)
    assert SpeechTokenizer.from_pretrained(folder).hash == other.hash
    assert (folder / "README.md").read_text() == "kept"
    (tmp_path / "new").mkdir()
    thin.save_pretrained(tmp_path / "new")  # an empty folder
    thin.save_pretrained(tmp_path / "a" / "b" / "c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "new", "tok"]


def test_saving_spares_other_folders(thin, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text('{"format": "something else"}')
    for target in (tmp_path, tmp_path / "notes.txt", tmp_path / "notes.txt" / "below"):
        with pytest.raises(ConfigError) as caught:
            thin.save_pretrained(target)
        assert str(tmp_path) in one_line(caught, ConfigError)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "notes.txt"]


def test_a_failed_save_leaves_nothing(thin, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "save_file", fail)
    with pytest.raises(ConfigError, match="No space left on device"):
        thin.save_pretrained(tmp_path / "tok")
    assert list(tmp_path.iterdir()) == []


def test_a_crash_between_the_two_files_is_noticed(thin, folder, monkeypatch):
    replace = os.replace

    def crash(source, target):
        if str(target).endswith("config.json"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    other = SpeechTokenizer.from_config(paper_layout(), seed=1)
    with pytest.raises(ConfigError):
        other.save_pretrained(folder)
    with pytest.raises(ConfigError, match=f"must hold the tokenizer {thin.hash}"):
        SpeechTokenizer.from_pretrained(folder)


def damaged(folder, message):
    with pytest.raises(ConfigError) as caught:
        SpeechTokenizer.from_pretrained(folder)
    text = one_line(caught, ConfigError)
    assert str(folder) in text and message in text, text


def edit(folder, **fields):
    record = json.loads((folder / "config.json").read_text())
    record.update(fields)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "jepa-tok/2"}, "must have format 'jepa-tok/1', but has 'jepa-tok/2' instead"),
        ({"format": ...}, "with a `format`, but has none"),
        ({"config": ...}, "must have a mapping `config`"),
        ({"config": {"nmae": "x"}}, "TokenizerConfig has no field `nmae`"),
        ({"config": {"encoder": {"hop": 3}}}, "EncoderConfig has no field `hop`"),
        ({"config": {"encoder": {"strides": [8, 8]}}}, "must have 2 entries"),
        ({"hash": 3}, "must have a string `hash`"),
        ({"hash": "0" * 16}, "must hold the tokenizer 0000000000000000"),
        ({"extra": 1}, "has the unknown field `extra`"),
    ],
)
def test_damaged_config(folder, fields, message):
    edit(folder, **fields)
    damaged(folder, message)


def test_damaged_files(folder):
    (folder / "config.json").write_text("{")
    damaged(folder, "must be a JSON file")
    (folder / "config.json").write_text("[]")
    damaged(folder, "with a `format`, but has none")
    (folder / "config.json").unlink()
    damaged(folder, "config.json is missing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.project.weight"), "lacks tensor `encoder.project.weight`"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("generator")], "more; its config asks for"),
        (lambda t: t.update(spare=torch.zeros(1)), "has the unknown tensor `spare`"),
        (lambda t: t.update({"encoder.project.bias": torch.zeros(3)}), "tensor `encoder.project.bias` must have shape [12], but has [3] instead."),
        (lambda t: t["encoder.project.bias"].fill_(float("nan")), "must hold finite floats, but tensor `encoder.project.bias` does not."),
        (lambda t: t.update({"encoder.project.bias": torch.zeros(12, dtype=torch.int64)}), "must hold finite floats"),
    ],
)  # fmt: skip
def test_damaged_weights(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit(folder, hash=...)  # without a hash the tensors themselves are told apart
    damaged(folder, message)


def test_cut_and_missing_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    damaged(folder, "must be a safetensors file, but cannot be read")
    path.unlink()
    damaged(folder, "model.safetensors is missing")


def test_a_config_without_hash_is_read(thin, folder):
    edit(folder, hash=...)
    assert SpeechTokenizer.from_pretrained(folder).hash == thin.hash


def test_names(tmp_path, thin, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", str(tmp_path / "none"), "", "../x"):
        with pytest.raises(ConfigError) as caught:
            SpeechTokenizer.from_pretrained(name)
        assert one_line(caught, ConfigError).startswith(
            f"'{name}' must be a tokenizer folder or the name of a packaged tokenizer ("
        )
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="but 'file' is a file instead"):
        SpeechTokenizer.from_pretrained("file")
    with pytest.raises(ConfigError, match="is NoneType instead"):
        SpeechTokenizer.from_pretrained(None)
    monkeypatch.setattr(hub, "CHECKPOINTS", tmp_path / "checkpoints")
    thin.save_pretrained(tmp_path / "checkpoints" / "thin-v1")
    assert hub.list_pretrained() == ["thin-v1"]
    assert SpeechTokenizer.from_pretrained("thin-v1").hash == thin.hash
    with pytest.raises(ConfigError, match=r"packaged tokenizer \(thin-v1\)"):
        SpeechTokenizer.from_pretrained("thin")
