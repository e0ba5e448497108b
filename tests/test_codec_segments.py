"""Segments: what of a clip discriminators judge and the generator decodes, while the encoder hears all of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from jepa_tok.errors import ConfigError
from tests.test_codec import CONFIG, build

HOP = CONFIG.tokenizer.encoder.hop


def test_discriminators_judge_a_segment_of_each_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = build(dataclasses.replace(CONFIG, adversarial_seconds=0.02)).train()  # 480 samples
    wave = torch.arange(1.0, 1991.0).repeat(3, 1)  # samples tell where they were
    lengths = torch.tensor([1990, 481, 300])
    heard = []
    forward = codec.discriminator.forward
    monkeypatch.setattr(codec.discriminator, "forward", lambda w, n: heard.append((w, n)) or forward(w, n))
    starts = set()
    for _ in range(20):
        heard.clear()
        out = codec(wave, lengths)
        segment, sizes = heard[0]
        assert segment.shape == (3, 480) and sizes.tolist() == [480, 480, 300]
        for row, size, length in zip(segment, sizes.tolist(), lengths.tolist()):
            assert torch.equal(row[:size].diff(), torch.ones(size - 1)) and row[size - 1] <= length
            assert row[size:].eq(0).all()
        starts.add(int(segment[0, 0]))
        begin = int(segment[0, 0]) - 1
        assert torch.equal(heard[1][0][0], out.reconstruction[0, begin : begin + 480].detach())
    assert len(starts) > 10
    heard.clear()
    codec.eval()(wave, lengths)
    assert heard[0][0].shape == wave.shape


def test_the_generator_decodes_a_segment_of_each_clip_and_the_encoder_hears_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codec = build(dataclasses.replace(CONFIG, generator_seconds=2 * HOP / 24_000)).train()  # two frames
    wave = torch.arange(1.0, 7 * HOP - 9.0).repeat(3, 1) / 9_000  # samples tell where they were
    lengths = torch.tensor([wave.shape[1], 3 * HOP + 7, HOP + 1])
    judged, decoded = [], []
    judge, begin = codec._judge_reconstruction, codec.generator.begin
    monkeypatch.setattr(codec, "_judge_reconstruction", lambda *given: judged.append(given) or judge(*given))
    monkeypatch.setattr(codec.generator, "begin", lambda *given: decoded.append(given) or begin(*given))
    starts = set()
    for _ in range(20):
        judged.clear()
        decoded.clear()
        out = codec(wave, lengths)
        fake, real, sizes = judged[0][:3]
        quantised, frames = decoded[0]
        assert fake.shape == real.shape == out.reconstruction.shape == (3, 2 * HOP) and frames.tolist() == [2, 2, 2]
        assert out.codes.shape[1] == out.latents.shape[1] == 7 and out.frame_lengths.tolist() == [7, 4, 2]
        values = codec.fsq(out.latents)[0]
        for k in range(3):
            first = round(float(real[k, 0]) * 9_000) - 1
            assert first % HOP == 0
            assert sizes[k] == min(2 * HOP, lengths[k] - first) and real[k, sizes[k] :].eq(0).all()
            torch.testing.assert_close(real[k, : sizes[k]], wave[k, first : first + sizes[k]], rtol=0, atol=0)
            torch.testing.assert_close(quantised[k], values[k, first // HOP : first // HOP + 2], rtol=0, atol=0)
        starts.add(float(real[0, 0]))
    assert len(starts) > 3
    out.generator_loss.backward()
    assert codec.eval()(wave, lengths).reconstruction.shape == wave.shape
    assert codec.train()(wave[:, : 2 * HOP]).reconstruction.shape == (3, 2 * HOP)  # there is no more of it


def test_segments_of_less_than_a_frame_are_refused() -> None:
    with pytest.raises(ConfigError, match="`generator_seconds` must be a frame"):
        build(dataclasses.replace(CONFIG, generator_seconds=0.2 * HOP / 24_000))
