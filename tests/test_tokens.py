"""`Tokens` holds only what is valid, on the CPU, and compares by value."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok.errors import TokenError
from jepa_tok.packing import vocab_sizes
from jepa_tok.tokens import Tokens

RADICES = (4,) * 128


def make(frames=3, seed=0, **overrides):
    sizes = torch.tensor(vocab_sizes(RADICES))
    ids = (torch.rand(frames, 19, generator=torch.Generator().manual_seed(seed)) * sizes).long()
    return Tokens(**{"ids": ids, "num_samples": frames * 9600 - 100, "radices": RADICES, **overrides})


def test_what_it_tells():
    tokens = make()
    assert len(tokens) == tokens.num_frames == 3
    assert tokens.num_groups == 19
    assert tokens.vocab_sizes == [16384] * 18 + [16]
    assert tokens.duration == 28_700 / 24_000
    assert tokens.codes.shape == (3, 128) and tokens.codes.max() <= 3
    assert tokens.flat().tolist() == [i for row in tokens.ids.tolist() for i in row]
    assert repr(tokens) == "Tokens(3 frames x 19, 1.20 s, 28700 samples at 24000 Hz)"
    assert "tokenizer='0123'" in repr(make(tokenizer="0123"))


@given(st.lists(st.integers(2, 5), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**31))
def test_codes_are_the_digits(radices, group_size, frames, seed):
    rng = np.random.default_rng(seed)
    sizes = vocab_sizes(radices, group_size)
    tokens = Tokens(rng.integers(0, sizes, (frames, len(sizes))), frames, tuple(radices), group_size)
    for row, codes in zip(tokens.ids.tolist(), tokens.codes.tolist()):
        assert len(codes) == len(radices)
        for g, token in enumerate(row):
            value = 0
            for digit, radix in list(zip(codes, radices))[g * group_size : (g + 1) * group_size]:
                value = value * radix + digit
            assert value == token


def test_ids_are_int64_and_a_copy():
    ids = torch.zeros(2, 19, dtype=torch.int32)
    tokens = make(ids=ids, num_samples=9601)
    assert tokens.ids.dtype == torch.int64 and tokens.ids.device.type == "cpu"
    for given_ids in (ids.tolist(), ids.numpy().astype(np.uint16)):
        assert make(ids=given_ids, num_samples=9601) == tokens
    wide = torch.zeros(2, 19, dtype=torch.int64)
    tokens = make(ids=wide, num_samples=9601)
    wide.fill_(-1)
    assert tokens.ids.min() == 0


def test_equality():
    tokens = make(tokenizer="a")
    assert tokens == make(tokenizer="a") and hash(tokens) == hash(make(tokenizer="a"))
    for other in (
        make(seed=1, tokenizer="a"),
        make(tokenizer="b"),
        make(tokenizer="a", num_samples=28_701),
        make(2, tokenizer="a"),
    ):
        assert tokens != other
    assert tokens != "tokens"
    assert copy.deepcopy(tokens) == tokens == pickle.loads(pickle.dumps(tokens))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().num_samples = 3
    assert dataclasses.replace(make(), tokenizer="x").tokenizer == "x"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ids": torch.full((2, 19), 17)}, "`ids[0, 18]` must lie in 0..15, but is 17 instead."),
        ({"ids": torch.full((2, 19), -1)}, "`ids[0, 0]` must lie in 0..16383, but is -1 instead."),
        ({"ids": torch.zeros(2, 18, dtype=torch.long)}, "`ids` must have shape [T, 19] with T >= 1, but has [2, 18] instead."),
        ({"ids": torch.zeros(0, 19, dtype=torch.long)}, "`ids` must have shape [T, 19] with T >= 1, but has [0, 19] instead."),
        ({"ids": torch.zeros(19, dtype=torch.long)}, "`ids` must have shape [T, 19] with T >= 1, but has [19] instead."),
        ({"ids": torch.zeros(2, 19)}, "`ids` must be integers, but has dtype float32 instead."),
        ({"num_samples": 0}, "`num_samples` must be a positive integer, but is 0 instead."),
        ({"num_samples": 1.5}, "`num_samples` must be a positive integer, but is 1.5 instead."),
        ({"num_samples": 2}, "`num_samples` must be at least one a frame (3), but is 2 instead."),
        ({"sample_rate": 0}, "`sample_rate` must be a positive integer, but is 0 instead."),
        ({"radices": 4}, "`radices` must be a sequence of integers, but is 4 instead."),
        ({"radices": (4.0,)}, "`radices` must be a sequence of integers, but is (4.0,) instead."),
        ({"group_size": 0}, "`group_size` must be a positive integer, but is 0 instead."),
    ],
)  # fmt: skip
def test_validation(overrides, message):
    with pytest.raises(TokenError) as caught:
        make(**overrides)
    assert str(caught.value) == message
