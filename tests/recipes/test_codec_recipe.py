"""Stage 2 as a whole: killed and rerun it ends where the uninterrupted run does; two processes equal one."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.config import AdamWConfig
from fairseq2.recipe.error import RecipeError

import recipes  # noqa: F401  (preloads libsndfile)
from jepa_tok._fairseq2.checkpoint import find_checkpoint, part_of
from jepa_tok.config_dict import to_dict
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.models.codec import Codec
from jepa_tok.models.jepa import Jepa
from jepa_tok.presets import codec_config, jepa_config
from jepa_tok.training_config import CodecConfig
from recipes.codec.config import CodecRecipeConfig, EncoderSection, GanSection
from recipes.codec.export import export_codec
from recipes.codec.export import main as export_main
from recipes.codec.recipe import fit_before_training, load_encoder, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]

ENCODER = {
    "front_channels": 8,
    "channels": [8, 8, 16, 16, 32],
    "conformer_heads": 4,
    "n_mels": 20,
}
GENERATOR = {"input_channels": 16, "channels": [16, 16, 16, 16], "conformer_heads": 4}

SMALL = [
    *(f"model.config_overrides.tokenizer.encoder.{k}={json.dumps(v)}" for k, v in ENCODER.items()),
    *(f"model.config_overrides.tokenizer.generator.{k}={json.dumps(v)}" for k, v in GENERATOR.items()),
    "model.config_overrides.discriminator.width=0.03125",
    "model.config_overrides.discriminator.periods=[2,3]",
    "model.config_overrides.discriminator.scales=1",
    "model.config_overrides.stft_ffts=[512,128]",
    "model.config_overrides.mel_weight=1.0",
    "model.config_overrides.adversarial_seconds=0.2",
    "model.config_overrides.average_decay=0.9",
    "model.config_overrides.mel_head_stage=2",
    "synthesis_start=3",
    "pitch_steps=20",
    "augment.gain_probability=0.5",
    "augment.speed=[0.9,1.0]",
    "dataset.batch_size=4",
    "dataset.crop_seconds=0.4",
    "dataset.pad_seconds=0.4",
    "gan.discriminator_start=5",
    "gan.adversarial_start=9",
    "regime.num_steps=24",
    "regime.validate_every_n_steps=12",
    "regime.checkpoint_every_n_steps=4",
    "regime.publish_metrics_every_n_steps=1",
    "samples.num_clips=1",
]


def small_codec() -> CodecConfig:
    config = codec_config("tiny")
    for name, value in ENCODER.items():
        setattr(config.tokenizer.encoder, name, value)
    for name, value in GENERATOR.items():
        setattr(config.tokenizer.generator, name, value)
    config.discriminator.width, config.discriminator.periods, config.discriminator.scales = 0.03125, [2, 3], 1
    return config


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage 1 run's checkpoint, written as fairseq2 writes it."""
    folder = tmp_path_factory.mktemp("stage1")
    config = jepa_config("tiny")
    config.encoder = small_codec().tokenizer.encoder
    config.anchor.clusters = 4
    torch.manual_seed(5)
    model = Jepa(config)
    with torch.no_grad():
        model.target_encoder.project.weight.mul_(2.0)
    for step in (10, 20):
        shard = folder / "checkpoints" / f"step_{step}" / "model" / "pp_00" / "tp_00" / "sdp_00.pt"
        shard.parent.mkdir(parents=True)
        torch.save(model.state_dict(), shard)
    card = {"name": "checkpoint", "model_family": "jepa_tok_encoder", "model_config": to_dict(config)}
    (folder / "checkpoints" / "model.yaml").write_text(json.dumps(card))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten noisy tones, each of exactly 0.4 s, two of them for validation."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(10):
        t = np.arange(9_600) / 24_000
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 900) * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(folder / f"{i}.wav", wave, 24_000)
        rows.append({"id": f"u{i}", "path": f"{i}.wav", "split": "dev" if i % 5 == 0 else "train"})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "corpus.jsonl"


def command(out: Path, corpus: Path, stage1: Path, *options: str) -> list[str]:
    yaml = str(ROOT / "recipes" / "codec" / "configs" / "tiny_cpu.yaml")
    inputs = [f"dataset.config_overrides.manifests=[{corpus}]", f"encoder.path={stage1}"]
    return ["recipes.codec", str(out), "--no-rich", "--config-file", yaml, "--config", *inputs, *SMALL, *options]


@pytest.fixture(scope="module")
def uninterrupted(runs, corpus: Path, stage1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codec") / "whole"
    runs.run(command(out, corpus, stage1))
    return out


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_losses(runs, corpus, stage1, uninterrupted, tmp_path) -> None:
    out = tmp_path / "killed"
    runs.kill_after_a_checkpoint(command(out, corpus, stage1), out)
    runs.run(command(out, corpus, stage1))
    for kind, steps in (("train", 24), ("valid", 2)):
        whole, resumed = runs.curve(uninterrupted, kind), runs.curve(out, kind)
        assert len(whole) == steps and resumed == whole
    losses = runs.curve(uninterrupted)
    assert ["Discriminator Loss" in losses[s] for s in (4, 5)] == [False, True]
    assert ["Adversarial Loss" in losses[s] for s in (8, 9)] == [False, True]
    assert len(list((uninterrupted / "samples" / "step_24").glob("*.wav"))) == 1
    assert list((uninterrupted / "tb" / "samples").glob("events*"))


@pytest.mark.slow
def test_run_exports_as_tokenizer(uninterrupted, tmp_path) -> None:
    from jepa_tok import SpeechTokenizer

    hash = export_codec(uninterrupted, tmp_path / "tokenizer", name="mine")
    tokenizer = SpeechTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.hash == hash and tokenizer.config.name == "mine"
    state = find_checkpoint(uninterrupted).state(lambda: Codec(dataclasses.replace(small_codec(), average_decay=0.9)))
    for part in ("encoder", "fsq", "generator"):
        weights = part_of(state, "average.generator" if part == "generator" else part)
        assert weights or part == "fsq"
        for name, value in getattr(tokenizer, part).state_dict().items():
            assert torch.equal(value, weights[name])
    assert export_main([str(uninterrupted), str(tmp_path / "early"), "--step", "20"]) == 0
    assert SpeechTokenizer.from_pretrained(tmp_path / "early").hash != hash
    wave = tokenizer.decode(tokenizer.encode(np.zeros(10_000, np.float32), 24_000))
    assert wave.shape == (10_000,)


@pytest.mark.slow
def test_two_processes_equal_one(runs, corpus, stage1, uninterrupted, tmp_path) -> None:
    out = tmp_path / "ddp"
    runs.run(command(out, corpus, stage1, "regime.num_steps=12", "dataset.valid_batch_size=1"), ranks=2)
    assert len(list((out / "tb" / "samples").glob("events*"))) == 1  # the clip is one of rank 0's, which has the writer
    whole, parts = runs.curve(uninterrupted), runs.curve(out)
    assert len(parts) == 12
    # Clips are of one length, so the mean over two ranks is the mean over the batch. Later steps drift: a code flips, and from
    # step 9 on the discriminators answer what it changed, by an amount that depends on the CPU.
    for name in ("Mel Head (nats)", "Gradient Norm"):  # the waveform comes in at step 3
        assert parts[1][name] == pytest.approx(whole[1][name], rel=1e-4), name
    for step in range(2, 9):
        for name in {"L1", "STFT Loss", "Discriminator Loss"} & whole[step].keys():
            assert parts[step][name] == pytest.approx(whole[step][name], rel=5e-2, abs=1e-6), (step, name)


@pytest.mark.slow
def test_before_the_waveform_no_checkpoint_is_the_best(runs, corpus, stage1, tmp_path) -> None:
    options = ["regime.num_steps=4", "regime.validate_every_n_steps=2", "regime.checkpoint_every_n_steps=2"]
    options += ["regime.score_metric=l1", "regime.keep_best_n_checkpoints=1", "regime.keep_last_n_checkpoints=1"]
    written = runs.run(command(tmp_path / "run", corpus, stage1, *options))
    assert re.search(r"Score - Metric: L1 \| Last: inf \(step 2\)", written)
    assert re.search(r"Score - Metric: L1 \| Last: 0\.\d+ \(step 4\) \| Best: 0\.\d+ \(step 4\)", written)
    assert "Loudness Loss" not in runs.curve(tmp_path / "run", "valid")[4]
    options = ["regime.score_metric=loudness", "regime.num_steps=2"]
    assert runs.forks.run(*command(tmp_path / "refused", corpus, stage1, *options)) != 0
    last = runs.forks.log.read_text().strip().splitlines()[-1]
    assert "`regime.score_metric` must be a metric that the model is validated by, but 'loudness' is not" in last


@pytest.mark.slow
def test_a_late_waveform_needs_a_mel_head(runs, corpus, stage1, tmp_path) -> None:
    assert runs.forks.run(*command(tmp_path, corpus, stage1, "model.config_overrides.mel_head_stage=0")) != 0
    last = runs.forks.log.read_text().strip().splitlines()[-1]
    assert "`synthesis_start` must be 0 without a mel head" in last and "but is 3 instead" in last


def test_export_of_nothing_is_one_line(tmp_path, capsys) -> None:
    assert export_main([str(tmp_path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_encoder_of_stage_1_is_loaded(stage1) -> None:
    codec = Codec(small_codec())
    load_encoder(codec, EncoderSection(path=stage1), None)  # type: ignore[arg-type]
    online = codec.encoder.project.weight.clone()
    load_encoder(codec, EncoderSection(path=stage1 / "checkpoints" / "step_10", weights="target"), None)  # type: ignore[arg-type]
    torch.testing.assert_close(codec.encoder.project.weight, 2.0 * online)
    before = codec.encoder.project.weight.clone()
    load_encoder(codec, EncoderSection(random=True), None)  # type: ignore[arg-type]
    assert torch.equal(before, codec.encoder.project.weight)


def test_training_goes_on_from_a_tokenizer(tmp_path) -> None:
    from jepa_tok import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_config(small_codec().tokenizer, seed=3)
    tokenizer.fsq.calibrate(torch.randn(50, 128))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    codec = Codec(small_codec())
    load_tokenizer(codec, str(tmp_path / "tokenizer"))
    for part in ("encoder", "fsq", "generator"):
        for name, value in getattr(tokenizer, part).state_dict().items():
            assert torch.equal(value, getattr(codec, part).state_dict()[name])
    with pytest.raises(RecipeError, match=r"the encoder of the tokenizer .* differs in `n_mels`"):
        load_tokenizer(Codec(codec_config("tiny")), str(tmp_path / "tokenizer"))
    with pytest.raises(RecipeError, match=r"^`tokenizer`: "):
        load_tokenizer(codec, str(tmp_path / "nowhere"))


def test_a_run_from_a_tokenizer_sets_poor_dimensions_and_the_mel_head(runs, corpus, tmp_path) -> None:
    from jepa_tok import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_config(small_codec().tokenizer, seed=3)
    with torch.no_grad():
        tokenizer.fsq.bias[5:7] += 10.0  # two dimensions of one code
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = [f"tokenizer={tmp_path / 'tokenizer'}", "calibrate_below=0.01", "regime.num_steps=2"]
    whole = command(tmp_path / "run", corpus, tmp_path, *options, "regime.validate_every_n_steps=2")
    runs.run([x for x in whole if not x.startswith("encoder.path=")])
    written = "".join(log.read_text() for log in (tmp_path / "run").rglob("*.log"))
    found = re.search(r"Quantiser: (\d+) of 128 dimensions set on", written)
    assert found is not None and 2 <= int(found[1]) < 64 and "Mel head: fitted on" in written
    assert "Pitch: fitted" not in written  # its ids stay


def test_pitch_is_fitted_where_it_is_new(runs, corpus, stage1, tmp_path) -> None:
    from jepa_tok import SpeechTokenizer
    from jepa_tok.models.grow import grow

    config = small_codec().tokenizer
    config.encoder.pitch_dims = config.generator.pitch_dims = 0
    grow(SpeechTokenizer.from_config(config, seed=3), small_codec().tokenizer).save_pretrained(tmp_path / "grown")
    for name, source in {"fresh": f"encoder.path={stage1}", "grown": f"tokenizer={tmp_path / 'grown'}"}.items():
        whole = command(
            tmp_path / name, corpus, tmp_path, "regime.num_steps=1", "regime.validate_every_n_steps=1", source
        )
        runs.run([x for x in whole if not x.startswith(f"encoder.path={tmp_path}")])
        written = "".join(log.read_text() for log in (tmp_path / name).rglob("*.log"))
        assert "Pitch: fitted on 7 frames; on 1 others error" in written


def test_pitch_networks_of_a_tokenizer_are_fitted_anew_where_asked_for(corpus) -> None:
    utterances = read_corpus(corpus)
    config = CodecRecipeConfig(tokenizer="somewhere", pitch_steps=3, calibration_frames=0)
    for new in (False, True):
        config.new_pitch = new
        codec = Codec(small_codec())
        old = {k: v.clone() for k, v in codec.state_dict().items()}
        fit_before_training(codec, config, utterances)
        changed = {k for k, v in codec.state_dict().items() if not torch.equal(v, old[k])}
        assert any(k.startswith("encoder.pitch.") for k in changed) is new
        assert codec.generator.hears_pitch is not new
        assert torch.equal(codec.generator.project.weight[:, :-23], old["generator.project.weight"][:, :-23])
    assert CodecRecipeConfig(new_pitch=True).validate().has_error()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (lambda run: EncoderSection(), "must name the folder of a stage 1 run"),
        (lambda run: EncoderSection(path=run / "nowhere"), "must be the folder of a run with checkpoints"),
        (lambda run: EncoderSection(path=run, step=15), "no checkpoint of step 15; it has 10, 20"),
    ],
)
def test_missing_encoder_is_told_in_one_line(stage1, section, message) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_encoder(Codec(small_codec()), section(stage1), None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


def test_encoder_of_another_shape_is_refused(stage1) -> None:
    config = small_codec()
    config.tokenizer.encoder.channels = [8, 8, 16, 16, 64]
    with pytest.raises(RecipeError, match="differs in `channels`"):
        load_encoder(Codec(config), EncoderSection(path=stage1), None)  # type: ignore[arg-type]


def test_defaults_are_the_papers_run() -> None:
    config = CodecRecipeConfig()
    adamw = config.optimizer.config
    assert isinstance(adamw, AdamWConfig)
    assert config.model.arch == "paper" and config.regime.num_steps == 29_000 and config.dataset.batch_size == 16
    assert config.gan == GanSection(discriminator_start=5_000, adversarial_start=5_000)
    assert (adamw.lr, [g.lr for g in adamw.groups]) == (1.5e-4, [0.75e-4])
    for name in ("discriminator.periods.0.weight", "module.discriminator.scales.0.bias"):
        assert re.match(str(adamw.groups[0].params), name)
    assert not re.match(str(adamw.groups[0].params), "generator.discriminator.weight")
    assert config.gang.timeout == 120  # rank 0 fits alone
    assert not config.validate().has_error()


def test_contradictions_are_found() -> None:
    assert GanSection(discriminator_start=10, adversarial_start=5).validate().has_error()
    assert EncoderSection(path=Path("x"), random=True).validate().has_error()
    assert CodecRecipeConfig(tokenizer="small", encoder=EncoderSection(random=True)).validate().has_error()
    assert CodecRecipeConfig(synthesis_start=5_001).validate().has_error()
    assert CodecRecipeConfig(calibrate_below=1.5).validate().has_error()
    config = CodecRecipeConfig()
    config.trainer.data_parallelism = "fsdp"
    assert config.validate().has_error()
