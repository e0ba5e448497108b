"""Spectrograms, images and audio as text that fits into a page: no file beside it, no plotting package.

S samples   L steps of 10 ms   M mel filters
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jepa_tok.models.logmel import LogMel

N_MELS = 80
FLOOR, CEILING = -1.6, 1.9
"""Log-mel values (LogMel's scale) that get the darkest and the lightest colour: one scale for all pictures of a page."""

# Dark to light, even in lightness: night blue, violet, rose, amber, cream.
_STOPS = np.array(
    [[10, 12, 32], [48, 26, 92], [112, 34, 116], [180, 52, 104], [232, 98, 74], [250, 166, 74], [252, 240, 190]],
    dtype=float,
)


def log_mel(wave: Tensor, sample_rate: int) -> np.ndarray:
    """Log-mel spectrogram of a wave [S]: float32 [M, L], low frequencies first."""
    hop = sample_rate // 100
    with torch.no_grad():
        return LogMel(sample_rate, 4 * hop, hop, N_MELS)(wave[None])[0].T.numpy()


def mel_position(hz: float, sample_rate: int) -> float:
    """Where a frequency stands on the mel axis, 0 (bottom) to 1 (top): Slaney's scale, that of LogMel."""

    def mel(f: float) -> float:
        return 3.0 * f / 200.0 if f < 1000.0 else 15.0 + 27.0 * float(np.log(f / 1000.0) / np.log(6.4))

    return mel(hz) / mel(sample_rate / 2)


def colours(values: np.ndarray, low: float = FLOOR, high: float = CEILING) -> np.ndarray:
    """Values to RGB: [H, W] -> uint8 [H, W, 3]."""
    place = np.clip((values - low) / (high - low), 0.0, 1.0) * (len(_STOPS) - 1)
    index = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - index)[..., None]
    return (_STOPS[index] * (1 - part) + _STOPS[index + 1] * part).round().astype(np.uint8)


def png(rgb: np.ndarray) -> bytes:
    """A PNG file of uint8 [H, W, 3] (ISO/IEC 15948: 8-bit truecolour, no filter)."""
    height, width, _ = rgb.shape
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rgb.reshape(height, -1)], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def image_uri(values: np.ndarray) -> str:
    """A picture of [M, L], first row at the bottom, as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png(colours(values[::-1]))).decode()


def audio_uri(wave: Tensor, sample_rate: int) -> str:
    """A 16-bit WAV file of a wave [S] as a data URI."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, wave.clamp(-1.0, 1.0).numpy(), sample_rate, format="WAV", subtype="PCM_16")
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode()


def player(wave: Tensor, sample_rate: int, label: str) -> str:
    """An audio element."""
    uri = audio_uri(wave, sample_rate)
    return f'<audio controls preload="metadata" aria-label="{label}" src="{uri}"></audio>'


def spectrogram(
    wave: Tensor,
    sample_rate: int,
    *,
    marks: Sequence[tuple[float, str]] = (),
    over: str = "",
    width: int = 460,
    height: int = 130,
) -> str:
    """A spectrogram with axes as SVG.

    :param wave: [S], S >= 1.
    :param marks: Times in seconds with a word each, drawn as vertical lines.
    :param over: SVG drawn over the picture, in the unit square (0, 0 at its top left).
    :param width: Of the picture, in the SVG's units, which are about a pixel where the page gives it this width.
    :param height: Of the picture.
    """
    left, bottom = 34, 20
    seconds = len(wave) / sample_rate
    parts = [
        f'<svg class="spec" viewBox="0 0 {width + left + 6} {height + bottom + 4}" role="img" aria-label="log-mel spectrogram, {seconds:.1f} s">',
        f'<image x="{left}" y="2" width="{width}" height="{height}" preserveAspectRatio="none" href="{image_uri(log_mel(wave, sample_rate))}"/>',
    ]
    for hz in (500, 1000, 2000, 4000, 8000):
        if hz < sample_rate / 2:
            y = 2 + height * (1 - mel_position(hz, sample_rate))
            label = f"{hz // 1000}k" if hz >= 1000 else str(hz)
            parts.append(
                f'<path class="axis" d="M{left - 4} {y:.1f}h4"/><text class="tick" x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
            )
    step = next((s for s in (0.5, 1, 2, 5, 10, 30) if seconds / s <= width / 57), 60)
    for k in range(int(seconds / step) + 1):
        x = left + width * k * step / seconds
        unit = " s" if k == 0 else ""
        parts.append(
            f'<path class="axis" d="M{x:.1f} {height + 2}v4"/><text class="tick" x="{x:.1f}" y="{height + 17}" text-anchor="middle">{k * step:g}{unit}</text>'
        )
    if over:
        parts.append(
            f'<svg x="{left}" y="2" width="{width}" height="{height}" viewBox="0 0 1 1" preserveAspectRatio="none">{over}</svg>'
        )
    for time, word in marks:
        x = left + width * time / seconds
        parts.append(
            f'<path class="mark" d="M{x:.1f} 2v{height}"/><text class="marktext" x="{x + 5:.1f}" y="15">{word}</text>'
        )
    return "".join(parts) + "</svg>"
