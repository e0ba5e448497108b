"""The presets `paper`, `base`, `small`, `small-causal` and `tiny`: tokenizer, stage 1 and stage 2 of each.

`paper` is the published design; `small-causal` is `small` for streams (docs/streaming.md). Why the others look as they do: docs/architecture.md, "Where the budget goes".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jepa_tok.config import EncoderConfig, GeneratorConfig, QuantizerConfig, TokenizerConfig
from jepa_tok.errors import ConfigError
from jepa_tok.training_config import (
    AnchorConfig,
    CodecConfig,
    DiscriminatorConfig,
    JepaConfig,
    PredictorConfig,
)

PITCH_DIMS = 23
"""Of the 128 dimensions of a frame in all presets but `paper`: the digits of its last four tokens (docs/results/pitch.md)."""


def _paper() -> TokenizerConfig:
    return TokenizerConfig(name="paper")


def _mel_tokenizer(
    name: str,
    *,
    front: int,
    channels: list[int],
    blocks: list[int],
    attention: int,
    conformers: int,
    decoder: list[int],
    decoder_blocks: list[int],
    decoder_attention: int,
) -> TokenizerConfig:
    return TokenizerConfig(
        name=name,
        encoder=EncoderConfig(
            front="mel",
            front_hop=240,
            front_channels=front,
            channels=channels,
            strides=[1, 2, 2, 2, 5],
            blocks=blocks,
            block="convnext",
            stage_conformers=[0, 0, 0, attention, 0],
            conformers=conformers,
            conformer_heads=8,
            conformer_kernel=15,
            conformer_norm="step",
            pitch_dims=PITCH_DIMS,
            init="scaled",
        ),
        quantizer=QuantizerConfig(bound="norm"),
        generator=GeneratorConfig(
            input_channels=decoder[0],
            channels=decoder[1:],
            strides=[5, 2, 2, 2],
            block="convnext",
            blocks=decoder_blocks,
            stage_conformers=[decoder_attention, 0, 0, 0],
            conformer_heads=8,
            head="istft",
            head_hop=240,
            pitch_dims=PITCH_DIMS,
        ),
    )


def _base() -> TokenizerConfig:
    return _mel_tokenizer(
        "base", front=256, channels=[256, 448, 576, 640, 768], blocks=[4, 6, 5, 3, 3], attention=3, conformers=4,
        decoder=[768, 640, 640, 640, 640], decoder_blocks=[3, 3, 4, 9], decoder_attention=3,
    )  # fmt: skip


def _small() -> TokenizerConfig:
    return _mel_tokenizer(
        "small", front=128, channels=[128, 224, 288, 320, 512], blocks=[3, 4, 4, 2, 2], attention=1, conformers=2,
        decoder=[512, 320, 320, 320, 320], decoder_blocks=[2, 2, 3, 8], decoder_attention=1,
    )  # fmt: skip


def _small_causal() -> TokenizerConfig:
    config = _small()
    config.name = "small-causal"
    config.encoder.causal = config.generator.causal = True
    config.encoder.conformer_kernel = 7  # with the look-back of attention and gates, a frame hears less than 40 s
    return config


def _tiny() -> TokenizerConfig:
    return _mel_tokenizer(
        "tiny", front=48, channels=[48, 64, 96, 128, 192], blocks=[1, 1, 1, 1, 1], attention=1, conformers=1,
        decoder=[192, 128, 128, 128, 128], decoder_blocks=[1, 1, 1, 3], decoder_attention=1,
    )  # fmt: skip


PRESETS: Mapping[str, Callable[[], TokenizerConfig]] = {
    "paper": _paper,
    "base": _base,
    "small": _small,
    "small-causal": _small_causal,
    "tiny": _tiny,
}


def tokenizer_config(name: str) -> TokenizerConfig:
    """The preset called `name`; raises ConfigError for an unknown one."""
    try:
        return PRESETS[name]()
    except KeyError:
        raise ConfigError(f"`name` must be one of {', '.join(PRESETS)}, but is '{name}' instead.") from None


def jepa_config(name: str) -> JepaConfig:
    """Stage 1 for the preset `name`: the published objective for `paper`; otherwise the published masking with an anchor on log-mels and targets
    normalised over the clip, which docs/results/ablations.md finds best for a decoder.

    `anchor.kind` may be set to `posteriors`, which takes the number of `clusters` that is here.
    """
    encoder = tokenizer_config(name).encoder
    if name == "paper":
        return JepaConfig(encoder=encoder)
    sizes = {"base": (384, 512), "small": (256, 256), "small-causal": (256, 256), "tiny": (128, 64)}
    width, clusters = sizes[name]
    return JepaConfig(
        encoder=encoder,
        predictor=PredictorConfig(dim=width, heads=8),
        anchor=AnchorConfig(kind="features", clusters=clusters),
        target_norm="clip",
    )


def codec_config(name: str) -> CodecConfig:
    """Stage 2 for the preset `name`."""
    width = {"paper": 1.0, "base": 1.0, "small": 0.5, "small-causal": 0.5, "tiny": 0.125}
    tokenizer = tokenizer_config(name)
    return CodecConfig(tokenizer=tokenizer, discriminator=DiscriminatorConfig(width=width[name]))
