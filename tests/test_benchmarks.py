"""Benchmarks on two short clips: their facts and the shape of what they print; never a time."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import pytest
import torch

from benchmarks import corpus, invariance, parts, probes, speed, train_step
from benchmarks.clips import make_clip, read_clips
from benchmarks.peers import BLOCKS, PEERS, Port, make_codec
from jepa_tok import SpeechTokenizer, save_audio
from jepa_tok.errors import ConfigError, JepaTokError
from tests.tokenizers import paper_layout


@pytest.fixture(scope="module")
def clips():
    return read_clips([], [0.9, 0.5])


def arguments(**given) -> argparse.Namespace:
    values = dict(
        audio=[], seconds=0.5, batches=[1, 2], threads=[1], rounds=1, all=True, seed=0,
        sizes=[2], threaded=[], device="cpu", partners="any", batch_seconds=100.0, bf16=True,
    )  # fmt: skip
    return argparse.Namespace(**(values | given))


def test_clips_have_the_lengths_asked_for_and_are_the_same_every_time(tmp_path: Path) -> None:
    for i in range(3):
        save_audio(tmp_path / f"{i}.wav", make_clip(0.5, 24_000, seed=i))
    lengths = [0.05, 0.3, 1.2]  # the last is longer than any recording
    for sources in ([], [tmp_path]):
        made = read_clips(sources, lengths)
        assert [len(clip) for clip in made] == [1200, 7200, 28_800]
        assert all(torch.equal(a, b) for a, b in zip(made, read_clips(sources, lengths)))


def test_lengths_reach_from_the_shortest_to_beyond_a_window() -> None:
    lengths = invariance.spread_lengths(500, seed=0)
    assert len(lengths) == 500 and min(lengths) == pytest.approx(0.05) and max(lengths) == pytest.approx(35.0)
    assert sum(length > 30 for length in lengths) >= 3 and 2.0 < sum(lengths) / 500 < 2.6


@pytest.mark.parametrize("partners", ["any", "near"])
def test_each_clip_is_in_one_batch_and_no_batch_is_too_large(partners: str) -> None:
    waves = [torch.zeros(1 + 37 * i % 901) for i in range(41)]
    batches = invariance.make_batches(waves, 8, partners, limit=4000, draw=random.Random(0))
    assert sorted(i for batch in batches for i in batch) == list(range(41))
    for batch in batches:
        assert len(batch) <= 8 and len(batch) * max(len(waves[i]) for i in batch) <= 4000
    assert batches != sorted(batches)


def test_compare_counts_codes_frames_and_clips() -> None:
    alone = [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)]
    other = [alone[0].clone(), alone[1]]
    other[0][1, :2] = 1
    counted = invariance.compare(other, alone)
    assert (counted["codes"], counted["differ"], counted["frames differ"], counted["clips differ"]) == (16, 2, 1, 1)
    assert counted["per 100,000"] == 12_500


def test_invariance_of_tiny(clips, threads_as_they_were) -> None:
    rows = list(invariance.measure(make_codec("tiny", clips), clips, arguments(threads=[1, 2], threaded=[2])))
    conditions = [("alone, reverse order", 1), ("alone", 2), ("batches of 2", 1), ("batches of 2", 2)]
    assert [(row["dtype"], row["condition"], row["threads"]) for row in rows] == [
        *(("fp32", *condition) for condition in conditions),
        ("bf16", "alone, against fp32", 1),
        *(("bf16", *condition) for condition in conditions),
    ]
    assert all(row["codes"] == (3 + 2) * 128 for row in rows)
    assert all(row["differ"] == 0 for row in rows if row["condition"] == "alone, reverse order")
    assert all(row["differ"] <= 1 for row in rows[:4])  # a last bit at a level's edge


def test_any_adapter_is_measured(clips) -> None:
    rows = list(invariance.measure(make_codec("melkm:20,2", [*clips, make_clip(3.0, 24_000, 3)]), clips, arguments()))
    assert [(row["dtype"], row["condition"]) for row in rows] == [
        ("fp32", "alone, reverse order"),
        ("fp32", "batches of 2"),
    ]
    assert all(row["codes"] == 18 + 10 and row["differ"] == 0 for row in rows)
    with pytest.raises(JepaTokError, match=r"must decode .* but adapters only encode\.$"):
        make_codec("melkm:20,2", [make_clip(3.0, 24_000, 3)]).decode([])
    with pytest.raises(JepaTokError, match="'nobody' must be a tokenizer folder"):
        make_codec("nobody", clips)


@pytest.mark.parametrize("name", PEERS)
def test_peers_give_varied_codes_of_the_stated_shape(name: str, clips) -> None:
    pytest.importorskip("transformers")
    codec = make_codec(name, clips)
    together = codec.encode(clips)
    for clip, codes in zip(clips, together):
        hop = round(24_000 / codec.frame_rate)
        assert codes.shape[1] == codec.codes_per_frame
        assert len(codes) in (len(clip) // hop, -(-len(clip) // hop))  # a rest is a frame of its own, but not for DAC
    assert together[0].unique().numel() > 2  # empty codebooks would give one code, and nothing could differ
    wave = codec.decode(together[:1])[0]
    assert wave.dim() == 1 and abs(len(wave) - len(clips[0])) < 24_000 / codec.frame_rate + 1000


@pytest.mark.parametrize("port", BLOCKS)
def test_a_port_computes_the_same_layers(port: str, clips) -> None:
    tokenizer = SpeechTokenizer.from_config(paper_layout())
    expected = tokenizer.latents(clips[0])
    with Port(port, tokenizer, "random", BLOCKS[port])._ported():
        torch.testing.assert_close(tokenizer.latents(clips[0]), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(tokenizer.latents(clips[0]), expected)


@pytest.mark.parametrize("side", ["encode", "decode"])
def test_speed_table(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "GEMM", 64)  # a CPU without bf16 takes minutes for the product that it is rated by
    found = speed.measure(side, ["tiny", "tiny:bf16"], arguments())
    assert [(row["codec"], row["batch"]) for row in found["rows"]] == [
        (c, b) for b in (1, 2) for c in ("tiny", "tiny:bf16")
    ]
    plain, bf16 = found["codecs"]
    assert plain["bit/s"] == 640 and plain["GFLOP/s of audio"] == bf16["GFLOP/s of audio"] > 0
    if side == "encode":
        assert bf16["codes"] == 2 * 2 * 128 and 0 <= bf16["changed codes"] < bf16["codes"]
    else:
        assert -60 < bf16["difference, dB"] < 0
    assert {"command", "commit", "machine", "versions", "load_before"} <= found.keys()


def test_time_and_arithmetic_by_parts(clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "GEMM", 64)
    tokenizer = SpeechTokenizer.from_config("tiny")
    found = parts.both_sides(tokenizer, clips, rounds=1)
    assert found.keys() == {"encode", "decode"}
    for side, named in (("encode", {"front", "stages.0", "conformers.0", "pitch"}), ("decode", {"stages.0", "head"})):
        rows = {row["part"]: row for row in found[side]}
        assert named | {"rest", "whole"} <= rows.keys()
        whole = rows.pop("whole")
        assert sum(row["ms"] for row in rows.values()) == pytest.approx(whole["ms"])  # one round, so medians add up
        assert all(row["ms"] > 0 for row in rows.values())
        counted = sum(row["GFLOP"] for row in rows.values())
        assert 0.98 * whole["GFLOP"] < counted <= whole["GFLOP"] * (1 + 1e-9)
    assert not tokenizer.encoder.front._forward_hooks


def step_arguments(**changes: object) -> argparse.Namespace:
    plain = {"device": "cpu", "dtype": "fp32", "batch": 2, "seconds": 0.4, "segment": 0.2, "fine_tune": True, "warm_up": 0,
             "steps": 1, "profile": None, "compile": False, "recompute": False}  # fmt: skip
    return argparse.Namespace(**plain, **changes)


@pytest.mark.parametrize("stage", train_step.STAGES)
def test_a_training_step_is_counted(stage: str) -> None:
    row = train_step.measure("tiny", stage, step_arguments(), rate=1e12, bandwidth=1e12)
    # Forward, and twice that backward, of the online encoder at least (0.05 GFLOP per second of audio), and not a hundred times it.
    assert 0.1 < row["GFLOP per s"] < 10 and row["TFLOP/s"] == pytest.approx(row["MFU"])
    assert 0.0 < row["bound"] < 1.0


def test_a_training_step_moves_weights_and_their_average() -> None:
    step = train_step.Step("tiny", "2", step_arguments())
    before = {name: p.clone() for name, p in step.model.named_parameters()}
    step()
    moved = {name.split(".")[0] for name, p in step.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"encoder", "fsq", "generator", "average"}


@pytest.mark.parametrize("conv", [
    torch.nn.Conv1d(12, 24, 3, padding=5, dilation=5), torch.nn.Conv1d(12, 12, 7, padding=3, groups=12),
    torch.nn.Conv1d(12, 24, 4, stride=2, groups=3), torch.nn.ConvTranspose1d(12, 6, 4, stride=2),
    torch.nn.ConvTranspose1d(12, 6, 4, stride=2, groups=3),
])  # fmt: skip
def test_products_of_dilated_grouped_and_transposed_convolutions(conv: torch.nn.Module) -> None:
    x = torch.randn(2, 12, 40, requires_grad=True)
    with train_step.Products() as products:
        out = conv(x)
        out.sum().backward()
    steps = x.shape[2] if isinstance(conv, torch.nn.ConvTranspose1d) else out.shape[2]
    forward = 2 * 2 * steps * conv.in_channels * conv.out_channels // conv.groups * conv.kernel_size[0]
    assert [flops for flops, _ in products.found] == [forward, 2 * forward]
    sizes = [x.numel(), out.numel(), conv.weight.numel(), conv.bias.numel()]
    assert products.found[0][1] == 4 * sum(sizes)


def test_probes_are_timed_on_a_corpus_that_has_what_they_look_for(tmp_path: Path) -> None:
    rows = probes.make_corpus(0.2)
    assert sum(u.info["seconds"] for u in rows) >= 720 and len({u.id for u in rows}) == len(rows)
    found = {row["task"]: row for row in probes.measure(1.0, "fsq", 2, ["speaker"], tmp_path)}
    assert set(found) == {"pooled once", "speaker"}
    assert found["speaker"]["metric"] == "accuracy" and found["speaker"]["value"] > 0.5  # chance: 1 in 40
    assert found["speaker"]["minutes"] == pytest.approx(found["speaker"]["cpu s"] * 6 / 60, abs=0.01)


def test_clips_of_corpora_are_chosen_evenly_and_cut_to_pieces(tmp_path: Path) -> None:
    sources = []
    for name, seconds in (("a", 0.2), ("b", 1.0)):
        rows = []
        for i in range(8):
            save_audio(tmp_path / f"{name}{i}.wav", make_clip(seconds, 24_000, seed=i))
            rows.append(json.dumps({"id": str(i), "path": f"{name}{i}.wav"}))
        sources.append(tmp_path / f"{name}.jsonl")
        sources[-1].write_text("\n".join(rows))
    clips = corpus.choose(sources, 6, None, 0)
    assert sorted(u.id[0] for u in clips) == ["a"] * 3 + ["b"] * 3 and len({u.id for u in clips}) == 6
    pieces = corpus.choose(sources, 20, (0.3, 0.6), 0)
    assert len(pieces) == len({u.id for u in pieces}) == 20 and all("/b" in u.path for u in pieces)
    assert all(0.3 <= (u.end or 0) - (u.start or 0) <= 0.6 and (u.end or 0) <= 1.0 for u in pieces)
    with pytest.raises(ConfigError, match="longer"):
        corpus.choose(sources[:1], 6, (0.3, 0.6), 0)
