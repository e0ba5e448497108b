"""Pitch as a part of a latent frame of its own, and the harmonic source that a generator draws by it.

    B clips   S samples   T frames   P pitch dimensions   W windows of 10 ms in a frame   N = n_fft

What spectra teach an encoder holds hardly any pitch: its last P dimensions are made of the tracked pitch alone, by a small network
that knows nothing of the other frames, and read by another one (docs/architecture.md). They are quantised and packed as all are. Both
networks are fitted once, before stage 2, to the pitch of many frames (`tasks/codec/fit_pitch.py`), and stay as they are in training.

Spectral losses hardly tell a generator which phases make a voice: left to itself it speaks hoarsely. With a source (neural source-filter,
arXiv 1904.12088, behind an inverse STFT as in HiFTNet, arXiv 2309.09493) it needs only say how loud each frequency is and how much of it
is the source's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa_tok.config import EncoderConfig, GeneratorConfig
from jepa_tok.models.causal import StreamState, look_back
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.losses import masked_mean
from jepa_tok.models.pitch import HIGHEST, LOWEST, N_FFT, WINDOWS_PER_SECOND, PitchTracker
from jepa_tok.models.stft import stft

WIDTH = 512
"""Of both networks' hidden layers."""

MIDDLE = math.log(150.0)
PITCH_SCALE = 0.4
"""Log pitch of what an untrained decoder says, and its unit: about that of two thirds of voiced speech."""

MARGIN = 500.0
"""Hz below half the sample rate where harmonics end, so that the last one, which comes in gradually, does not fold."""


def _mlp(channels: int, out: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(channels, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, out)
    )


class PitchEncoder(nn.Module):
    """Pitch, periodicity and voicing of a frame's windows -> P dimensions of its latent, normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.tracker = PitchTracker(config.sample_rate, config.causal)
        self.windows = config.hop // self.tracker.hop
        self.shares_windows = (config.front, config.front_hop, config.n_fft) == ("mel", self.tracker.hop, N_FFT)
        self.layers = _mlp(3 * self.windows, config.pitch_dims)

    def forward(
        self, wave: Tensor, lengths: Tensor | None, state: StreamState | None = None, magnitudes: Tensor | None = None
    ) -> Tensor:
        """[B, S], zero outside each clip, lengths [B] in samples -> [B, T, P] with T = ceil(S / hop), without gradient.

        :param magnitudes: Those of the `mel` front: where its windows are the tracker's, they need not be made again.
        """
        with torch.no_grad():
            return self.encode(self.track(wave, lengths, state, magnitudes if self.shares_windows else None))

    def track(
        self, wave: Tensor, lengths: Tensor | None, state: StreamState | None = None, magnitudes: Tensor | None = None
    ) -> Tensor:
        """What is told of each frame's windows, as `forward`: [B, T, 3 * W] float32, zero outside each clip."""
        pitch, periodicity, voiced = self.tracker(wave, lengths, state, magnitudes)
        told = torch.stack([(pitch - MIDDLE) / PITCH_SCALE * voiced, periodicity, voiced.float()], dim=1)  # [B, 3, L]
        if lengths is not None:
            told = told * sequence_mask(-(-lengths // self.tracker.hop), told.shape[-1])[:, None]
        told = F.pad(told, (0, -told.shape[-1] % self.windows)).unflatten(-1, (-1, self.windows))  # [B, 3, T, W]
        return told.transpose(1, 2).flatten(2)

    def encode(self, told: Tensor) -> Tensor:
        """[..., 3 * W] -> [..., P] of mean 0 and deviation 1."""
        z = self.layers(told.to(next(self.layers.parameters()).dtype))
        return F.layer_norm(z.float(), z.shape[-1:]).to(z.dtype)


class PitchDecoder(nn.Module):
    """The P dimensions -> pitch and voicing of a frame's windows, and their source."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.dims, self.causal = config.pitch_dims, config.causal
        self.n_fft, self.head_hop = config.n_fft, config.head_hop
        self.sample_rate, self.hop = config.sample_rate, config.sample_rate // WINDOWS_PER_SECOND
        self.windows = config.hop // self.hop
        self.layers = _mlp(self.dims, 2 * self.windows)
        # A window's values are reached at its end, half a window behind its middle. Causal, windows of the source's spectrum end
        # where those of the head are centred: the source comes so much too late, and is told so much ahead.
        self.tracker = PitchTracker(config.sample_rate, ahead=self.hop // 2 + (config.delay if config.causal else 0))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] -> log pitch (of Hz) and logits of voicing, float32 [B, T * W] each."""
        told = self.layers(latents[..., -self.dims :].to(next(self.layers.parameters()).dtype)).float()
        pitch, voicing = told.unflatten(-1, (2, self.windows)).unbind(2)
        return MIDDLE + PITCH_SCALE * pitch.flatten(1), voicing.flatten(1)

    @torch.no_grad()
    def source(
        self, latents: Tensor, mask: Tensor | None, state: StreamState | None = None, pitch: Tensor | None = None
    ) -> Tensor:
        """STFT, on the grid of the `istft` head, of the source that frames [B, T, D] (mask [B, T]) tell: complex [B, N / 2 + 1, L].

        Its mean square is 1 where the source is loud, 0 where it is silent.

        :param pitch: Log pitch [B, T * W] to draw it at, in place of the one that is told.
        """
        told, voicing = self(latents)
        pitch = told if pitch is None else pitch
        # 0 where voicing is undecided: what decides it by a hair is not heard.
        loudness = torch.tanh(voicing / 2.0).clamp_min(0.0)
        hertz = pitch.exp().clamp(LOWEST / 1.1, HIGHEST * 1.1)
        wave = harmonics(hertz, loudness, self.hop, self.sample_rate, state)
        if mask is not None:  # windows of a clip's last steps reach past it
            wave = wave * mask.repeat_interleave(self.windows * self.hop, dim=1)
        spectrum = stft(wave, self.n_fft, self.head_hop, causal=self.causal, state=state, key="source")
        squares = 0.375 * self.n_fft  # of a Hann window, summed
        return spectrum / math.sqrt(squares)

    def truth(self, wave: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is tracked of a batch.

        :param wave: [B, S], zero outside each clip.
        :param lengths: Samples of each clip [B]; None if each has S.
        :returns: [B, T * W] each: log pitch, whether a window is voiced, whether it is a clip's own.
        """
        pitch, _, voiced = self.tracker(wave, lengths)
        if lengths is None:
            lengths = torch.full((len(wave),), wave.shape[1], device=wave.device)
        rest = -pitch.shape[1] % self.windows
        pitch, voiced = F.pad(pitch, (0, rest)), F.pad(voiced, (0, rest))
        return pitch, voiced, sequence_mask(-(-lengths // self.hop), pitch.shape[1])

    def errors(self, latents: Tensor, pitch: Tensor, voiced: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Errors over the windows of all clips, of what latents [B, T, D] tell against the `truth`.

        :returns: Mean absolute error of the log pitch of voiced windows, in nats, and the cross-entropy of voicing; float32 scalars.
        """
        told, voicing = self(latents)
        error = masked_mean((told - pitch).abs(), voiced & real)
        return error, masked_mean(F.binary_cross_entropy_with_logits(voicing, voiced.float(), reduction="none"), real)


@torch.no_grad()
def harmonics(hertz: Tensor, loudness: Tensor, hop: int, sample_rate: int, state: StreamState | None = None) -> Tensor:
    """Cosines at all multiples of a pitch, equally loud, of mean square 1 where `loudness` is 1.

    Pitch and loudness move in straight lines from one window's values to the next's. The phase starts anew wherever sound does, so
    that a wave depends on nothing behind the last silence.

    :param hertz: Pitch at the end of each window, float32 [B, L].
    :param loudness: There, [B, L], at least 0.
    :param state: Of the streams that these windows continue.
    :returns: [B, L * hop] float32.
    """
    before_hertz = look_back(hertz, 1, state, "source hertz")
    before_loudness = look_back(loudness, 1, state, "source loudness")
    starts = (before_loudness[:, :-1] == 0.0) & (loudness > 0.0)  # [B, L]
    ramp = torch.arange(1, hop + 1, device=hertz.device) / hop
    # Where sound starts, or a clip does, nothing came before: the pitch is that of the window's end.
    first = torch.where(starts | (before_hertz[:, :-1] == 0.0), hertz, before_hertz[:, :-1])
    f = first[..., None] + (hertz - first)[..., None] * ramp  # [B, L, hop]
    level = before_loudness[:, :-1, None] + (loudness - before_loudness[:, :-1])[..., None] * ramp

    cycles = (f.double() / sample_rate).flatten(1).cumsum(1)  # [B, S]
    begun = F.pad(cycles[:, hop - 1 :: hop], (1, 0))[:, :-1]  # cycles before each window
    origin = torch.where(starts, begun, -1.0).cummax(1).values  # those before the sound that lasts
    carried = None if state is None else state.past("source phase")
    origin = torch.where(origin < 0.0, 0.0 if carried is None else -carried, origin)
    phase = cycles.unflatten(1, (-1, hop)) - origin[..., None]
    if state is not None:
        state.keep("source phase", (phase[:, -1, -1:] % 1.0))
    phase = (phase - phase.round()).float()  # [B, L, hop], in half turns either way

    top = (sample_rate / 2 - MARGIN) / f
    count = top.floor()
    half = torch.sin(math.pi * phase)
    near = half.abs() < 1e-4
    # Dirichlet's kernel: the sum of cos(2 pi k phase) over k = 1 ... count.
    total = torch.where(
        near, count, 0.5 * torch.sin((2.0 * count + 1.0) * math.pi * phase) / half.where(~near, 1.0) - 0.5
    )
    total = total + (top - count) * torch.cos(2.0 * math.pi * (count + 1.0) * phase)
    return (level * total * (2.0 / top).sqrt()).flatten(1)
