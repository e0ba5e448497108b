"""Speech LM: factorised probabilities, incremental decoding, token batches, resume; no recipe is run here."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("fairseq2")

from fairseq2.nn import IncrementalStateBag
from fairseq2.recipe.error import RecipeError

from jepa_tok import packing
from jepa_tok._fairseq2.lm import ARCHS, SpeechLM, SpeechLMConfig
from jepa_tok._fairseq2.lm_layers import DigitLayout, LogitFilter
from jepa_tok._fairseq2.token_data import TokenDatasetConfig, open_tokens
from jepa_tok._fairseq2.token_reader import TokenReader
from jepa_tok.corpus.schema import ShardMetadata
from jepa_tok.corpus.shards import TokenShardWriter
from jepa_tok.tokens import Tokens

RADICES = (3, 2, 4, 2, 3)  # two groups: 24 ids and 6


def make_lm(**changes) -> SpeechLM:
    torch.manual_seed(0)
    given = {"model_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "ffn_dim": 48, "max_seq_len": 64}
    model = SpeechLM(SpeechLMConfig(**(given | {"radices": list(RADICES), "group_size": 3} | changes)))
    with torch.no_grad():  # the initial chain and biases are zero and would hide mistakes
        for name, p in model.named_parameters():
            p.add_((0.02 if "head" in name else 0.1) * torch.randn_like(p))
    return model.eval()


def random_ids(model: SpeechLM, *shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(v, shape, generator=rng) for v in model.layout.vocab_sizes], -1)


def write_shards(folder: Path, lengths: list[int], *, hash: str = "a" * 16, rows: int = 4, **info) -> Path:
    metadata = ShardMetadata(hash, RADICES, 3, (24, 6), 2.5, 24_000)
    rng = torch.Generator().manual_seed(1)
    with TokenShardWriter(folder, metadata, rows_per_shard=rows) as writer:
        for i, t in enumerate(lengths):
            ids = torch.stack([torch.randint(v, (t,), generator=rng) for v in metadata.vocab_sizes], -1)
            split = "dev" if i % 5 == 4 else "train"
            writer.add(f"u{i}", Tokens(ids, t * 9600, RADICES, 3, 24_000, hash), split=split, **info)
    return folder


# Digits ---------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 99))
def test_layout_splits_tokens_as_packing_does(radices, group_size, seed):
    layout = DigitLayout(radices, group_size)
    codes = torch.stack([torch.randint(r, (6,), generator=torch.Generator().manual_seed(seed)) for r in radices], -1)
    ids = packing.pack(codes, radices, group_size)
    digits = layout.split(ids)
    assert layout.vocab_sizes == packing.vocab_sizes(radices, group_size)
    assert torch.equal(digits.flatten(-2)[..., : len(radices)], codes)
    assert torch.equal(layout.join(digits), ids)
    for slot in range(layout.num_groups):
        assert torch.equal(layout.split_slot(ids[:, slot], slot), digits[:, slot])
        assert torch.equal(layout.join_slot(digits[:, slot], slot), ids[:, slot])


@pytest.mark.parametrize("changes", [{}, {"digit_chain": False}, {"head": "full", "embedding": "full"}])
def test_probabilities_of_all_ids_of_a_slot_sum_to_one(changes):
    model = make_lm(**changes)
    hidden = torch.randn(1, 1, 2, 32)
    for slot, size in enumerate(model.layout.vocab_sizes):
        ids = torch.zeros(size, 1, 2, dtype=torch.int64)
        ids[:, 0, slot] = torch.arange(size)
        nll = model.token_nll(hidden.expand(size, -1, -1, -1), ids)[:, 0, slot]
        assert nll.neg().exp().sum().item() == pytest.approx(1.0, abs=1e-5)


def test_chain_makes_digits_depend_on_each_other_and_its_absence_does_not():
    hidden = torch.randn(1, 1, 2, 32)
    for chain in (True, False):
        model = make_lm(digit_chain=chain)
        ids = torch.zeros(24, 1, 2, dtype=torch.int64)
        ids[:, 0, 0] = torch.arange(24)
        joint = model.token_nll(hidden.expand(24, -1, -1, -1), ids)[:, 0, 0].neg().exp().view(3, 2, 4)
        product = joint.sum((1, 2))[:, None, None] * joint.sum((0, 2))[None, :, None] * joint.sum((0, 1))
        assert torch.allclose(joint, product, atol=1e-5) is (not chain)


@pytest.mark.parametrize("changes", [{}, {"digit_chain": False}, {"head": "full"}])
def test_sampling_follows_the_model(changes):
    model = make_lm(**changes)
    hidden = torch.randn(32).expand(4000, -1)
    noise = torch.rand(4000, model.layout.num_digits, generator=torch.Generator().manual_seed(3))
    for slot, size in enumerate(model.layout.vocab_sizes):
        ids, nats = model.sample_token(hidden, None, slot, noise, LogitFilter())
        all_ids = torch.zeros(size, 1, 2, dtype=torch.int64)
        all_ids[:, 0, slot] = torch.arange(size)
        nll = model.token_nll(hidden[:size].view(size, 1, 1, 32).expand(-1, -1, 2, -1), all_ids)[:, 0, slot]
        assert torch.allclose(nats, nll[ids], atol=1e-4)
        share = torch.bincount(ids, minlength=size) / len(ids)
        assert (share - nll.neg().exp()).abs().max() < 0.03


def test_sampling_knows_the_frame_before_as_the_loss_does():
    model = make_lm()
    ids = random_ids(model, 50, 2)
    hidden = torch.randn(1, 1, 2, 32).expand(50, 2, -1, -1)
    nll = model.token_nll(hidden, ids)
    for slot in range(2):
        for last, frame in ((None, 0), (ids[:, 0, slot], 1)):
            picked, nats = model.sample_token(hidden[:, 0, slot], last, slot, torch.rand(50, 3), LogitFilter())
            same = picked == ids[:, frame, slot]
            assert same.any()
            assert torch.allclose(nats[same], nll[same, frame, slot], atol=1e-4)


def test_filter_keeps_the_likeliest_and_temperature_zero_takes_the_first():
    logits = torch.tensor([[0.1, 3.0, 2.0, -torch.inf, 1.0]]).expand(500, -1)
    noise = torch.linspace(0, 1 - 1e-7, 500)
    assert set(LogitFilter(top_k=2).pick(logits, noise).tolist()) == {1, 2}
    assert set(LogitFilter(top_p=0.5).pick(logits, noise).tolist()) == {1}
    assert set(LogitFilter(temperature=0.0).pick(logits, noise).tolist()) == {1}
    assert set(LogitFilter().pick(logits, noise).tolist()) == {0, 1, 2, 4}


# Model ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"head": "full", "embedding": "full"}])
def test_decoding_token_by_token_equals_the_full_pass(changes):
    model = make_lm(**changes)
    ids = random_ids(model, 2, 5)
    cut = torch.tensor([False, True])
    with torch.inference_mode():
        full = model.hidden(ids, cut)
        state = IncrementalStateBag(32, capacity_increment=None)
        parts = [model.hidden(ids[:, :2], cut, state)]
        for frame, slot in itertools.product(range(2, 5), range(2)):
            parts.append(model.step(ids[:, frame, slot], slot, state).unsqueeze(1))
    assert torch.allclose(torch.cat(parts, 1), full, atol=1e-5)


def test_loss_is_the_sum_over_clips_whatever_the_padding():
    model = make_lm()
    ids, lengths = random_ids(model, 3, 6), torch.tensor([6, 2, 4])
    before, after = torch.tensor([False, True, False]), torch.tensor([True, False, False])
    with torch.inference_mode():
        batch = model(ids, lengths, before, after)
        single = [model(ids[i : i + 1, :n], lengths[i : i + 1], before[i : i + 1], after[i : i + 1]) for i, n in enumerate(lengths.tolist())]  # fmt: skip
    for field in ("token_nll", "end_nll", "num_frames"):
        assert torch.allclose(getattr(batch, field), sum(getattr(s, field) for s in single), atol=1e-4)
    assert batch.num_frames == 12


def test_a_token_is_not_seen_before_it_is_predicted():
    model = make_lm()
    ids = random_ids(model, 1, 4)
    other = ids.clone()
    other[0, 2, 1] = (other[0, 2, 1] + 1) % 6
    cut = torch.tensor([False])
    with torch.inference_mode():
        a, b = model.hidden(ids, cut), model.hidden(other, cut)
    assert torch.equal(a[:, : 2 * 2 + 2], b[:, : 2 * 2 + 2])
    assert not torch.allclose(a[:, 2 * 2 + 2 :], b[:, 2 * 2 + 2 :])


def test_end_is_learned_only_where_a_clip_really_ends():
    model = make_lm()
    ids, lengths, no = random_ids(model, 1, 3), torch.tensor([3]), torch.tensor([False])
    with torch.inference_mode():
        logits = model.end_logits(model.hidden(ids, no)[:, 2::2])[0]
        whole, cut = model(ids, lengths, no, no).end_nll, model(ids, lengths, no, ~no).end_nll
    assert torch.allclose(whole - cut, torch.nn.functional.softplus(-logits[2]), atol=1e-5)


def test_loss_falls_on_a_counting_corpus():
    torch.manual_seed(0)
    model = make_lm(num_layers=1).train()
    start = torch.arange(24)
    ids = torch.stack([(start[:, None] + torch.arange(6)) % 24, (start[:, None] + torch.arange(6)) % 6], -1)
    args = (ids, torch.full((24,), 6), torch.zeros(24, dtype=torch.bool), torch.zeros(24, dtype=torch.bool))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        out = model(*args)
        loss = (out.token_nll.sum() + out.end_nll) / out.num_frames
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4.0
    assert losses[-1] < 1.0  # only each clip's first token is unforeseeable: log(24) / 6 frames = .53
    assert all(p.grad is not None for p in model.parameters())


def test_models_made_on_the_meta_device_are_whole_once_reset():
    with torch.device("meta"):
        model = SpeechLM(make_lm().config)
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    out = model(random_ids(model, 1, 3), torch.tensor([3]), torch.tensor([False]), torch.tensor([False]))
    assert torch.isfinite(out.token_nll).all()
    assert not any(b.is_meta for b in model.buffers())


def test_archs_have_the_sizes_they_claim():
    sizes = {}
    for name, make in ARCHS.items():
        assert not make().validate().has_error()
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in SpeechLM(make()).parameters())
    assert 0.9e9 < sizes["large"] < 1.1e9
    assert 1.0e8 < sizes["base"] < 1.3e8
    assert 1.6e7 < sizes["small"] < 2.2e7
    assert sizes["tiny"] < 1.1e6


@pytest.mark.parametrize(
    "changes", [{"num_kv_heads": 3}, {"max_seq_len": 2}, {"model_dim": 30}, {"radices": []}, {"num_layers": 0}]
)
def test_a_contradictory_config_is_refused(changes):
    config = make_lm().config
    for name, value in changes.items():
        setattr(config, name, value)
    assert config.validate().has_error()


# Data -----------------------------------------------------------------------------------------------------------------

LENGTHS = [3, 9, 1, 5, 4, 7, 2, 8, 6, 3, 5, 21, 1]


def seen(batches) -> list[tuple[str, int]]:
    return [(n, f) for b in batches for n, f in zip(b.names, b.lengths.tolist())]


def epoch(reader: TokenReader) -> list:
    return list(itertools.chain.from_iterable(reader))


def test_splits_are_disjoint_and_hold_every_row(tmp_path):
    data = open_tokens(TokenDatasetConfig(shards=[str(write_shards(tmp_path / "a", LENGTHS))], valid_split="dev"))
    train, valid = ([row.id for row in split] for split in (data.train, data.valid))
    assert sorted(train + valid) == sorted(f"u{i}" for i in range(13))
    assert valid == ["u4", "u9"]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_frame_is_read_once_by_one_rank(tmp_path, world):
    data = open_tokens(TokenDatasetConfig(shards=[str(write_shards(tmp_path / "a", LENGTHS))]))
    ranks = [list(TokenReader(data.train, max_frames=8, batch_frames=16, train=False, rank=r, world_size=world)) for r in range(world)]  # fmt: skip
    assert len({len(r) for r in ranks}) == 1  # a rank that is done gets empty lists
    batches = [b for rank in ranks for step in rank for b in step]
    frames: dict[str, int] = {}
    for name, length in seen(batches):
        frames[name] = frames.get(name, 0) + length
    assert frames == {f"u{i}": n for i, n in enumerate(LENGTHS)}
    assert all(b.ids.shape[0] * b.ids.shape[1] <= 16 and b.ids.shape[1] <= 8 for b in batches)
    rows = {row.id: row.ids for row in data.train}
    for b in batches:
        for i, name in enumerate(b.names):
            if not b.cut_before[i]:
                n = int(b.lengths[i])
                assert torch.equal(b.ids[i, :n], rows[name][:n])
                assert bool(b.cut_after[i]) is (n < len(rows[name]))


@pytest.mark.parametrize("window", [1, 10_000])
def test_training_epochs_differ_but_are_the_same_each_time(tmp_path, window):
    data = open_tokens(TokenDatasetConfig(shards=[str(write_shards(tmp_path / "a", LENGTHS))]))

    def make() -> TokenReader:
        return TokenReader(data.train, max_frames=8, batch_frames=16, train=True, seed=7, window_frames=window)

    one, two = make(), make()
    first = seen(epoch(one))
    assert first == seen(epoch(two))
    assert sum(f for _, f in first) == sum(LENGTHS)
    one.reset(), two.reset()
    second = seen(epoch(one))
    assert second == seen(epoch(two)) and second != first
    assert sorted(second) == sorted(first)


@pytest.mark.parametrize("stop", range(0, 9, 2))
def test_a_resumed_reader_goes_on_where_it_was(tmp_path, stop):
    data = open_tokens(TokenDatasetConfig(shards=[str(write_shards(tmp_path / "a", LENGTHS))]))

    def make() -> TokenReader:
        return TokenReader(data.train, max_frames=8, batch_frames=16, train=True, num_accumulate=2)

    def take(reader: TokenReader, n: int) -> list:
        out = []
        for _ in range(n):
            try:
                out.append(seen(next(reader)))
            except StopIteration:
                reader.reset()
                out.append("end")
        return out

    whole = take(make(), 12)
    reader = make()
    assert take(reader, stop) == whole[:stop]
    other = make()
    other.load_state_dict(reader.state_dict())
    assert take(other, 12 - stop) == whole[stop:]


def test_ranks_of_a_training_epoch_have_equally_many_batches(tmp_path):
    data = open_tokens(TokenDatasetConfig(shards=[str(write_shards(tmp_path / "a", LENGTHS))]))
    for world in (2, 3, 50):
        counts = [
            len(epoch(TokenReader(data.train, max_frames=8, batch_frames=16, train=True, rank=r, world_size=world)))
            for r in range(world)
        ]
        assert len(set(counts)) == 1 and counts[0] > 0


def test_what_a_user_gets_wrong_is_told_in_one_line(tmp_path):
    a = write_shards(tmp_path / "a", [3, 4])
    b = write_shards(tmp_path / "b", [3, 4], hash="b" * 16)
    for config, words in [
        (TokenDatasetConfig(), "shards"),
        (TokenDatasetConfig(shards=[str(tmp_path / "none")]), "no such"),
        (TokenDatasetConfig(shards=[str(a), str(b)]), "one tokenizer"),
        (TokenDatasetConfig(shards=[str(a)], valid_shards=[str(b)]), "one tokenizer"),
        (TokenDatasetConfig(shards=[str(a)], train_split="test"), "must have rows"),
        (TokenDatasetConfig(shards=[str(a)], train_split="x", split_column="speaker"), "no such column"),
    ]:
        with pytest.raises(RecipeError, match=words) as caught:
            open_tokens(config)
        assert "\n" not in str(caught.value)
    reader = TokenReader(
        open_tokens(TokenDatasetConfig(shards=[str(a)])).train, max_frames=8, batch_frames=8, train=True
    )
    other = TokenReader(
        open_tokens(TokenDatasetConfig(shards=[str(b)])).train, max_frames=8, batch_frames=8, train=True
    )
    with pytest.raises(RecipeError, match="tokenizer"):
        other.load_state_dict(reader.state_dict())
