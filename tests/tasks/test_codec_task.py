"""Stage 2's units: when which loss acts, what validation writes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import soundfile
import torch
from fairseq2.metrics import MetricBag
from fairseq2.recipe.error import RecipeError

import tasks  # noqa: F401  (preloads libsndfile)
from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.models.codec import Codec
from jepa_tok.monitor import code_entropies
from jepa_tok.presets import codec_config
from tasks.augment import AugmentSection
from tasks.codec import fit_pitch as module
from tasks.codec.calibrate import calibrate_quantiser, fit_mel_head
from tasks.codec.fit_pitch import fit_pitch
from tasks.codec.metrics import LOSSES, computed_losses
from tasks.codec.samples import SampleWriter, file_name, spectrogram
from tasks.codec.unit import CodecEvalUnit, CodecTrainUnit
from tests.tokenizers import speech, voice


@pytest.fixture(scope="module")
def codec() -> Codec:
    config = codec_config("tiny")
    config.freeze_encoder = True
    config.discriminator.width = 0.0625
    config.stft_ffts = [512, 128]
    torch.manual_seed(0)
    return Codec(config)


def make_batch() -> SpeechBatch:
    sizes = [24_000, 15_000]
    wave = torch.zeros(2, 28_800)
    for row, size, pitch in zip(wave, sizes, (220.0, 640.0)):
        row[:size] = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(size) / 24_000)
    return SpeechBatch(wave, torch.tensor(sizes), ["a/b 1", "c"], 0, sizes)


def computed(unit: CodecTrainUnit | CodecEvalUnit, bag: MetricBag) -> dict[str, float]:
    """What the unit would have fairseq2 log."""
    values = {name: metric.compute() for name, metric in bag.metrics.items()}
    unit.process_metric_values(values)
    return {name: float(value) for name, value in values.items()}


def validate(unit: CodecEvalUnit, batches: list[SpeechBatch]) -> dict[str, float]:
    bag = MetricBag(torch.device("cpu"))
    unit.prepare_metric_bag(bag)
    with torch.inference_mode():
        for batch in batches:
            unit.process_batch(batch, bag)
        unit.finalize(bag)
    return computed(unit, bag)


def test_discriminators_and_adversarial_terms_come_in_at_their_steps(codec) -> None:
    codec.train()
    augment = AugmentSection(gain_probability=1.0)
    unit = CodecTrainUnit(
        codec, codec.config, seed=1, rank=0, augment=augment, discriminator_start=3, adversarial_start=5
    )
    bag = MetricBag(torch.device("cpu"))
    unit.prepare_metric_bag(bag)
    seen = {}
    for step in (2, 3, 4, 5):
        for metric in bag.metrics.values():
            metric.reset()
        codec.zero_grad()
        unit.set_step_nr(step)
        loss, _ = unit.process_batch(make_batch(), bag)
        loss.backward()
        values = computed(unit, bag)
        trained = any(p.grad is not None for p in codec.discriminator.parameters())
        seen[step] = (trained, *(n in values for n in ("discriminator_loss", "adversarial", "feature_matching")))
        assert all(value > 0.0 for n, value in values.items() if n in LOSSES and n != "pitch")
    assert seen == {
        2: (False, False, False, False),
        3: (True, True, False, False),
        4: (True, True, False, False),
        5: (True, True, True, True),
    }
    assert all(p.grad is None for p in codec.encoder.parameters())


def test_the_waveform_comes_in_at_its_step(tmp_path: Path) -> None:
    config = codec_config("tiny")
    config.mel_head_stage = 2
    codec = Codec(config)
    train = CodecTrainUnit(
        codec,
        config,
        seed=1,
        rank=0,
        augment=AugmentSection(),
        discriminator_start=9,
        adversarial_start=9,
        synthesis_start=3,
    )
    valid = CodecEvalUnit(codec, SampleWriter(tmp_path / "samples", None, {"c"}), synthesis_start=3)
    for step in (2, 3):
        bag, valid_bag = MetricBag(torch.device("cpu")), MetricBag(torch.device("cpu"))
        train.prepare_metric_bag(bag)
        train.set_step_nr(step)
        with torch.no_grad():
            train.process_batch(make_batch(), bag)
        valid.prepare_metric_bag(valid_bag)
        valid.set_train_step_nr(step)
        with torch.inference_mode():
            valid.process_batch(make_batch(), valid_bag)
        late = {"l1", "stft"} if step == 3 else set()
        assert set(LOSSES) & computed(train, bag).keys() == {"generator_loss", "mel_head", "pitch", "voicing", *late}
        assert set(LOSSES) & computed(valid, valid_bag).keys() == {"mel_head", "pitch", "voicing", *late}
    assert [p.name for p in sorted((tmp_path / "samples").iterdir())] == ["original", "step_3"]


def test_what_is_said_to_be_computed_is(tmp_path: Path) -> None:
    config = codec_config("tiny")
    config.discriminator.width = 0.0625
    config.stft_weight, config.loudness_weight, config.usage_weight, config.mel_head_stage = 0.0, 1.0, 1.0, 2
    config.freeze_encoder = False
    for training, synthesis, disc in ((True, True, True), (True, False, False), (False, True, False)):
        codec = Codec(config).train(training)
        called = {"synthesis": synthesis, "disc": disc, "adversarial": disc}
        with torch.no_grad():
            output = codec(voice(130.0, 28_800)[None], **called)
        found = {name for name in LOSSES if float(getattr(output, name)) != 0.0}
        assert found - {"generator_loss"} == set(computed_losses(config, training=training, **called)) - {
            "generator_loss"
        }


def test_a_loss_that_is_not_computed_is_no_best_score(codec, tmp_path: Path) -> None:
    unit = CodecEvalUnit(codec, SampleWriter(tmp_path / "samples", None, set()), synthesis_start=9, score="l1")
    values = validate(unit, [make_batch()])
    assert values["l1"] == math.inf and "stft" not in values and "mel" not in values
    unit.set_train_step_nr(9)
    assert 0.0 < validate(unit, [make_batch()])["l1"] < math.inf


def test_validation_is_the_mean_over_samples_and_voiced_windows(codec, tmp_path: Path) -> None:
    codec.eval()
    unit = CodecEvalUnit(codec, SampleWriter(tmp_path / "samples", None, set()))
    clips = [voice(130.0, 28_800), speech(9_600, seed=1), torch.zeros(19_200)]  # voiced, hoarse, silent

    def batch_of(*waves: torch.Tensor) -> SpeechBatch:
        sizes = [len(wave) for wave in waves]
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        return SpeechBatch(padded, torch.tensor(sizes), [str(size) for size in sizes], 0, sizes)

    together = validate(unit, [batch_of(*clips)])
    for apart in ([batch_of(clips[0]), batch_of(*clips[1:])], [batch_of(clip) for clip in clips]):
        values = validate(unit, apart)
        for name in ("l1", "pitch", "voicing"):
            assert values[name] == pytest.approx(together[name], rel=1e-4), name
    silent = validate(unit, [batch_of(clips[2])])
    assert "pitch" not in silent and silent["voicing"] > 0.0


def test_the_mel_head_is_fitted_to_the_generator_it_finds() -> None:
    torch.manual_seed(0)
    config = codec_config("tiny")
    config.mel_head_stage, config.average_decay, config.freeze_encoder = 2, 0.9, False
    codec = Codec(config)
    with torch.no_grad():
        codec.average["generator"].project.weight.zero_()  # nobody has set the average yet
    waves = [speech(30_000 + 500 * i, seed=i) for i in range(6)]

    def error() -> float:
        with torch.no_grad():
            return float(codec(waves[0][None], adversarial=False, disc=False, synthesis=False).mel_head)

    before = error()
    fit_mel_head(codec, waves, 100_000)
    assert error() < 0.5 * before
    with pytest.raises(RecipeError, match=r"^the mel head cannot be fitted: none of the training files can be read"):
        fit_mel_head(codec, [], 10)
    fit_mel_head(Codec(codec_config("tiny")), [], 10)  # without a head there is nothing to do


def test_the_pitch_networks_are_fitted_to_what_is_tracked() -> None:
    torch.manual_seed(0)
    config = codec_config("tiny")
    codec = Codec(config)
    waves = [voice(80.0 + 8.0 * i, 28_800 + 100 * i) for i in range(20)]
    codec.fsq.bias.data.fill_(1.0)
    everything = {name: p.clone() for name, p in codec.named_parameters()}

    def errors() -> tuple[float, float]:
        with torch.no_grad():
            out = codec(torch.stack([w[:28_800] for w in waves]), adversarial=False, disc=False, synthesis=False)
        return float(out.pitch), float(out.voicing)

    before = errors()
    codec.requires_grad_(True)  # as fairseq2 leaves it
    fit_pitch(codec, waves, 100, seed=0)
    assert all(p.grad is None for p in codec.parameters())
    after = errors()
    assert after[0] < 0.3 * before[0] and after[1] < 0.5 * before[1]
    changed = {name for name, p in codec.named_parameters() if not torch.equal(p, everything[name])}
    assert changed == {name for name in everything if name.startswith(("encoder.pitch.", "generator.pitch."))} | {
        "fsq.bias"
    }
    assert codec.fsq.bias[:-23].eq(1.0).all() and codec.fsq.bias[-23:].eq(0.0).all()
    with pytest.raises(RecipeError, match=r"^the pitch networks cannot be fitted: there are not two frames"):
        fit_pitch(codec, [waves[0][:9_600]], 10, seed=0)


def test_pitch_networks_are_fitted_to_use_all_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = [voice(80.0 + 8.0 * i, 28_800 + 100 * i) for i in range(20)]

    def usage(price: float) -> float:
        monkeypatch.setattr(module, "USAGE_PRICE", price)
        torch.manual_seed(0)
        codec = Codec(codec_config("tiny"))
        fit_pitch(codec, waves, 100, seed=0)
        with torch.no_grad():
            codes = codec(
                torch.stack([w[:28_800] for w in waves]), adversarial=False, disc=False, synthesis=False
            ).codes
        return float(code_entropies(codes.flatten(0, 1), codec.fsq.radices)[-23:].mean())

    assert usage(1.0) > usage(0.0) + 0.02


def test_training_leaves_the_pitch_networks_alone() -> None:
    codec = Codec(codec_config("tiny"))
    assert all(not p.requires_grad for p in codec.encoder.pitch.parameters())  # type: ignore[union-attr]
    assert all(not p.requires_grad for p in codec.generator.pitch.parameters())  # type: ignore[union-attr]
    wave = voice(130.0, 28_800)[None]
    out = codec.train()(wave, adversarial=False, disc=False)
    out.generator_loss.backward()
    assert out.pitch > 0 and all(p.grad is None for n, p in codec.named_parameters() if ".pitch." in n)


def test_calibration_of_poor_dimensions_leaves_those_of_the_pitch_alone() -> None:
    torch.manual_seed(0)
    codec = Codec(codec_config("tiny"))
    with torch.no_grad():
        codec.fsq.bias[50] = codec.fsq.bias[110] = 9.0  # two dead ones
    waves = [speech(30_000 + 500 * i, seed=i) for i in range(8)]
    calibrate_quantiser(codec.encoder, codec.fsq, waves, 100, below=0.5)
    assert abs(float(codec.fsq.bias[50])) < 5.0 and float(codec.fsq.bias[110]) == 9.0
    calibrate_quantiser(codec.encoder, codec.fsq, waves, 100)
    assert float(codec.fsq.bias[110]) != 9.0


def test_validation_writes_chosen_clips(codec, tmp_path: Path) -> None:
    codec.eval()
    unit = CodecEvalUnit(codec, SampleWriter(tmp_path / "samples", tmp_path / "tb", {"a/b 1"}))
    bag = MetricBag(torch.device("cpu"))
    unit.prepare_metric_bag(bag)
    unit.set_train_step_nr(7)
    with torch.inference_mode():
        unit.process_batch(make_batch(), bag)
        unit.finalize(bag)
    assert [p.name for p in (tmp_path / "samples" / "step_7").iterdir()] == ["a_b_1.wav"]
    for folder in ("original", "step_7"):
        assert soundfile.info(tmp_path / "samples" / folder / "a_b_1.wav").frames == 24_000
    assert list((tmp_path / "tb").glob("events*"))
    values = computed(unit, bag)
    assert values["l1"] > 0.0 and values["stft"] > 0.0 and 0.0 <= values["code_usage"] <= 1.0


def test_file_names_are_safe() -> None:
    assert file_name("../x y/é:1") == "_x_y_é_1"
    assert file_name("...") == "clip"


def test_spectrogram_is_a_picture() -> None:
    tone = torch.sin(2 * math.pi * 300.0 * torch.arange(24_000) / 24_000)
    picture = spectrogram(tone)
    assert picture.shape == (80, 100) and picture.min() >= 0.0 and picture.max() == 1.0
    assert picture.mean(1).argmax() > 40  # low frequencies lie at the bottom
