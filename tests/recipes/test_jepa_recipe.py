"""Stage 1 as a whole: killed and rerun it ends where the uninterrupted run does; two processes, DDP and FSDP2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fairseq2.recipe.config import AdamWConfig
from fairseq2.runtime.dependency import DependencyContainer

import recipes  # noqa: F401  (preloads libsndfile)
from recipes.common import explain
from recipes.jepa.config import AnchorSection, JepaRecipeConfig, TargetSection
from recipes.jepa.export import export_encoder
from recipes.jepa.recipe import JepaRecipe

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "recipes"

SMALL = [
    "model.config_overrides.encoder.front_channels=8",
    "model.config_overrides.encoder.channels=[8,8,16,16,32]",
    "model.config_overrides.encoder.latent_dim=128",
    "model.config_overrides.encoder.conformer_heads=4",
    "model.config_overrides.encoder.n_mels=20",
    "model.config_overrides.predictor.dim=32",
    "model.config_overrides.anchor.clusters=4",
    "model.config_overrides.anchor.kind=posteriors",
    "anchor.fit_frames=400",
    "anchor.end_weight=0.01",
    "dataset.batch_size=4",
    "dataset.crop_seconds=1.2",
    "lr_scheduler.config.num_warmup_steps=2",
    "regime.num_steps=24",
    "regime.validate_every_n_steps=12",
    "regime.checkpoint_every_n_steps=4",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]
"""The recipe at a size that steps in some hundredths of a second."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen sweeps of 0.6 to 2 s with noise, three of them for validation."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(18):
        t = np.arange(int(24_000 * rng.uniform(0.6, 2.0))) / 24_000
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 900) * t * (1 + 0.2 * np.sin(9 * t)))
        soundfile.write(folder / f"{i}.wav", wave + 0.02 * rng.standard_normal(len(t)), 24_000)
        rows.append({"id": f"u{i}", "path": f"{i}.wav", "split": "dev" if i % 6 == 0 else "train"})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "corpus.jsonl"


def command(out: Path, corpus: Path, *options: str) -> list[str]:
    yaml = str(CONFIGS / "jepa" / "configs" / "tiny_cpu.yaml")
    manifests = f"dataset.config_overrides.manifests=[{corpus}]"
    return ["recipes.jepa", str(out), "--no-rich", "--config-file", yaml, "--config", manifests, *SMALL, *options]


@pytest.fixture(scope="module")
def uninterrupted(runs, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("jepa") / "whole"
    runs.run(command(out, corpus))
    return out


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_losses(runs, corpus, uninterrupted, tmp_path) -> None:
    out = tmp_path / "killed"
    runs.kill_after_a_checkpoint(command(out, corpus), out)
    runs.run(command(out, corpus))
    for kind, steps in (("train", 24), ("valid", 2)):
        whole, resumed = runs.curve(uninterrupted, kind), runs.curve(out, kind)
        assert len(whole) == steps and resumed == whole
    first, last = (runs.curve(uninterrupted)[step] for step in (1, 24))
    assert np.isfinite(last["Loss"]) and last["Loss"] != first["Loss"]
    assert first["Anchor Weight"] == 1.0 and last["Anchor Weight"] < 0.03


@pytest.mark.slow
def test_run_exports_as_tokenizer(uninterrupted, corpus, tmp_path) -> None:
    from jepa_tok import SpeechTokenizer
    from jepa_tok.errors import JepaTokError

    online = export_encoder(uninterrupted, tmp_path / "online", preset="tiny")
    target = export_encoder(uninterrupted, tmp_path / "target", preset="tiny", weights="target")
    assert online != target  # the EMA lags behind
    calibrated = export_encoder(uninterrupted, tmp_path / "calibrated", preset="tiny", calibrate=corpus)
    scale = SpeechTokenizer.from_pretrained(tmp_path / "calibrated").fsq.scale
    assert calibrated != online and scale is not None and len(scale.unique()) > 1
    assert export_encoder(uninterrupted, tmp_path / "again", preset="tiny", step=24) == online
    tokens = SpeechTokenizer.from_pretrained(tmp_path / "online").encode(np.zeros(10_000, np.float32), 24_000)
    assert tokens.ids.shape == (2, 19)
    for step, message in ((7, "no checkpoint of step 7"), (None, "must be the folder of a run")):
        with pytest.raises(JepaTokError, match=message):
            export_encoder(uninterrupted if step else tmp_path, tmp_path / "no", step=step, preset="tiny")
    (tmp_path / "lost.jsonl").write_text('{"id": "a", "path": "lost.wav"}\n')
    with pytest.raises(JepaTokError, match="cannot be calibrated: none of the training files can be read"):
        export_encoder(uninterrupted, tmp_path / "no", preset="tiny", calibrate=tmp_path / "lost.jsonl")


@pytest.mark.slow
def test_two_processes_ddp_and_fsdp2(runs, corpus, tmp_path) -> None:
    losses = {}
    for mode in ("ddp", "fsdp"):
        out = tmp_path / mode
        options = (f"trainer.data_parallelism={mode}", "regime.num_steps=4", "regime.validate_every_n_steps=2")
        runs.run(command(out, corpus, *options), ranks=2)
        losses[mode] = [runs.curve(out)[step]["Loss"] for step in range(1, 5)]
        assert len(runs.curve(out, "valid")) == 2
        assert len(list((out / "checkpoints" / "step_4" / "data_reader").glob("dp_*.pt"))) == 2
        export_encoder(out, tmp_path / f"{mode}-tokenizer", preset="tiny", weights="target")
    # Both take the same steps on the same clips under the same masks and dropout.
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=1e-4)
    hashes = {export_encoder(tmp_path / "fsdp", tmp_path / f"joined-{i}", preset="tiny") for i in range(2)}
    assert len(hashes) == 1


def test_defaults_are_the_papers_run() -> None:
    config = JepaRecipeConfig()
    assert config.model.arch == "paper" and config.regime.num_steps == 24_000 and config.dataset.batch_size == 64
    assert config.dataset.crop_seconds == 15.0 and str(config.trainer.mixed_precision.dtype) == "torch.bfloat16"
    adamw = config.optimizer.config
    assert isinstance(adamw, AdamWConfig)
    assert (adamw.lr, adamw.betas, adamw.weight_decay) == (1.5e-4, (0.8, 0.99), 1e-3)
    assert config.common.no_sweep_dir and not config.validate().has_error()


def test_contradictions_are_found() -> None:
    config = JepaRecipeConfig()
    config.regime.num_steps = None
    assert "anchor.num_steps" in explain(Exception(str(config.validate()._errors)))
    config.anchor.num_steps = 100
    assert not config.validate().has_error()
    config.trainer.data_parallelism, config.trainer.fsdp.version = "fsdp", "v1"
    assert config.validate().has_error()
    assert AnchorSection(end_weight=-1.0).validate().has_error()
    assert TargetSection(end_decay=1.5).validate().has_error()


@pytest.mark.parametrize("name", ["jepa", "codec"])
def test_shipped_yaml_files_are_valid(name: str) -> None:
    from fairseq2.composition import _register_library
    from fairseq2.recipe.base import Recipe
    from fairseq2.recipe.cli import _RecipeConfigLoader
    from fairseq2.recipe.composition import _register_train_recipe
    from fairseq2.recipe.internal.config import _RecipeConfigStructurer, _StandardRecipeConfigStructurer
    from fairseq2.utils.validation import ObjectValidator

    from recipes.codec.recipe import CodecRecipe

    recipe: Recipe = JepaRecipe() if name == "jepa" else CodecRecipe()
    container = DependencyContainer()
    _register_library(container, no_progress=True)
    _register_train_recipe(container, recipe)
    container.register_type(_RecipeConfigLoader)
    container.register_type(_RecipeConfigStructurer, _StandardRecipeConfigStructurer)
    loader, validator = container.resolve(_RecipeConfigLoader), container.resolve(ObjectValidator)
    files = sorted((CONFIGS / name / "configs").glob("*.yaml"))
    only = {"cpu_small", "cpu_mel_head", "cpu_voice"} if name == "codec" else set()
    assert {file.stem for file in files} == {"tiny_cpu", "gpu80", "gpu80_small", "8gpu"} | only
    for file in files:
        config = loader.load(recipe.config_kls, file, None)
        validator.validate(config)
        assert config.model.arch in ("tiny", "small", "base") and config.common.no_sweep_dir  # type: ignore[attr-defined]
        if name == "codec" and config.optimizer.name == "adamw":  # type: ignore[attr-defined]
            assert float(config.optimizer.config.groups[0].lr) == config.optimizer.config.lr / 2  # type: ignore[attr-defined]


def test_causes_are_told_in_one_line() -> None:
    try:
        try:
            raise ValueError("`x` must be 1,\n  but is 2 instead.")
        except ValueError as ex:
            raise RuntimeError("config.yaml cannot be read:") from ex
    except RuntimeError as ex:
        assert explain(ex) == "config.yaml cannot be read `x` must be 1, but is 2 instead."
