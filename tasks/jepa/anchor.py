"""Fits the mel anchor's mixture on training clips, once, before stage 1 starts (arXiv 2602.09040).

N sub-frames   K components   M mel filters
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError

from jepa_tok.corpus.manifest import Utterance
from jepa_tok.models.anchor import MelPosteriors
from tasks.speech import sample_waves

VARIANCE_FLOOR = 1e-3
"""Of the log-mel variances: silence of one value must not become a component of infinite density."""


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Schedule of the anchor's weight and of the target's decay at `step` of `steps`: half a cosine from `start` to `end`, then `end`."""
    done = min(max(step, 0) / max(steps, 1), 1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done))


@torch.no_grad()
def collect_features(
    anchor: MelPosteriors, utterances: list[Utterance], frames: int, seed: int, crop_seconds: float
) -> torch.Tensor:
    """Log-mels [N, M] of up to `frames` sub-frames, from randomly chosen clips; unreadable clips are passed over."""
    rng = np.random.default_rng([seed, 3])
    kept: list[torch.Tensor] = []
    count = 0
    for wave in sample_waves(utterances, rng, crop_seconds):
        features = anchor.features(wave[None])[0]
        kept.append(features[torch.isfinite(features).all(-1)])
        count += len(kept[-1])
        # A few times as much as needed, thinned out below: more clips, so more voices.
        if count >= 4 * frames:
            break
    if not kept:
        raise RecipeError("the mel anchor cannot be fitted: none of the training files can be read.")
    features = torch.cat(kept)
    picks = rng.permutation(len(features))[:frames]
    return features[torch.from_numpy(np.sort(picks))]


def fit_anchor(
    anchor: MelPosteriors, utterances: list[Utterance], *, frames: int, seed: int, crop_seconds: float = 15.0
) -> None:
    """Fits a diagonal Gaussian mixture on log-mels of training clips and hands it to `anchor`.

    The same seed and clips give the same mixture. RecipeError where there are fewer sub-frames than components.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    clusters = anchor.config.clusters
    features = collect_features(anchor, utterances, frames, seed, crop_seconds).float().cpu().numpy()
    if len(features) < 2 * clusters:
        raise RecipeError(
            f"`model.config_overrides.anchor.clusters` must be at most half the sub-frames of the training clips ({len(features)}), but is {clusters} instead."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centres = MiniBatchKMeans(clusters, n_init=1, max_iter=20, random_state=seed).fit(features).cluster_centers_
        mixture = GaussianMixture(
            clusters,
            covariance_type="diag",
            max_iter=10,
            reg_covar=VARIANCE_FLOOR,
            means_init=centres,
            weights_init=np.full(clusters, 1.0 / clusters),
            precisions_init=np.broadcast_to(1.0 / (features.var(0) + VARIANCE_FLOOR), centres.shape),
            random_state=seed,
        ).fit(features)
    weights = np.maximum(mixture.weights_, 1e-8)
    anchor.set_mixture(
        torch.from_numpy(np.asarray(mixture.means_)).float(),
        torch.from_numpy(np.asarray(mixture.covariances_)).float(),
        torch.from_numpy(weights / weights.sum()).float(),
    )
    log.info("Mel anchor: {} components fitted on {} sub-frames.", clusters, len(features))
