"""jepa_tok.models.grow: a grown tokenizer speaks as the small one does, and its copies can part."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from jepa_tok import SpeechTokenizer
from jepa_tok.errors import ConfigError
from jepa_tok.models import grow as module
from jepa_tok.models.conformer import ConformerBlock
from jepa_tok.models.encoder import StridedConv
from jepa_tok.models.grow import Widening, _taps, grow
from jepa_tok.models.layers import TimeConv
from jepa_tok.models.logmel import LogMel
from jepa_tok.presets import tokenizer_config
from recipes.codec.grow import main
from tests.tokenizers import one_line, paper_layout, speech


def thin(times=1, *, deep=False, causal=False):
    """`tiny`, thinner, or `times` as wide."""
    config = tokenizer_config("tiny")
    config.name = "thin"
    encoder, generator = config.encoder, config.generator
    encoder.n_mels, encoder.front_channels = 20, 8 * times
    encoder.channels = [width * times for width in (8, 12, 8, 16, 24)]
    generator.input_channels, generator.channels = 16 * times, [width * times for width in (16, 8, 12, 8)]
    encoder.causal = generator.causal = causal
    encoder.pitch_dims = generator.pitch_dims = 0
    if deep:
        encoder.blocks, encoder.conformers = [2, 1, 1, 1, 3], 3
        encoder.stage_conformers, generator.blocks = [0, 0, 0, 2, 0], [2, 1, 1, 4]
    return config


@pytest.fixture(scope="module")
def small():
    """With values in every parameter that a new model has at 0 or 1."""
    tokenizer = SpeechTokenizer.from_config(thin(), seed=3)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in tokenizer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return tokenizer


def reconstruct(tokenizer, samples=70_000):
    with torch.inference_mode():
        z = tokenizer.encoder(speech(samples)[None]).latents
        return z, tokenizer.generator(torch.tanh(z))


@pytest.mark.parametrize("deep", [False, True])
def test_without_noise_twice_the_width_is_the_same_function(small, deep, monkeypatch):
    monkeypatch.setattr(module, "NOISE", 0.0)
    large = grow(small, thin(2, deep=deep))
    for ours, theirs in zip(reconstruct(small), reconstruct(large)):
        torch.testing.assert_close(theirs, ours, atol=2e-3, rtol=2e-3)
    assert torch.equal(large.fsq.scale, small.fsq.scale)


def test_a_trained_tokenizer_keeps_most_codes_and_its_sound():
    tiny = SpeechTokenizer.from_pretrained("tiny")
    small = grow(tiny, tokenizer_config("small"))
    logmel = LogMel(24_000, 1024, 240, 128)
    wave = speech(60_000)
    tokens, grown = tiny.encode(wave), small.encode(wave)
    changed = (tiny.fsq.unpack(tokens.ids) != small.fsq.unpack(grown.ids)).float().mean()
    assert 0.0 < changed < 0.2  # of codes; unrelated ones differ in .75
    ours, theirs = (logmel(m.decode(t)[None]) for m, t in ((tiny, tokens), (small, grown)))
    assert (ours - theirs).abs().mean() * LogMel.DEVIATION < 0.3  # nats; of real speech both are .45 away


def test_copies_get_gradients_of_their_own(small):
    large = grow(small, thin(2))
    large.encoder(speech(30_000)[None]).latents.square().sum().backward()
    gradient = large.encoder.stages[1].conv.weight.grad.flatten(1)
    first, second = gradient[:12], gradient[12:]  # the two copies of each channel
    assert torch.all(F.cosine_similarity(first, second) < 0.99999)


def test_shares_sum_to_one_and_cancel_the_noise():
    rng = torch.Generator().manual_seed(0)
    widening = Widening.draw(5, 13, rng)
    assert set(widening.source.bincount().tolist()) == {2, 3}
    weight = torch.randn(5, 4, generator=rng)
    wide = widening.write(weight, rng)
    assert not torch.allclose(wide, weight[widening.source], atol=0.05)
    back = torch.zeros(5, 4).index_add_(0, widening.source, wide * widening.share[:, None])
    torch.testing.assert_close(back, weight)
    torch.testing.assert_close(widening.read(torch.eye(5), 1).sum(1), torch.ones(5))


def test_a_new_conformer_adds_nothing():
    config = thin()
    deep = thin(deep=True)
    small = SpeechTokenizer.from_config(config, seed=1)
    large = grow(small, deep)
    assert len(large.encoder.conformers) == 3
    x = torch.randn(2, 7, 128)
    block, *more = large.encoder.conformers
    assert isinstance(block, ConformerBlock)
    with torch.inference_mode():
        ours = small.encoder.conformers[0].eval()(x)
        theirs = block.eval()(x)
        for other in more:
            theirs = other.eval()(theirs)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda c: TimeConv(2, 3, 7, causal=c), lambda c: StridedConv(2, 3, 4, c), lambda c: StridedConv(2, 3, 1, c)])  # fmt: skip
def test_a_causal_convolution_keeps_the_taps_that_look_back(make):
    torch.manual_seed(0)
    centred, causal = make(False), make(True)
    stride = causal.stride[0]
    with torch.no_grad():
        causal.weight.copy_(_taps(centred.weight, centred, causal))
        causal.bias.copy_(centred.bias)
        x = torch.randn(1, 2, 24)
        for step in range(24 // stride):
            past = x.clone()
            past[..., (step + 1) * stride :] = 0.0
            torch.testing.assert_close(causal(x)[..., step], centred(past)[..., step])


def test_a_causal_tokenizer_can_be_grown_of_one_that_is_not(small):
    large = grow(small, thin(2, causal=True))
    again = grow(large, thin(2, causal=True))
    for ours, theirs in zip(reconstruct(large), reconstruct(again)):
        assert torch.equal(theirs, ours)
        assert torch.isfinite(ours).all()


def with_pitch(times=1):
    config = thin(times)
    config.encoder.pitch_dims = config.generator.pitch_dims = 23
    return config


def test_pitch_may_be_new_and_stays_where_it_is_known(small, monkeypatch):
    monkeypatch.setattr(module, "NOISE", 0.0)
    known = grow(small, with_pitch())
    with torch.no_grad():
        for p in known.generator.parameters():
            p.add_(0.05 * torch.randn_like(p))
    assert not grow(small, with_pitch(2)).generator.project.weight[:, -23:].any()
    large = grow(known, with_pitch(2))
    assert large.generator.project.weight[:, -23:].any()
    for ours, theirs in zip(reconstruct(known), reconstruct(large)):
        torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=1e-3)
    with pytest.raises(
        ConfigError, match=r"encoder `pitch_dims` must be those of the small tokenizer \(23\), but are 0 instead"
    ):
        grow(known, thin(2))


def test_what_does_not_fit_is_refused_in_one_line(small):
    narrow, other, paper = thin(), thin(2), paper_layout()
    narrow.encoder.channels = [8, 12, 8, 8, 24]
    other.quantizer.levels = [5]
    for config, field in ((narrow, "encoder `channels`"), (other, "quantizer `levels`"), (paper, "encoder `front`")):
        with pytest.raises(ConfigError) as error:
            grow(small, config)
        assert field in one_line(error, ConfigError)
    with pytest.raises(ConfigError) as error:
        grow(SpeechTokenizer.from_config(paper), copy.deepcopy(paper))
    assert "`mel` front" in one_line(error, ConfigError)
    bare = thin()
    bare.generator.stage_conformers = [0, 0, 0, 0]
    with pytest.raises(ConfigError) as error:
        grow(SpeechTokenizer.from_config(bare), thin())
    assert "generator `stage_conformers`" in one_line(error, ConfigError)


def test_the_command_writes_a_folder_of_the_larger_preset(small, tmp_path, capsys):
    assert main(["tiny", str(tmp_path / "grown"), "--arch", "small"]) == 0
    grown = SpeechTokenizer.from_pretrained(tmp_path / "grown")
    assert grown.config.encoder == tokenizer_config("small").encoder
    assert grown.hash in capsys.readouterr().out
    assert main([str(tmp_path / "none"), str(tmp_path / "x")]) == 2
    assert main(["tiny", str(tmp_path / "x"), "--arch", "paper"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert not (tmp_path / "x").exists()
