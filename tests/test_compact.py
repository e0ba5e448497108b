"""Compact tokenizer folders: rounded once, the same weights everywhere, small, refused where they are damaged."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from jepa_tok import SpeechTokenizer
from jepa_tok.compact import compact, expand
from jepa_tok.errors import ConfigError
from tests.tokenizers import one_line, speech


@pytest.fixture(scope="module")
def tiny():
    return SpeechTokenizer.from_config("tiny", seed=3)


@pytest.fixture
def folder(tiny, tmp_path):
    return tiny.save_pretrained(tmp_path / "compact", compact=True)


def as_64_bits(stored, name):
    """The weights by exact arithmetic: 7 + 8 bits are nothing to float64."""
    scale = stored[f"{name}.scale"].double()
    q = stored[f"{name}.int8"].double()
    return q * scale.reshape(-1, *[1] * (q.ndim - 1))


# --- rounding


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(32, 70), st.floats(-30, 30), st.integers(0, 2**31))
def test_rounding_is_exact_bounded_and_done_once(channels, row, exponent, seed):
    weights = torch.randn(channels, row, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    stored = compact({"w": weights})
    loaded = expand(stored)["w"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded.double(), as_64_bits(stored, "w"))
    # Half a step, and for the largest of a row what bfloat16 took from its scale: 127 steps of which each may lack 2^-9.
    step = weights.abs().amax(1, keepdim=True) / 127
    assert bool(((loaded - weights).abs() <= step * (0.5 + 127 * 2**-8)).all())
    inner = weights.abs() < 126 * step
    assert bool(((loaded - weights).abs() <= step * 0.51)[inner].all())
    again = compact({"w": loaded})
    assert torch.equal(expand(again)["w"], loaded)


def test_what_is_rounded(tiny):
    tensors = tiny.state_dict()
    stored = compact(tensors)
    rounded = {name.removesuffix(".int8") for name in stored if name.endswith(".int8")}
    assert {
        "encoder.front.conv.weight",  # a convolution, a matrix, a transposed convolution, the head
        "encoder.stages.0.blocks.0.up.weight",
        "generator.stages.0.up.weight",
        "generator.head.out.weight",
    } <= rounded
    for name, tensor in tensors.items():
        if any(part in name for part in ("depthwise", "bias", "norm", "gate", "fsq")):
            assert name not in rounded and torch.equal(stored[name], tensor)
    assert sum(tensors[name].numel() for name in rounded) > 0.95 * sum(t.numel() for t in tensors.values())


def test_zero_rows_and_tiny_ones():
    weights = torch.zeros(3, 40)
    weights[1] = 1e-41  # below what bfloat16 can hold as a normal number, divided by 127
    weights[2, 0] = -2.0
    loaded = expand(compact({"w": weights}))["w"]
    assert bool(loaded.isfinite().all()) and not loaded[0].any() and loaded[2, 0] == pytest.approx(-2.0, rel=2**-8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.zeros(2, 40).bfloat16(), "but `w` is bfloat16."),
        (torch.full((2, 40), float("nan")), "but `w` is not finite."),
        (torch.tensor(float("inf")), "but `w` is not finite."),
    ],
)
def test_what_cannot_be_rounded(weights, message):
    with pytest.raises(ConfigError) as caught:
        compact({"w": weights})
    assert message in one_line(caught, ConfigError)


# --- folders


def test_a_compact_folder_holds_a_tokenizer_of_its_own(tiny, folder, tmp_path):
    loaded = SpeechTokenizer.from_pretrained(folder)
    record = json.loads((folder / "config.json").read_text())
    assert record["weights"] == "int8" and record["hash"] == loaded.hash != tiny.hash
    assert loaded.config == tiny.config and loaded.dtype == torch.float32
    # The name is that of the weights, however they are stored, and rounding them once more changes nothing.
    full = loaded.save_pretrained(tmp_path / "full")
    assert json.loads((full / "config.json").read_text())["weights"] == "full"
    assert SpeechTokenizer.from_pretrained(full).hash == loaded.hash
    again = SpeechTokenizer.from_pretrained(loaded.save_pretrained(tmp_path / "again", compact=True))
    assert again.hash == loaded.hash
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (folder / "model.safetensors").stat().st_size < 0.3 * (full / "model.safetensors").stat().st_size
    wave = speech(30_000)
    tokens = loaded.encode(wave)
    assert again.encode(wave) == tokens and torch.equal(again.decode(tokens), loaded.decode(tokens))


def test_rounded_latents_are_near(tiny, folder):
    wave = speech(48_000)
    ours, theirs = tiny.latents(wave), SpeechTokenizer.from_pretrained(folder).latents(wave)
    assert 0 < (ours - theirs).norm() < 0.05 * ours.norm()


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        SpeechTokenizer.from_config("tiny").to(torch.bfloat16).save_pretrained(tmp_path / "a", compact=True)
    assert "bfloat16" in one_line(caught, ConfigError) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.project.weight.scale"), "tensor `encoder.project.weight.int8` must be int8 with a scale"),
        (lambda t: t.pop("encoder.project.weight.int8"), "lacks tensor `encoder.project.weight`"),
        (lambda t: t.update({"encoder.project.weight.int8": t["encoder.project.weight.int8"].float()}), "must be int8 with a scale"),
        (lambda t: t.update({"encoder.project.weight.scale": torch.ones(3)}), "must be int8 with a scale"),
        (lambda t: t["encoder.project.weight.scale"].fill_(float("inf")), "must hold finite floats, but tensor `encoder.project.weight`"),
        (lambda t: t.update(spare=torch.zeros(1)), "has the unknown tensor `spare`"),
    ],
)  # fmt: skip
def test_damaged(folder, change, message):
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    record = json.loads((folder / "config.json").read_text())
    del record["hash"]
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError) as caught:
        SpeechTokenizer.from_pretrained(folder)
    text = one_line(caught, ConfigError)
    assert str(folder) in text and message in text


@pytest.mark.parametrize(
    ("weights", "message"),
    [("int4", "must have `weights` 'full' or 'int8', but has 'int4' instead"), ("full", "must hold finite floats"), (3, "but has 3 instead")],
)  # fmt: skip
def test_config_says_how_weights_are_stored(folder, weights, message):
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "weights": weights}))
    with pytest.raises(ConfigError) as caught:
        SpeechTokenizer.from_pretrained(folder)
    assert message in one_line(caught, ConfigError)
