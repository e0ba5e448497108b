"""Metrics, intervals, codecs' delays and code usage: each against what is known of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from jepa_tok import packing
from jepa_tok.errors import ConfigError
from jepa_tok.evaluation.clip import Clip
from jepa_tok.evaluation.codecs import Codec2, CodecError, Opus, delay_of, shift
from jepa_tok.evaluation.codes import code_usage
from jepa_tok.evaluation.intervals import bootstrap, weighted_mean
from jepa_tok.evaluation.metrics import F0, CannotMeasure, Dnsmos, Mel, Pesq, Speaker, Stoi, registry
from jepa_tok.evaluation.recognition import Wer, load_recognizer
from jepa_tok.tokens import Tokens
from jepa_tok.transcripts import normalise
from tests.tokenizers import one_line, speech

RATE = 24_000


def clip(wave, text=None):
    return Clip(wave, RATE, text)


def voice(seconds=1.5, low=110.0, high=180.0):
    """Harmonics of a gliding pitch with pauses: what pitch trackers and voice detectors take for a voice."""
    t = torch.arange(round(seconds * RATE)) / RATE
    pitch = low + (high - low) * t / seconds
    phase = 2 * torch.pi * torch.cumsum(pitch / RATE, 0)
    wave = sum(torch.sin(k * phase) / k for k in range(1, 20))
    return 0.1 * wave * (torch.sin(2 * torch.pi * 1.5 * t) > -0.5)


# Intervals ------------------------------------------------------------------------------------------------------------


def test_interval_of_a_constant_is_that_constant():
    found = bootstrap([0.7] * 10, list("aabbccddee"))
    assert found is not None and found.clusters == 5
    assert found.low == pytest.approx(0.7) and found.high == pytest.approx(0.7)


def test_speakers_that_differ_widen_the_interval():
    values = [0.1] * 30 + [0.9] * 30
    by_speaker = bootstrap(values, [i // 10 for i in range(60)])
    by_utterance = bootstrap(values, list(range(60)))
    assert by_speaker is not None and by_utterance is not None
    assert by_speaker.low < by_utterance.low - 0.1 and by_utterance.high + 0.1 < by_speaker.high


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        speakers = rng.normal(0.0, 1.0, 30)
        values = np.repeat(speakers, 4) + rng.normal(0.0, 0.3, 120)
        found = bootstrap(list(values), list(np.repeat(np.arange(30), 4)), draws=400)
        assert found is not None
        hits += found.low < 0.0 < found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_weights_are_those_of_the_mean():
    assert weighted_mean([1.0, 0.0], [1, 3]) == 0.25
    values, clusters = [1.0, 0.0] * 10, list(range(20))
    plain, heavy = bootstrap(values, clusters), bootstrap(values, clusters, [9, 1] * 10)
    assert plain is not None and heavy is not None and plain.low < 0.5 < plain.high < heavy.high and heavy.low > 0.6


def test_few_clusters_have_no_interval_and_seeds_repeat():
    assert bootstrap([1.0, 2.0] * 8, list("abcd") * 4) is None
    values, clusters = list(np.arange(9.0)), list("abcdefghi")
    assert bootstrap(values, clusters, seed=3) == bootstrap(values, clusters, seed=3)
    assert bootstrap(values, clusters, seed=3) != bootstrap(values, clusters, seed=4)


# Metrics --------------------------------------------------------------------------------------------------------------


def test_stoi_is_one_for_the_clip_itself_and_falls_with_noise():
    wave = speech(RATE * 2)
    noisy = wave + 0.1 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(9))
    same, worse = Stoi().score(clip(wave), clip(wave)).values, Stoi().score(clip(wave), clip(noisy)).values
    assert same == pytest.approx({"stoi": 1.0, "estoi": 1.0}, abs=1e-6)
    assert worse["stoi"] < 0.95 and worse["estoi"] < 0.95


def test_stoi_of_too_short_a_clip_is_no_number():
    wave = speech(2400)
    with pytest.raises(CannotMeasure) as error:
        Stoi().score(clip(wave), clip(wave))
    one_line(error, CannotMeasure)


def test_mel_distance_is_in_db():
    wave = 0.5 * speech(RATE)
    same, half = Mel().score(clip(wave), clip(wave)).values, Mel().score(clip(wave), clip(wave / 2)).values
    assert same == {"mel_db": 0.0}
    assert half["mel_db"] == pytest.approx(6.02, abs=0.15)  # the floor under log magnitudes takes a little


def test_pesq_is_its_best_for_the_clip_itself_and_silence_is_no_number():
    pytest.importorskip("pesq")
    wave = voice()
    assert Pesq().score(clip(wave), clip(wave)).values["pesq"] == pytest.approx(4.644, abs=1e-3)
    for silent in (wave * 0.0, wave):
        with pytest.raises(CannotMeasure, match="digital silence"):
            Pesq().score(clip(silent), clip(wave * 0.0))
    with pytest.raises(CannotMeasure) as error:
        Pesq().score(clip(wave[:2400]), clip(wave[:2400]))
    assert "second" in one_line(error, CannotMeasure)


def test_f0_follows_a_glide_and_tells_voiced_from_unvoiced():
    pytest.importorskip("librosa")
    up, down, noise = voice(), voice(low=180.0, high=110.0), speech(round(1.5 * RATE))
    same = F0().score(clip(up), clip(up)).values
    assert same["f0_corr"] == pytest.approx(1.0) and same["voicing_error"] == 0.0
    assert F0().score(clip(up), clip(down)).values["f0_corr"] < -0.9
    unvoiced = F0().score(clip(up), clip(noise))
    assert unvoiced.values["voicing_error"] > 0.4
    assert "f0_corr" in unvoiced.failures and "f0_corr" not in unvoiced.values


def test_dnsmos_hears_noise():
    pytest.importorskip("speechmos")
    noise = 0.2 * torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    found = Dnsmos().score(clip(noise), clip(noise)).values
    assert set(found) == set(Dnsmos.columns) and all(1.0 <= value < 3.0 for value in found.values())


def test_speaker_similarity_is_one_for_the_clip_itself_and_silence_is_no_number():
    pytest.importorskip("resemblyzer")
    metric, wave = Speaker(), voice(2.0)
    assert metric.score(clip(wave), clip(wave)).values["speaker"] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(CannotMeasure):
        metric.score(clip(wave), clip(torch.zeros_like(wave)))


def test_every_metric_says_how_to_get_what_it_lacks(monkeypatch):
    monkeypatch.setattr("jepa_tok.evaluation.metrics.find_spec", lambda name: None)
    for kind in registry().values():
        if kind.packages:
            assert str(kind.missing()).startswith("not available: pip install ")
    assert Mel.missing() is None


# Recognition ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def recognizer(tmp_path, monkeypatch):
    """A module whose function hears one word less in quiet clips."""
    (tmp_path / "ears_for_test.py").write_text(
        "def hear(samples, rate):\n"
        "    assert rate == 16000 and samples.dtype.name == 'float32'\n"
        "    return 'One two, three FOUR' if abs(samples).max() > 0.05 else 'one two three'\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "ears_for_test:hear"
    sys.modules.pop("ears_for_test", None)


def test_wer_counts_against_the_text_and_dwer_against_the_original(recognizer):
    metric, loud = Wer(recognizer), 0.2 * torch.ones(RATE)
    found = metric.score(clip(loud, "One, two three five!"), clip(loud / 10))
    assert found.values == {"wer": 1 / 4, "dwer": 1 / 4} and found.weights == {"wer": 4, "dwer": 4}
    assert found.details["ears_for_test_hear_wer_delete"] == 1 and found.details["ears_for_test_hear_wer_equal"] == 3
    assert found.details["ref_text"] == "one two three five"
    same = metric.score(clip(loud, "one two three five"), clip(loud))
    assert same.values == {"wer": 1 / 4, "dwer": 0.0}


def test_wer_without_a_text_is_no_number_but_dwer_is(recognizer):
    loud = 0.2 * torch.ones(RATE)
    found = Wer(recognizer).score(clip(loud), clip(loud))
    assert found.values == {"dwer": 0.0} and set(found.failures) == {"wer"}


@pytest.mark.parametrize("name", ["nobody", "no_such_module:hear", "ears_for_test:deaf", "ears_for_test:number"])
def test_unknown_recognizers_are_one_line(recognizer, name):
    with pytest.raises(ConfigError) as error:
        load_recognizer(name)
    assert name in one_line(error, ConfigError)


def test_pocketsphinx_hears_each_clip_as_if_it_were_the_first(monkeypatch: pytest.MonkeyPatch):
    pocketsphinx = pytest.importorskip("pocketsphinx")
    scores: list[float] = []  # they differ where texts, of sound that is no speech, do not

    class Spy(pocketsphinx.Decoder):
        def end_utt(self) -> None:
            super().end_utt()
            scores.append(self.hyp().score)

    monkeypatch.setattr(pocketsphinx, "Decoder", Spy)
    hear, a, b = load_recognizer("pocketsphinx"), clip(voice(1.0)).at(16_000), clip(speech(RATE)).at(16_000)
    for wave in (a, b, a):
        hear(wave, 16_000)
    assert scores[2] == scores[0] != scores[1]


def test_words_are_compared_without_case_and_punctuation():
    assert normalise("  Don\u2019t STOP -- now! ") == "don't stop now"


# Codecs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.031, 0.08])
def test_delays_are_found_whatever_becomes_of_phase_and_level(delay):
    wave = voice(2.0)
    late = shift(wave, -delay, RATE, len(wave) + 4000)
    assert delay_of(wave, -0.3 * late, RATE) == pytest.approx(delay, abs=0.0011)
    assert torch.equal(shift(late, delay, RATE, len(wave)), wave)


@pytest.mark.parametrize("codec", [Codec2("700C", 700.0), Codec2("2400", 2400.0), Opus(6000.0)], ids=lambda c: c.label)
def test_codecs_give_speech_that_is_late_at_most(codec):
    if codec.missing():
        pytest.skip(codec.missing())
    wave = voice(2.0)
    out = codec(wave, RATE)
    delay = delay_of(wave, out, RATE)
    assert 0.0 <= delay < 0.06 and len(out) - round(delay * RATE) >= len(wave)
    aligned, raw = (clip(shift(out, d, RATE, len(wave))) for d in (delay, 0.0))
    assert Mel().score(clip(wave), aligned).values["mel_db"] <= Mel().score(clip(wave), raw).values["mel_db"]


def test_a_codec_that_fails_says_what_its_program_said(tmp_path, monkeypatch):
    for name in ("c2enc", "c2dec"):
        (tmp_path / name).write_text("#!/bin/sh\necho first >&2; echo cannot do $1 >&2; exit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CodecError, match="c2enc gave status 3: cannot do 1300"):
        Codec2("1300", 1300.0)(voice(), RATE)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert Codec2("1300", 1300.0).missing() == "not available: install codec2"


# Codes ----------------------------------------------------------------------------------------------------------------


def test_code_usage_of_even_and_of_dead_dimensions():
    codes = torch.arange(64)[:, None].repeat(1, 14) % 4  # every level of every dimension equally often
    codes[:, 3] = 2
    radices = (4,) * 14
    found = code_usage([Tokens(packing.pack(codes[:40], 4), 40, radices), Tokens(packing.pack(codes[40:], 4), 24, radices)], 2.5)  # fmt: skip
    assert found["frames"] == 64 and found["bit_rate"] == pytest.approx(70.0)
    assert found["entropy_bit_rate"] == pytest.approx(65.0, abs=1e-3) and found["dead_dimensions"] == 1
    assert found["dimensions"][3] == 0.0 and found["dimensions"][0] == 1.0
    assert [g["used"] for g in found["groups"]] == [4, 4] and found["groups"][0]["entropy_bits"] == pytest.approx(2.0)
    assert found["groups"][0]["seen_limit"] == pytest.approx(6 / 14, abs=1e-4)
