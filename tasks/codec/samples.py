"""Audio and spectrograms of validation clips while stage 2 trains: files under OUT/samples and pages of TensorBoard.

S samples   L steps of 10 ms   M mel filters
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_tok.audio import SAMPLE_RATE, save_audio
from jepa_tok.models.logmel import LogMel


def file_name(id: str) -> str:
    """An utterance's id as a file name."""
    return re.sub(r"[^\w.-]+", "_", id).strip(".") or "clip"


def spectrogram(wave: Tensor, n_mels: int = 80) -> Tensor:
    """Log-mel picture [M, L] in 0..1 of a wave [S], low frequencies at the bottom, 80 dB from dark to light."""
    mels = LogMel(SAMPLE_RATE, 1024, 240, n_mels)(wave[None].float().cpu())[0].T.flip(0)  # [M, L]
    span = 80.0 / 20.0 * math.log(10.0) / LogMel.DEVIATION  # the mels are scaled natural logarithms
    return ((mels - mels.max()) / span + 1.0).clamp(0.0, 1.0)


class SampleWriter:
    """Writes the reconstructions of chosen clips, and once their originals.

    :param folder: OUT/samples; gets `original/ID.wav` and `step_N/ID.wav`.
    :param tensorboard: Folder of the event file; None writes files alone.
    :param ids: The clips to write.
    """

    def __init__(self, folder: Path, tensorboard: Path | None, ids: set[str]) -> None:
        self._folder, self._tensorboard, self.ids = folder, tensorboard, ids
        self._writer: Any = None

    def write(self, step: int, id: str, original: Tensor, reconstruction: Tensor) -> None:
        """Writes one clip, waves [S] of equal length."""
        name = file_name(id)
        reference = self._folder / "original" / f"{name}.wav"
        reference.parent.mkdir(parents=True, exist_ok=True)
        original, reconstruction = original.float().cpu(), reconstruction.float().cpu()
        if not reference.exists():
            save_audio(reference, original)
        target = self._folder / f"step_{step}" / f"{name}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        save_audio(target, reconstruction)
        if self._tensorboard is not None:
            self._write_events(step, name, original, reconstruction)

    def _write_events(self, step: int, name: str, original: Tensor, reconstruction: Tensor) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._tensorboard))
        self._writer.add_audio(f"{name}/reconstruction", reconstruction.clamp(-1, 1)[None], step, SAMPLE_RATE)
        self._writer.add_audio(f"{name}/original", original.clamp(-1, 1)[None], step, SAMPLE_RATE)
        above, below = spectrogram(original), spectrogram(reconstruction)
        picture = torch.cat([above, torch.ones(2, above.shape[1]), below])
        self._writer.add_image(f"{name}/original above, reconstruction below", picture, step, dataformats="HW")
        self._writer.flush()
