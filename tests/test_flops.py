"""The price of the presets, and the counting of it: benchmarks/flops.py."""

from __future__ import annotations

import pytest
import torch

from benchmarks import flops
from jepa_tok.models.codec import Codec
from jepa_tok.presets import tokenizer_config
from jepa_tok.training_config import CodecConfig


@pytest.mark.parametrize("name", ["base", "small"])
def test_presets_keep_to_their_budgets(name: str) -> None:
    """GFLOP per second of audio on a clip of 10 s: encoding and decoding, all convolutions, products and attention."""
    encode, decode = flops.BUDGETS[name]
    config = tokenizer_config(name)
    result = flops.measure(config)
    assert result["encoder"]["gflop_per_second"] <= encode
    assert result["generator"]["gflop_per_second"] <= decode
    for side in ("encoder", "generator"):  # nothing is counted twice or lost on the way to the table
        parts = result[side]["parts"].values()
        assert sum(parts) == pytest.approx(result[side]["gflop_per_second"], rel=0.02)
    with torch.device("meta"):
        codec = Codec(CodecConfig(tokenizer=config))
    assert result["generator"]["parameters"] == sum(p.numel() for p in codec.generator.parameters())


def test_flops_of_a_known_stack() -> None:
    """Two FLOPs for each multiplication with addition: a convolution and a product counted by hand."""
    conv, linear = torch.nn.Conv1d(3, 5, 7, padding=3), torch.nn.Linear(5, 11)
    counts = flops.count(conv, lambda: linear(conv(torch.zeros(2, 3, 13)).transpose(1, 2)))
    assert counts[""] == 2 * 2 * 13 * (3 * 5 * 7 + 5 * 11)
