"""Discriminators: published sizes, independence of padding, any length."""

from __future__ import annotations

import pytest
import torch

from jepa_tok.errors import ConfigError
from jepa_tok.models.discriminator import Discriminator
from jepa_tok.training_config import DiscriminatorConfig

SMALL = DiscriminatorConfig(periods=[2, 5], scales=3, width=0.125)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_numbers_of_parameters() -> None:
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig())
    assert count(discriminator.periods) == 41_092_165
    assert count(discriminator.scales) == 16_913_859


@pytest.mark.parametrize("width", [0.03, 0.0625, 0.125, 0.3, 0.5, 0.75, 1.5, 2.0])
def test_any_width_builds(width: float) -> None:
    with torch.device("meta"):
        narrow = Discriminator(DiscriminatorConfig(width=width))
        maps = narrow(torch.zeros(1, 4000))
        full = Discriminator(DiscriminatorConfig())
    assert len(maps) == 8
    assert (count(narrow) < count(full)) == (width < 1)


@pytest.mark.parametrize("width", [0.125, 1.0])
def test_an_untrained_one_hears_speech_at_its_usual_level(width: float) -> None:
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(2, 6000)
    with torch.inference_mode():
        for maps in Discriminator(DiscriminatorConfig(width=width))(wave):
            assert 0.008 < float(maps[-1].values.std()) < 1.0  # logits are to reach 0 and 1; .001 at torch's default


@pytest.mark.parametrize("samples", [1, 2, 7, 100, 4001])
def test_any_length_is_judged(samples: int) -> None:
    discriminator = Discriminator(SMALL)
    for maps in discriminator(torch.randn(2, samples)):
        logits = maps[-1].values
        assert logits.shape[:2] == (2, 1)
        assert logits.numel() > 0
        assert all(m.values.isfinite().all() for m in maps)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(SMALL).eval()
    lengths = torch.tensor([3000, 1, 1777, 2048])
    wave = torch.zeros(4, 3000)
    for i, n in enumerate(lengths.tolist()):
        wave[i, :n] = torch.randn(n)
    with torch.inference_mode():
        batch = discriminator(wave, lengths)
        for i, n in enumerate(lengths.tolist()):
            alone = discriminator(wave[i : i + 1, :n])
            for together, single in zip(batch, alone, strict=True):
                for a, b in zip(together, single, strict=True):
                    steps = b.values.shape[2]
                    assert a.lengths is not None and a.lengths[i] == steps
                    torch.testing.assert_close(a.values[i : i + 1, :, :steps], b.values, atol=1e-5, rtol=1e-5)
                    assert a.values[i, :, steps:].eq(0).all()


def test_a_period_discriminator_sees_columns_apart() -> None:
    """A change of one sample moves the logits of its own column alone."""
    discriminator = Discriminator(DiscriminatorConfig(periods=[5], scales=0, width=0.125))
    wave = torch.randn(1, 500)
    changed = wave.clone()
    changed[0, 252] += 1.0
    before, after = discriminator(wave)[0][-1].values, discriminator(changed)[0][-1].values
    moved = (before != after).any(dim=2).squeeze()
    assert moved.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("changes", [{"width": 0.0}, {"scales": -1}, {"periods": [0]}, {"periods": [], "scales": 0}])
def test_senseless_configs_are_refused(changes: dict) -> None:
    with pytest.raises(ConfigError, match="discriminator"):
        Discriminator(DiscriminatorConfig(**changes))
