"""Stage 1: exact mask ratio, EMA, losses over the right frames, the anchor, the collapse monitor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok.config import EncoderConfig
from jepa_tok.models.anchor import MelFeatures, MelPosteriors
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.jepa import Jepa, normalise_over_clip
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.masking import sample_mask
from jepa_tok.models.vicreg import variance_covariance
from jepa_tok.monitor import collapse_stats, stage_amplitudes
from jepa_tok.training_config import AnchorConfig, JepaConfig, MaskConfig, PredictorConfig


def toy(place: str = "input", clusters: int = 0, **mask: float) -> JepaConfig:
    """Hop 240 at 24 kHz; sub-frames of 60 samples."""
    encoder = EncoderConfig(
        front="mel", front_hop=60, n_fft=256, n_mels=16, front_channels=8, channels=[8, 12], strides=[2, 2], blocks=[1, 1],
        block="convnext", stage_conformers=[0, 1], latent_dim=16, conformers=1, conformer_heads=4, conformer_kernel=5,
        conformer_norm="step", init="scaled",
    )  # fmt: skip
    return JepaConfig(
        encoder=encoder,
        predictor=PredictorConfig(dim=16, heads=4),
        mask=MaskConfig(place=place, **mask),  # type: ignore[arg-type]
        anchor=AnchorConfig(clusters=clusters, subframes=4, n_mels=8),
    )


def make(place: str = "input", clusters: int = 0, **mask: float) -> Jepa:
    torch.manual_seed(0)
    return Jepa(toy(place, clusters, **mask))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    ratio=st.floats(0.0, 1.0),
    min_span=st.integers(1, 6),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
    law=st.sampled_from(["spans", "blocks"]),
    blocks=st.integers(1, 5),
)
def test_mask_ratio_is_met_exactly(lengths, ratio, min_span, fraction, seed, law, blocks) -> None:
    config = MaskConfig(ratio=ratio, min_span=min_span, max_span_fraction=fraction, law=law, blocks=blocks)
    mask = sample_mask(torch.tensor(lengths), config, torch.Generator().manual_seed(seed))
    assert mask.shape == (len(lengths), max(lengths))
    for row, n in zip(mask, lengths):
        assert int(row[:n].sum()) == round(ratio * n)
        assert not row[n:].any()
    again = sample_mask(torch.tensor(lengths), config, torch.Generator().manual_seed(seed))
    assert torch.equal(mask, again)


def runs(row: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    return [len(part) for part in "".join("x" if x else " " for x in row).split()]


def test_blocks_are_of_equal_length_and_anywhere() -> None:
    config = MaskConfig(ratio=0.5, law="blocks", blocks=2)
    mask = sample_mask(torch.full((2000,), 12), config, torch.Generator().manual_seed(0))
    apart = [lengths for row in mask if len(lengths := runs(row)) > 1]
    assert len(apart) > 500 and all(lengths == [3, 3] for lengths in apart)
    # Frame 0 is masked where the first of 7 gaps' places is taken: 28 placements of two blocks among 6 visible frames, 7 of them.
    assert float(mask[:, 0].float().mean()) == pytest.approx(7 / 28, abs=0.04)
    torch.testing.assert_close(mask.float().mean(0), mask.float().mean(0).flip(0), atol=0.05, rtol=0.0)


def test_variance_and_covariance_terms_are_those_of_the_real_frames() -> None:
    torch.manual_seed(0)
    z, valid = torch.randn(3, 30, 6) * 0.5 + 2.0, torch.ones(3, 30, dtype=torch.bool)
    z[..., 5] = z[..., 4]
    z[1, 20:], valid[1, 20:] = 1e3, False
    variance, covariance = variance_covariance(z, valid)
    expected = torch.cov(z[valid].T)
    torch.testing.assert_close(variance, (1.0 - (expected.diagonal() + 1e-4).sqrt()).relu().mean())
    torch.testing.assert_close(covariance, (expected - expected.diagonal().diag()).square().sum() / 6)


def test_regularisation_enters_the_loss_with_its_weights() -> None:
    config = toy()
    config.variance_weight, config.covariance_weight, config.prediction_weight = 2.0, 0.5, 0.25
    torch.manual_seed(0)
    jepa = Jepa(config).eval()
    lengths = torch.tensor([2400, 1300])
    mask = jepa.sample_mask(jepa.encoder.num_frames(lengths), torch.Generator().manual_seed(1))
    out = jepa(0.1 * torch.randn(2, 2400), lengths, mask)
    assert float(out.variance_loss.detach()) > 0.0 and float(out.covariance_loss.detach()) > 0.0
    expected = 0.25 * out.prediction_loss + 2.0 * out.variance_loss + 0.5 * out.covariance_loss
    torch.testing.assert_close(out.loss, expected)


@pytest.mark.parametrize("place", ["feature", "input"])
def test_loss_is_the_mean_over_masked_frames_and_padding_is_not_scored(place: str) -> None:
    jepa = make(place).eval()
    lengths = torch.tensor([2400, 1300])
    wave = 0.1 * torch.randn(2, 2400)
    mask = jepa.sample_mask(jepa.encoder.num_frames(lengths), torch.Generator().manual_seed(1))
    out = jepa(wave, lengths, mask)
    scored = mask & sequence_mask(out.frame_lengths, mask.shape[1])
    expected = (out.predictions - out.targets)[scored].square().mean()
    torch.testing.assert_close(out.prediction_loss, expected)
    noise = wave.clone()
    noise[1, 1300:] = torch.randn(1100)
    torch.testing.assert_close(jepa(noise, lengths, mask).loss, out.loss)


def test_only_online_parts_learn_and_every_trainable_parameter_gets_a_gradient() -> None:
    for place, clusters in (("feature", 0), ("input", 5)):
        jepa = make(place, clusters)
        lengths = torch.tensor([2400, 1300])
        mask = jepa.sample_mask(jepa.encoder.num_frames(lengths))
        jepa(0.1 * torch.randn(2, 2400), lengths, mask, anchor_weight=1.0).loss.backward()
        for name, p in jepa.named_parameters():
            assert (p.grad is not None) == p.requires_grad, name
            assert p.requires_grad != name.startswith("target_encoder."), name


def test_the_first_gradient_is_of_ordinary_size() -> None:
    jepa = make(clusters=5)
    lengths = torch.tensor([2400, 2400])
    mask = jepa.sample_mask(jepa.encoder.num_frames(lengths))
    jepa(0.1 * torch.randn(2, 2400), lengths, mask, anchor_weight=1.0).loss.backward()
    norm = torch.stack([p.grad.norm() for p in jepa.parameters() if p.grad is not None]).norm()
    assert norm < 1e3


def test_feature_masking_lets_the_encoder_hear_everything_and_input_masking_does_not() -> None:
    lengths = torch.tensor([2400])
    wave = 0.1 * torch.randn(1, 2400)
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[:, 3:6] = True
    changed = wave.clone()
    changed[:, 3 * 240 : 6 * 240] += torch.randn(720)
    for place, leaks in (("feature", True), ("input", False)):
        jepa = make(place).eval()
        with torch.no_grad():
            before, after = jepa(wave, lengths, mask), jepa(changed, lengths, mask)
        assert torch.equal(before.latents, after.latents) is not leaks
        assert not torch.equal(before.targets, after.targets)


def test_ema_moves_by_one_minus_decay_and_stays_in_eval_mode() -> None:
    jepa = make()
    with torch.no_grad():
        for p in jepa.encoder.parameters():
            p.add_(1.0)
    before = [p.clone() for p in jepa.target_encoder.parameters()]
    jepa.update_target()
    for old, new, online in zip(before, jepa.target_encoder.parameters(), jepa.encoder.parameters()):
        torch.testing.assert_close(new, old + 0.004 * (online.detach() - old))
    jepa.sync_target()
    for new, online in zip(jepa.target_encoder.parameters(), jepa.encoder.parameters()):
        torch.testing.assert_close(new, online)
    jepa.train()
    assert jepa.encoder.training and not jepa.target_encoder.training


def test_anchor_posteriors_equal_a_gaussian_mixture_and_kl_is_zero_for_the_truth() -> None:
    jepa = make(clusters=3)
    anchor = jepa.anchor
    assert isinstance(anchor, MelPosteriors) and not anchor.is_fitted
    means, variances = torch.randn(3, 8), torch.rand(3, 8) + 0.5
    weights = torch.tensor([0.2, 0.3, 0.5])
    anchor.set_mixture(means, variances, weights)
    x = torch.randn(5, 8)
    log_p = torch.stack(
        [
            torch.distributions.Normal(m, v.sqrt()).log_prob(x).sum(-1) + w.log()
            for m, v, w in zip(means, variances, weights)
        ],
        -1,
    )
    torch.testing.assert_close(anchor.posteriors(x), log_p.softmax(-1), atol=1e-5, rtol=1e-4)
    assert anchor.is_fitted and "anchor.means" in jepa.state_dict()

    # Silence has one posterior everywhere: a head whose bias is its logarithm predicts it exactly.
    wave = torch.zeros(1, 2400)
    posterior = anchor.posteriors(anchor.features(wave))[0, 0]
    with torch.no_grad():
        anchor.head.weight.zero_()
        anchor.head.bias.copy_(posterior.clamp_min(1e-12).log().repeat(4))
    kl = anchor(torch.randn(1, 10, 16), wave, torch.tensor([2400]))
    assert abs(float(kl.detach())) < 1e-5


def test_the_features_anchor_is_a_squared_error_over_the_clips_own_subframes() -> None:
    torch.manual_seed(0)
    config = toy()
    config.anchor.kind = "features"
    anchor = Jepa(config).anchor
    assert isinstance(anchor, MelFeatures)
    wave, lengths, latents = 0.1 * torch.randn(2, 2400), torch.tensor([2400, 1000]), torch.randn(2, 10, 16)
    wave[1, 1000:] = 0.0
    with torch.no_grad():
        anchor.head.weight.zero_()
        anchor.head.bias.fill_(0.5)
    errors = (0.5 - anchor.features(wave)).square().mean(-1)  # [2, 40] sub-frames of 60 samples
    expected = torch.cat([errors[0], errors[1, :17]]).mean()  # 1,000 samples reach into the 17th
    torch.testing.assert_close(anchor(latents, wave, lengths), expected)
    wave[1, 1000:] = 1.0  # what lies behind a clip is not heard
    torch.testing.assert_close(anchor(latents, wave, lengths), expected)


def test_targets_normalised_over_a_clip_hold_nothing_that_all_its_frames_share() -> None:
    targets = 5.0 + torch.randn(3, 9, 4)
    valid = torch.arange(9) < torch.tensor([[9], [4], [1]])
    found = normalise_over_clip(targets, valid)
    assert not found[~valid].any() and not found[2].any()
    for clip, n in ((0, 9), (1, 4)):
        torch.testing.assert_close(found[clip, :n].mean(0), torch.zeros(4), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(found[clip, :n].std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(found, normalise_over_clip(3.0 * targets - 7.0, valid), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["posteriors", "features"])
def test_a_few_steps_of_training_lower_the_anchored_loss(kind) -> None:
    torch.manual_seed(0)
    config = toy(clusters=4)
    config.anchor.kind, config.target_norm = kind, "clip"
    jepa = Jepa(config)
    assert jepa.anchor is not None
    time = torch.arange(2400) / 24_000
    wave = torch.stack([0.2 * torch.sin(2 * math.pi * f * time) for f in (300.0, 900.0, 2500.0, 6000.0)])
    if isinstance(jepa.anchor, MelPosteriors):
        means = jepa.anchor.features(wave).mean(1)
        jepa.anchor.set_mixture(means, torch.ones(4, 8), torch.full((4,), 0.25))
    lengths = torch.full((4,), 2400)
    optimizer = torch.optim.AdamW([p for p in jepa.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        mask = jepa.sample_mask(jepa.encoder.num_frames(lengths))
        out = jepa(wave, lengths, mask, anchor_weight=1.0)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        jepa.update_target()
        losses.append(float(out.anchor_loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_monitor_tells_position_only_output_from_output_that_follows_the_sound() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([20, 20, 15])
    position = torch.randn(1, 20, 8).expand(3, 20, 8)
    assert collapse_stats(position, lengths)["between_clip_share"] < 1e-6
    sound = collapse_stats(torch.randn(3, 20, 8), lengths)
    assert sound["between_clip_share"] > 0.5
    assert 6.0 < sound["effective_rank"] <= 8.0
    line = torch.randn(3, 20, 1) * torch.ones(8)
    assert collapse_stats(line, lengths)["effective_rank"] == pytest.approx(1.0, abs=1e-3)
    codes = torch.zeros(3, 20, 8, dtype=torch.int64)
    codes[..., 0] = torch.arange(20) % 4
    usage = collapse_stats(torch.randn(3, 20, 8), lengths, codes, [4] * 8)
    assert usage["dead_dims"] == 7 and usage["code_usage"] == pytest.approx(1 / 8, abs=0.01)


@pytest.mark.parametrize(("init", "reaches"), [("scaled", True), ("trunc_normal", False)])
def test_amplitudes_show_whether_the_signal_reaches_z(init: str, reaches: bool) -> None:
    config = toy().encoder
    config.init, config.daam = init, True  # type: ignore[assignment]
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    stages = stage_amplitudes(encoder, 0.1 * torch.randn(1, 2400))
    assert len(stages) == 3 and all(math.isfinite(x) for x in stages)
    assert (stages[0] > 0.1) is reaches  # the second stage ends in a Conformer, whose norm hides it
    assert not any(stage._forward_hooks for stage in encoder.stages)
