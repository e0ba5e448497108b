"""The linear head of the pooled probes: standardised features, multinomial logistic regression, C tuned on dev alone.

N utterances   F features
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, recall_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the L2 penalty that are tried; with ties on dev the strongest penalty wins."""

MAX_ITER = 1000


@dataclass(frozen=True)
class Fit:
    """A head fitted on train and dev with the C that did best on dev."""

    model: Pipeline
    c: float
    unconverged: int
    """How many of the fits, of all values of C, stopped at MAX_ITER iterations."""


def fit(
    x: Any,
    labels: Sequence[str],
    train: np.ndarray,
    dev: np.ndarray,
    score: Callable[[Sequence[str], Sequence[str]], float],
    *,
    balanced: bool = False,
) -> Fit:
    """Tunes C on `dev` after training on `train`, then fits anew on both.

    x is [N, F], an array or CSR; `balanced` weighs classes inversely to their frequency. Test rows are never looked at.
    """
    y = np.asarray(labels)
    best, unconverged = (-np.inf, C_GRID[0]), 0
    for c in C_GRID:
        model, stopped = _fit_one(x[train], y[train], c, balanced)
        unconverged += stopped
        value = score(y[dev].tolist(), model.predict(x[dev]).tolist())
        if value > best[0]:
            best = (value, c)
    both = np.concatenate([train, dev])
    model, stopped = _fit_one(x[both], y[both], best[1], balanced)
    return Fit(model, best[1], unconverged + stopped)


def _fit_one(x: Any, y: np.ndarray, c: float, balanced: bool) -> tuple[Pipeline, int]:
    head = LogisticRegression(C=c, max_iter=MAX_ITER, class_weight="balanced" if balanced else None)
    model = make_pipeline(
        StandardScaler(with_mean=isinstance(x, np.ndarray)), head
    )  # centring would fill a sparse matrix
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted below and reported with the results
        model.fit(x, y)
    return model, int(max(head.n_iter_) >= MAX_ITER)


def accuracy(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Share of equal labels."""
    return float(np.mean([t == g for t, g in zip(truth, guess, strict=True)]))


def unweighted_recall(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Unweighted average recall: the mean, over the classes that occur in `truth`, of the share found of each."""
    classes = sorted(set(truth))
    return float(recall_score(truth, guess, labels=classes, average="macro", zero_division=0.0))


def macro_f1(truth: Sequence[str], guess: Sequence[str]) -> float:
    """Mean of the F1 of each class that occurs in `truth`."""
    return float(f1_score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0.0))
