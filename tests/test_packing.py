"""Packing and unpacking are exact inverses, most significant digit first, and refuse what they cannot hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepa_tok.config import QuantizerConfig
from jepa_tok.errors import JepaTokError, TokenError
from jepa_tok.packing import pack, unpack, vocab_sizes

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]


@st.composite
def layouts(draw):
    """(radices, group_size, leading shape, seed)"""
    radices = draw(st.lists(st.integers(1, 9), min_size=1, max_size=30))
    group_size = draw(st.integers(1, 12))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    return radices, group_size, shape, draw(st.integers(0, 2**31))


def random_below(sizes, shape, seed):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, np.array(sizes), size=(*shape, len(sizes)), dtype=np.int64))


def test_paper_example():
    tokens = pack([2, 1, 3, 0, 2, 1, 3], 4)
    assert tokens.tolist() == [10023]
    assert tokens.dtype == torch.int64
    assert unpack([10023], 4).tolist() == [2, 1, 3, 0, 2, 1, 3]


def test_paper_layout_has_19_tokens():
    sizes = vocab_sizes(4, dim=128)
    assert sizes == [16384] * 18 + [16]
    assert sizes == vocab_sizes([4] * 128) == QuantizerConfig().vocab_sizes
    highest = pack(torch.full((128,), 3), 4)
    assert highest.tolist() == [s - 1 for s in sizes]


def test_mixed_radices_by_hand():
    # group of 2: digits (1, 2) of radices (2, 3) -> 1*3 + 2; the last group holds one digit alone
    assert pack([1, 2, 4], [2, 3, 5], group_size=2).tolist() == [5, 4]
    assert unpack([5, 4], [2, 3, 5], group_size=2).tolist() == [1, 2, 4]
    assert vocab_sizes([2, 3, 5], group_size=2) == [6, 5]


@given(layouts())
def test_unpack_inverts_pack(layout):
    radices, group_size, shape, seed = layout
    codes = random_below(radices, shape, seed)
    tokens = pack(codes, radices, group_size)
    assert tokens.shape == (*shape, math.ceil(len(radices) / group_size))
    assert torch.equal(unpack(tokens, radices, group_size), codes)


@given(layouts())
def test_pack_inverts_unpack(layout):
    radices, group_size, shape, seed = layout
    tokens = random_below(vocab_sizes(radices, group_size), shape, seed)
    codes = unpack(tokens, radices, group_size)
    assert codes.shape == (*shape, len(radices))
    assert torch.equal(pack(codes, radices, group_size), tokens)


@given(st.integers(2, 16), st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_one_level_count_for_all_equals_a_list_of_it(levels, dim, group_size, seed):
    codes = random_below([levels] * dim, (2,), seed)
    tokens = pack(codes, levels, group_size)
    assert torch.equal(tokens, pack(codes, [levels] * dim, group_size))
    assert torch.equal(unpack(tokens, levels, group_size, dim=dim), codes)


@given(layouts())
def test_order_of_tokens_is_the_order_of_codes(layout):
    """Most significant first: tokens compare as their digits do, read from the left."""
    radices, group_size, _, seed = layout
    a, b = random_below(radices, (2,), seed)
    assert (a.tolist() < b.tolist()) == (pack(a, radices, group_size).tolist() < pack(b, radices, group_size).tolist())


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_any_integer_dtype(dtype):
    codes = torch.tensor([[2, 1, 3, 0, 2, 1, 3]], dtype=dtype)
    assert pack(codes, 4).tolist() == [[10023]]
    assert pack(codes.numpy(), 4).tolist() == [[10023]]
    if torch.iinfo(dtype).max >= 10023:
        assert unpack(torch.tensor([10023], dtype=dtype), 4).tolist() == [2, 1, 3, 0, 2, 1, 3]


def test_lists_strided_and_read_only_arrays():
    codes = np.arange(14).reshape(7, 2).T % 4
    codes.flags.writeable = False
    expected = [[int("".join(map(str, row)), 4)] for row in codes.tolist()]
    assert pack(codes, 4).tolist() == expected == pack(codes.tolist(), 4).tolist()
    assert pack(codes[:, ::-1], 4).shape == (2, 1)


def test_the_input_is_left_alone():
    codes = torch.tensor([[2, 1, 3, 0, 2, 1, 3]])
    tokens = pack(codes, 4)
    unpack(tokens, 4)
    assert codes.tolist() == [[2, 1, 3, 0, 2, 1, 3]] and tokens.tolist() == [[10023]]


def test_widest_group_that_fits():
    radices = [2**31, 2**31 - 1]
    codes = torch.tensor([r - 1 for r in radices])
    assert torch.equal(unpack(pack(codes, radices, 2), radices, 2), codes)
    with pytest.raises(TokenError, match="below 2\\^63"):
        pack([0] * 32, 4, group_size=32)
    with pytest.raises(TokenError, match=f"gives {2**63} ids"):
        pack([0] * 63, 2, group_size=63)
    assert pack([3] * 31, 4, group_size=31).tolist() == [4**31 - 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack([0, 1, 2, 3, 4, 0, 0], 4), "`codes[4]` must lie in 0..3, but is 4 instead."),
        (lambda: pack([[0, 1], [0, -1]], 4), "`codes[1, 1]` must lie in 0..3, but is -1 instead."),
        (lambda: pack([1, 3], [2, 3]), "`codes[1]` must lie in 0..2, but is 3 instead."),
        (lambda: unpack([[0] * 18 + [16]], 4, dim=128), "`tokens[0, 18]` must lie in 0..15, but is 16 instead."),
        (lambda: unpack([16384], 4), "`tokens[0]` must lie in 0..16383, but is 16384 instead."),
        (lambda: unpack([-1], 4), "`tokens[0]` must lie in 0..16383, but is -1 instead."),
        (lambda: pack([0.0, 1.0], 4), "`codes` must be integers, but has dtype float64 instead."),
        (lambda: pack(torch.zeros(7), 4), "`codes` must be integers, but has dtype float32 instead."),
        (lambda: pack([True, False], 4), "`codes` must be integers, but has dtype bool instead."),
        (lambda: unpack(torch.tensor(3), 4), "`tokens` must have at least one axis, but is the single number 3 instead."),
        (lambda: pack([[0], [0, 1]], 4), "`codes` must be a rectangular array of integers, but is [[0], [0, 1]] instead."),
        (lambda: pack(["a"], 4), "`codes` must be a rectangular array of integers, but is ['a'] instead."),
        (lambda: pack([0, 1], [4] * 3), "`codes` must have 3 values on the last axis, one a dimension, but has 2 instead."),
        (lambda: unpack([0, 1], 4, dim=128), "`tokens` must have 19 ids on the last axis (128 dimensions in groups of 7), but has 2 instead."),
        (lambda: unpack([0], [4, 4], dim=3), "`levels` must have 3 entries, one a dimension, but has 2 instead."),
        (lambda: pack([0], 0), "`levels` must be at least 1 each, but the least is 0 instead."),
        (lambda: pack([0], [2.0]), "`levels` must be an integer or a sequence of integers, but is [2.0] instead."),
        (lambda: pack([0], 2.5), "`levels` must be an integer or a sequence of integers, but is 2.5 instead."),
        (lambda: pack([0], [4], group_size=0), "`group_size` must be a positive integer, but is 0 instead."),
        (lambda: vocab_sizes(4), "`dim` must be given where `levels` is one number, but is missing."),
    ],
)  # fmt: skip
def test_refusals_are_one_line(call, message):
    with pytest.raises(TokenError) as caught:
        call()
    assert str(caught.value) == message
    assert isinstance(caught.value, (JepaTokError, ValueError))
