"""Configurations of the tokenizer's models; those of its training are in `training_config.py`.

Defaults are the paper's (arXiv 2512.07168, sections 3 and 4); a preset (`presets.py`) or a yaml file holds only what differs.
The dataclasses know nothing of torch or fairseq2, so that `jepa-tok --help` starts at once.

    B clips   S samples at 24 kHz   T frames at 2.5 Hz   D code dimensions   G tokens per frame
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from jepa_tok.errors import ConfigError

Gate = Literal["daam", "sigmoid", "squeeze-excite", "static"]


def _check_lookback(name: str, seconds: float) -> None:
    if not 0.0 < seconds < math.inf:
        raise ConfigError(f"{name} `lookback` must be a positive number of seconds, but is {seconds} instead.")


def _check_pitch(name: str, dims: int, latent_dim: int, sample_rate: int, hop: int) -> None:
    if not (dims == 0 or 2 <= dims <= latent_dim - 2):
        raise ConfigError(f"{name} `pitch_dims` must be 0 or lie in [2, {latent_dim - 2}], but is {dims} instead.")
    if dims and (sample_rate % 100 or hop % (sample_rate // 100)):
        raise ConfigError(
            f"{name} `pitch_dims` must be 0 where a frame is no whole number of 10 ms, but is {dims} instead."
        )


@dataclass(kw_only=True)
class EncoderConfig:
    """Waveform to latent frames: front, strided stages, 1x1 projection, Conformers."""

    sample_rate: int = 24_000
    """Samples per second of the input."""

    front: Literal["wave", "mel"] = "wave"
    """`wave`: Conv1d k7 on samples (paper). `mel`: log-mel filterbank, then Conv1d k3, at `front_hop`."""

    front_hop: int = 1
    """Samples per step after the front; 1 for `wave`."""

    n_fft: int = 1024
    """Window of the `mel` front, in samples."""

    n_mels: int = 128
    """Filters of the `mel` front."""

    input_gain: float = 1.0
    """Fixed gain on samples (`wave` front); a fixed one, unlike RMS normalisation, keeps loudness in the tokens."""

    front_channels: int = 64
    """Channels after the front."""

    channels: list[int] = field(default_factory=lambda: [128, 256, 384, 512, 512])
    """Channels of each stage."""

    strides: list[int] = field(default_factory=lambda: [8, 8, 5, 5, 6])
    """Stride of each stage; their product times `front_hop` is the hop of a frame."""

    blocks: list[int] = field(default_factory=lambda: [8, 8, 8, 8, 8])
    """Residual blocks in each stage."""

    block: Literal["hifigan", "convnext"] = "hifigan"
    """`hifigan`: three dilated conv pairs, dilations 1, 3^i, 5^i (paper). `convnext`: depthwise k7 + pointwise pair."""

    expansion: int = 3
    """Width of a `convnext` block's pointwise pair, as a multiple of its channels."""

    daam: bool = True
    """Whether a gate closes each stage: Density Adaptive Attention, or what `gate` names."""

    gate: Gate = "daam"
    """Which: `daam` (paper), or one of about its size for comparison (`models/gates.py`)."""

    num_gaussians: int = 4
    """Gaussians of each gate (K)."""

    stage_conformers: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0])
    """Conformer blocks after each stage, at that stage's rate and width."""

    latent_dim: int = 128
    """Dimensions of a latent frame (D)."""

    pitch_dims: int = 0
    """How many of them, the last ones, are made of the tracked pitch alone (P); 0: none (paper). 23 are the last 4 tokens of a frame."""

    conformers: int = 8
    """Conformer blocks at the frame rate, after the projection."""

    conformer_heads: int = 16
    """Attention heads of every Conformer block."""

    conformer_kernel: int = 31
    """Depthwise kernel of every Conformer block, in steps."""

    conformer_norm: Literal["clip", "step"] = "clip"
    """Norm in the Conformer's conv module: over a whole clip (paper: GroupNorm of one group) or over each step alone."""

    dropout: float = 0.1
    """Dropout in Conformer blocks while training."""

    causal: bool = False
    """Whether a frame hears nothing behind itself: every layer looks back alone, and streams run piece by piece."""

    lookback: float = 3.0
    """Seconds that attention and DAAM statistics of a causal encoder look back."""

    init: Literal["trunc_normal", "scaled"] = "trunc_normal"
    """`trunc_normal`: std 0.02 everywhere (paper's code; the signal fades through the stages). `scaled`: fan-in scaled."""

    @property
    def hop(self) -> int:
        """Samples per latent frame (9,600 at 2.5 Hz)."""
        return self.front_hop * math.prod(self.strides)

    @property
    def frame_rate(self) -> float:
        """Latent frames per second."""
        return self.sample_rate / self.hop

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        n = len(self.strides)
        for name in ("channels", "blocks", "stage_conformers"):
            if len(getattr(self, name)) != n:
                raise ConfigError(
                    f"encoder `{name}` must have {n} entries, one a stage, but has {len(getattr(self, name))} instead."
                )
        if self.gate not in get_args(Gate):
            raise ConfigError(
                f"encoder `gate` must be one of {', '.join(get_args(Gate))}, but is '{self.gate}' instead."
            )
        if self.causal and self.daam and self.gate == "squeeze-excite":
            raise ConfigError("encoder `gate` must hear no clip's end where `causal` is true, but is `squeeze-excite` instead.")  # fmt: skip
        if self.causal and self.conformer_norm != "step":
            raise ConfigError(
                f"encoder `conformer_norm` must be `step` where `causal` is true, but is `{self.conformer_norm}` instead "
                "(it hears the clip's end)."
            )
        if self.causal and self.front == "mel" and self.n_fft < self.front_hop:
            raise ConfigError(
                f"encoder `n_fft` must be at least `front_hop` ({self.front_hop}) where `causal` is true, but is {self.n_fft} instead."
            )
        _check_lookback("encoder", self.lookback)
        _check_pitch("encoder", self.pitch_dims, self.latent_dim, self.sample_rate, self.hop)
        if self.front == "wave" and self.front_hop != 1:
            raise ConfigError(f"encoder `front_hop` must be 1 for the `wave` front, but is {self.front_hop} instead.")
        for i, (width, layers) in enumerate(zip(self.channels, self.stage_conformers)):
            if layers and width % self.conformer_heads:
                raise ConfigError(
                    f"encoder `channels[{i}]` must be a multiple of `conformer_heads` ({self.conformer_heads}), but is {width} instead."
                )
        if self.conformers and self.latent_dim % self.conformer_heads:
            raise ConfigError(
                f"encoder `latent_dim` must be a multiple of `conformer_heads` ({self.conformer_heads}), but is {self.latent_dim} instead."
            )


@dataclass(kw_only=True)
class QuantizerConfig:
    """Finite scalar quantisation and mixed-radix packing (paper, section 3.3)."""

    dim: int = 128
    """Dimensions that are quantised (D); equals the encoder's `latent_dim`."""

    levels: list[int] = field(default_factory=lambda: [4])
    """Levels of each dimension: one entry for all of them, or one for each."""

    bound: Literal["tanh", "norm"] = "tanh"
    """What bounds z before rounding: `tanh` (paper) or `norm`: normalise each frame, learned scale, then tanh."""

    group_size: int = 7
    """Digits in a token."""

    @property
    def radices(self) -> list[int]:
        """Levels of each of the D dimensions."""
        return list(self.levels) * self.dim if len(self.levels) == 1 else list(self.levels)

    @property
    def vocab_sizes(self) -> list[int]:
        """Number of ids of each of the G tokens of a frame: product of the radices of its digits."""
        r = self.radices
        return [math.prod(r[i : i + self.group_size]) for i in range(0, self.dim, self.group_size)]

    @property
    def num_groups(self) -> int:
        """Tokens per frame (G)."""
        return math.ceil(self.dim / self.group_size)

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        if self.dim < 1 or self.group_size < 1:
            raise ConfigError(
                f"quantizer `dim` and `group_size` must be at least 1, but are {self.dim} and {self.group_size} instead."
            )
        if len(self.levels) not in (1, self.dim):
            raise ConfigError(
                f"quantizer `levels` must have 1 or `dim` ({self.dim}) entries, but has {len(self.levels)} instead."
            )
        if min(self.levels) < 2:
            raise ConfigError(
                f"quantizer `levels` must be at least 2 each, but the least is {min(self.levels)} instead."
            )
        if max(self.vocab_sizes) > 2**62:
            raise ConfigError(
                f"quantizer `group_size` of {self.group_size} makes tokens wider than 62 bits; take a smaller one."
            )


@dataclass(kw_only=True)
class GeneratorConfig:
    """Latent frames to waveform: 1x1 projection, upsampling stages, output head (HiFi-GAN, arXiv 2010.05646)."""

    latent_dim: int = 128
    """Dimensions of a latent frame (D)."""

    sample_rate: int = 24_000
    """Samples per second of the output."""

    input_channels: int = 512
    """Channels after the projection."""

    channels: list[int] = field(default_factory=lambda: [512, 384, 256, 128, 64])
    """Channels after each upsampling stage."""

    strides: list[int] = field(default_factory=lambda: [6, 5, 5, 8, 8])
    """Upsampling factor of each stage (the encoder's, mirrored)."""

    block: Literal["mrf", "convnext"] = "mrf"
    """`mrf`: multi-receptive-field fusion (paper). `convnext`: depthwise k7 + pointwise pair."""

    kernels: list[int] = field(default_factory=lambda: [3, 7, 11])
    """Kernels of `mrf`."""

    dilations: list[int] = field(default_factory=lambda: [1, 3, 5])
    """Dilations of `mrf`."""

    blocks: list[int] = field(default_factory=lambda: [1, 1, 1, 1, 1])
    """Blocks in each stage (`mrf`: 1 is the paper's)."""

    expansion: int = 3
    """Width of a `convnext` block's pointwise pair, as a multiple of its channels."""

    stage_conformers: list[int] = field(default_factory=lambda: [0, 0, 0, 0, 0])
    """Conformer blocks in each stage, after its blocks."""

    conformer_heads: int = 16
    """Attention heads of the Conformer blocks."""

    daam: bool = False
    """Whether a gate closes each stage (the paper has none in the decoder)."""

    head: Literal["wave", "istft"] = "wave"
    """`wave`: Conv1d k7 + tanh (paper). `istft`: magnitude and phase of an inverse STFT (Vocos, arXiv 2306.00814)."""

    head_hop: int = 1
    """Samples per step of the `istft` head; 1 for `wave`."""

    n_fft: int = 1024
    """Window of the `istft` head, in samples."""

    pitch_dims: int = 0
    """How many of the latent's last dimensions tell pitch and voicing, by which the `istft` head gets a harmonic source (P); 0: none (paper)."""

    causal: bool = False
    """Whether a sample depends on nothing behind itself: every layer looks back alone, and streams run piece by piece."""

    lookback: float = 3.0
    """Seconds that attention and DAAM statistics of a causal generator look back."""

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return self.head_hop * math.prod(self.strides)

    @property
    def delay(self) -> int:
        """Samples that a causal generator's wave comes late in a stream: windows of the `istft` head are centred."""
        return (self.n_fft - self.head_hop) // 2 if self.head == "istft" else 0

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        n = len(self.strides)
        for name in ("channels", "blocks", "stage_conformers"):
            if len(getattr(self, name)) != n:
                raise ConfigError(
                    f"generator `{name}` must have {n} entries, one a stage, but has {len(getattr(self, name))} instead."
                )
        _check_lookback("generator", self.lookback)
        _check_pitch("generator", self.pitch_dims, self.latent_dim, self.sample_rate, self.hop)
        if self.pitch_dims and self.head == "wave":
            raise ConfigError(
                f"generator `pitch_dims` must be 0 for the `wave` head, but is {self.pitch_dims} instead."
            )
        if self.head == "wave" and self.head_hop != 1:
            raise ConfigError(f"generator `head_hop` must be 1 for the `wave` head, but is {self.head_hop} instead.")


@dataclass(kw_only=True)
class WindowConfig:
    """How clips longer than a window are cut, so that memory is bounded and a change is felt no further than a window.

    Windows overlap by twice the context; each gives the frames of its middle, the first also those before, the last also
    those after. A clip of up to one window is encoded and decoded whole.
    """

    seconds: float = 30.0
    """Length of a window."""

    context: float = 3.2
    """What a window hears on either side of the frames it gives."""

    fade: float = 0.02
    """Cross-fade between the waveforms that two windows decode to, centred where they meet."""

    def frames(self, frame_rate: float) -> tuple[int, int]:
        """Frames of a window, and of the context on either side."""
        return round(self.seconds * frame_rate), round(self.context * frame_rate)

    def check(self, frame_rate: float) -> None:
        """Raises ConfigError where a window would not get on."""
        window, context = self.frames(frame_rate)
        if not window > 2 * context >= 2:
            raise ConfigError(
                "window `context` must be at least a frame, and `seconds` longer than twice that, "
                f"but they are {self.context} and {self.seconds} s at {frame_rate:g} frames a second instead."
            )
        longest = min(2 * context, window - 2 * context) / frame_rate
        if not 0 <= self.fade <= longest:
            raise ConfigError(
                f"window `fade` must lie in 0 to {longest:g} s, so that fades do not meet, but is {self.fade} instead."
            )


@dataclass(kw_only=True)
class TokenizerConfig:
    """All that inference needs: what `config.json` of a saved tokenizer holds."""

    name: str = "paper"
    """Name of the preset, or of what was made of it."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    window: WindowConfig = field(default_factory=WindowConfig)

    def check(self) -> None:
        """Raises ConfigError where fields contradict each other."""
        self.encoder.check()
        self.quantizer.check()
        self.generator.check()
        self.window.check(self.encoder.frame_rate)
        if not self.encoder.latent_dim == self.quantizer.dim == self.generator.latent_dim:
            raise ConfigError(
                "encoder `latent_dim`, quantizer `dim` and generator `latent_dim` must be equal, but are "
                f"{self.encoder.latent_dim}, {self.quantizer.dim} and {self.generator.latent_dim} instead."
            )
        if self.encoder.pitch_dims != self.generator.pitch_dims:
            raise ConfigError(
                f"encoder and generator must have the same `pitch_dims`, but have {self.encoder.pitch_dims} and {self.generator.pitch_dims} instead."
            )
        if self.encoder.hop != self.generator.hop:
            raise ConfigError(
                f"encoder and generator must have one hop, but have {self.encoder.hop} and {self.generator.hop} samples instead."
            )
        if self.encoder.sample_rate != self.generator.sample_rate:
            raise ConfigError("encoder and generator must have one `sample_rate`.")
