"""The tokenizers of this package: trained, untrained, and of a stage 1 encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from jepa_tok.adapters.base import Adapter, fingerprint_of
from jepa_tok.adapters.kmeans import check_state, sample_rows
from jepa_tok.errors import AdapterError
from jepa_tok.hub import read_folder
from jepa_tok.presets import PRESETS
from jepa_tok.tokenizer import SpeechTokenizer

CALIBRATION_FRAMES = 2_000
"""Frames that a quantiser is set to, as many as stage 2 takes by default."""


class Ours(Adapter):
    """A `SpeechTokenizer`: D digits a frame, one CTC position for each of its G tokens.

    :param calibrated: False where `fit` must set the quantiser's scale and bias first, on up to 2,000 frames: an encoder puts out
        its own mean and spread, and a control whose digits hardly move would be too weak.
    """

    def __init__(self, tokenizer: SpeechTokenizer, name: str, *, calibrated: bool = True, seed: int = 0) -> None:
        self.tokenizer, self.name, self.seed = tokenizer, name, seed
        self.learns = not calibrated and tokenizer.fsq.scale is not None  # the `tanh` bound has nothing to set
        self.calibrated = not self.learns
        self.sample_rate, self.frame_rate = tokenizer.sample_rate, tokenizer.frame_rate
        self.radices = tuple(tokenizer.config.quantizer.radices)

    @classmethod
    def from_pretrained(cls, name_or_folder: str) -> Ours:
        """A trained tokenizer, as it was saved."""
        return cls(SpeechTokenizer.from_pretrained(name_or_folder), name_or_folder)

    @classmethod
    def stage1(cls, folder: str) -> Ours:
        """The folder that `recipes.jepa.export` wrote: a trained encoder, its quantiser set to the frames that `fit` gets."""
        return cls(SpeechTokenizer.from_pretrained(folder), f"stage1:{folder}", calibrated=False)

    @classmethod
    def random(cls, argument: str) -> Ours:
        """`CONFIG` or `CONFIG:SEED`: untrained weights; CONFIG is a preset's name, or a tokenizer whose config is taken."""
        config, colon, number = argument.rpartition(":")
        if not colon or not number.isdecimal():
            config, number = argument, "0"
        if not config:
            raise AdapterError(
                f"`random` must have a config (`random:small`, `random:FOLDER`); presets are {', '.join(PRESETS)}."
            )
        made = SpeechTokenizer.from_config(config if config in PRESETS else read_folder(config).config, int(number))
        return cls(made, f"random:{argument}", calibrated=False, seed=int(number))

    @property
    def slots(self) -> int:
        """G, the tokens of a frame."""
        return self.tokenizer.num_groups

    @property
    def fingerprint(self) -> str:
        """The tokenizer's own hash, as token shards have it; before it is calibrated another one, since the trained one has the same."""
        return self.tokenizer.hash if self.calibrated else fingerprint_of("uncalibrated", self.tokenizer.hash)

    def encode(self, wave: Tensor) -> np.ndarray:
        """Digits [T, D]; `values` are the levels that they stand for, as the decoder reads them."""
        self._check_calibrated()
        return self.tokenizer.encode(wave).codes.numpy().astype(self.code_dtype)

    def latents(self, wave: Tensor) -> np.ndarray:
        """z [T, D]."""
        return self.tokenizer.latents(wave).numpy()

    def codes_of(self, latents: np.ndarray) -> np.ndarray:
        """z [T, D] -> digits [T, D]."""
        self._check_calibrated()
        with torch.inference_mode():
            digits = self.tokenizer.fsq.quantize(torch.from_numpy(latents).to(self.tokenizer.device))
        return digits.cpu().numpy().astype(self.code_dtype)

    def _check_calibrated(self) -> None:
        if not self.calibrated:
            raise AdapterError(f"the quantiser of `{self.name}` must be set by `fit` first, but is not.")

    def fit(self, waves: Iterable[Tensor]) -> None:
        """Calibrates the quantiser, unless it came calibrated."""
        if self.learns:
            rows = sample_rows(map(self.latents, waves), CALIBRATION_FRAMES, self.seed)
            if len(rows) < 2:
                raise AdapterError(f"`{self.name}` must be fitted on at least 2 frames, but got {len(rows)}.")
            self.tokenizer.fsq.calibrate(torch.from_numpy(rows).to(self.tokenizer.device))
            self.calibrated = True

    def state(self) -> dict[str, np.ndarray]:
        """Scale and bias [D] of the quantiser, where `fit` sets them."""
        if not (self.learns and self.calibrated):
            return {}
        return {name: x.detach().cpu().numpy() for name, x in self.tokenizer.fsq.named_parameters()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Sets scale and bias."""
        if not self.learns:
            super().load_state(state)
            return
        dim = (len(self.radices),)
        check_state(state, {"scale": dim, "bias": dim}, self.name)
        with torch.no_grad():
            for name, x in self.tokenizer.fsq.named_parameters():
                x.copy_(torch.from_numpy(state[name].copy()))
        self.calibrated = True

    def to(self, device: str) -> None:
        """Moves the weights."""
        self.tokenizer.to(device)
