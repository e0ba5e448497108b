"""Gates that DAAM is compared with: sizes, gradients, indifference to padding, streams, and names of tokenizers that stay."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from jepa_tok.config_dict import differences, from_dict, to_dict
from jepa_tok.errors import ConfigError
from jepa_tok.models.causal import StreamState
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.gates import make_gate
from jepa_tok.presets import PRESETS, tokenizer_config
from tests.test_encoder import toy

OTHERS = ["sigmoid", "squeeze-excite", "static"]


@pytest.mark.parametrize(
    "gate, size", [("daam", 10 + 2 * 4 + 2), ("sigmoid", 12), ("squeeze-excite", 22), ("static", 11)]
)
def test_sizes_are_those_that_are_told(gate: str, size: int) -> None:
    made = make_gate(toy(gate=gate), 10, None)
    assert made is not None and sum(p.numel() for p in made.parameters()) == size
    assert make_gate(toy(gate=gate, daam=False), 10, None) is None


def test_each_gate_equals_its_formula() -> None:
    x = torch.randn(1, 4, 6)
    made = {gate: make_gate(toy(gate=gate), 4, None) for gate in OTHERS}
    for gate in made.values():
        for p in gate.parameters():
            torch.nn.init.normal_(p)
    sigmoid, squeeze, static = made.values()
    scores = torch.stack(
        [
            sum(sigmoid.project.weight[0, c, 0] * x[0, c, t] for c in range(4)) + sigmoid.project.bias[0]
            for t in range(6)
        ]
    )
    unit = torch.tanh((squeeze.squeeze.weight[0] * x[0].mean(1)).sum() + squeeze.squeeze.bias[0])
    expected = {
        "sigmoid": torch.sigmoid(scores)[None],
        "squeeze-excite": torch.sigmoid(squeeze.excite.weight[:, 0] * unit)[:, None],
        "static": torch.sigmoid(static.logits)[:, None],
    }
    for name, g in expected.items():
        gated, density = made[name](x)
        torch.testing.assert_close(gated, x * (1 + made[name].alpha * g))
        assert density is None


@pytest.mark.parametrize("gate", OTHERS)
def test_encoder_gives_a_clip_the_same_frames_alone_and_padded(gate: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(toy(gate=gate)).eval()
    for p in encoder.parameters():
        torch.nn.init.normal_(p, std=0.1) if p.ndim == 0 else None  # alphas that count
    wave = torch.randn(2, 2000)
    lengths = torch.tensor([2000, 1111])
    with torch.inference_mode():
        together, alone = encoder(wave, lengths), encoder(wave[1:, :1111])
    frames = int(together.lengths[1])
    torch.testing.assert_close(together.latents[1, :frames], alone.latents[0], atol=1e-5, rtol=1e-4)
    assert encoder(wave, return_gates=True).gates == []


@pytest.mark.parametrize("gate", OTHERS)
def test_every_parameter_of_a_gate_gets_a_gradient(gate: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(toy(gate=gate))
    encoder(torch.randn(2, 2000)).latents.square().sum().backward()
    found = {name: p.grad for name, p in encoder.named_parameters() if ".gate." in name}
    assert len(found) >= 4 and all(g is not None and g.abs().max() > 0 for g in found.values())


@pytest.mark.parametrize("gate", ["sigmoid", "static"])
def test_causal_gates_give_a_stream_what_the_whole_clip_gets(gate: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(toy("mel-causal", gate=gate)).eval()
    wave, hop, state = torch.randn(1, 12 * 240), 240, StreamState()
    with torch.inference_mode():
        whole = encoder(wave).latents
        pieces = [encoder(piece, state=state).latents for piece in wave.split(3 * hop, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"hear no clip's end where `causal` is true, but is `squeeze-excite`"):
        toy("mel-causal", gate="squeeze-excite").check()
    toy("mel-causal", gate="squeeze-excite", daam=False).check()
    with pytest.raises(ConfigError, match=r"`gate` must be one of daam, .* but is 'loud' instead"):
        toy(gate="loud").check()


def test_names_of_tokenizers_stay() -> None:
    """What a hash counts of each preset's config does not move when a field is added whose default is what was done before."""
    digests = {
        name: hashlib.sha256(
            json.dumps(differences(tokenizer_config(name)), sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()[:16]
        for name in PRESETS
    }
    assert digests == {
        "paper": "44136fa355b3678a", "base": "33c2cfa4be5fbb4a", "small": "d14eecc4460abff7",
        "small-causal": "58a94e37ec55c910", "tiny": "574eb68ff37314f3",
    }  # fmt: skip
    config = tokenizer_config("tiny")
    saved = to_dict(config)
    del saved["encoder"]["gate"]  # as an earlier version wrote it
    assert from_dict(type(config), saved) == config
    config.encoder.gate = "static"
    assert differences(config)["encoder"]["gate"] == "static"
