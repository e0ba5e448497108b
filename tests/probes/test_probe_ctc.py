"""The CTC head: it is linear, padding does not matter, and it learns to spell from planted digits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok.transcripts import normalise
from probes import ctc
from probes.cli import main
from probes.data import ProbeError
from probes.features import OneHot
from probes.heads import SlotHead, make_head
from probes.text import Characters, SentencePieces, error_rates

RADICES = (4,) * 6


def _clips(lengths: list[int], slots: int = 3) -> ctc.Clips:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 4, (n, 6)).astype(np.uint16) for n in lengths]
    labels = [rng.integers(1, 5, n).tolist() for n in lengths]
    return ctc.Clips(frames, OneHot(RADICES), labels, slots)


def _head(context: int = 1) -> SlotHead:
    head = SlotHead(torch.zeros(24), torch.ones(24), 3, 5, context, 0)
    torch.nn.init.normal_(head.map.weight)
    return head


def test_padding_does_not_matter() -> None:
    clips, head = _clips([2, 5, 3]), _head()
    together = head(*clips.batch([0, 1, 2]))
    for k, i in enumerate([0, 1, 2]):
        alone = head(*clips.batch([i]))
        assert torch.allclose(together[: len(alone), k], alone[:, 0], atol=1e-5)


def test_logits_add_up_over_digits() -> None:
    """Linear means linear: each digit of a frame adds its own column of the matrix, and the slot its bias."""
    clips, head = _clips([1]), _head(context=0)
    x, lengths = clips.batch([0])
    digits = [4 * d + int(k) for d, k in enumerate(clips.frames[0][0])]
    logits = (head.map.bias + sum(head.map.weight[0, c] for c in digits)).unflatten(0, (3, 5))
    assert torch.allclose(head(x, lengths)[:, 0], logits.log_softmax(-1), atol=1e-5)


@pytest.mark.parametrize("context", [0, 1, 2])
def test_a_slot_sees_its_frame_and_its_neighbours_alone(context: int) -> None:
    clips, head = _clips([9]), _head(context)
    before = head(*clips.batch([0])).unflatten(0, (9, 3))
    clips.frames[0][4] = (clips.frames[0][4] + 1) % 4
    moved = (head(*clips.batch([0])).unflatten(0, (9, 3)) - before).abs().amax((1, 2, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(4 - context, 5 + context))


@given(st.lists(st.integers(0, 3), max_size=12))
def test_collapse(path: list[int]) -> None:
    out = ctc.collapse(path)
    assert 0 not in out
    spelled = [0]
    for u in out:  # a path that spells `out` collapses to it again
        spelled += [u, u, 0]
    assert ctc.collapse(spelled) == out
    merged = [u for k, u in enumerate(path) if k == 0 or u != path[k - 1]]
    assert out == [u for u in merged if u]


def test_fits_counts_blanks_between_equal_labels() -> None:
    clips = _clips([1, 1, 1], slots=3)
    clips.labels = [[1, 2, 3], [1, 1, 2], []]
    assert [clips.fits(i) for i in range(3)] == [True, False, False]


def test_batches_hold_every_clip_once() -> None:
    clips = _clips([3, 200, 150, 5, 320, 400, 1])
    batches = clips.batches(range(7))
    assert sorted(i for b in batches for i in b) == list(range(7))
    for b in batches:
        assert len(b) == 1 or len(b) * max(len(clips.frames[i]) for i in b) <= 2.5 * ctc.MOST_SECONDS


@pytest.mark.parametrize(
    ("radices", "frame_rate", "context"),
    [((4,) * 128, 2.5, 1), ((256, 256), 40.0, 16), ((1024,) * 2, 75.0, 4), ((1024,) * 32, 75.0, 1), ((500,), 0.5, 1)],
)
def test_linear_heads_see_as_long(radices: tuple[int, ...], frame_rate: float, context: int) -> None:
    """400 ms on each side whatever a frame's length, unless codebooks are too large for that."""
    frames = [np.zeros((3, len(radices)), np.uint16)]
    clips = ctc.Clips(frames, OneHot(radices), [[1]], 1, frame_rate)
    assert ctc.default_context(clips) == context


def test_a_large_corpus_is_passed_through_fewer_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clips, steps = _clips([4] * 40), []
    clip_norm = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: steps.append(1) or clip_norm(*given))
    options = {"size": 5, "context": 0, "epochs": 4, "lr": 0.01, "decay": 0.0, "seed": 0, "device": "cpu"}
    for most, passes in [(1_000, 4), (19, 2), (3, 1)]:  # 8 batches of 5 clips a pass
        steps.clear()
        monkeypatch.setattr(ctc, "MOST_UPDATES", most)
        ctc.train(clips, range(40), range(40), **options)
        assert len(steps) == 8 * passes


@pytest.mark.parametrize("kind", ["linear", "bilstm"])
def test_a_head_starts_from_what_transcripts_and_lengths_tell(kind: str) -> None:
    """And keeps that where training makes it worse on dev, however strongly weights decay."""
    clips = _clips([4] * 20)
    shares = ctc.label_shares(clips, range(20), 5)
    assert torch.allclose(shares.exp().sum(), torch.tensor(1.0))
    assert shares[0].exp() == pytest.approx(2 / 3)  # 4 labels on 12 positions
    options = {"kind": kind, "size": 5, "context": 1, "epochs": 1, "seed": 0, "device": "cpu"}
    parts = (clips, range(10), range(10, 20))
    head, _ = ctc.train(*parts, lr=1e-6, decay=1e5, **options)
    assert torch.allclose(
        head.map.bias, ctc.label_shares(clips, range(10), 5).repeat(len(head.map.bias) // 5), atol=1e-3
    )
    assert ctc.train(*parts, lr=0.5, decay=0.0, **options)[1] <= ctc.train(*parts, lr=0.0, decay=0.0, **options)[1]


@pytest.mark.parametrize("kind", ["linear", "bilstm"])
def test_training_goes_by_its_seed_whatever_ran_before(kind: str) -> None:
    """Dropout, too."""
    clips, losses = _clips([4] * 20), []
    options = {"kind": kind, "size": 5, "context": 1, "epochs": 2, "lr": 0.01, "decay": 0.01, "device": "cpu"}
    for seed in (0, 0, 1):
        torch.rand(7)
        head, _ = ctc.train(clips, range(20), range(20), seed=seed, **options)
        losses.append(ctc.evaluate(head, clips, range(20), "cpu"))
    assert losses[0] == losses[1] != losses[2]


def test_nats_are_of_all_paths_to_the_labels() -> None:
    """Two positions of three labels, each as likely as the others: of 9 paths three spell `a`, one `ab`."""
    even = torch.full((2, 3), -np.log(3.0), dtype=torch.float32)
    assert ctc.nats([even, even], [[1], [1, 2]]) == pytest.approx([np.log(3), np.log(9)])


@pytest.mark.parametrize(("kind", "context"), [("linear", 0), ("linear", 2), ("linear", 6), ("bilstm", 2)])
def test_rows_of_a_table_stand_for_products_with_one_hot_codes(
    kind: str, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large codebooks are read by index: the same logits and the same gradients, at the ends of clips too, and in clips that are shorter
    than what the head sees."""
    clips = _clips([2, 5, 3])
    mean, scale = ctc.moments(clips, range(3))
    x, lengths = clips.batch(range(3))
    monkeypatch.setattr(ctc, "MOST_DENSE", 1)
    columns, _ = clips.batch(range(3))
    assert (x.dtype, list(x.shape), columns.dtype, list(columns.shape)) == (
        torch.float32,
        [3, 5, 24],
        torch.int64,
        [3, 5, 6],
    )
    found = []
    for inputs in (x, columns):
        head = make_head(kind, mean, scale, slots=3, labels=5, context=context, seed=0).eval()
        y = head(inputs, lengths)
        (y[:, 1] * torch.randn(y[:, 1].shape, generator=torch.Generator().manual_seed(1))).sum().backward()
        found.append([y, *(p.grad for p in head.parameters())])
    for dense, sparse in zip(*found, strict=True):
        assert torch.allclose(dense, sparse, atol=1e-4) and dense.abs().max() > 1e-3


def test_moments_of_codes_are_those_of_their_one_hot_form() -> None:
    clips = _clips([4, 7, 2])
    counted = ctc.moments(clips, [0, 2])
    summed = ctc.moments(ctc.Clips(clips.frames, lambda x: OneHot(RADICES)(x), clips.labels, 3), [0, 2])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(counted, summed, strict=True))


def test_text() -> None:
    assert normalise("Don\u2019t — PANIC!  42\tÄÖ") == "don't panic 42 äö"
    units = Characters(["ab c", "cab"])
    assert units.decode(units.encode("ca z b")) == "ca b"  # z is not among the training characters
    assert error_rates(["a b", "c"], ["a", ""]) == {"wer": pytest.approx(2 / 3), "cer": pytest.approx(3 / 4)}
    texts = [normalise(t) for t in ("the cat sat", "a cat on the mat", "the mat sat")] * 4
    pieces = SentencePieces(texts, 30)
    assert all(pieces.decode(pieces.encode(t)) == t for t in texts)
    with pytest.raises(ProbeError, match=r"sentencepiece units .`spm_size`. must suit"):
        SentencePieces(texts, 3)


@pytest.fixture
def spelled(write_shards: Any, tmp_path: Path) -> Path:
    """Shards of 4-slot frames, each spelling two letters of an alphabet of 7 and a space: a letter is two digits."""
    draw, codes, info = random.Random(0), {}, {}
    table = {c: (k // 4, k % 4) for k, c in enumerate("abdeist ")}
    for n in range(120):
        words = [draw.choice(["bad", "tea", "site", "is", "seat", "diet", "a"]) for _ in range(draw.randint(3, 6))]
        text = " ".join(words)
        text += "s" * (len(text) % 2)
        frames = np.random.default_rng(n).integers(0, 4, (len(text) // 2, 28))
        for t in range(len(frames)):
            frames[t, 2:4], frames[t, 9:11] = table[text[2 * t]], table[text[2 * t + 1]]
        codes[f"u{n:03d}"] = frames
        info[f"u{n:03d}"] = {"text": text.upper() + ".", "speaker": f"s{n % 5}"}
    return write_shards(tmp_path / "tokens", codes, info)


@pytest.mark.parametrize("units", ["char", "spm"])
def test_planted_alphabet_is_learnt(units: str, spelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctc, "GRIDS", {"linear": ((0.05, 0.3),)})
    out = tmp_path / "out"
    argv = [
        "asr",
        "--tokens",
        spelled,
        "--out",
        out,
        "--seeds",
        0,
        "--epochs",
        8,
        "--context",
        1,
        "--units",
        units,
        "--spm-size",
        20,
    ]
    assert main([str(a) for a in argv]) == 0
    found = json.loads((out / "results.json").read_text())
    cer = {r["input"]: r["metrics"]["cer"]["mean"] for r in found["rows"] if r["available"]}
    assert set(cer) == {"tokens", "shuffled", "chance", "majority"}
    assert cer["tokens"] < (0.15 if units == "char" else 0.85)  # a piece that spans two frames is harder to learn
    assert cer["shuffled"] > 0.8
    assert found["splits"]["speakers_in_train_and_test"] == 0
    assert found["better"] == dict.fromkeys(("wer", "cer", "nats"), "lower")
    nats = {r["input"]: r["metrics"]["nats"]["mean"] for r in found["rows"] if "nats" in r["metrics"]}
    assert set(nats) == {"tokens", "shuffled"} and nats["tokens"] < 0.8 * nats["shuffled"]
    assert found["settings"]["positions_per_second"] == 10.0
    assert len(found["settings"]["examples"]) == 5


def test_letters_are_found_at_47_5_positions_a_second(
    tmp_path: Path, write_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 128 digits in 19 tokens that spell five letters each, as speech does; shuffled transcripts are not found."""
    monkeypatch.setattr(ctc, "GRIDS", {"linear": ((0.05, 0.3),)})
    draw, codes, info = random.Random(0), {}, {}
    table = {c: (k // 4, k % 4) for k, c in enumerate("abdeist ")}
    for n in range(160):
        words = [draw.choice(["bad", "tea", "site", "is", "seat", "diet", "a"]) for _ in range(draw.randint(5, 9))]
        text = " ".join(words)
        text += "s" * (-len(text) % 5)
        frames = np.random.default_rng(n).integers(0, 4, (len(text) // 5, 128))
        for t, k in np.ndindex(len(frames), 5):
            frames[t, 20 * k : 20 * k + 20] = table[text[5 * t + k]] * 10
        codes[f"u{n:03d}"] = frames
        info[f"u{n:03d}"] = {"text": text, "speaker": f"s{n % 40}"}
    tokens, out = write_shards(tmp_path / "tokens", codes, info), tmp_path / "out"
    argv = ["asr", "--tokens", tokens, "--out", out, "--seeds", 0, "--context", 0]
    assert main([str(a) for a in argv]) == 0
    found = json.loads((out / "results.json").read_text())
    cer = {r["input"]: r["metrics"]["cer"] for r in found["rows"] if r["available"]}
    assert found["settings"]["positions_per_second"] == 47.5
    assert cer["tokens"]["mean"] < 0.15 and cer["tokens"]["high"] < 0.5 * cer["shuffled"]["low"]
    assert cer["shuffled"]["mean"] > 0.8 * cer["chance"]["mean"]  # saying what is frequent beats a drawn transcript
