"""Speaker verification: trials over pairs of utterances, cosine scores, equal error rate.

N utterances   F features   P pairs
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from probes.data import ProbeError

MAX_COMPONENTS = 128
MAX_UTTERANCES = 1500  # a million pairs and more; beyond it utterances are drawn by seed
LDA_SPEAKERS = 3  # with two, LDA has one axis, on which a cosine is only a sign


def eer(scores: np.ndarray, same: np.ndarray) -> float:
    """Equal error rate of `scores` [P], higher meaning more alike, for trials that are of one speaker where `same` [P].

    Where misses equal false alarms, on straight lines between the ROC's points: equal scores share one threshold, so
    that constant scores give 1/2; any increasing map of the scores gives the same, and reversed scores 1 - EER.
    Raises ProbeError where one kind of trial is missing or a score is not finite.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    targets, others = int(same.sum()), int((~same).sum())
    if not targets or not others:
        raise ProbeError(f"EER needs trials of both kinds, but has {targets} of one speaker and {others} of two.")
    if not np.isfinite(scores).all():
        raise ProbeError("EER needs finite scores, but some are not.")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold lies only between different scores
    misses = 1.0 - np.concatenate([[0], np.cumsum(same[order])[last]]) / targets  # falls from 1 to 0
    alarms = np.concatenate([[0], np.cumsum(~same[order])[last]]) / others  # rises from 0 to 1
    k = int(np.argmax(alarms >= misses))  # the first point past the crossing; never the very first
    before, after = misses[k - 1] - alarms[k - 1], misses[k] - alarms[k]
    return float(alarms[k - 1] + before / (before - after) * (alarms[k] - alarms[k - 1]))


def score(
    x: np.ndarray, speakers: Sequence[str], train: np.ndarray, held: np.ndarray, seed: int, *, lda: bool
) -> float:
    """EER over all pairs of the utterances `held`, from the cosine of features [N, F] centred by the training rows.

    With `lda`, after PCA and a shrunk LDA fitted to the training speakers. Raises ProbeError as `eer` does, and for `lda`
    with fewer than three training speakers.
    """
    y = np.asarray(speakers)
    if len(held) > MAX_UTTERANCES:
        held = np.sort(np.random.default_rng([seed, 5]).choice(held, MAX_UTTERANCES, replace=False))
    scaler = StandardScaler().fit(x[train])
    base, probe = scaler.transform(x[train]), scaler.transform(x[held])
    if lda:
        if len(set(y[train])) < LDA_SPEAKERS:
            raise ProbeError(f"LDA needs at least {LDA_SPEAKERS} training speakers, but has {len(set(y[train]))}.")
        pca = PCA(min(MAX_COMPONENTS, len(train) - 1, x.shape[1]), svd_solver="full").fit(base)
        base, probe = pca.transform(base), pca.transform(probe)
        model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # speakers with one utterance have no covariance; shrinkage fills it
            model.fit(base, y[train])
        base, probe = model.transform(base), model.transform(probe)
    probe = probe - base.mean(0)
    norms = np.linalg.norm(probe, axis=1, keepdims=True)
    probe = np.divide(probe, norms, out=np.zeros_like(probe), where=norms > 0)
    first, second = np.triu_indices(len(held), k=1)
    cosines = (probe @ probe.T)[first, second]
    names = y[held]
    return eer(cosines, names[first] == names[second])
