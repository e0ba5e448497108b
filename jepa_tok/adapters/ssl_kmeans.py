"""`hubert` and `wavlm`: k-means of a layer of a self-supervised encoder, as units for speech language models are made (arXiv 2102.01192).

SPEC is `NAME[:[REPO][@LAYER]]`: REPO a repository in the local Hugging Face cache or a folder; LAYER the Transformer layer, from 1 (0 is
its input), 9 by default. 500 centroids at 50 Hz: 448 bit/s.

    S samples at 16 kHz   T = ceil(S / 320) frames   K centroids   F features
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from jepa_tok.adapters.base import Adapter, fingerprint_of
from jepa_tok.adapters.hub_models import load_model, load_normalize, split_argument
from jepa_tok.adapters.kmeans import check_state, fit_centroids, nearest, sample_rows
from jepa_tok.errors import AdapterError
from jepa_tok.inference import exact_inference

FITTING_FRAMES = 50_000
"""Frames that centroids are fitted on: 17 minutes of speech, 150 MB at 768 features."""


LAYER = 9
"""By default, of the twelve of a base model: about where the study of HuBERT finds units nearest to phones."""


class SslKmeans(Adapter):
    """One index a frame; what is learned by `fit` are the centroids alone."""

    def __init__(self, name: str, kind: str, repo: str, layer: int, *, clusters: int = 500, seed: int = 0) -> None:
        self.name, self.layer, self.seed = name, layer, seed
        self.model: Any = load_model(name, kind, repo)
        self.normalize, self.sample_rate = load_normalize(name, repo)
        layers, strides, kernels = (
            getattr(self.model.config, k) for k in ("num_hidden_layers", "conv_stride", "conv_kernel")
        )
        if not 0 <= layer <= layers:
            raise AdapterError(f"'{name}' must be given a layer from 0 to {layers}, but is given {layer} instead.")
        self.hop, self.field = int(np.prod(strides)), 1
        for kernel, stride in zip(reversed(kernels), reversed(strides)):
            self.field = (self.field - 1) * stride + kernel  # samples that one frame hears
        self.frame_rate = self.sample_rate / self.hop
        self.radices = (clusters,)
        self.centroids: np.ndarray | None = None

    @classmethod
    def hubert(cls, argument: str = "") -> SslKmeans:
        """HuBERT base (arXiv 2106.07447)."""
        return cls._of("hubert", argument, "HubertModel", "facebook/hubert-base-ls960")

    @classmethod
    def wavlm(cls, argument: str = "") -> SslKmeans:
        """WavLM base plus (arXiv 2110.13900)."""
        return cls._of("wavlm", argument, "WavLMModel", "microsoft/wavlm-base-plus")

    @classmethod
    def _of(cls, title: str, argument: str, kind: str, repo: str) -> SslKmeans:
        repo, setting = split_argument(argument, repo)
        name = f"{title}:{argument}" if argument else title
        if setting and not setting.isdecimal():
            raise AdapterError(f"'{name}' must be given a whole number as its layer, but is given {setting} instead.")
        return cls(name, kind, repo, int(setting or LAYER))

    @cached_property
    def _weights(self) -> str:
        return fingerprint_of(self.model.state_dict())

    @property
    def fingerprint(self) -> str:
        """Over weights, layer, number of centroids, seed, and centroids."""
        return fingerprint_of(self._weights, self.normalize, self.layer, list(self.radices), self.seed, self.state())

    def encode(self, wave: Tensor) -> np.ndarray:
        """Index of the nearest centroid [T, 1]."""
        return nearest(self.latents(wave), self._fitted())[:, None].astype(self.code_dtype)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Centroids [T, F]."""
        return self._fitted()[codes[:, 0]]

    def latents(self, wave: Tensor) -> np.ndarray:
        """Hidden states of the layer [T, F]."""
        with exact_inference(self.model, self.model.device):
            if self.normalize:  # as its feature extractor does
                wave = (wave - wave.mean()) / torch.sqrt(wave.var(correction=0) + 1e-7)
            # Silence to the end of the last frame's field: the model itself drops a rest.
            wave = F.pad(wave, (0, -len(wave) % self.hop + self.field - self.hop))
            states = self.model(wave[None].to(self.model.device), output_hidden_states=True).hidden_states
            return states[self.layer][0].float().cpu().numpy()

    def fit(self, waves: Iterable[Tensor]) -> None:
        """k-means of hidden states."""
        rows = sample_rows(map(self.latents, waves), FITTING_FRAMES, self.seed)
        self.centroids = fit_centroids(rows, self.radices[0], self.seed, self.name)

    def state(self) -> dict[str, np.ndarray]:
        """Centroids [K, F]."""
        return {} if self.centroids is None else {"centroids": self.centroids}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes centroids."""
        check_state(state, {"centroids": (*self.radices, self.model.config.hidden_size)}, self.name)
        self.centroids = np.asarray(state["centroids"], np.float32)

    def to(self, device: str) -> None:
        """Moves the weights."""
        self.model.to(device)

    def _fitted(self) -> np.ndarray:
        if self.centroids is None:
            raise AdapterError(f"the centroids of `{self.name}` must be fitted by `fit` first, but are not.")
        return self.centroids
