"""Making a tokenizer, its hash, and folders that are whole or refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa_tok import SpeechTokenizer, hub
from jepa_tok.config_dict import to_dict
from jepa_tok.errors import ConfigError
from tests.tokenizers import one_line, paper_layout, speech

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
