"""Classical codecs that others know by ear, run by their own programs: Codec2 (c2enc, c2dec) and Opus (opusenc, opusdec).

Both delay what they send. The delay is measured once for each codec (`delay_of`) and taken away before anything is
compared, since STOI and the like would count it as damage.

S samples
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa_tok.audio import load_audio, resample, save_audio

SECONDS = 600
"""That a codec may take for one utterance."""

STEP = 0.001
"""Seconds: resolution of a measured delay."""

LONGEST = 0.15
"""Seconds: a delay is looked for up to this."""


class CodecError(Exception):
    """A codec's program failed; what it said, in one line."""


class Codec2:
    """Codec2 (D. Rowe) in one of its modes, at 8 kHz."""

    def __init__(self, mode: str, bit_rate: float) -> None:
        self.mode, self.bit_rate = mode, bit_rate
        self.label = f"Codec2 {mode}"

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be had here, or None."""
        return _programs("codec2", "c2enc", "c2dec")

    def __call__(self, wave: Tensor, sample_rate: int) -> Tensor:
        """float32 [S] -> float32 [about S], delayed. Raises CodecError."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pcm = (resample(wave, sample_rate, 8000).clamp(-1.0, 1.0) * 32767.0).round().numpy().astype("<i2")
            # Silence behind the clip: only whole frames are sent, and the delay pushes the end out.
            pcm = np.concatenate([pcm, np.zeros(round(2 * LONGEST * 8000), "<i2")])
            (folder / "in.raw").write_bytes(pcm.tobytes())
            _run("c2enc", self.mode, folder / "in.raw", folder / "bits")
            _run("c2dec", self.mode, folder / "bits", folder / "out.raw")
            out = np.frombuffer((folder / "out.raw").read_bytes(), "<i2").astype(np.float32) / 32768.0
        return resample(torch.from_numpy(out), 8000, sample_rate)


class Opus:
    """Opus (RFC 6716), tuned for speech, in frames of 20 ms.

    `bit_rate` is what is asked for; at 6 kbit/s version 1.3 spends about 5.3 on read speech, without what Ogg adds.
    """

    def __init__(self, bit_rate: float) -> None:
        self.bit_rate = bit_rate
        self.label = f"Opus {bit_rate / 1000:g}k"

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be had here, or None."""
        return _programs("opus-tools", "opusenc", "opusdec")

    def __call__(self, wave: Tensor, sample_rate: int) -> Tensor:
        """float32 [S] -> float32 [about S]. Raises CodecError."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_audio(folder / "in.wav", wave, sample_rate)
            rate = f"{self.bit_rate / 1000:g}"
            _run("opusenc", "--quiet", "--speech", "--bitrate", rate, folder / "in.wav", folder / "bits")
            _run("opusdec", "--quiet", "--rate", str(sample_rate), folder / "bits", folder / "out.wav")
            return load_audio(folder / "out.wav", sample_rate)


def delay_of(original: Tensor, output: Tensor, sample_rate: int) -> float:
    """By how many seconds `output` [S'] comes after `original` [S]: where their envelopes agree best, to a millisecond.

    Envelopes rather than waves, since vocoders keep no phase: log energy of what lies below 4 kHz, in windows of 10 ms.
    """
    a, b = _envelope(original, sample_rate), _envelope(output, sample_rate)
    size = min(len(a), len(b))
    a, b = a[:size], b[:size]
    most = min(round(LONGEST / STEP), size - 1)

    def agreement(lag: int) -> float:
        x, y = (a[: size - lag], b[lag:]) if lag >= 0 else (a[-lag:], b[: size + lag])
        return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0.0 and y.std() > 0.0 else -1.0

    return max(range(-most, most + 1), key=agreement) * STEP


def shift(wave: Tensor, delay: float, sample_rate: int, size: int) -> Tensor:
    """`wave` without its delay in seconds: float32 [size], cut or filled with silence."""
    samples = round(delay * sample_rate)
    wave = wave[samples:] if samples >= 0 else torch.cat([wave.new_zeros(-samples), wave])
    return torch.nn.functional.pad(wave, (0, max(0, size - len(wave))))[:size]


def _envelope(wave: Tensor, sample_rate: int) -> np.ndarray:
    power = resample(wave, sample_rate, 8000).square().numpy()
    smooth = np.convolve(power, np.ones(80) / 80, "same")[:: round(STEP * 8000)]
    return np.log(smooth + 1e-6)


def _programs(package: str, *names: str) -> str | None:
    return None if all(map(shutil.which, names)) else f"not available: install {package}"


def _run(*command: str | Path) -> None:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise CodecError(f"{command[0]} took more than {SECONDS} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise CodecError(f"{command[0]} gave status {done.returncode}: {said[-1] if said else 'no message'}")
