"""`melkm`: log-mels quantised by residual k-means, at the bit rate of our tokens. The baseline that needs no weights.

40 frames a second x 2 codebooks x 8 bit = 640 bit/s, exactly that of 2.5 frames x 128 digits x 2 bit. A frame is 25 ms of 80
log-mels; the second codebook holds what the first leaves over (residual vector quantisation, Juang and Gray, ICASSP 1982).

    S samples   T frames   M mel filters   K centroids
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from jepa_tok.adapters.base import Adapter, fingerprint_of
from jepa_tok.adapters.kmeans import check_state, fit_centroids, nearest, sample_rows
from jepa_tok.errors import AdapterError
from jepa_tok.models.logmel import LogMel

FITTING_FRAMES = 100_000
"""Frames that centroids are fitted on: 32 MB at 80 log-mels."""

MOST_BITS = 12
"""Of a codebook: 4,096 centroids have 24 frames each to learn from."""


class MelKmeans(Adapter):
    """Log-mels by residual k-means: `bits` of each codebook, `rate` frames a second."""

    sample_rate = 24_000

    def __init__(self, rate: int = 40, bits: tuple[int, ...] = (8, 8), *, seed: int = 0, name: str = "melkm") -> None:
        if not 1 <= rate <= 200 or self.sample_rate % rate:
            raise AdapterError(f"`{name}` must have 1 to 200 frames a second that divide 24,000, but has {rate}.")
        if not bits or not all(1 <= b <= MOST_BITS for b in bits):
            raise AdapterError(f"`{name}` must have codebooks of 1 to {MOST_BITS} bits, but has {list(bits)}.")
        self.name, self.seed = name, seed
        self.frame_rate = float(rate)
        self.radices = tuple(2**b for b in bits)
        self.mels = LogMel(self.sample_rate, 1024, self.sample_rate // rate, 80)
        self.books: list[np.ndarray] = []

    @classmethod
    def from_argument(cls, argument: str) -> MelKmeans:
        """Nothing, or `RATE,BITS,...`: `melkm:40,8,8` is `melkm`."""
        if not argument:
            return cls()
        try:
            rate, *bits = map(int, argument.split(","))
        except ValueError:
            raise AdapterError(
                f"`melkm` must have RATE,BITS,... as its argument (`melkm:40,8,8`), but has '{argument}'."
            ) from None
        return cls(rate, tuple(bits), name=f"melkm:{argument}")

    @property
    def fingerprint(self) -> str:
        """Over rate, codebooks, seed and centroids."""
        return fingerprint_of("melkm/1", self.frame_rate, list(self.radices), self.seed, self.state())

    def encode(self, wave: Tensor) -> np.ndarray:
        """One index of each codebook [T, D], T = ceil(S / hop)."""
        if not self.books:
            raise AdapterError(f"the centroids of `{self.name}` must be fitted by `fit` first, but are not.")
        rest = self.latents(wave)
        codes = np.empty((len(rest), len(self.radices)), self.code_dtype)
        for d, book in enumerate(self.books):
            codes[:, d] = nearest(rest, book)
            rest = rest - book[codes[:, d]]
        return codes

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Log-mels [T, M]: the sum of the centroids."""
        return np.sum([book[codes[:, d]] for d, book in enumerate(self.books)], axis=0)

    def latents(self, wave: Tensor) -> np.ndarray:
        """Log-mels [T, M]."""
        with torch.inference_mode():
            return self.mels(wave[None])[0].numpy()

    def fit(self, waves: Iterable[Tensor]) -> None:
        """One codebook after the other, each on what those before it leave over."""
        rest = sample_rows(map(self.latents, waves), FITTING_FRAMES, self.seed)
        books = []
        for size in self.radices:
            books.append(fit_centroids(rest, size, self.seed, self.name))
            rest = rest - books[-1][nearest(rest, books[-1])]
        self.books = books

    def state(self) -> dict[str, np.ndarray]:
        """Centroids [K, M] of each codebook."""
        return {f"centroids_{d}": book for d, book in enumerate(self.books)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes centroids."""
        shapes = {f"centroids_{d}": (size, self.mels.n_mels) for d, size in enumerate(self.radices)}
        check_state(state, shapes, self.name)
        self.books = [np.asarray(state[key], np.float32) for key in shapes]
