"""Quick readers: they find what is in z, find nothing in noise, and know what an untrained encoder gives."""

from __future__ import annotations

import pytest
import torch

import tasks  # noqa: F401  (preloads libsndfile)
from jepa_tok.presets import tokenizer_config
from tasks.jepa.readers import QuickReaders, mel_r2, random_encoder, speaker_accuracy, subframe_mels

TINY = tokenizer_config("tiny").encoder


def linear_pair(noise: float, clips: int = 12) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """z [20, 8] of each clip and features [20, 30] that are linear in it but for noise."""
    torch.manual_seed(0)
    weight = torch.randn(8, 30)
    z = [3.0 + torch.randn(20, 8) for _ in range(clips)]
    return z, [x @ weight + noise * torch.randn(20, 30) for x in z]


def test_ridge_reads_what_is_linear_in_z_and_nothing_from_noise() -> None:
    z, mels = linear_pair(0.1)
    r2 = mel_r2(z, mels)
    assert r2 is not None and r2 > 0.98
    shuffled = mel_r2([torch.randn(20, 8) for _ in z], mels)
    assert shuffled is not None and -0.1 < shuffled < 0.1
    constant = mel_r2([torch.ones(20, 8) for _ in z], mels)
    assert constant == pytest.approx(0.0, abs=0.05)
    assert mel_r2(z[:1], mels[:1]) is None and mel_r2([], []) is None


def test_speaker_is_read_from_clips_that_the_reader_has_not_seen() -> None:
    torch.manual_seed(0)
    speakers = [f"s{i % 3}" for i in range(18)] + ["alone", None]
    voices = torch.randn(3, 8)
    z = [(voices[i % 3] if i < 18 else torch.zeros(8)) + 0.2 * torch.randn(15, 8) for i in range(20)]
    assert speaker_accuracy(z, speakers) == (1.0, pytest.approx(1 / 3))
    noise = speaker_accuracy([torch.randn(15, 8) for _ in range(600)], [f"s{i % 3}" for i in range(600)])
    assert noise is not None and noise[0] < 0.45
    assert speaker_accuracy(z, ["one"] * 20) is None and speaker_accuracy(z, [None] * 20) is None


def test_an_untrained_encoder_leaves_the_gpus_generators_alone(monkeypatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    random_encoder(TINY, 5, torch.device("cpu"))
    assert seeded == []


def add_clips(readers: QuickReaders) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = [48_000, 30_000, 45_000, 9_000]
    wave = torch.zeros(4, 48_000)
    for row, size in zip(wave, sizes):
        row[:size] = 0.1 * torch.randn(size, generator=generator)
    lengths = torch.tensor(sizes)
    latents = random_encoder(TINY, 5, torch.device("cpu"))(wave, lengths).latents
    readers.add([f"u{i}" for i in range(4)], wave, lengths, sizes, latents)


def test_values_of_an_untrained_encoder_follow_from_the_seed_and_are_computed_once() -> None:
    state = torch.get_rng_state()
    found = []
    for _ in range(2):
        readers = QuickReaders(TINY, {f"u{i}": "ab"[i % 2] for i in range(4)}, seed=5)
        add_clips(readers)
        found.append(readers.read())
    assert found[0] == found[1]
    # The encoder that is read here is the untrained one itself.
    assert found[0]["reader_mel_r2"] == pytest.approx(found[0]["reader_mel_r2_init"])
    assert "reader_speaker" not in found[0]  # the last clip fills no frame: its speaker has one clip left
    add_clips(readers)
    assert readers._random_encoder is None and readers.read() == found[0]
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(("hop", "parts"), [(9600, 20), (4800, 10), (480, 1), (320, 1), (9000, 18)])
def test_subframes_fill_a_frame(hop: int, parts: int) -> None:
    from dataclasses import replace

    config = replace(TINY, front_hop=hop, strides=[1])
    assert config.hop == hop and subframe_mels(config).hop * parts == hop
