"""What is measured of a trained variant, on validation readers, with each reader's own value beside the total.

B clips   S samples   T frames   D dimensions
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egs.librispeech.ablations.data import SECONDS
from jepa_tok.audio import SAMPLE_RATE, load_audio
from jepa_tok.corpus.manifest import Utterance, read_corpus
from jepa_tok.evaluation.clip import Clip
from jepa_tok.evaluation.metrics import CannotMeasure, Stoi
from jepa_tok.models.codec import Codec
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.losses import Spectra, mel_loss, stft_loss
from jepa_tok.monitor import code_entropies, collapse_stats
from tasks.jepa.readers import label_hits, ridge_errors, subframe_mels

BATCH = 16
FFTS = (2048, 512)
"""Windows of the losses that are measured; training has others (`cell.CODEC_LOSSES`)."""


@dataclass
class Measure:
    """A figure and that of each reader, or of each sound."""

    value: float
    units: dict[str, float]


@dataclass
class Pieces:
    """Waves [N, S] of equal length with the rows that they are of."""

    rows: list[Utterance]
    waves: Tensor

    @classmethod
    def load(cls, manifest: Path) -> Pieces:
        """The pieces of a manifest; shorter ones end in silence."""
        rows = list(read_corpus(manifest))
        size = round(SECONDS * SAMPLE_RATE)
        waves = torch.zeros(len(rows), size)
        for wave, row in zip(waves, rows):
            piece = load_audio(row.path, SAMPLE_RATE)[:size]
            wave[: len(piece)] = piece
        return cls(rows, waves)

    def labels(self, key: str) -> list[str]:
        """A column of the rows."""
        return [str(row.info[key]) for row in self.rows]

    def map(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What `function` makes of the waves, batch by batch."""
        return torch.cat([function(batch) for batch in self.waves.split(BATCH)])


def mean_of(values: Sequence[float], units: Sequence[str]) -> Measure:
    """Mean over clips, and over those of each unit."""
    own: dict[str, list[float]] = defaultdict(list)
    for value, unit in zip(values, units):
        own[unit].append(value)
    return Measure(math.fsum(values) / len(values), {unit: math.fsum(v) / len(v) for unit, v in own.items()})


def r2_of(errors: Sequence[tuple[float, float]], units: Sequence[str]) -> Measure:
    """R2 from the squared error and the squared deviation of each clip: over all of them, and over those of each unit."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for pair, unit in zip(errors, units):
        for name in ("", unit):
            sums[name] = [a + b for a, b in zip(sums[name], pair)]
    r2 = {name: 1.0 - error / max(deviation, 1e-12) for name, (error, deviation) in sums.items()}
    return Measure(r2.pop(""), r2)


@torch.inference_mode()
def measure_encoder(encoder: Encoder, data: Path, sounds: bool) -> dict[str, Measure]:
    """What readers find in z of whole pieces: log-mels, speakers, and classes of sounds.

    The ridge is fitted on pieces of training readers, the logistic regression on one piece of each validation reader and scored on the other.
    """
    encoder.eval()
    fit, valid = Pieces.load(data / "fit.jsonl"), Pieces.load(data / "valid.jsonl")
    logmel = subframe_mels(encoder.config)
    z, mels = [], []
    for pieces in (fit, valid):
        latents = pieces.map(lambda wave: encoder(wave).latents)
        z.append(list(latents))
        mels.append(list(pieces.map(logmel).reshape(*latents.shape[:2], -1)))  # [N, T, P * M]
    speakers = valid.labels("speaker")
    errors = ridge_errors(z[0], mels[0], z[1], mels[1])
    assert errors is not None
    found = {"mel_r2": r2_of(errors, speakers)}
    hits = label_hits(z[1][::2], speakers[::2], z[1][1::2], speakers[1::2])
    found["speaker"] = mean_of(list(map(float, hits)), speakers[1::2])
    latents = torch.stack(z[1])
    stats = collapse_stats(latents, torch.full((len(latents),), latents.shape[1]))
    for name in ("effective_rank", "between_clip_share"):
        found[name] = Measure(stats[name], {})
    if sounds:
        fit, valid = Pieces.load(data / "sounds_fit.jsonl"), Pieces.load(data / "sounds_valid.jsonl")
        heard = [list(pieces.map(lambda wave: encoder(wave).latents)) for pieces in (fit, valid)]
        hits = label_hits(heard[0], fit.labels("label"), heard[1], valid.labels("label"))
        found["sound_class"] = mean_of(list(map(float, hits)), [row.id for row in valid.rows])
    return found


@torch.inference_mode()
def measure_jepa(model: Jepa, data: Path, sounds: bool) -> dict[str, Measure]:
    """R2 of the prediction against the clip's mean under fixed masks, and what `measure_encoder` finds."""
    model.eval()
    valid = Pieces.load(data / "valid.jsonl")
    errors: list[tuple[float, float]] = []
    for i, wave in enumerate(valid.waves.split(BATCH)):
        lengths = torch.full((len(wave),), wave.shape[1])
        mask = model.sample_mask(model.encoder.num_frames(lengths), torch.Generator().manual_seed(i))
        found = model(wave, lengths, mask).prediction_errors(mask)
        errors += zip(*(column.tolist() for column in found))
    return {"prediction_r2": r2_of(errors, valid.labels("speaker")), **measure_encoder(model.encoder, data, sounds)}


@torch.inference_mode()
def measure_codec(model: Codec, data: Path, sounds: bool) -> dict[str, Measure]:
    """Losses and STOI of resynthesised pieces, and what the codes use; STOI of the first piece of each reader (it is slow)."""
    model.eval()
    valid = Pieces.load(data / "valid.jsonl")
    speakers, stoi = valid.labels("speaker"), Stoi()
    fakes, codes = _resynthesise(model, valid)
    found = {name: mean_of(values, speakers) for name, values in _losses(fakes, valid.waves).items()}
    scores, scored = [], []
    for fake, real, speaker in zip(fakes[::2], valid.waves[::2], speakers[::2]):
        try:
            scores.append(stoi.score(Clip(real, SAMPLE_RATE), Clip(fake, SAMPLE_RATE)).values["stoi"])
            scored.append(speaker)
        except CannotMeasure:
            continue
    found["stoi"] = mean_of(scores, scored)
    quantizer, rate = model.config.tokenizer.quantizer, model.config.tokenizer.encoder.frame_rate
    entropies = code_entropies(codes.flatten(0, 1), quantizer.radices)
    bits = torch.tensor(quantizer.radices).log2()
    found["bit_rate"] = Measure(float(bits.sum()) * rate, {})
    found["bits_used"] = Measure(float((entropies * bits).sum()) * rate, {})
    found["code_usage"] = Measure(float(entropies.mean()), {})
    if sounds:
        valid = Pieces.load(data / "sounds_valid.jsonl")
        for name, values in _losses(_resynthesise(model, valid)[0], valid.waves).items():
            found[f"sound_{name}"] = mean_of(values, [row.id for row in valid.rows])
    return found


def _resynthesise(model: Codec, pieces: Pieces) -> tuple[Tensor, Tensor]:
    """Reconstructions [N, S] and codes [N, T, D]."""
    made = [model.reconstruct(wave) for wave in pieces.waves.split(BATCH)]
    return torch.cat([fake for _, _, fake in made]), torch.cat([codes for _, codes, _ in made])


def _losses(fakes: Tensor, reals: Tensor) -> dict[str, list[float]]:
    """Mel and STFT loss of each piece. Their windows are not all that `CodecConfig` has: these would take longer than the training."""
    found: dict[str, list[float]] = {"mel": [], "stft": []}
    for fake, real in zip(fakes, reals):
        spectra = Spectra(fake[None], real[None])
        found["mel"].append(float(mel_loss(spectra, FFTS, SAMPLE_RATE)))
        found["stft"].append(float(stft_loss(spectra, FFTS)))
    return found


def as_json(found: dict[str, Measure]) -> dict[str, Any]:
    """Plain values, rounded to what is worth keeping."""
    return {
        name: {"value": round(m.value, 6), "units": {unit: round(v, 5) for unit, v in m.units.items()}}
        for name, m in found.items()
    }
