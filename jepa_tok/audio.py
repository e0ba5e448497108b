"""Audio in and out: files, arrays and tensors of any common rate, format and channel count become mono float32 at 24 kHz.

Everything that reads audio in this package comes through `load_audio` or `prepare_wave`, so that one set of rules holds.
Resampling is by soxr ("very high quality", float64 inside, one thread): it takes any ratio in little memory, its output
does not depend on how a file is cut into blocks, and its passband is flat to .91 of the lower Nyquist frequency. (A
polyphase filter bank, as in torchaudio, needs gigabytes for rates such as 44,099 Hz.)

    S samples   C channels
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from jepa_tok.containers import Endless, check_mp3_end, check_ogg, check_sizes, is_short, mp3_tells_length
from jepa_tok.errors import AudioError
from jepa_tok.files import atomic_path

SAMPLE_RATE = 24_000
MIN_RATE, MAX_RATE = 4_000, 192_000
MAX_CHANNELS = 64
MAX_AMPLITUDE = 4.0
"""Beyond this, floats are taken for integer samples that were cast without scaling, and refused."""

BLOCK = 2**19
"""Samples, over all channels, that are read from a file at a time."""

MAX_WAV = 2**32 - 2**10
"""Bytes of samples that a .wav file holds at most."""

_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of the process that reads, not of the file: it would be wrong to skip that as a bad one."""

_FULL_SCALE = {torch.int8: 2.0**7, torch.int16: 2.0**15, torch.int32: 2.0**31}


class AudioFile:
    """An audio file, or a part of one, that is read, mixed down and resampled as it is iterated, in bounded memory.

        for block in AudioFile("lecture.mp3", 24_000):
            ...  # float32 [s]

    The blocks are `load_audio`'s samples, cut somewhere. Each iteration reads anew; an open file is read from its start.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | BinaryIO,
        sample_rate: int = SAMPLE_RATE,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """As `load_audio`, which see; raises AudioError for what is not a path or an open file, the rest when it is read."""
        self.source: Any
        if isinstance(path, (str, os.PathLike)):
            self.name = os.fspath(path)
            self.source = self.name
        elif hasattr(path, "read"):
            self.name, self.source = str(getattr(path, "name", "audio")), path
        else:
            raise AudioError(f"`path` must be a path or an open binary file, but is {type(path).__name__} instead.")
        self.sample_rate = check_rate(sample_rate, "`sample_rate`")
        self.start, self.end = start, end

    def __iter__(self) -> Iterator[Tensor]:
        """Blocks of mono float32 [s] at `sample_rate`."""
        resampler: Resampler | None = None
        taken = 0
        for rate, samples in self._read():
            resampler = resampler or Resampler(rate, self.sample_rate)
            yield resampler.push(mix_down(samples.T, f"'{self.name}'", taken))
            taken += len(samples)
        if resampler is not None:
            yield resampler.finish()

    def _read(self) -> Iterator[tuple[int, np.ndarray]]:
        """The file's rate and its blocks of float32 [s, C]."""
        if self.source is self.name:
            _check_file(self.name)
        try:  # nothing but reading: what fails in mixing and resampling is no fault of the file
            with contextlib.ExitStack() as stack:
                raw = stack.enter_context(open(self.name, "rb")) if self.source is self.name else self.source
                check_ogg(raw, self.name)
                file = stack.enter_context(soundfile.SoundFile(self.source))
                is_told = True
                if file.format == "MP3":
                    is_told = mp3_tells_length(raw)
                    # Read through Python, so that it can be asked where the sound ends.
                    file = stack.enter_context(soundfile.SoundFile(raw if is_told else Endless(raw)))
                rate = check_rate(file.samplerate, f"'{self.name}'")
                check_sizes(file, self.name)
                yield from ((rate, samples) for samples in self._blocks(file, raw, rate, is_told))
        except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, OSError) as error:
            if getattr(error, "errno", None) in _OURS:
                raise
            reason = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
            raise AudioError(f"'{self.name}' must be audio that libsndfile reads, but is not: {reason}.") from None

    def _blocks(self, file: soundfile.SoundFile, raw: BinaryIO, rate: int, is_told: bool) -> Iterator[np.ndarray]:
        """Blocks of float32 [s, C]; `is_told` is whether the file's length is, and not estimated."""
        first, last = _part(self.start, self.end, rate, file.frames, self.name)
        file.seek(first)
        size, found = max(1, BLOCK // file.channels), 0
        while found < last - first:
            samples = file.read(min(size, last - first - found), dtype="float32", always_2d=True)
            if not len(samples):
                break
            found += len(samples)
            yield samples
        if is_told and is_short(found, last - first, rate):
            raise AudioError(f"'{self.name}' is cut short: {last - first} samples are promised, but {found} are there.")
        if not found:
            raise AudioError(f"'{self.name}' must hold the part {self.start} to {self.end} s, but ends before it.")
        if file.format == "MP3" and is_told and last == file.frames:
            check_mp3_end(raw, self.name)


def load_audio(
    path: str | os.PathLike[str] | BinaryIO,
    sample_rate: int = SAMPLE_RATE,
    *,
    start: float | None = None,
    end: float | None = None,
) -> Tensor:
    """Reads an audio file, or an open binary file, as mono float32 [S] at `sample_rate`.

    Reads whatever libsndfile does (wav, flac, ogg, opus, mp3, aiff, ...); channels are averaged. `start` and `end`, in
    seconds, read a part; an `end` past the file's is the file's. Raises AudioError, naming the file, where it is missing,
    a folder, empty, unreadable or cut short, and for what `prepare_wave` refuses.
    """
    return torch.cat(list(AudioFile(path, sample_rate, start=start, end=end)))


def prepare_wave(wave: Any, sample_rate: int, target: int = SAMPLE_RATE, name: str = "audio") -> Tensor:
    """Checks and converts samples to mono float32 [ceil(S * target / sample_rate)] on the CPU.

    `wave` is a tensor, array or list: [S] or [C, S] with up to 64 channels, which are averaged; floats in [-1, 1] or
    int8, int16 or int32. Raises AudioError, with `name` in front, for other shapes or dtypes, empty or non-finite audio,
    floats of integer size, and rates outside 4 to 192 kHz.
    """
    rate = check_rate(sample_rate, name)
    return resample(mix_down(wave, name), rate, check_rate(target, "`target`"))


def mix_down(wave: Any, name: str = "audio", offset: int = 0) -> Tensor:
    """Checks samples as `prepare_wave` does, and averages their channels: mono float32 [S] on the CPU.

    `offset` is the place of the first sample in what `name` stands for, for the message about a sample that is not finite.
    """
    samples = _as_float(wave, name)
    if samples.ndim not in (1, 2):
        raise AudioError(f"{name} must have shape [S] or [C, S], but has {list(samples.shape)} instead.")
    if samples.numel() == 0:
        raise AudioError(f"{name} must have at least one sample, but has shape {list(samples.shape)} instead.")
    if samples.ndim == 2 and samples.shape[0] > MAX_CHANNELS:
        hint = "; transpose it" if samples.shape[1] <= MAX_CHANNELS else ", and a batch is given as a list of clips"
        raise AudioError(
            f"{name} must have shape [C, S] with at most {MAX_CHANNELS} channels, but has {list(samples.shape)} instead{hint}."
        )
    finite = torch.isfinite(samples)
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise AudioError(f"{name} must be finite, but sample {offset + at[-1]} is {float(samples[tuple(at)])} instead.")
    peak = float(samples.abs().max())
    if peak > MAX_AMPLITUDE:
        raise AudioError(
            f"{name} must lie in [-1, 1], but reaches {peak:.6g} instead; divide integer samples by their full scale (32768 for 16 bits)."
        )
    if samples.ndim == 2:
        samples = samples[0] if samples.shape[0] == 1 else samples.double().mean(0).float()
    return samples


def resample(wave: Tensor, orig: int, new: int) -> Tensor:
    """Resamples float32 [..., S] from rate `orig` to `new`: [..., ceil(S * new / orig)], on the CPU.

    The sample at time t stays at time t (no delay); beyond its ends the clip is taken as silence.
    """
    wave = wave.detach().to("cpu", torch.float32)
    if orig == new:
        return wave.clone(memory_format=torch.contiguous_format)
    rows = []
    for row in wave.reshape(-1, wave.shape[-1]):
        resampler = Resampler(orig, new)
        rows.append(torch.cat([resampler.push(row), resampler.finish()]))
    size = -(-wave.shape[-1] * new // orig)
    return (torch.stack(rows) if rows else wave.new_zeros(0)).reshape(*wave.shape[:-1], size)


class Resampler:
    """Resamples a clip that comes in pieces; the samples are those of the whole clip's, however it is cut."""

    def __init__(self, orig: int, new: int) -> None:
        self.orig, self.new = orig, new
        self._stream = None if orig == new else soxr.ResampleStream(orig, new, 1, dtype="float32", quality="VHQ")
        self._taken = self._given = 0

    def push(self, wave: Tensor) -> Tensor:
        """float32 [s] -> the samples [n] at the new rate that are settled by it, n >= 0."""
        self._taken += wave.shape[0]
        out = wave if self._stream is None else torch.from_numpy(self._stream.resample_chunk(wave.numpy()))
        self._given += out.shape[0]
        return out

    def finish(self) -> Tensor:
        """The rest of ceil(S * new / orig) samples."""
        if self._stream is None:
            return torch.zeros(0)
        # soxr rounds the length to the nearest; silence behind the clip makes it give the last, partly covered sample too.
        silence = np.zeros(self.orig // self.new + 2, np.float32)
        out = torch.from_numpy(self._stream.resample_chunk(silence, last=True))
        return out[: -(-self._taken * self.new // self.orig) - self._given]


def save_audio(path: str | os.PathLike[str], wave: Any, sample_rate: int = SAMPLE_RATE) -> None:
    """Writes [S] or [C, S] floats as 16-bit `.wav` or `.flac`, clipped to [-1, 1]; 16-bit audio survives unchanged.

    `wave` may be an iterator of such blocks, which are written as they come. The file appears whole or not at all. Raises
    AudioError for another suffix, non-finite or empty audio, a wrong shape, a folder that does not exist, a full disk, and
    more than a `.wav` can hold (4 GiB: 24 hours at 24 kHz).
    """
    target = Path(path)
    formats = {".wav": "WAV", ".flac": "FLAC"}
    if target.suffix.lower() not in formats:
        raise AudioError(f"'{target}' must end in .wav or .flac, but ends in '{target.suffix}' instead.")
    rate = check_rate(sample_rate, f"'{target}'")
    kind = formats[target.suffix.lower()]
    if not target.parent.is_dir():
        raise AudioError(f"folder '{target.parent}' must exist before '{target.name}' is written there, but does not.")
    blocks = wave if isinstance(wave, Iterator) else iter([wave])
    first = _pcm(next(blocks, torch.zeros(0)), target)
    left = (MAX_WAV if kind == "WAV" else 2**62) // (2 * first.shape[1])
    try:
        with (
            atomic_path(target) as temporary,
            _Sink(temporary, "wb") as sink,
            soundfile.SoundFile(sink, "w", rate, first.shape[1], "PCM_16", format=kind) as file,
        ):
            for pcm in itertools.chain([first], (_pcm(block, target) for block in blocks)):
                if pcm.shape[1] != first.shape[1]:
                    raise AudioError(
                        f"audio for '{target}' must keep its number of channels, but has {first.shape[1]}, then {pcm.shape[1]}."
                    )
                left -= len(pcm)
                if left < 0:
                    raise AudioError(f"'{target}' must be at most 4 GiB, as any .wav; write .flac.")
                file.write(pcm)
    except (soundfile.SoundFileError, OSError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
        raise AudioError(f"'{target}' could not be written: {reason}.") from None


class _Sink(io.FileIO):
    """A file that libsndfile writes to. It fails with the system's reason, which libsndfile drops ("System error")."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[super().write(rest) :]
        except OSError as error:  # called by C code, which could not pass it on
            self.error = self.error or error
        return len(data) - len(rest)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        if self.error:
            raise self.error from None


def _pcm(wave: Any, target: Path) -> np.ndarray:
    """Floats [S] or [C, S] as int16 [S, C]."""
    samples = _as_float(wave, f"audio for '{target}'")
    if samples.ndim not in (1, 2) or samples.numel() == 0 or (samples.ndim == 2 and samples.shape[0] > MAX_CHANNELS):
        raise AudioError(f"audio for '{target}' must have shape [S] or [C, S], but has {list(samples.shape)} instead.")
    if not bool(torch.isfinite(samples).all()):
        raise AudioError(f"audio for '{target}' must be finite, but is not.")
    # By hand: libsndfile scales by 32767 when writing and by 32768 when reading.
    pcm = (samples.double() * 2**15).round().clamp(-(2**15), 2**15 - 1).to(torch.int16)
    return pcm.reshape(-1, pcm.shape[-1]).numpy().T


def _as_float(wave: Any, name: str) -> Tensor:
    """`wave` as float32 on the CPU, integers scaled to [-1, 1)."""
    if not isinstance(wave, Tensor):
        try:
            array = np.array(wave)
            wave = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        except (ValueError, TypeError, OverflowError):
            raise AudioError(
                f"{name} must be a tensor, array or rectangular list of samples, but is {type(wave).__name__} instead."
            ) from None
    if wave.layout != torch.strided or wave.is_meta:
        raise AudioError(f"{name} must be a dense tensor with values, but is sparse or on the meta device instead.")
    wave = wave.detach().cpu()
    if wave.is_floating_point():
        return wave.float()
    if wave.dtype not in _FULL_SCALE:
        dtype = str(wave.dtype).removeprefix("torch.")
        raise AudioError(f"{name} must be floats in [-1, 1] or int8, int16 or int32, but has dtype {dtype} instead.")
    return (wave.double() / _FULL_SCALE[wave.dtype]).float()


def check_rate(rate: Any, name: str) -> int:
    """`rate` as an int; raises AudioError, with `name` in front, unless it is a whole number from 4,000 to 192,000 Hz."""
    if (
        isinstance(rate, bool)
        or not isinstance(rate, (int, float, np.integer, np.floating))
        or rate != rate
        or rate % 1
    ):
        raise AudioError(f"{name} must have a sample rate that is a whole number of Hz, but it is {rate!r} instead.")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(
            f"{name} must have a sample rate from {MIN_RATE} to {MAX_RATE} Hz, but it is {int(rate)} instead."
        )
    return int(rate)


def _check_file(path: str) -> None:
    try:
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError(f"'{path}' must be an audio file, but is empty instead.")
    except FileNotFoundError:
        raise AudioError(f"'{path}' must be an audio file, but does not exist.") from None
    except IsADirectoryError:
        raise AudioError(f"'{path}' must be an audio file, but is a folder instead.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in _OURS:
            raise
        raise AudioError(
            f"'{path}' must be an audio file, but cannot be opened: {getattr(error, 'strerror', error)}."
        ) from None


def _part(start: float | None, end: float | None, rate: int, frames: int, name: str) -> tuple[int, int]:
    """First and last sample (excluded) of the part to read."""
    if frames < 1:
        raise AudioError(f"'{name}' must have at least one sample, but has none.")
    first = 0 if start is None else start * rate
    last = frames if end is None else end * rate
    if not (0 <= first < last and first < frames):
        raise AudioError(f"'{name}' must hold the part {start} to {end} s, but is {frames / rate:.3f} s long.")
    return round(first), max(round(first) + 1, min(round(last), frames))
