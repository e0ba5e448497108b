"""Speech data: plans lose and repeat no clip, readers resume exactly, bad files are told and replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.error import RecipeError
from hypothesis import given, settings
from hypothesis import strategies as st

import jepa_tok._fairseq2  # noqa: F401
from jepa_tok._fairseq2.speech_data import SpeechDatasetConfig, SpeechDatasetSection, open_speech_dataset
from jepa_tok._fairseq2.speech_plan import crop_start, plan_epoch, plan_validation, shard
from jepa_tok._fairseq2.speech_reader import SpeechReader


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Twelve sines of 0.3 to 0.85 s, two of them for validation; the pitch tells the clip."""
    rows = []
    for i in range(12):
        size = 7_200 + 1_200 * i
        wave = 0.5 * np.sin(2 * np.pi * (100 + 50 * i) * np.arange(size) / 24_000)
        soundfile.write(tmp_path / f"{i}.wav", wave, 24_000)
        rows.append(
            {"id": f"u{i}", "path": f"{i}.wav", "duration_s": size / 24_000, "split": "dev" if i > 9 else "train"}
        )
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "corpus.jsonl"


def reader(corpus: Path, *, rank: int = 0, ranks: int = 1, training: bool = True, accumulate: int = 1, **options):
    dataset = open_speech_dataset(SpeechDatasetConfig(manifests=[str(corpus)]))
    section = SpeechDatasetSection(**{"batch_size": 4, "valid_batch_size": 1, "crop_seconds": 0.5} | options)
    clips = dataset.train if training else dataset.valid
    return SpeechReader(clips, section, rank=rank, ranks=ranks, seed=7, training=training, accumulate=accumulate)


def take(source: SpeechReader, steps: int) -> list:
    """Reads steps across epochs, as the trainer does."""
    out = []
    while len(out) < steps:
        try:
            out.append(next(source))
        except StopIteration:
            source.reset()
    return out


def same(a: list, b: list) -> bool:
    flat_a, flat_b = [x for s in a for x in s], [x for s in b for x in s]
    return len(flat_a) == len(flat_b) and all(
        x.ids == y.ids and x.sizes == y.sizes and torch.equal(x.wave, y.wave) for x, y in zip(flat_a, flat_b)
    )


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 400),
    batch=st.integers(1, 6),
    ranks=st.sampled_from([1, 2, 3]),
    accumulate=st.sampled_from([1, 2]),
    limit=st.sampled_from([None, 15.0, 40.0]),
    epoch=st.integers(1, 3),
)
def test_epoch_uses_each_clip_at_most_once(count, batch, ranks, accumulate, limit, epoch) -> None:
    shards = ranks * accumulate
    size = batch * shards
    limit = None if limit is None else limit * shards
    seconds = np.random.default_rng(count).uniform(0.1, 15.0, count).tolist()
    steps = plan_epoch(seconds, seed=3, epoch=epoch, batch_size=size, shards=shards, max_seconds=limit)
    clips = [clip for step in steps for clip in step]
    assert len(clips) == len(set(clips))
    unit = size if limit is None else shards
    assert len(clips) == count - count % unit  # what is left is less than a step
    if limit is None:
        assert all(len(step) == size for step in steps)
    else:
        assert all(len(step) * max(seconds[i] for i in step) <= limit for step in steps)
    assert all(len(step) % shards == 0 and len(step) <= size for step in steps)
    for step in steps:
        dealt = [batch for rank in range(ranks) for batch in shard(step, rank, ranks, accumulate)]
        assert sorted(clip for batch in dealt for clip in batch) == sorted(step)
        assert len({len(batch) for batch in dealt}) == 1
    assert steps == plan_epoch(seconds, seed=3, epoch=epoch, batch_size=size, shards=shards, max_seconds=limit)


def test_padded_audio_stays_within_the_budget() -> None:
    seconds = np.random.default_rng(0).uniform(0.5, 15.0, 300).tolist()
    steps = plan_epoch(seconds, seed=1, epoch=1, batch_size=64, max_seconds=60.0)
    assert all(len(step) * max(seconds[i] for i in step) <= 60.0 for step in steps)
    assert sum(map(len, steps)) == 300


@pytest.mark.parametrize("limit", [None, 120.0, 240.0])
def test_few_clips_are_left_out_and_others_in_each_epoch(limit) -> None:
    seconds = np.random.default_rng(0).uniform(2.0, 15.0, 2_003).tolist()
    options = {"seed": 1, "batch_size": 64, "shards": 8, "max_seconds": limit}
    left = [set(range(2_003)) - {i for s in plan_epoch(seconds, epoch=e, **options) for i in s} for e in (1, 2)]
    count = 2_003 % 64 if limit is None else 3
    assert [len(clips) for clips in left] == [count, count] and len(left[0] & left[1]) <= count // 4


def test_epochs_differ_and_lengths_are_alike_within_a_step() -> None:
    seconds = np.linspace(1.0, 15.0, 640).tolist()
    first, second = (plan_epoch(seconds, seed=1, epoch=e, batch_size=16) for e in (1, 2))
    assert first != second
    spans = [max(seconds[i] for i in step) - min(seconds[i] for i in step) for step in first]
    assert np.mean(spans) < 1.0  # of 14 s in the corpus


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 60), size=st.integers(1, 7), ranks=st.integers(1, 4))
def test_validation_loses_no_clip(count, size, ranks) -> None:
    seconds = np.random.default_rng(count).uniform(0.1, 15.0, count).tolist()
    plans = [plan_validation(seconds, batch_size=size, rank=r, ranks=ranks) for r in range(ranks)]
    assert len({len(plan) for plan in plans}) == 1  # ranks stop together
    assert sorted(clip for plan in plans for batch in plan for clip in batch) == list(range(count))


@given(samples=st.integers(1, 100_000), crop=st.integers(1, 50_000), index=st.integers(0, 1000))
def test_crops_lie_inside(samples, crop, index) -> None:
    start = crop_start(samples, crop, seed=1, epoch=2, index=index)
    assert start == crop_start(samples, crop, seed=1, epoch=2, index=index)
    assert 0 <= start <= max(samples - crop, 0)


@pytest.mark.parametrize("options", [{}, {"num_workers": 0}, {"cache_audio": True}])
def test_resumed_reader_goes_on_as_the_uninterrupted(corpus, options) -> None:
    whole = take(reader(corpus, **options), 7)
    for stop in (1, 2, 5):
        first = reader(corpus, **options)
        take(first, stop)
        second = reader(corpus, **options)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert same(take(second, 7 - stop), whole[stop:])


def test_threads_and_cache_change_nothing(corpus) -> None:
    expected = take(reader(corpus, num_workers=0, cache_audio=True), 5)
    assert same(take(reader(corpus, num_workers=3, prefetch=5), 5), expected)


def test_ranks_share_a_step(corpus) -> None:
    whole = take(reader(corpus), 4)
    parts = [take(reader(corpus, rank=r, ranks=2), 4) for r in range(2)]
    for step, (a, b) in zip(whole, zip(*parts)):
        assert sorted(step[0].ids) == sorted(a[0].ids + b[0].ids)
    accumulated = take(reader(corpus, accumulate=2), 4)
    assert [len(step) for step in accumulated] == [2] * 4
    assert [sorted(i for b in s for i in b.ids) for s in accumulated] == [sorted(s[0].ids) for s in whole]


def test_batches_are_cropped_padded_and_silent_past_the_end(corpus) -> None:
    for (batch,) in take(reader(corpus, pad_seconds=0.1), 6):
        assert max(batch.sizes) <= 12_000 and batch.wave.shape[1] % 2_400 == 0
        assert batch.wave.shape[1] - max(batch.sizes) < 2_400
        for row, size in zip(batch.wave, batch.sizes):
            assert not row[size:].any() and row[:size].any()


def test_a_run_resumes_on_other_processes_where_steps_are_the_same(corpus) -> None:
    first = reader(corpus, ranks=2)
    whole = take(reader(corpus), 5)
    take(first, 3)
    parts = [reader(corpus, rank=r, ranks=2, accumulate=2) for r in range(2)]
    for part in parts:
        part.load_state_dict(first.state_dict())
    for step, (a, b) in zip(whole[3:], zip(*(take(part, 2) for part in parts))):
        assert sorted(step[0].ids) == sorted(i for batch in a + b for i in batch.ids)


def test_other_data_or_batches_are_not_resumed(corpus) -> None:
    first = reader(corpus, max_batch_seconds=1.5)
    take(first, 2)
    for options in (
        {"batch_size": 2},
        {"ranks": 2},
        {"accumulate": 2},
        {"max_batch_seconds": 1.25},
        {"crop_seconds": 0.4},
    ):
        with pytest.raises(RecipeError, match=r"must stay what it was to resume: `batch|max_|crop_"):
            reader(corpus, **{"max_batch_seconds": 1.5} | options).load_state_dict(first.state_dict())
    corpus.write_text(corpus.read_text().replace('"duration_s": 0.5,', '"duration_s": 0.45,'))
    with pytest.raises(RecipeError, match=r"to resume: `clips` was \w+, but is \w+ now"):
        reader(corpus, max_batch_seconds=1.5).load_state_dict(first.state_dict())


def test_unreadable_training_file_is_replaced_and_counted(corpus) -> None:
    (corpus.parent / "3.wav").write_bytes(b"not audio")
    batches = [step[0] for step in take(reader(corpus, batch_size=5), 4)]
    assert all(len(batch.ids) == 5 and "u3" not in batch.ids for batch in batches)
    assert sum(batch.unreadable for batch in batches) == 2  # once an epoch


def test_unreadable_validation_file_is_left_out(corpus) -> None:
    (corpus.parent / "11.wav").write_bytes(b"")
    steps = list(reader(corpus, training=False))
    assert [batch.ids for step in steps for batch in step] == [["u10"]]


def test_ids_are_those_of_the_ranks_own_clips_in_the_corpus_order(corpus) -> None:
    ranks = [reader(corpus, training=False, rank=rank, ranks=2) for rank in range(2)]
    assert [rank.ids for rank in ranks] == [[batch.ids[0] for step in rank for batch in step] for rank in ranks]
    assert sorted(ranks[0].ids + ranks[1].ids) == ["u10", "u11"] == reader(corpus, training=False).ids


def test_all_files_unreadable_fails_in_one_line(corpus) -> None:
    for i in range(12):
        (corpus.parent / f"{i}.wav").write_bytes(b"not audio")
    with pytest.raises(RecipeError, match="none of the 10 training files can be read") as caught:
        take(reader(corpus), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "at most the number of training clips \\(10\\)"),
        ({"batch_size": 3, "ranks": 2}, "must be a multiple of processes times accumulated batches \\(2\\)"),
        ({"min_seconds": 5.0}, "no training clip is that long"),
        ({"max_batch_seconds": 0.9, "ranks": 2}, "each of the 2 batches of a step .*, 1.0 in all, but is 0.9 instead"),
        (
            {"max_batch_seconds": 9.0, "ranks": 12, "batch_size": 12},
            "at least processes times .* \\(12\\), but there are 10",
        ),
    ],
)
def test_impossible_batches_are_refused(corpus, options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        reader(corpus, **options)


def test_section_values_are_checked() -> None:
    assert not SpeechDatasetSection().validate().has_error()
    for wrong in ({"batch_size": 0}, {"crop_seconds": -1.0}, {"max_batch_seconds": 2.0}, {"prefetch": 0}):
        assert SpeechDatasetSection(**wrong).validate().has_error()


def test_clips_of_two_corpora_with_the_same_ids_stay_apart(corpus, tmp_path) -> None:
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    second = [other | {"id": row["id"], "speaker": row["id"], "split": "train"} for row, other in zip(rows, rows[::-1])]
    (tmp_path / "second.jsonl").write_text("".join(json.dumps(row) + "\n" for row in second))
    manifests = [str(corpus), str(tmp_path / "second.jsonl")]
    clips = open_speech_dataset(SpeechDatasetConfig(manifests=manifests)).train
    assert [u.id for u in clips] == [f"u{i}" for i in range(10)] + [f"u{i}#2" for i in range(10)] + ["u10", "u11"]
    section = SpeechDatasetSection(batch_size=22, cache_audio=True)
    source = SpeechReader(clips, section, rank=0, ranks=1, seed=7, training=True)
    assert source.speakers == {u.id: f"u{i}" for i, u in enumerate(clips[10:])}
    for _ in range(2):  # read, then from memory
        (batch,) = take(source, 1)[0]
        assert dict(zip(batch.ids, batch.sizes)) == {u.id: round(u.info["duration_s"] * 24_000) for u in clips}


def test_manifest_errors_are_one_line(corpus, tmp_path) -> None:
    for config in (
        SpeechDatasetConfig(),
        SpeechDatasetConfig(manifests=[str(tmp_path / "none.jsonl")]),
        SpeechDatasetConfig(manifests=[str(corpus)], split="nope"),
    ):
        with pytest.raises(RecipeError) as caught:
            open_speech_dataset(config)
        assert "\n" not in str(caught.value)
    dataset = open_speech_dataset(SpeechDatasetConfig(manifests=[str(corpus)], split=None, valid_split=None))
    assert (len(dataset.train), len(dataset.valid)) == (12, 0)
