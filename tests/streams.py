"""Small causal models, and how clips are cut into pieces, for tests of streams."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.generator import Generator
from jepa_tok.tokenizer import SpeechTokenizer

HOP = 240
MEL = EncoderConfig(
    front="mel", front_hop=60, n_fft=256, n_mels=16, front_channels=8, channels=[8, 12], strides=[1, 4], blocks=[1, 1],
    block="convnext", stage_conformers=[0, 1], latent_dim=16, conformers=1, conformer_heads=4, conformer_kernel=5,
    conformer_norm="step", init="scaled", causal=True, lookback=0.05,
)  # fmt: skip
WAVE = replace(
    MEL, front="wave", front_hop=1, strides=[16, 15], block="hifigan", blocks=[2, 3], stage_conformers=[0, 0]
)
ISTFT = GeneratorConfig(
    latent_dim=16, input_channels=16, channels=[12, 8], strides=[2, 2], block="convnext", blocks=[1, 2],
    stage_conformers=[1, 0], conformer_heads=4, head="istft", head_hop=60, n_fft=256, daam=True, causal=True, lookback=0.05,
)  # fmt: skip
MRF = replace(
    ISTFT, strides=[15, 16], block="mrf", kernels=[3, 7], dilations=[1, 3], head="wave", head_hop=1, daam=False
)
LONG_WINDOW = replace(ISTFT, n_fft=1000)  # its delay is longer than a frame

ENCODERS = {"mel": MEL, "wave": WAVE}
GENERATORS = {"istft": ISTFT, "mrf": MRF, "long": LONG_WINDOW}


@cache
def encoder(name: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(ENCODERS[name]).eval()


@cache
def generator(name: str) -> Generator:
    torch.manual_seed(0)
    made = Generator(GENERATORS[name]).eval()
    with torch.no_grad():  # biases start at zero, where a forgotten mask would not show
        for parameter, values in made.named_parameters():
            if parameter.endswith("bias"):
                values.uniform_(-0.3, 0.3)
    return made


@cache
def tokenizer(causal: bool = True) -> SpeechTokenizer:
    config = TokenizerConfig(
        name="toy",
        encoder=replace(MEL, causal=causal),
        quantizer=QuantizerConfig(dim=16, bound="norm"),
        generator=replace(ISTFT, causal=causal),
    )
    return SpeechTokenizer.from_config(config)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cut(length: int, cuts: list[int]) -> list[tuple[int, int]]:
    """Pieces of [0, length) between the cuts; equal cuts make empty ones."""
    edges = [0, *sorted(min(c, length) for c in cuts), length]
    return list(pairwise(edges))
