"""Packaged tokenizers: found by name, by every verb, and by their fairseq2 cards, without a network.

What is packaged here is made by the tests.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch

from jepa_tok import SpeechTokenizer, hub
from jepa_tok.errors import ConfigError
from jepa_tok.models.logmel import LogMel
from tests.tokenizers import one_line, speech


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "checkpoints"
    SpeechTokenizer.from_config("tiny", seed=7).save_pretrained(folder / "small", compact=True)
    causal = SpeechTokenizer.from_config("tiny", seed=8)
    causal.config.name = "packaged-causal"
    causal.save_pretrained(folder / "small-causal")
    return folder


@pytest.fixture
def packaged(checkpoints, tmp_path, monkeypatch):
    """Two packaged tokenizers, an empty working folder, and no network."""

    def refuse(*args, **kwargs):
        raise AssertionError("a packaged tokenizer needs no network")

    monkeypatch.setattr(hub, "CHECKPOINTS", checkpoints)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    return checkpoints


def test_names(packaged):
    assert hub.list_pretrained() == ["small", "small-causal"]
    for name in hub.list_pretrained():
        record = json.loads((packaged / name / "config.json").read_text())
        assert SpeechTokenizer.from_pretrained(name).hash == record["hash"]
        assert SpeechTokenizer.from_pretrained(Path(name)).hash == record["hash"]


def test_a_tokenizer_folder_comes_before_a_packaged_name(packaged, tmp_path):
    shipped = SpeechTokenizer.from_pretrained("small").hash
    (tmp_path / "small").mkdir()
    (tmp_path / "small-causal").write_text("a file")
    assert SpeechTokenizer.from_pretrained("small").hash == shipped  # a folder that is no tokenizer's is not meant
    assert hub.find_pretrained("small-causal") == packaged / "small-causal"
    with pytest.raises(ConfigError, match=r"'\./small' must hold config.json"):
        SpeechTokenizer.from_pretrained("./small")
    mine = SpeechTokenizer.from_config("tiny", seed=9)
    mine.save_pretrained(tmp_path / "small")
    for name in ("small", "./small", str(tmp_path / "small")):
        assert SpeechTokenizer.from_pretrained(name).hash == mine.hash
    for name in ("./small-causal", "checkpoints/small", "Small", "small/x", ""):
        assert hub.find_pretrained(name) is None


def test_unknown_names_hear_which_there_are(packaged):
    with pytest.raises(ConfigError) as caught:
        SpeechTokenizer.from_pretrained("large")
    assert "the name of a packaged tokenizer (small, small-causal), but is neither" in one_line(caught, ConfigError)


def test_verbs_take_the_name(packaged, tmp_path, jepa_tok):
    import soundfile

    soundfile.write(tmp_path / "a.wav", speech(24_000).numpy(), 24_000)
    status, out, err = jepa_tok("info", "small", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["weights"] == "int8" and facts["tokenizer"] == str(packaged / "small")
    assert facts["hash"] == SpeechTokenizer.from_pretrained("small").hash
    assert json.loads(jepa_tok("info", "small-causal", "--json")[1])["weights"] == "full"
    assert json.loads(jepa_tok("info", "base", "--json")[1])["weights"] == "none packaged"
    status, out, err = jepa_tok("resynth", "a.wav", "b.wav", "--tokenizer", "small")
    assert status == 0 and soundfile.info(tmp_path / "b.wav").frames == 24_000, err
    status, out, err = jepa_tok("vocabulary", "small", "hf")
    assert status == 0 and facts["hash"] in out, err
    status, out, err = jepa_tok("resynth", "a.wav", "c.wav", "--tokenizer", "base")
    assert status == 2 and "no trained tokenizer is packaged as 'base'" in err


def test_adapters_take_the_name(packaged):
    from jepa_tok.adapters.base import make_adapter

    make_adapter("small")


def test_fairseq2_loads_them_by_their_cards(packaged, monkeypatch):
    pytest.importorskip("fairseq2")
    import fairseq2.runtime.dependency as dependency
    from fairseq2.assets import AssetStore
    from fairseq2.composition import _register_library
    from fairseq2.models.hub import load_model

    container = dependency.DependencyContainer()
    _register_library(container, no_progress=True)  # finds the extension by its entry point
    monkeypatch.setattr(dependency, "_resolver", container)
    names = {name.removesuffix("@") for name in container.resolve(AssetStore).asset_names}
    assert {"jepa_tok_tokenizer_small", "jepa_tok_tokenizer_small-causal"} <= names
    wave = speech(30_000)[None]
    for name in hub.list_pretrained():
        ours = SpeechTokenizer.from_pretrained(name)
        theirs = load_model(f"jepa_tok_tokenizer_{name}", device=torch.device("cpu"))
        assert isinstance(theirs, SpeechTokenizer) and theirs.hash == ours.hash and theirs.config == ours.config
        theirs.eval()
        with torch.inference_mode():
            assert torch.equal(theirs.encoder(wave).latents, ours.encoder(wave).latents)
    half = load_model("jepa_tok_tokenizer_small", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert half.hash == SpeechTokenizer.from_pretrained("small").to(torch.bfloat16).hash


# --- what this checkout packages


@pytest.mark.parametrize("name", hub.list_pretrained())
def test_packaged_folders_are_whole_and_small(name):
    folder = hub.CHECKPOINTS / name
    assert (folder / "README.md").is_file()
    assert (folder / "model.safetensors").stat().st_size <= 40e6
    tokenizer = SpeechTokenizer.from_pretrained(name)
    assert tokenizer.config.name == name
    assert tokenizer.decode(tokenizer.encode(speech(24_000))).shape == (24_000,)


@pytest.mark.parametrize("name", hub.list_pretrained())
def test_packaged_tokenizers_give_back_what_untrained_ones_cannot(name):
    wave = vowels(4)
    trained = SpeechTokenizer.from_pretrained(name)
    assert mel_distance(trained, wave) < 0.6 * mel_distance(SpeechTokenizer.from_config(name, seed=0), wave)


def vowels(count: int) -> torch.Tensor:
    """As many half-second vowels: pulses of 120 Hz through two resonances each, with silence between them."""
    time = torch.arange(12_000) / 24_000
    waves = []
    for i in range(count):
        formants = ((700, 1200), (300, 2300), (450, 900), (550, 1800))[i % 4]
        harmonics = torch.arange(1, 40) * 120.0
        level = sum(1.0 / (1.0 + ((harmonics - f) / 80.0).square()) for f in formants)
        waves.append((level[:, None] * torch.sin(2 * torch.pi * harmonics[:, None] * time)).sum(0) * (time < 0.4))
    wave = torch.cat(waves)
    return 0.3 * wave / wave.abs().max()


def mel_distance(tokenizer: SpeechTokenizer, wave: torch.Tensor) -> float:
    """Mean absolute difference of log-mels between a clip and what comes back of it."""
    logmel = LogMel(24_000, 1024, 240, 80)
    back = tokenizer.decode(tokenizer.encode(wave))
    return float((logmel(wave[None]) - logmel(back[None])).abs().mean())
