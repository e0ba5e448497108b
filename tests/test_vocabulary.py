"""One id space: its arithmetic, its errors and the Hugging Face tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_tok import SpeechTokenizer
from jepa_tok.cli import main
from jepa_tok.corpus import ShardMetadata, TokenRow, write_shard
from jepa_tok.errors import ConfigError, TokenError
from jepa_tok.vocabulary import Vocabulary

METADATA = ShardMetadata("0123456789abcdef", (4,) * 8, 3, (64, 64, 16), 2.5, 24_000)
FULL = Vocabulary((16_384,) * 18 + (16,))
SMALL = Vocabulary.of(METADATA)


# Arithmetic -----------------------------------------------------------------------------------------------------------


def test_sizes_and_offsets_of_the_standard_contract():
    assert len(FULL) == 18 * 16_384 + 16 + 3 == 294_931
    assert FULL.offsets[:2] == (3, 16_387) and FULL.offsets[18] == 3 + 18 * 16_384
    assert [FULL.special(name) for name in FULL.specials] == [0, 1, 2]
    assert FULL.encode([[0] * 19, [16_383] * 18 + [15]])[[0, -1]].tolist() == [3, 294_930]


def test_of_a_tokenizer_and_of_metadata():
    tokenizer = SpeechTokenizer.from_config("tiny")
    assert Vocabulary.of(tokenizer).vocab_sizes == FULL.vocab_sizes
    assert Vocabulary.of(tokenizer).tokenizer == tokenizer.hash and SMALL.tokenizer == METADATA.hash


@st.composite
def cases(draw):
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=5))
    vocabulary = Vocabulary(tuple(sizes), tuple(draw(st.sampled_from([(), ("<s>",), ("<pad>", "<bos>", "<eos>")]))), draw(st.integers(0, 99)))  # fmt: skip
    tokens = draw(st.lists(st.tuples(*(st.integers(0, v - 1) for v in sizes)), max_size=4))
    return vocabulary, torch.tensor(tokens, dtype=torch.int64).reshape(-1, len(sizes))


@settings(max_examples=80, deadline=None)
@given(cases())
def test_decode_is_the_inverse_of_encode(case):
    vocabulary, tokens = case
    ids = vocabulary.encode(tokens)
    assert torch.equal(vocabulary.decode(ids), tokens) and ids.dtype == torch.int64
    special = vocabulary.first_id + torch.arange(len(vocabulary.specials))
    assert torch.equal(vocabulary.decode(torch.cat([special, ids, special])), tokens)
    assert ((ids >= vocabulary.first_id + len(special)) & (ids < vocabulary.first_id + len(vocabulary))).all()


def test_no_two_tokens_share_an_id_or_a_name():
    small = Vocabulary((3, 1, 2), first_id=7)
    ids = [small.offsets[g] + t for g, size in enumerate(small.vocab_sizes) for t in range(size)]
    assert ids == list(range(10, 16))
    assert list(small.names())[3:] == ["<g00_0>", "<g00_1>", "<g00_2>", "<g01_0>", "<g02_0>", "<g02_1>"]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([3, 67, 131, 67], r"`ids\[3\]` must be of group 0 \(3\.\.66\), but is 67: an id of group 1"),
        ([3, 3, 131], r"`ids\[1\]` must be of group 1 \(67\.\.130\), but is 3: an id of group 0"),
        ([3, 67, 147], r"`ids\[2\]` .* but is 147: not in 0\.\.146"),
        ([3, 67, -1], r"`ids\[2\]` .* but is -1: not in"),
        ([3, 2, 67, 131], r"`ids\[1\]` .* but is 2: the special token <eos>"),
        ([1, 3, 67], r"whole frames of 3, but has 2 ids of tokens; cut the last 2"),
        ([[3, 67, 131]], r"shape \[N\]"),
        ([0.5], "integers"),
    ],
)
def test_ids_that_are_no_frames(ids, message):
    with pytest.raises(TokenError, match=message):
        SMALL.decode(ids)


@pytest.mark.parametrize("tokens", [[[64, 0, 0]], [[0, 0, 16]], [[-1, 0, 0]], [[0, 0]], [0, 0, 0]])
def test_tokens_that_are_none(tokens):
    for verb in (SMALL.encode, SMALL.to_text):
        with pytest.raises(TokenError, match="`tokens"):
            verb(tokens)


@pytest.mark.parametrize(
    "arguments", [((),), ((3, 0),), ((3,), ("a", "a")), ((3,), ("a b",)), ((3,), ("",)), ((3,), (), -1)]
)
def test_vocabularies_that_are_none(arguments):
    with pytest.raises(TokenError, match="must"):
        Vocabulary(*arguments)
    with pytest.raises(TokenError, match="special tokens"):
        SMALL.special("<unk>")


# Hugging Face ---------------------------------------------------------------------------------------------------------


def test_hugging_face_loads_and_round_trips(tmp_path):
    transformers = pytest.importorskip("transformers")
    SMALL.save_pretrained(tmp_path)
    tokens = torch.tensor([[63, 0, 15], [1, 2, 3]])
    text = f"<bos> {SMALL.to_text(tokens)} <eos>"
    ids = [1, *SMALL.encode(tokens).tolist(), 2]
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for tokenizer in (auto, plain):
        assert tokenizer(text).input_ids == tokenizer(text.replace(" ", "")).input_ids == ids
        assert tokenizer.decode(ids) == text and len(tokenizer) == len(SMALL)
        assert tokenizer.convert_tokens_to_ids("<g01_2>") == SMALL.offsets[1] + 2
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id, auto.unk_token) == (0, 1, 2, None)
    assert auto(["<g00_1><g01_1><g02_1>", "<bos>"], padding=True).input_ids[1] == [1, 0, 0]
    assert auto.decode(ids, skip_special_tokens=True) == SMALL.to_text(tokens)
    auto.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again(text).input_ids == ids


def causal_lm(name, size):
    """An untrained model of `transformers` of a few parameters, with `size` ids."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=size, n_embd=8, n_layer=1, n_head=1, n_positions=64)
        return transformers.GPT2LMHeadModel(config).eval()
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_models_take_what_the_tokenizer_gives(tmp_path, name):
    """Ids and a mask, nothing else: token_type_ids are refused by Llama's `generate`, and change GPT-2's logits."""
    transformers = pytest.importorskip("transformers")
    SMALL.save_pretrained(tmp_path)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path)
    given = hf("<bos>" + SMALL.to_text([[63, 0, 15], [1, 2, 3]]), return_tensors="pt")
    assert set(given) == {"input_ids", "attention_mask"}
    model = causal_lm(name, len(hf))
    torch.testing.assert_close(model(**given).logits, model(input_ids=given.input_ids).logits)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": hf.pad_token_id, "eos_token_id": None}
    assert torch.equal(model.generate(**given, **options), model.generate(given.input_ids, **options))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@torch.no_grad()
def test_behind_the_ids_of_a_text_model(name):
    text_ids, tokens = torch.tensor([5, 99]), torch.tensor([[63, 0, 15]])
    model = causal_lm(name, 100)
    before = model(input_ids=text_ids[None]).logits
    speech = Vocabulary(SMALL.vocab_sizes, specials=(), first_id=100)
    model.resize_token_embeddings(100 + len(speech))
    logits = model(input_ids=torch.cat([text_ids, speech.encode(tokens)])[None]).logits
    assert logits.shape == (1, 5, 244)
    torch.testing.assert_close(logits[:, :2, :100], before)


@pytest.mark.parametrize("text", ["<g00_64>", "<g03_0>", "hello", "<g00_1> x"])
def test_unknown_names_are_errors(tmp_path, text):
    tokenizers = pytest.importorskip("tokenizers")
    SMALL.save_pretrained(tmp_path)
    with pytest.raises(Exception, match="Missing"):
        tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text)


def test_saved_and_loaded(tmp_path):
    SMALL.save_pretrained(tmp_path / "v")
    SMALL.save_pretrained(tmp_path / "v")  # its own files are replaced
    assert Vocabulary.from_pretrained(tmp_path / "v") == SMALL
    with pytest.raises(ConfigError, match="first_id"):
        Vocabulary((3,), first_id=1).save_pretrained(tmp_path / "w")
    (tmp_path / "v/tokenizer_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="another tokenizer"):
        SMALL.save_pretrained(tmp_path / "v")
    for folder in ("v", "absent"):
        with pytest.raises(ConfigError, match="must be the file"):
            Vocabulary.from_pretrained(tmp_path / folder)


def test_command_line(tmp_path, capsys):
    write_shard(tmp_path / "t.parquet", [TokenRow("a", torch.tensor([[1, 2, 3]]), 5)], METADATA)
    tokenizer = SpeechTokenizer.from_config("tiny")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for target, hash in (
        (tmp_path / "t.parquet", METADATA.hash),
        (tmp_path / "tokenizer", tokenizer.hash),
        ("tiny", SpeechTokenizer.from_pretrained("tiny").hash),
        ("base", ""),
    ):
        assert main(["vocabulary", str(target), str(tmp_path / "out")]) == 0
        assert f"tokenizer {hash}" in capsys.readouterr().out or not hash
        assert Vocabulary.from_pretrained(tmp_path / "out").tokenizer == hash
    saved = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert len(saved["model"]["vocab"]) == 294_931
    assert (tmp_path / "out/tokenizer.json").stat().st_size < 8_000_000
    assert main(["vocabulary", str(tmp_path / "absent"), str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "x").exists()
