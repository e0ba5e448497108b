"""A cell of the sweep: one variant with one seed, trained by the project's recipes, measured, and written as one file.

Each cell runs in a process of its own, forked from one that has imported fairseq2 already: that takes no time, and nothing is left of
a cell in the next one. A cell that is killed leaves no file and is begun anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import recipes  # noqa: F401  (one thread, and libsndfile; before torch)

# isort: split
import torch
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.config import (
    AdamWConfig,
    CommonSection,
    CosineAnnealingLRConfig,
    LRSchedulerSection,
    MetricRecordersConfig,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TensorBoardConfig,
    TrainerSection,
)
from fairseq2.recipe.run import run

from egs.librispeech.ablations.data import SECONDS, DataSettings
from egs.librispeech.ablations.measure import as_json, measure_codec, measure_encoder, measure_jepa
from egs.librispeech.ablations.variants import Variant, merged
from jepa_tok._fairseq2.checkpoint import CODEC_FAMILY, ENCODER_FAMILY, find_checkpoint
from jepa_tok._fairseq2.speech_data import SpeechDatasetSection
from jepa_tok.config_dict import from_dict, to_dict
from jepa_tok.files import write_text
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.presets import jepa_config
from jepa_tok.provenance import commit, machine
from jepa_tok.training_config import CodecConfig, JepaConfig
from recipes.codec.config import CodecRecipeConfig, EncoderSection, GanSection, SamplesSection
from recipes.codec.recipe import CodecRecipe
from recipes.jepa.config import AnchorSection, JepaRecipeConfig
from recipes.jepa.recipe import JepaRecipe
from tasks.jepa.readers import random_encoder

ARCH = "tiny"
"""What `variants.JEPA` and the like are changes of."""


@dataclass(frozen=True)
class SweepSettings:
    """What all cells of a sweep have in common."""

    data: DataSettings
    jepa_steps: int = 40
    codec_steps: int = 50
    jepa_batch: int = 8
    codec_batch: int = 4
    crop_seconds: float = 1.6
    """Of stage 2; stage 1 takes whole pieces."""

    jepa_rate: float = 1e-3
    codec_rate: float = 2e-3
    """Learning rates: peaks of a cosine."""


CODEC_LOSSES = {
    "discriminator": {"width": 0.03125, "periods": [2], "scales": 1},
    "l1_weight": 0.0,
    "stft_weight": 0.0,
    "mel_weight": 1.0,
    "mel_ffts": [1024],
}
"""Stage 2 by the mel loss alone; the discriminators are small because they are never asked."""


def cell_path(out: Path, variant: Variant, seed: int) -> Path:
    """The file that says that a cell is done, and holds what it found."""
    return out / "cells" / f"{variant.name}-{seed}.json"


def run_folder(out: Path, name: str, seed: int) -> Path:
    """Folder of the recipe's run."""
    return out / "runs" / f"{name}-{seed}"


def run_cell(variant: Variant, seed: int, settings: SweepSettings, out: Path, command: str) -> str | None:
    """Runs a cell in a process of its own; returns where its log lies if it fails, None if all is well."""
    log = out / "logs" / f"{variant.name}-{seed}.log"
    for folder in (log.parent, cell_path(out, variant, seed).parent):
        folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=_child, args=(variant, seed, settings, out, command, log)
    )
    process.start()
    try:
        process.join()
    finally:  # an interrupted sweep leaves no process behind
        if process.is_alive():
            process.terminate()
            process.join()
    return None if process.exitcode == 0 else str(log)


def _child(variant: Variant, seed: int, settings: SweepSettings, out: Path, command: str, log: Path) -> None:
    with log.open("w") as file:
        for descriptor in (1, 2):  # what is written past Python, too
            os.dup2(file.fileno(), descriptor)
        sys.stdout = sys.stderr = file
        try:
            train_and_measure(variant, seed, settings, out, command)
        except BaseException:
            traceback.print_exc()
            file.flush()
            os._exit(1)


def train_and_measure(variant: Variant, seed: int, settings: SweepSettings, out: Path, command: str) -> None:
    """The cell itself; writes its file last, whole or not at all."""
    start, folder, data = time.perf_counter(), run_folder(out, variant.name, seed), out / "data"
    shutil.rmtree(folder, ignore_errors=True)
    trained = time.perf_counter()
    sounds = variant.sounds and settings.data.sounds is not None
    if variant.kind == "untrained":
        config: JepaConfig = from_dict(JepaConfig, merged(to_dict(jepa_config(ARCH)), variant.overrides))
        encoder = random_encoder(config.encoder, seed, torch.device("cpu"))
        found, weights = measure_encoder(encoder, data, sounds), _count(encoder)
    elif variant.kind == "jepa":
        _train(JepaRecipe(), stage1(variant, seed, settings, data), folder)
        trained = time.perf_counter()
        checkpoint = find_checkpoint(folder)
        config = checkpoint.config_as(ENCODER_FAMILY, JepaConfig)
        jepa = Jepa(config)
        jepa.load_state_dict(checkpoint.state(lambda: Jepa(config)))
        found, weights = measure_jepa(jepa, data, sounds), _count(jepa.encoder)
    else:
        _train(CodecRecipe(), stage2(variant, seed, settings, out), folder)
        trained = time.perf_counter()
        checkpoint = find_checkpoint(folder)
        codec_config: CodecConfig = checkpoint.config_as(CODEC_FAMILY, CodecConfig)
        codec = Codec(codec_config)
        codec.load_state_dict(checkpoint.state(lambda: Codec(codec_config)))
        found, weights = measure_codec(codec, data, sounds), _count(codec.encoder) + _count(codec.generator)
        shutil.rmtree(folder)  # nothing comes after it
    used = resource.getrusage(resource.RUSAGE_SELF)
    cell = {
        "variant": variant.name, "kind": variant.kind, "seed": seed, "command": command, "commit": commit(), "hardware": machine(),
        "seconds": round(time.perf_counter() - start, 1), "training_seconds": round(trained - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1), "parameters": weights, "settings": asdict(settings), "found": as_json(found),
    }  # fmt: skip
    write_text(cell_path(out, variant, seed), json.dumps(cell, indent=1) + "\n")


def _train(recipe: Recipe, config: object, folder: Path) -> None:
    run(recipe, config, folder, no_rich=True, no_progress=True)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _dataset(manifest: Path, batch: int, crop: float) -> SpeechDatasetSection:
    return SpeechDatasetSection(
        config_overrides={"manifests": [str(manifest)], "split": None, "valid_split": None},
        batch_size=batch,
        crop_seconds=crop,
        min_seconds=1.0,
        pad_seconds=crop,
        num_workers=0,
        cache_audio=True,
    )


def _common(seed: int, steps: int, rate: float) -> dict[str, Any]:
    """Sections that both stages share: float32, one cosine, one checkpoint at the end, no validation (`measure.py` does it)."""
    recorders = MetricRecordersConfig(tensorboard=TensorBoardConfig(enabled=False))
    return {
        "trainer": TrainerSection(mixed_precision=MixedPrecisionConfig(mode="off"), max_grad_norm=5.0),
        "optimizer": OptimizerSection(config=AdamWConfig(lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)),
        "lr_scheduler": LRSchedulerSection(name="cosine_annealing", config=CosineAnnealingLRConfig(num_warmup_steps=min(15, steps - 1))),
        "regime": RegimeSection(
            num_steps=steps, checkpoint_every_n_steps=steps, save_model_only=True, publish_metrics_every_n_steps=min(10, steps)
        ),
        "common": CommonSection(no_sweep_dir=True, seed=seed, metric_recorders=recorders),
    }  # fmt: skip


def stage1(variant: Variant, seed: int, settings: SweepSettings, data: Path) -> JepaRecipeConfig:
    """Configuration of `recipes.jepa` for a cell."""
    return JepaRecipeConfig(
        model=ModelSection(family=ENCODER_FAMILY, arch=ARCH, config_overrides=variant.overrides),
        dataset=_dataset(data / f"{variant.data}.jsonl", settings.jepa_batch, SECONDS),
        anchor=AnchorSection(fit_frames=4_000, end_weight=0.5),
        **_common(seed, settings.jepa_steps, settings.jepa_rate),
    )


def stage2(variant: Variant, seed: int, settings: SweepSettings, out: Path) -> CodecRecipeConfig:
    """Configuration of `recipes.codec` for a cell."""
    if variant.encoder is None:
        encoder = EncoderSection(random=True)
    else:
        encoder = EncoderSection(path=run_folder(out, variant.encoder, seed))
    never = settings.codec_steps + 1
    return CodecRecipeConfig(
        model=ModelSection(family=CODEC_FAMILY, arch=ARCH, config_overrides=merged(CODEC_LOSSES, variant.overrides)),
        encoder=encoder,
        calibration_frames=160,
        dataset=_dataset(out / "data" / f"{variant.data}.jsonl", settings.codec_batch, settings.crop_seconds),
        gan=GanSection(discriminator_start=never, adversarial_start=never),
        samples=SamplesSection(num_clips=0),
        **_common(seed, settings.codec_steps, settings.codec_rate),
    )
