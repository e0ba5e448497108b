"""What adapters that learn from training audio share: frames drawn from it, centroids, and the nearest of them.

N frames   K centroids   F features
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import numpy as np

from jepa_tok.adapters.base import require
from jepa_tok.errors import AdapterError


def sample_rows(blocks: Iterable[np.ndarray], most: int, seed: int) -> np.ndarray:
    """Up to `most` random rows of blocks [n, F]: float32 [N, F].

    Stops reading after twice as many: more clips, so more voices, without hearing a corpus to its end. Holds at most that many.
    """
    kept: list[np.ndarray] = []
    count = 0
    for block in blocks:
        kept.append(np.asarray(block, np.float32))
        count += len(kept[-1])
        if count >= 2 * most:
            break
    if not kept:
        return np.zeros((0, 0), np.float32)
    rows = np.concatenate(kept)
    picks = np.random.default_rng([seed, 8]).permutation(len(rows))[:most]
    return rows[np.sort(picks)]


def fit_centroids(rows: np.ndarray, clusters: int, seed: int, name: str) -> np.ndarray:
    """k-means of rows [N, F]: centroids float32 [K, F]; raises AdapterError where there are fewer rows than centroids."""
    if len(rows) < clusters:
        raise AdapterError(
            f"`{name}` must be fitted on at least {clusters} frames, one a centroid, but the training audio has {len(rows)}."
        )
    require("sklearn", name)
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of frames that are alike, digital silence for one
        means = MiniBatchKMeans(clusters, batch_size=4096, n_init=3, max_iter=50, random_state=seed)
        return np.asarray(means.fit(rows).cluster_centers_, np.float32)


def nearest(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Index [N] of the centroid [K, F] nearest to each row [N, F]."""
    # In float64: with float32 the last bit, and once in a while the nearest, would hang on how many rows are multiplied at once.
    books = centroids.astype(np.float64)
    return (0.5 * np.square(books).sum(1) - rows.astype(np.float64) @ books.T).argmin(1)


def check_state(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """Raises AdapterError where `state` is not one of finite arrays of these names and shapes; -1 in a shape is any size."""
    found = {key: tuple(x.shape) for key, x in state.items()}
    fits = found.keys() == shapes.keys() and all(
        len(found[k]) == len(s) and all(n in (-1, m) for n, m in zip(s, found[k])) for k, s in shapes.items()
    )
    if not fits:
        raise AdapterError(f"the state of `{name}` must be {dict(shapes)}, but is {found} instead")
    if not all(np.isfinite(x).all() for x in state.values()):
        raise AdapterError(f"the state of `{name}` must be finite, but is not")
