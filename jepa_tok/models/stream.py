"""Causal encoder and generator on clips that come in pieces, one frame after the other.

    S samples   T frames   D latent dimensions

Whatever pieces a clip comes in, the models run on single frames, so that the pieces cannot change a bit of what they give;
what the layers must know of the past is in a `StreamState` of fixed size. Run both under `inference.exact_inference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_tok.errors import ConfigError
from jepa_tok.models.causal import StreamState
from jepa_tok.models.encoder import Encoder, EncoderOutput
from jepa_tok.models.generator import Generator


class StreamEncoder:
    """Hears one clip; raises ConfigError for an encoder that is not causal."""

    def __init__(self, encoder: Encoder) -> None:
        _check_causal("encoder", encoder.config.causal)
        self.encoder = encoder
        self.state = StreamState()
        self._held: list[Tensor] = []  # of the frame that is not complete yet
        self._size = 0

    @property
    def missing(self) -> int:
        """Samples that complete the next frame; the encoder runs when they are pushed."""
        return self.encoder.config.hop - self._size

    def push(self, wave: Tensor) -> Tensor:
        """Samples [s], any number of them -> latents [t, D] of the frames that they complete, t >= 0."""
        return self.hear(wave).latents[0]

    def finish(self) -> Tensor:
        """Latents [t, D] of the clip's last frame if it is partial (t = 1), else t = 0; the clip is over."""
        return self.hear(torch.zeros(0), last=True).latents[0]

    def hear(self, wave: Tensor, last: bool = False) -> EncoderOutput:
        """As `push`, or with `last` as both, with all that the encoder says of these frames, as of a batch of one clip."""
        hop, weight = self.encoder.config.hop, self.encoder.project.weight
        self._held.append(wave.clone())  # the caller may fill its buffer anew
        self._size += wave.shape[0]
        made: list[EncoderOutput] = []
        if self._size >= hop or last:
            heard = torch.cat(self._held)
            end = self._size if last else self._size - self._size % hop
            # One by one, though a frame alone costs as much as five in company: its products read every weight for a few rows.
            # Their order of summation depends on the number of rows, and with it the last bits of nearly all latents.
            for piece in heard[:end].split(hop) if end else ():
                made.append(self.encoder(piece[None].to(weight.device), return_gates=True, state=self.state))
            self._held, self._size = [heard[end:].clone()], self._size - end
        none = weight.new_zeros(1, 0, weight.shape[0])
        gates = [torch.cat(each, 1) for each in zip(*(out.gates or [] for out in made))]
        lengths = torch.tensor([len(made)], device=weight.device)
        return EncoderOutput(torch.cat([none, *(out.latents for out in made)], 1), lengths, gates)


class StreamDecoder:
    """Speaks one clip; raises ConfigError for a generator that is not causal."""

    def __init__(self, generator: Generator) -> None:
        _check_causal("generator", generator.config.causal)
        self.generator = generator
        self.state = StreamState()
        self._early = generator.config.delay  # samples still to come from before the clip's beginning
        self._missing = 0  # samples of the frames so far that are not given yet

    def push(self, values: Tensor, excess: int = 0) -> Tensor:
        """Values [t, D] of frames -> the samples [n] that they settle, on the CPU: all but the last `delay`.

        `excess` samples of the clip's last frame lie behind its end and are not given.
        """
        self._missing += values.shape[0] * self.generator.hop - excess
        return self._speak(values, length=1)

    def finish(self) -> Tensor:
        """The clip's last samples [n], so that all are T * hop less the excess; the clip is over."""
        # Frames that are no part of the clip push out what waits for the windows of further steps.
        frames = -(-(self._early + self._missing) // self.generator.hop) if self._missing else 0
        weight = self.generator.project.weight
        return self._speak(weight.new_zeros(frames, weight.shape[1]), length=0)

    def _speak(self, values: Tensor, length: int) -> Tensor:
        """Runs the frames, as long as the clip's own (`length` 1) or as padding behind it (0)."""
        device = self.generator.project.weight.device
        lengths = torch.tensor([length], device=device)
        waves = [torch.zeros(0)]
        for frame in values.to(device):
            waves.append(self.generator(frame[None, None], lengths, self.state)[0].cpu())
        wave = torch.cat(waves)
        early = min(self._early, wave.shape[0])
        self._early -= early
        wave = wave[early : early + self._missing]
        self._missing -= wave.shape[0]
        return wave


def _check_causal(name: str, causal: bool) -> None:
    if not causal:
        raise ConfigError(
            f"{name} `causal` must be true for a stream, but is false instead; take a tokenizer made from a causal preset such as `small-causal`."
        )
