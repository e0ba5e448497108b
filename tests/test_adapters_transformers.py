"""Adapters of transformers' codecs and self-supervised encoders: tiny random models, saved to disk and read as published ones are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jepa_tok.adapters import fit_once, make_adapter
from jepa_tok.adapters.ssl_kmeans import SslKmeans
from jepa_tok.errors import AdapterError
from tests.tokenizers import one_line, speech

transformers = pytest.importorskip("transformers")


def encodec():
    config = transformers.EncodecConfig(
        target_bandwidths=[0.6, 1.2], num_filters=4, hidden_size=8, codebook_size=16, codebook_dim=8, num_lstm_layers=1
    )
    return transformers.EncodecModel(config)


def dac():
    config = transformers.DacConfig(
        encoder_hidden_size=8, decoder_hidden_size=32, downsampling_ratios=[2, 4, 5, 8], sampling_rate=24_000,
        n_codebooks=3, codebook_size=16, codebook_dim=4,
    )  # fmt: skip
    return transformers.DacModel(config)


def mimi():
    config = transformers.MimiConfig(
        num_filters=4, hidden_size=16, codebook_size=16, codebook_dim=8, vector_quantization_hidden_dimension=8,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8, intermediate_size=16,
        num_quantizers=10, upsample_groups=16,
    )  # fmt: skip
    return transformers.MimiModel(config)


SMALL = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_conv_pos_embeddings=16,
             num_conv_pos_embedding_groups=2, conv_dim=(8,) * 7)  # fmt: skip


def xcodec():
    acoustic = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[8, 5, 4, 2], decoder_hidden_size=32, upsampling_ratios=[8, 5, 4, 2],
        hidden_size=16,
    )  # fmt: skip
    semantic = transformers.HubertConfig(**SMALL)
    config = transformers.XcodecConfig(
        target_bandwidths=[0.2, 0.4], codebook_size=16, acoustic_model_config=acoustic, semantic_model_config=semantic
    )
    return transformers.XcodecModel(config)


def fill(model):
    """Codebooks that the config leaves empty: every code would be 0."""
    for name, buffer in model.named_buffers():
        if name.endswith(("codebook.embed", "embed_sum")):
            buffer.copy_(0.1 * torch.randn(buffer.shape))


CODECS = {  # model, rate, frame rate, codebooks by default or as set, a setting and its codebooks
    "encodec": (encodec, 24_000, 75.0, "0.6", 2, "1.2", 4),
    "dac": (dac, 24_000, 75.0, "", 3, "2", 2),
    "mimi": (mimi, 24_000, 12.5, "", 8, "3", 3),
    "xcodec": (xcodec, 16_000, 50.0, "0.2", 1, "0.4", 2),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, (make, *_) in CODECS.items():
            model = make()
            fill(model)
            model.save_pretrained(root / name)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
        for name, model in {
            "hubert": transformers.HubertModel(transformers.HubertConfig(**SMALL)),
            "wavlm": transformers.WavLMModel(transformers.WavLMConfig(**SMALL)),
        }.items():
            model.save_pretrained(root / name)
            extractor.save_pretrained(root / name)
    return root


@pytest.mark.parametrize("name", CODECS)
def test_codecs(name, folders):
    _, rate, frame_rate, first, books, second, more = CODECS[name]
    adapter = make_adapter(f"{name}:{folders / name}" + (f"@{first}" if first else ""))
    assert (adapter.sample_rate, adapter.frame_rate, adapter.radices) == (rate, frame_rate, (16,) * books)
    assert adapter.bits_per_second == frame_rate * books * 4
    assert adapter.slots == {75.0: 1, 12.5: 4, 50.0: 1}[frame_rate]
    hop = round(rate / frame_rate)
    wave = speech(5 * hop + 1)
    codes = adapter.check(adapter.encode(wave))
    assert len(codes) == 6 and len(np.unique(codes)) > 2
    assert len(adapter.check(adapter.encode(wave[:1]))) == 1
    values, latents = adapter.values(codes), adapter.latents(wave)
    assert values.dtype == np.float32 and len(values) == 6 and np.isfinite(values).all()
    np.testing.assert_allclose(values[:1], adapter.values(codes[:1]), atol=1e-5)
    if latents is not None:
        assert latents.shape == values.shape

    other = make_adapter(f"{name}:{folders / name}@{second}")
    assert len(other.radices) == more
    shared = min(books, more)
    np.testing.assert_array_equal(
        other.encode(wave)[:, :shared], codes[:, :shared]
    )  # residual: the first stay the first
    assert other.fingerprint != adapter.fingerprint
    adapter.fit(iter(()))
    assert adapter.state() == {}


def test_latents_are_what_is_quantised(folders):
    adapter = make_adapter(f"encodec:{folders / 'encodec'}@1.2")
    book = adapter.model.quantizer.layers[0].codebook.embed.numpy()
    wave = speech(3200)
    distances = np.linalg.norm(adapter.latents(wave)[:, None] - book, axis=-1)
    np.testing.assert_array_equal(adapter.encode(wave)[:, 0], distances.argmin(1))


@pytest.mark.parametrize("name, kind", [("hubert", "HubertModel"), ("wavlm", "WavLMModel")])
def test_ssl_kmeans(name, kind, folders, tmp_path):
    pytest.importorskip("sklearn")
    published = make_adapter(f"{name}:{folders / name}@2")
    assert (published.sample_rate, published.frame_rate, published.radices) == (16_000, 50.0, (500,))
    assert published.bits_per_second == pytest.approx(448, abs=1) and published.slots == 1

    adapter = SslKmeans(name, kind, str(folders / name), 2, clusters=8)
    with pytest.raises(AdapterError) as error:
        adapter.encode(speech(400))
    assert "fit" in one_line(error, AdapterError)
    with pytest.raises(AdapterError) as error:
        adapter.fit([speech(320 * 7)])
    assert "at least 8 frames" in one_line(error, AdapterError)
    before = adapter.fingerprint
    fit_once(adapter, (speech(8000, seed=i) for i in range(4)), tmp_path / "state.safetensors")
    assert adapter.fingerprint != before
    wave = speech(321, seed=9)
    codes = adapter.check(adapter.encode(wave))
    assert len(codes) == 2
    latents, values = adapter.latents(wave), adapter.values(codes)
    assert latents.shape == values.shape == (2, 16)
    distances = np.linalg.norm(latents[:, None] - adapter.state()["centroids"], axis=-1)
    np.testing.assert_array_equal(codes[:, 0], distances.argmin(1))

    again = SslKmeans(name, kind, str(folders / name), 2, clusters=8)
    assert again.fingerprint == before
    fit_once(again, iter(()), tmp_path / "state.safetensors")
    np.testing.assert_array_equal(again.encode(wave), codes)
    assert again.fingerprint == adapter.fingerprint


def test_hidden_states_are_those_of_the_model(folders):
    adapter = SslKmeans.hubert(f"{folders / 'hubert'}@3")
    wave = speech(320 * 5 + 80)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folders / "hubert")
    with torch.inference_mode():
        inputs = extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        expected = adapter.model(inputs).last_hidden_state[0].numpy()
    found = adapter.latents(wave)
    assert len(found) == 6 and len(expected) == 5  # the rest of 80 samples has a frame too
    normal = adapter.model(torch.nn.functional.pad(inputs, (0, 320)), output_hidden_states=True).hidden_states[3][0]
    np.testing.assert_allclose(found, normal.detach().numpy(), atol=1e-4)


def test_wrong_models_and_settings_are_refused(folders):
    for spec, words in (
        ("encodec:nobody/nothing", "hf download nobody/nothing"),
        (f"encodec:{folders}", "model.safetensors"),
        (f"dac:{folders / 'mimi'}", "missing"),
        (f"encodec:{folders / 'encodec'}@7", "one of 0.6, 1.2 kbit/s"),
        (f"mimi:{folders / 'mimi'}@11", "1 to 10 codebooks"),
        (f"hubert:{folders / 'hubert'}@4", "0 to 3"),
        (f"hubert:{folders / 'hubert'}@1.5", "whole number"),
        ("wavlm:nobody/nothing", "hf download nobody/nothing"),
    ):
        with pytest.raises(AdapterError) as error:
            make_adapter(spec)
        assert words in one_line(error, AdapterError), spec


def test_pickles_are_not_read(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "dac" / "config.json").read_bytes())
    model = transformers.DacModel.from_pretrained(folders / "dac")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AdapterError) as error:
        make_adapter(f"dac:{tmp_path}")
    assert "safetensors" in one_line(error, AdapterError)


def test_a_folder_without_its_feature_extractor_is_refused(folders, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folders / "hubert" / name).read_bytes())
    with pytest.raises(AdapterError) as error:
        make_adapter(f"hubert:{tmp_path}@1")
    assert "preprocessor_config.json" in one_line(error, AdapterError)
