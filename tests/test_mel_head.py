"""MelHead: its windows, and its fit to a generator that is trained already; what it teaches is tested in test_codec.py."""

from __future__ import annotations

import pytest
import torch

from jepa_tok.config import GeneratorConfig
from jepa_tok.models.mel_head import MelHead
from jepa_tok.presets import tokenizer_config


@pytest.mark.parametrize(
    "strides, head_hop, stage, windows, hop",
    [([5, 2, 2, 2], 240, 2, 4, 240), ([6, 5, 5, 8, 8], 1, 1, 8, 200), ([6, 5, 5, 8, 8], 1, 5, 1, 1)],
)
def test_windows_of_the_mel_head_fill_a_step_exactly(strides, head_hop, stage, windows, hop) -> None:
    config = GeneratorConfig(strides=strides, channels=[16] * len(strides), head_hop=head_hop)
    head = MelHead(config, stage)
    assert (head.windows, head.logmel.hop) == (windows, hop)
    x, wave = torch.zeros(1, 16, 3), torch.zeros(1, 3 * windows * hop)
    assert head(x).shape == (1, *head.logmel(wave).shape[1:])


def test_a_fitted_head_tells_what_a_linear_layer_can() -> None:
    torch.manual_seed(0)
    head = MelHead(tokenizer_config("tiny").generator, 2)
    x = 3.0 * torch.randn(2_000, 128)
    truth = torch.randn(128, head.windows * 128) / 128**0.5
    with torch.no_grad():
        logmel = head.norm(x[:, :, None])[:, :, 0] @ truth + 0.5
        head.fit(x, logmel)
        told = head(x.T[None])[0].unflatten(0, (-1, head.windows)).flatten(1)
    assert (told - logmel).abs().mean() < 0.01


def test_steps_that_stand_still_are_no_obstacle() -> None:
    head = MelHead(tokenizer_config("tiny").generator, 2)
    head.fit(torch.ones(50, 128), torch.full((50, head.windows * 128), 0.25))
    torch.testing.assert_close(head(torch.ones(1, 128, 3)), torch.full((1, 3 * head.windows, 128), 0.25))


def test_with_an_exponent_loud_mels_count_for_more_and_even_errors_for_the_same() -> None:
    config = tokenizer_config("tiny").generator
    plain, weighted = MelHead(config, 2), MelHead(config, 2, exponent=0.46)
    weighted.load_state_dict(plain.state_dict())
    hop = plain.windows * plain.logmel.hop
    x, wave, lengths = torch.randn(2, 128, 4), torch.zeros(2, 4 * hop), torch.tensor([4 * hop, 2 * hop])
    heard = torch.randn(2, 4 * plain.windows, 128)
    with torch.no_grad():
        told = plain(x)
        even = torch.where(torch.rand(told.shape) < 0.5, told + 0.2, told - 0.2)
        for head in (plain, weighted):
            assert float(head.loss(x, wave, lengths, even)) == pytest.approx(0.5, rel=1e-4)
        loud, soft = heard.clone(), heard.clone()
        loud[..., :64], soft[..., :64] = (
            told[..., :64] + 0.4,
            told[..., :64] - 0.4,
        )  # off by as much, where it is loud or soft
        loud[..., 64:], soft[..., 64:] = told[..., 64:], told[..., 64:]
        assert float(plain.loss(x, wave, None, loud)) == pytest.approx(float(plain.loss(x, wave, None, soft)), rel=1e-4)
        assert float(weighted.loss(x, wave, None, loud)) > 1.3 * float(weighted.loss(x, wave, None, soft))
        alone = weighted.loss(x[1:, :, :2], wave[1:, : 2 * hop], None, heard[1:, : 2 * plain.windows])
        both = weighted.loss(x, wave, lengths, heard)
        first = weighted.loss(x[:1], wave[:1], None, heard[:1])
        assert float(both) == pytest.approx(float(2 * first + alone) / 3, rel=1e-4)
