"""Clips and small tokenizers that tests share."""

from __future__ import annotations

import math

import torch

from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig

HOP = 9600


def voice(pitch, samples=24_000):
    """Ten harmonics [S] that fall as a voice's do, of one pitch or of one for each sample."""
    cycles = (torch.as_tensor(pitch, dtype=torch.float64) / 24_000).expand(samples).cumsum(0)
    return 0.05 * torch.stack([torch.sin(2 * math.pi * k * cycles + k) / k for k in range(1, 11)]).sum(0).float()


def speech(samples, seed=0):
    """Noise under a slow envelope: unlike a sine, no frame is like another."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(samples, generator=generator)
    return 0.1 * noise * (1.2 + torch.sin(torch.arange(samples) / 3000 + seed))


def paper_layout():
    """The published layout (samples in, MRF and tanh out, tanh bound), thin, at 50 Hz, with mixed levels."""
    return TokenizerConfig(
        name="thin",
        encoder=EncoderConfig(
            front_channels=4,
            channels=[8, 8, 12],
            strides=[8, 5, 12],
            blocks=[1, 1, 2],
            stage_conformers=[0, 0, 0],
            latent_dim=12,
            conformers=1,
            conformer_heads=2,
        ),
        quantizer=QuantizerConfig(dim=12, levels=[4, 4, 4, 2, 3, 8, 5, 4, 4, 4, 4, 4], group_size=5),
        generator=GeneratorConfig(
            latent_dim=12,
            input_channels=12,
            channels=[8, 8, 4],
            strides=[12, 5, 8],
            blocks=[1, 1, 1],
            stage_conformers=[0, 0, 0],
        ),
    )


def one_line(error, kind):
    """The message of an error of that kind, which must be one line."""
    assert isinstance(error.value, kind)
    assert "\n" not in str(error.value)
    return str(error.value)
