"""Stage 1's units: masks by seed, the anchor's fit and schedule, collapse told and stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq2.metrics import Mean, MetricBag
from fairseq2.recipe.error import RecipeError

import tasks  # noqa: F401  (preloads libsndfile)
from jepa_tok._fairseq2.speech_reader import SpeechBatch
from jepa_tok.audio import save_audio
from jepa_tok.corpus.manifest import Utterance
from jepa_tok.models.anchor import MelPosteriors
from jepa_tok.models.jepa import Jepa
from jepa_tok.presets import jepa_config
from tasks.augment import AugmentSection
from tasks.jepa.anchor import cosine, fit_anchor
from tasks.jepa.unit import JepaEvalUnit, JepaTrainUnit, sample_batch_mask


def make_model(arch: str = "tiny") -> Jepa:
    config = jepa_config(arch)
    config.mask.place, config.anchor.kind, config.anchor.clusters = "input", "posteriors", 4
    torch.manual_seed(0)
    model = Jepa(config)
    torch.nn.init.normal_(model.mask_embedding)  # type: ignore[arg-type]
    return model


def make_batch(seed: int = 0, sizes: tuple[int, ...] = (60_000, 48_000, 30_000, 50_000)) -> SpeechBatch:
    generator = torch.Generator().manual_seed(seed)
    wave = torch.zeros(len(sizes), 72_000)
    for row, size in zip(wave, sizes):
        pitch = 100 + 900 * torch.rand((), generator=generator)
        row[:size] = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(size) / 24_000)
        row[:size] += 0.05 * torch.randn(size, generator=generator)
    return SpeechBatch(wave, torch.tensor(sizes), [f"u{i}" for i in range(len(sizes))], 0, list(sizes))


def test_masks_follow_from_their_seed_alone() -> None:
    model, batch = make_model(), make_batch()
    torch.manual_seed(1)
    first = sample_batch_mask(model, batch, 2, 10, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(first, sample_batch_mask(model, batch, 2, 10, 0, 0))
    assert not all(torch.equal(first, sample_batch_mask(model, batch, 2, step, 0, 0)) for step in range(20))
    assert first.shape == (4, 8)  # ceil(72,000 / 9,600): the padded wave's frames
    frames = [7, 5, 4, 6]
    assert [int(row.sum()) for row in first] == [round(0.5 * n) for n in frames]
    assert not any(bool(row[n:].any()) for row, n in zip(first, frames))


def test_anchor_weight_falls_from_start_to_end() -> None:
    weights = [cosine(s, 100, 1.0, 0.01) for s in range(201)]
    assert weights[0] == 1.0 and weights[50] == pytest.approx(0.505) and weights[100] == pytest.approx(0.01)
    assert weights[100:] == [weights[100]] * 101
    assert weights == sorted(weights, reverse=True)


def test_target_decay_is_the_models_or_rises_to_the_end() -> None:
    model = make_model()
    options = {"seed": 1, "rank": 0, "augment": AugmentSection(), "anchor_steps": 10, "anchor_start": 1.0}
    for end, expected in ((None, [0.996, 0.996, 0.996]), (1.0, [0.996, 0.998, 1.0])):
        unit = JepaTrainUnit(model, model, anchor_end=0.1, decay_end=end, decay_steps=100, **options)  # type: ignore[arg-type]
        found = []
        for step in (1, 51, 101):
            unit.set_step_nr(step)
            found.append(unit.target_decay)
        assert found == pytest.approx(expected)
    before = [p.clone() for p in model.target_encoder.parameters()]
    model.encoder.project.weight.data.add_(1.0)
    model.update_target(unit.target_decay)  # 1: the target stays
    assert all(torch.equal(old, new) for old, new in zip(before, model.target_encoder.parameters()))


@pytest.fixture
def clips(tmp_path: Path) -> list[Utterance]:
    rng = np.random.default_rng(0)
    clips = []
    for i, size in enumerate((30_000, 20_000, 40_000)):
        save_audio(tmp_path / f"{i}.wav", 0.1 * rng.standard_normal(size) * np.linspace(0, 1, size))
        clips.append(Utterance(f"u{i}", str(tmp_path / f"{i}.wav")))
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    return [*clips, Utterance("bad", str(tmp_path / "bad.wav"))]


def test_anchor_is_fitted_the_same_each_time(clips) -> None:
    anchors = []
    for _ in range(2):
        anchor = make_model().anchor
        assert isinstance(anchor, MelPosteriors) and not anchor.is_fitted
        fit_anchor(anchor, clips, frames=150, seed=5)
        assert anchor.is_fitted
        anchors.append(anchor)
    for name, value in anchors[0].named_buffers():
        assert torch.equal(value, dict(anchors[1].named_buffers())[name]) and torch.isfinite(value.float()).all()
    features = anchors[0].features(torch.randn(1, 24_000) * 0.05)
    assert anchors[0].posteriors(features).sum(-1).allclose(torch.ones(1, 50))


def test_anchor_without_enough_audio_is_refused(clips) -> None:
    anchor = make_model().anchor
    assert isinstance(anchor, MelPosteriors)
    with pytest.raises(RecipeError, match="clusters"):
        fit_anchor(anchor, clips, frames=5, seed=5)
    with pytest.raises(RecipeError, match="none of the training files"):
        fit_anchor(anchor, clips[-1:], frames=50, seed=5)


def make_unit(model: Jepa) -> JepaTrainUnit:
    return JepaTrainUnit(
        model, model, seed=1, rank=0, augment=AugmentSection(), anchor_steps=10, anchor_start=1.0, anchor_end=0.1
    )


def run_step(model: Jepa, step: int, batch: SpeechBatch, unit: JepaTrainUnit | None = None) -> torch.Tensor:
    unit = unit or make_unit(model)
    bag = MetricBag(torch.device("cpu"))
    unit.prepare_metric_bag(bag)
    unit.set_step_nr(step)
    loss, count = unit.process_batch(batch, bag)
    assert count is None and float(bag.get("jepa_loss", Mean).compute()) == pytest.approx(
        float(loss.detach()), nan_ok=True
    )
    return loss


def test_train_unit_repeats() -> None:
    model, batch = make_model().eval(), make_batch()
    assert torch.equal(run_step(model, 3, batch), run_step(model, 3, batch))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_what_is_no_number_ends_the_run_behind_the_step(bad: str) -> None:
    model, batch = make_model().eval(), make_batch()
    unit, optimizer = make_unit(model), torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer.register_step_post_hook(unit.finite)
    run_step(model, 3, batch, unit).backward()
    optimizer.step()
    if bad == "loss":
        model.mask_token.data.fill_(float("nan"))
    loss = run_step(model, 4, batch, unit)
    if bad == "gradient":
        model.mask_token.grad[0] = float("inf")
    told = (
        "the loss must be finite, but is nan at" if bad == "loss" else "the weights must be finite, but are not after"
    )
    with pytest.raises(RecipeError, match=f"{told} step 4 \\(clips u0, u1") as caught:
        optimizer.step()
    assert "\n" not in str(caught.value) and bool(loss.isfinite()) is (bad == "gradient")


def validate(model: Jepa, *, stop: bool = False, batches: list[SpeechBatch] | None = None) -> dict[str, float]:
    unit = JepaEvalUnit(model, bound="norm", min_share=0.01, min_rank=2.0, stop=stop)
    bag = MetricBag(torch.device("cpu"))
    unit.prepare_metric_bag(bag)
    unit.set_train_step_nr(40)
    with torch.inference_mode():
        for batch in batches or [make_batch(seed) for seed in range(2)]:
            unit.process_batch(batch, bag)
        unit.finalize(bag)
    values: dict[str, object] = {name: metric.compute() for name, metric in bag.metrics.items()}
    unit.process_metric_values(values)
    return {name: float(value) for name, value in values.items()}  # type: ignore[arg-type]


def test_validation_sees_a_collapse(monkeypatch) -> None:
    model = make_model().eval()
    healthy = validate(model, stop=True)
    assert healthy["between_clip_share"] > 0.01 and 0.0 <= healthy["code_usage_min"] <= healthy["code_usage"] <= 1.0
    assert healthy == validate(model)  # masks of the validation are fixed
    assert 0.5 < healthy["cluster_entropy"] <= 1.0
    assert {"reader_mel_r2", "reader_mel_r2_init"} < healthy.keys() and "reader_speaker" not in healthy

    constant = torch.randn(1, 8, 128)

    def deaf(wave, lengths, **_):
        output = real(wave, lengths)
        output.latents = constant[:, : output.latents.shape[1]].expand_as(output.latents).clone()
        return output

    real = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", deaf)
    assert validate(model)["between_clip_share"] < 1e-4
    with pytest.raises(RecipeError, match="collapsed at step 40"):
        validate(model, stop=True)


def part_of(batch: SpeechBatch, *clips: int) -> SpeechBatch:
    sizes = [batch.sizes[i] for i in clips]
    return SpeechBatch(
        batch.wave[list(clips), : -(-max(sizes) // 2_400) * 2_400],
        torch.tensor(sizes),
        [batch.ids[i] for i in clips],
        0,
        sizes,
    )


def test_validation_does_not_depend_on_batches() -> None:
    model, batch = make_model().eval(), make_batch()
    whole = validate(model, batches=[batch])
    assert whole["unanchored_loss"] == pytest.approx(model.config.prediction_weight * whole["prediction_loss"])
    assert "jepa_loss" not in whole and "variance_loss" not in whole
    for parts in ([(0, 1, 2), (3,)], [(2,), (1, 3), (0,)]):
        values = validate(model, batches=[part_of(batch, *part) for part in parts])
        for name in ("prediction_loss", "anchor_loss", "unanchored_loss", "prediction_r2"):
            assert values[name] == pytest.approx(whole[name], rel=1e-4), name


def test_the_loss_without_an_anchor_is_that_of_training() -> None:
    config = jepa_config("tiny")
    config.anchor.kind = "posteriors"
    config.anchor.clusters, config.variance_weight, config.covariance_weight = 0, 2.0, 0.5
    torch.manual_seed(0)
    values = validate(Jepa(config).eval())
    terms = values["prediction_loss"] + 2.0 * values["variance_loss"] + 0.5 * values["covariance_loss"]
    assert values["jepa_loss"] == pytest.approx(terms)
    assert not {"unanchored_loss", "anchor_loss"} & values.keys()


def test_without_masked_frames_there_is_no_r2() -> None:
    model = make_model().eval()
    model.config.mask.ratio = 0.0
    assert "prediction_r2" not in validate(model)


def test_prediction_of_the_target_itself_has_r2_of_one(monkeypatch) -> None:
    model = make_model().eval()
    forward = model.forward

    def oracle(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.predictions = output.targets
        return output

    monkeypatch.setattr(model, "forward", oracle)
    assert validate(model)["prediction_r2"] == pytest.approx(1.0)
