"""Quick readers of z: what a linear model gets out of it about the sound and the voice, in each validation.

Loss and rank both mislead (a constant z has no loss, noise has full rank); what can be read from z does not.

    N clips   T frames   D latent dimensions   P sub-frames per frame   M mel filters
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jepa_tok.config import EncoderConfig
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.logmel import LogMel
from jepa_tok.seeding import seeded

N_MELS = 20
SUBFRAME_SECONDS = 0.02
PENALTIES = np.logspace(-1, 5, 13)
"""Of the ridge, among which leave-one-out on the fitted half chooses."""


def random_encoder(config: EncoderConfig, seed: int, device: torch.device) -> Encoder:
    """An encoder as initialised, the same for the same seed: what any training has to be better than."""
    with seeded(seed):
        return Encoder(config).requires_grad_(False).eval().to(device)


def subframe_mels(config: EncoderConfig) -> LogMel:
    """Log-mels of which a whole number fit into a frame, as near to 20 ms as can be."""
    wanted = max(round(config.hop / config.sample_rate / SUBFRAME_SECONDS), 1)
    parts = next(n for n in range(wanted, 0, -1) if config.hop % n == 0)
    return LogMel(config.sample_rate, config.n_fft, config.hop // parts, N_MELS)


def ridge_errors(
    fit: Sequence[Tensor], fit_mels: Sequence[Tensor], score: Sequence[Tensor], score_mels: Sequence[Tensor]
) -> list[tuple[float, float]] | None:
    """Error of a ridge from z to the log-mels of the frame's sub-frames.

    :param fit: z [T, D] of each clip that it is fitted on, with its `fit_mels` [T, P * M].
    :param score: z of each clip that it is scored on, with its `score_mels`.
    :returns: Of each scored clip the squared error and the squared deviation from the mean of all scored frames, summed over
        frames and P * M; None where either side has fewer than two frames.
    """
    from sklearn.linear_model import RidgeCV

    if min(sum(map(len, clips)) for clips in (fit, score)) < 2:
        return None
    z, y, new_mean = _join(fit), _join(fit_mels), _join(score_mels).mean(0)
    mean, scale = z.mean(0), z.std(0) + 1e-8
    ridge = RidgeCV(PENALTIES).fit((z - mean) / scale, y)
    found = []
    for z_new, y_new in zip(score, score_mels):
        if len(z_new):
            error = np.square(ridge.predict((_join([z_new]) - mean) / scale) - _join([y_new])).sum()
            found.append((float(error), float(np.square(_join([y_new]) - new_mean).sum())))
        else:
            found.append((0.0, 0.0))
    return found


def mel_r2(latents: Sequence[Tensor], mels: Sequence[Tensor]) -> float | None:
    """R2 of a ridge from z to the log-mels of the frame's sub-frames, fitted on every other clip, scored on the rest.

    :param latents: [T, D] of each clip.
    :param mels: [T, P * M] of the same frames.
    :returns: One minus the squared error over the squared deviation from the mean, summed over P * M; None where a half has
        fewer than two frames.
    """
    found = ridge_errors(latents[::2], mels[::2], latents[1::2], mels[1::2])
    if found is None:
        return None
    error, deviation = (sum(column) for column in zip(*found))
    return 1.0 - error / max(deviation, 1e-12)


def label_hits(
    fit: Sequence[Tensor], fit_labels: Sequence[str], score: Sequence[Tensor], score_labels: Sequence[str]
) -> list[bool]:
    """Whether a logistic regression from a clip's mean z, fitted on the clips `fit` [T, D], names the label of each of `score`."""
    from sklearn.linear_model import LogisticRegression

    x, x_new = (np.stack([_pooled(z) for z in clips]) for clips in (fit, score))
    mean, scale = x.mean(0), x.std(0) + 1e-8
    reader = LogisticRegression(max_iter=200).fit((x - mean) / scale, list(fit_labels))
    return [str(a) == b for a, b in zip(reader.predict((x_new - mean) / scale), score_labels)]


def speaker_accuracy(latents: Sequence[Tensor], speakers: Sequence[str | None]) -> tuple[float, float] | None:
    """Accuracy of a logistic regression from each clip's mean z to its speaker, and that of always naming the commonest.

    Fitted on every other clip of each speaker and scored on the rest; speakers with a single clip are left out. None where
    fewer than two speakers are left.
    """
    clips: dict[str, list[int]] = defaultdict(list)
    for i, speaker in enumerate(speakers):
        if speaker is not None and len(latents[i]):
            clips[speaker].append(i)
    groups = {speaker: own for speaker, own in clips.items() if len(own) > 1}
    if len(groups) < 2:
        return None
    fit, score = ([(i, speaker) for speaker, own in groups.items() for i in own[half::2]] for half in range(2))
    sides = [([latents[i] for i, _ in side], [speaker for _, speaker in side]) for side in (fit, score)]
    hits = label_hits(*sides[0], *sides[1])
    truth = [speaker for _, speaker in score]
    return sum(hits) / len(hits), max(map(truth.count, set(truth))) / len(truth)


def _join(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).double().numpy() if parts else np.zeros((0, 0))


def _pooled(z: Tensor) -> np.ndarray:
    return _join([z]).mean(0) if len(z) else np.zeros(z.shape[1])


@dataclass
class QuickReaders:
    """Collects the clips of a validation and reads them, from the encoder that trains and from one as initialised.

    :param speakers: Speaker of each clip by id, where known.
    :param seed: Of the initialisation; its values are computed once, in the first validation after a start.
    """

    config: EncoderConfig
    speakers: Mapping[str, str]
    seed: int
    initial: dict[str, float] | None = None
    _mels: list[Tensor] = field(default_factory=list)
    _names: list[str | None] = field(default_factory=list)
    _trained: list[Tensor] = field(default_factory=list)
    _random: list[Tensor] = field(default_factory=list)
    _random_encoder: Encoder | None = None

    def add(self, ids: Sequence[str], wave: Tensor, lengths: Tensor, sizes: Sequence[int], latents: Tensor) -> None:
        """Takes a batch: waves [B, S], lengths [B] and the trained encoder's z [B, T, D], on the CPU."""
        logmel = subframe_mels(self.config)
        parts = self.config.hop // logmel.hop
        mels = logmel(wave).cpu()
        untrained: Tensor | None = None
        if self.initial is None:
            if self._random_encoder is None:
                self._random_encoder = random_encoder(self.config, self.seed, wave.device)
            untrained = self._random_encoder(wave, lengths).latents.float().cpu()
        for i, (id, size) in enumerate(zip(ids, sizes)):
            frames = size // self.config.hop  # a frame that the clip does not fill is half silence
            self._names.append(self.speakers.get(id))
            self._mels.append(mels[i, : frames * parts].reshape(frames, parts * N_MELS))
            self._trained.append(latents[i, :frames])
            if untrained is not None:
                self._random.append(untrained[i, :frames])

    def read(self) -> dict[str, float]:
        """Metrics of what was collected, which is then forgotten."""
        found = self._fit(self._trained)
        if self.initial is None:
            self.initial = {f"{name}_init": x for name, x in self._fit(self._random).items() if "chance" not in name}
        self._mels, self._names, self._trained, self._random, self._random_encoder = [], [], [], [], None
        return found | self.initial

    def _fit(self, latents: list[Tensor]) -> dict[str, float]:
        found: dict[str, float] = {}
        r2, speaker = mel_r2(latents, self._mels), speaker_accuracy(latents, self._names)
        if r2 is not None:
            found["reader_mel_r2"] = r2
        if speaker is not None:
            found["reader_speaker"], found["reader_speaker_chance"] = speaker
        return found
