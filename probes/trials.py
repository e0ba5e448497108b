"""Speaker verification: lists of trials, cosine scores, equal error rate, minimum detection cost.

N utterances   F features   P trials   B draws of speakers (`intervals`)
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import StandardScaler

from probes.data import ProbeError

MAX_COMPONENTS = 128
MAX_UTTERANCES = 1500  # whose pairs are trials; beyond it utterances are drawn by seed
MAX_TARGETS, MAX_OTHERS = 5_000, 20_000  # trials of one speaker, of two; beyond it they are drawn by seed
LDA_SPEAKERS = 3  # with two, LDA has one axis, on which a cosine is only a sign
HEADER = ("enroll", "test", "target")


@dataclass(frozen=True)
class TrialList:
    """P pairs of utterances, and whether one speaker says both."""

    enroll: np.ndarray
    """int64 [P], row numbers"""

    test: np.ndarray
    same: np.ndarray
    """bool [P]"""

    @property
    def rows(self) -> np.ndarray:
        """The utterances that occur, sorted."""
        return np.unique(np.concatenate([self.enroll, self.test]))

    def text(self, ids: Sequence[str]) -> str:
        """As `trials.tsv` holds it; `read` reads it back."""
        lines = [f"{ids[a]}\t{ids[b]}\t{int(s)}" for a, b, s in zip(self.enroll, self.test, self.same)]
        return "\n".join(["\t".join(HEADER), *lines]) + "\n"


def draw(speakers: Sequence[str], held: np.ndarray, seed: int) -> TrialList:
    """All pairs of the utterances `held`, or a part of them by seed where there are more than MAX_TARGETS or MAX_OTHERS."""
    rng = np.random.default_rng([seed, 5])
    if len(held) > MAX_UTTERANCES:
        held = np.sort(rng.choice(held, MAX_UTTERANCES, replace=False))
    first, second = np.triu_indices(len(held), k=1)
    names = np.asarray(speakers)[held]
    same = names[first] == names[second]
    kept = []
    for rows, most in ((np.flatnonzero(same), MAX_TARGETS), (np.flatnonzero(~same), MAX_OTHERS)):
        kept.append(rows if len(rows) <= most else rng.choice(rows, most, replace=False))
    pick = np.sort(np.concatenate(kept))
    return TrialList(held[first[pick]], held[second[pick]], same[pick])


def read(path: str | Path, ids: Sequence[str], speakers: Sequence[str]) -> TrialList:
    """A list in the form of `trials.tsv`: enroll id, test id, 1 for one speaker and 0 for two; the header may be missing.

    Raises ProbeError where the file cannot be read, a line breaks the form, an id has no utterance, a label denies the speakers, a
    trial repeats, or one kind of trial is missing.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ProbeError(f"The list of trials must be a file of text, but '{path}' cannot be read: {e}.") from None
    place = {name: i for i, name in enumerate(ids)}
    found: dict[tuple[int, int], bool] = {}
    for number, line in enumerate(lines, 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not cells or (number == 1 and tuple(cells) == HEADER):
            continue
        where = f"{path}:{number}"
        if len(cells) != 3 or cells[2] not in ("0", "1"):
            raise ProbeError(f"{where}: a trial must be `enroll id, test id, 0 or 1`, but is {line[:60]!r}.")
        for name in cells[:2]:
            if name not in place:
                raise ProbeError(
                    f"{where}: trials must be of utterances that have tokens and a speaker, but '{name}' has not."
                )
        a, b = place[cells[0]], place[cells[1]]
        if a == b or (a, b) in found:
            raise ProbeError(f"{where}: a trial must be of two utterances and occur once, but {line[:60]!r} does not.")
        found[a, b] = cells[2] == "1"
        if found[a, b] != (speakers[a] == speakers[b]):
            raise ProbeError(
                f"{where}: the label must agree with the speakers, but is {cells[2]} for '{speakers[a]}' and '{speakers[b]}'."
            )
    if len(set(found.values())) < 2:
        raise ProbeError(f"The list of trials must hold both kinds, but '{path}' does not.")
    pairs = np.array(list(found), dtype=np.int64)
    return TrialList(pairs[:, 0], pairs[:, 1], np.array(list(found.values())))


@dataclass(frozen=True)
class Curve:
    """Misses and false alarms [B, K] at every threshold, from none accepted (misses 1, alarms 0) to all (0, 1).

    Equal scores share one threshold. Rows are nan where the draw lacks one kind of trial.
    """

    misses: np.ndarray
    alarms: np.ndarray


def curve(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """Of `scores` [P], higher meaning more alike, for trials of one speaker where `same` [P]; `weights` [B, P] default to one draw
    in which each trial counts once.

    Raises ProbeError where one kind of trial is missing or a score is not finite.
    """
    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    if not same.any() or same.all():
        raise ProbeError(
            f"EER needs trials of both kinds, but has {same.sum()} of one speaker and {(~same).sum()} of two."
        )
    if not np.isfinite(scores).all():
        raise ProbeError("EER needs finite scores, but some are not.")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # a threshold lies only between different scores
    w = (np.ones((1, len(scores))) if weights is None else weights)[:, order]
    accepted = [np.cumsum(w * kind, axis=1)[:, last] for kind in (same[order], ~same[order])]
    with np.errstate(invalid="ignore", divide="ignore"):
        hits, alarms = (np.pad(n / n[:, -1:], ((0, 0), (1, 0))) for n in accepted)
    return Curve(1.0 - hits, alarms)


def equal_error(c: Curve) -> np.ndarray:
    """Equal error rate [B]: where misses equal false alarms, on straight lines between the points of the ROC.

    Constant scores give 1/2; any increasing map of the scores gives the same, and reversed scores 1 - EER.
    """
    k = np.argmax(c.alarms >= c.misses, axis=1)  # the first point past the crossing
    k = np.maximum(k, 1)  # never the very first; nan rows give nan
    row = np.arange(len(k))
    before = c.misses[row, k - 1] - c.alarms[row, k - 1]
    after = c.misses[row, k] - c.alarms[row, k]
    step = c.alarms[row, k] - c.alarms[row, k - 1]
    with np.errstate(invalid="ignore"):
        return c.alarms[row, k - 1] + before / (before - after) * step


def min_cost(c: Curve, p_target: float) -> np.ndarray:
    """Minimum of the normalised detection cost [B], in 0..1, where a trial is of one speaker with probability `p_target`.

    (p_target misses + (1 - p_target) alarms) / min(p_target, 1 - p_target), a miss and a false alarm costing 1 each: 1 is what
    accepting all or none costs. As in the NIST speaker recognition evaluation of 2016 (p_target 0.01 and 0.005) and the VoxCeleb challenge (p_target 0.05; Huh et al., arXiv:2302.10248).
    """
    cost = p_target * c.misses + (1.0 - p_target) * c.alarms
    return cost.min(1) / min(p_target, 1.0 - p_target)


def eer(scores: np.ndarray, same: np.ndarray) -> float:
    """Equal error rate of all trials; see `curve` and `equal_error`."""
    return float(equal_error(curve(scores, same))[0])


def cosines(x: Any, speakers: Sequence[str], train: np.ndarray, trials: TrialList, *, lda: bool) -> np.ndarray:
    """Score [P] of each trial: the cosine of features [N, F], dense or CSR, standardised and centred by the training rows.

    With `lda`, after PCA and a shrunk LDA fitted to the training speakers; raises ProbeError with fewer than three of those.
    """
    y, held = np.asarray(speakers), trials.rows
    sparse = not isinstance(x, np.ndarray)
    scaler = StandardScaler(with_mean=not sparse).fit(x[train])
    base, probe = scaler.transform(x[train]), scaler.transform(x[held])
    centre = np.asarray(base.mean(0)).reshape(-1)
    if lda:
        if len(set(y[train])) < LDA_SPEAKERS:
            raise ProbeError(f"LDA needs at least {LDA_SPEAKERS} training speakers, but has {len(set(y[train]))}.")
        size = min(MAX_COMPONENTS, len(train) - 1, x.shape[1] - sparse)  # the sparse solver finds one fewer
        pca = PCA(size, svd_solver="arpack" if sparse else "full", random_state=0).fit(base)
        base, probe = pca.transform(base), pca.transform(probe)
        model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # speakers with one utterance have no covariance; shrinkage fills it
            model.fit(base, y[train])
        base, probe = model.transform(base), model.transform(probe)
        centre = base.mean(0)
    probe = (probe if isinstance(probe, np.ndarray) else probe.toarray()) - centre
    norms = np.linalg.norm(probe, axis=1, keepdims=True)
    probe = np.divide(probe, norms, out=np.zeros_like(probe), where=norms > 0)
    a, b = np.searchsorted(held, trials.enroll), np.searchsorted(held, trials.test)
    return np.concatenate(
        [np.einsum("pf,pf->p", probe[a[i : i + 1000]], probe[b[i : i + 1000]]) for i in range(0, len(a), 1000)]
    )
