"""What do the DAAM gates follow? The gate of each stage against loudness, voice activity and boundaries in the sound.

S samples   L steps of a stage   P steps of 10 ms
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.signal import find_peaks
from scipy.stats import rankdata
from torch import Tensor

from jepa_tok import SpeechTokenizer
from jepa_tok.models.daam import DaamGate
from jepa_tok.models.logmel import LogMel
from probes import intervals
from probes.results import summary

STEP = 0.01
"""Seconds of the finest step: gates of finer stages are averaged."""

SIGNALS = {
    "energy": ("correlation with the log energy of the step", 0.0),
    "voice": ("AUC for voice activity: energy above the middle between the clip's 5th and 95th percentile, in dB", 0.5),
    "boundary": ("AUC for boundaries: steps with more peaks of spectral flux than the clip's median step has", 0.5),
}
"""Signal -> what is measured, and its value for a gate that follows nothing."""


def describe(wave: Tensor, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Wave [S] -> energy [P] (mean square, of 10 ms) and whether a peak of the spectral flux is in the step, bool [P].

    Flux: Euclidean distance between the log-mels 20 ms before and after. Its peaks, 40 ms or more apart and half a deviation
    above their surroundings, stand for boundaries between phones, of which they find most (Dusan and Rabiner, Interspeech 2006).
    """
    hop = round(STEP * sample_rate)
    steps = -(-len(wave) // hop)
    padded = torch.nn.functional.pad(wave, (0, steps * hop - len(wave)))
    energy = padded.reshape(steps, hop).square().mean(1).numpy()
    mels = LogMel(sample_rate, 1024, hop, 40)(padded[None])[0].numpy()
    ahead = np.pad(mels, ((2, 2), (0, 0)), mode="edge")
    flux = np.linalg.norm(ahead[4:] - ahead[:-4], axis=1)
    peaks, _ = find_peaks(flux, distance=4, prominence=0.5 * flux.std() + 1e-9)
    marks = np.zeros(steps, bool)
    marks[peaks] = True
    return energy, marks


def coarse(values: np.ndarray, hop: float, steps: int) -> np.ndarray:
    """Sums of values [P] of 10 ms over steps of `hop` x 10 ms: [steps]."""
    ends = np.minimum(np.round(np.arange(steps + 1) * hop).astype(int), len(values))
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return total[ends[1:]] - total[ends[:-1]]


def auc(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Area under the ROC curve (Mann-Whitney); None where `truth` is all the same."""
    yes = int(truth.sum())
    no = len(truth) - yes
    if not yes or not no:
        return None
    return float((rankdata(score)[truth].sum() - yes * (yes + 1) / 2) / (yes * no))


def compare(gate: np.ndarray, step: float, energy: np.ndarray, marks: np.ndarray) -> dict[str, float | None]:
    """One clip's gate [L], of steps of `step` seconds, against the signals; None where a clip does not define one."""
    merge = max(1, round(STEP / step))  # of stages finer than 10 ms
    if merge > 1:
        usable = len(gate) // merge * merge
        gate, step = gate[:usable].reshape(-1, merge).mean(1), step * merge
    hop = step / STEP
    size = min(len(gate), round(len(energy) / hop))
    gate = gate[:size].astype(np.float64)
    counts = np.maximum(coarse(np.ones(len(energy)), hop, size), 1)
    level = 10 * np.log10(coarse(energy, hop, size) / counts + 1e-10)
    peaks = coarse(marks.astype(np.float64), hop, size)
    if size < 3 or gate.std() < 1e-9 or level.std() < 1e-9:
        return dict.fromkeys(SIGNALS)
    low, high = np.quantile(level, [0.05, 0.95])
    return {
        "energy": float(np.corrcoef(gate, level)[0, 1]),
        "voice": auc(gate, level > (low + high) / 2),
        "boundary": auc(gate, peaks > np.median(peaks)),
    }


def study(tokenizer: SpeechTokenizer, waves: Sequence[Tensor], owners: Sequence[str], by: str) -> list[dict[str, Any]]:
    """A row a stage with a gate: its rate, alpha, mean gate, and each of SIGNALS as the mean over clips with its interval.

    `waves` are at the tokenizer's sample rate. Empty where the encoder has no gates.
    """
    config = tokenizer.config.encoder
    signals = [describe(wave, tokenizer.sample_rate) for wave in waves]
    modules = [
        module for module in tokenizer.encoder.modules() if isinstance(module, DaamGate)
    ]  # in the order of the stages
    hops = np.cumprod([config.front_hop, *config.strides])[1:].tolist()
    found: list[list[dict[str, float | None]]] = [[] for _ in modules]
    means: list[list[float]] = [[] for _ in modules]
    for wave, (energy, marks) in zip(waves, signals):
        for k, gate in enumerate(tokenizer.gates(wave, tokenizer.sample_rate)):
            found[k].append(compare(gate.numpy(), hops[k] / tokenizer.sample_rate, energy, marks))
            means[k].append(float(gate.mean()))
    rows = []
    for k, module in enumerate(modules):
        row: dict[str, Any] = {"stage": k + 1, "steps_per_second": round(tokenizer.sample_rate / hops[k], 3)}
        row |= {"alpha": round(float(module.alpha.detach()), 5), "mean_gate": round(float(np.mean(means[k])), 5)}
        for name in SIGNALS:
            known = [(owner, clip[name]) for owner, clip in zip(owners, found[k]) if clip[name] is not None]
            values = [float(v) for _, v in known if v is not None]
            sample = intervals.ratio([owner for owner, _ in known], values, np.ones(len(values)), by) if known else None
            row[name] = summary([sample]) if sample else None
        rows.append(row)
    return rows
