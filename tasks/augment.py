"""Augmentation of training batches, on the device they are on, for stage 1 and stage 2.

Speed, colour, level, another voice, noise: all of it is drawn from a seed of the step's own, so a resumed run hears what the
uninterrupted one would have heard. A batch keeps its shape, and nothing here makes a GPU wait for the CPU or the other way round.

    B clips   S samples
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache

import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.audio import SAMPLE_RATE
from jepa_tok.models.layers import sequence_mask
from tasks.speech import seeded_generator, to_device

MAX_DENOMINATOR = 100
"""Of a speed as a fraction; its resampling filters grow with it."""

FILTER_HZ = (100.0, 300.0, 800.0, 1700.0, 3200.0, 5500.0, 9000.0)
"""Frequencies at which the gains of a filter are drawn: about as far apart as vowels' formants, evenly spaced in mels."""


@dataclass(kw_only=True)
class AugmentSection(Validatable):
    """Augmentation of training clips, off by default.

    Levels and ratios are drawn evenly in dB, for each clip. The paper's code scaled 0.3 of the clips by 0.8 to 1.2 (the range
    of `gain_db`) and added white noise of deviation 0.005 to 0.2 of them (about 25 dB below read speech).
    """

    speed: list[float] = field(default_factory=lambda: [1.0])
    """Factors of which each batch draws one; pitch and tempo change together (Ko et al., 2015). What then passes the batch's
    end is cut."""

    filter_probability: float = 0.0
    """Share of clips whose spectrum is coloured by a filter of its own, as by another microphone or vocal tract: a gain drawn at
    each of `FILTER_HZ`, straight lines between them over mels (FilterAugment, Nam et al., arXiv 2110.03282). The level stays."""

    filter_db: tuple[float, float] = (-6.0, 6.0)
    """Least and greatest of a filter's gains."""

    gain_probability: float = 0.0
    """Share of clips whose level is changed."""

    gain_db: tuple[float, float] = (-1.94, 1.58)
    """Least and greatest change of the level."""

    mix_probability: float = 0.0
    """Share of clips that another clip of the batch is laid over (WavLM, arXiv 2110.13900)."""

    mix_snr_db: tuple[float, float] = (5.0, 20.0)
    """Level of the clip over that of the other."""

    noise_probability: float = 0.0
    """Share of clips that get white noise."""

    noise_snr_db: tuple[float, float] = (15.0, 35.0)
    """Level of the clip over that of the noise."""

    denoise: bool = False
    """Whether the clip as it was before mixing and noise is what has to be predicted (WavLM's denoising; arXiv 2110.13900,
    section 3.2), instead of what is heard. Speed, filter and gain belong to the clip either way."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for name in ("filter_probability", "gain_probability", "mix_probability", "noise_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                result.add_error(f"`{name}` must lie in [0, 1], but is {getattr(self, name)} instead.")
        for name in ("filter_db", "gain_db", "mix_snr_db", "noise_snr_db"):
            low, high = getattr(self, name)
            if low > high:
                result.add_error(f"`{name}` must be a least and a greatest value, but is {[low, high]} instead.")
        if not self.speed or not all(0.5 <= factor <= 2.0 for factor in self.speed):
            result.add_error(f"`speed` must hold factors in [0.5, 2], but is {self.speed} instead.")
        elif any(factor != 1.0 for factor in self.speed):
            try:
                import torchaudio  # noqa: F401
            except (ImportError, OSError) as ex:
                result.add_error(f"`speed` must be [1.0] where torchaudio cannot be imported ({ex}), but is {self.speed} instead.")  # fmt: skip
        return result


@torch.no_grad()
def augment(batch: SpeechBatch, config: AugmentSection, seed: tuple[int, ...]) -> SpeechBatch:
    """An augmented copy of `batch`, of the same shape; its samples stay in [-1, 1] and zero past each clip's end.

    :param seed: The batch's own: run, step, number of the batch within the step, rank.
    :returns: New tensors; `clean` is the clip without mixing and noise where `config.denoise` is set, None otherwise.
    """
    draws = seeded_generator(seed)
    clips, size = batch.wave.shape
    device = batch.wave.device
    factor = config.speed[int(torch.randint(len(config.speed), (), generator=draws))]
    # One copy for all that is drawn: whether and how much, for gain, mixing and noise.
    chance, amount = to_device(torch.rand(2, 3, clips, generator=draws), device)  # [3, B]
    ranges = (config.gain_db, config.mix_snr_db, config.noise_snr_db)
    gain_db, mix_snr, noise_snr = (low + (high - low) * row for row, (low, high) in zip(amount, ranges))
    with torch.autocast(device.type, enabled=False):
        wave, lengths, sizes = _change_speed(batch, factor)
        own = sequence_mask(lengths, size)  # [B, S]
        if config.filter_probability:
            wave = _colour(wave, lengths, config, draws)
        if config.gain_probability:
            wave = wave * _ratio(torch.where(chance[0] < config.gain_probability, gain_db, 0.0))
        clean = wave = (wave * own).clamp(-1.0, 1.0)
        level = _level(wave, lengths)  # [B, 1]
        if config.mix_probability and clips > 1:
            share = (chance[1] < config.mix_probability)[:, None] * _ratio(-mix_snr)
            wave = wave + wave.roll(1, 0) * (level * share / level.roll(1, 0).clamp_min(1e-4))
        if config.noise_probability:
            share = (chance[2] < config.noise_probability)[:, None] * _ratio(-noise_snr)
            noise = torch.randn(wave.shape, generator=seeded_generator(seed, device), device=device)
            wave = wave + noise * (level * share)
        if wave is not clean:
            wave = (wave * own).clamp(-1.0, 1.0)
    return replace(batch, wave=wave, lengths=lengths, sizes=sizes, clean=clean if config.denoise else None)


def _colour(wave: Tensor, lengths: Tensor, config: AugmentSection, draws: torch.Generator) -> Tensor:
    """Clips [B, S] with new spectra, each at its old level."""
    clips, size = wave.shape
    low, high = config.filter_db
    drawn = to_device(torch.rand(clips, 1 + len(FILTER_HZ), generator=draws), wave.device)
    chance, db = drawn[:, :1], low + (high - low) * drawn[:, 1:]  # [B, 1], [B, points]
    spectrum = torch.fft.rfft(wave) * 10.0 ** (db @ _filter_lines(size, wave.device) / 20.0)
    coloured = torch.fft.irfft(spectrum, n=size)
    coloured = coloured * (_level(wave, lengths) / _level(coloured, lengths).clamp_min(1e-8))
    return torch.where(chance < config.filter_probability, coloured, wave)


@lru_cache(maxsize=16)
def _filter_lines(size: int, device: torch.device) -> Tensor:
    """Share [points, bins] that each of a filter's points has in each bin of a spectrum of `size` samples."""
    points = torch.tensor(FILTER_HZ, dtype=torch.float64).div(700.0).log1p()
    bins = torch.linspace(0.0, SAMPLE_RATE / 2, size // 2 + 1, dtype=torch.float64).div(700.0).log1p()
    bins = bins.clamp(points[0], points[-1])
    place = torch.searchsorted(points, bins, right=True).clamp(1, len(points) - 1)  # of the point above
    share = (bins - points[place - 1]) / (points[place] - points[place - 1])
    lines = torch.zeros(len(points), len(bins), dtype=torch.float64)
    lines.scatter_(0, place[None] - 1, 1.0 - share[None]).scatter_(0, place[None], share[None])
    return lines.to(device, torch.float32)


def _ratio(db: Tensor) -> Tensor:
    """Decibels [B] -> amplitude ratios [B, 1]."""
    return (10.0 ** (db / 20.0))[:, None]


def _level(wave: Tensor, lengths: Tensor) -> Tensor:
    """Root mean square [B, 1] of clips [B, S] that are zero past their ends."""
    return (wave.square().sum(1) / lengths.clamp_min(1)).sqrt()[:, None]


def _change_speed(batch: SpeechBatch, factor: float) -> tuple[Tensor, Tensor, list[int]]:
    """Wave [B, S], lengths [B] and sizes of clips that run `factor` times as fast."""
    wave, lengths, sizes = batch.wave, batch.lengths, batch.sizes
    ratio = Fraction(factor).limit_denominator(MAX_DENOMINATOR)
    if ratio == 1:
        return wave, lengths, list(sizes)
    size, old, new = wave.shape[1], ratio.numerator, ratio.denominator
    wave = _resampler(old, new, wave.device)(wave)[:, :size]
    wave = nn.functional.pad(wave, (0, size - wave.shape[1]))
    return wave, (-(-lengths * new // old)).clamp_max(size), [min(-(-n * new // old), size) for n in sizes]


@lru_cache(maxsize=16)
def _resampler(old: int, new: int, device: torch.device) -> nn.Module:
    # torchaudio's functional form builds its filters in each call, with copies that a GPU would wait for.
    from torchaudio.transforms import Resample

    return Resample(old, new).to(device)
