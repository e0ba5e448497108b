"""The sentencepiece family `jepa_tok_spm` and the cards of the speech LM, as fairseq2 finds them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

pytest.importorskip("fairseq2")
pytest.importorskip("sentencepiece")

import sentencepiece
from fairseq2.assets import AssetStore
from fairseq2.data.tokenizers import TokenizerFamily, TokenizerModelError
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import get_dependency_resolver

from jepa_tok._fairseq2.lm import ARCHS, SpeechLMConfig
from jepa_tok._fairseq2.text import SpmConfig, load_spm

TEXT = "the quick brown fox jumps over the lazy dog while seven wizards make toxic brew for the evil queen and jack"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("spm") / "small.model"
    with path.open("wb") as file:
        sentences = iter([TEXT] * 20 + TEXT.split())
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=file, vocab_size=40, hard_vocab_limit=False, minloglevel=2
        )
    return path


def test_text_survives_and_symbols_are_added_where_asked(model):
    raw = load_spm(model, SpmConfig())
    ids = raw.create_encoder()("seven foxes")
    assert ids.dtype == torch.int64
    assert raw.create_decoder()(ids) == "seven foxes"
    assert raw.create_decoder().decode_from_tokens(raw.create_encoder().encode_as_tokens("lazy")) == "lazy"

    framed = load_spm(model, SpmConfig(add_bos=True, add_eos=True))
    info = framed.vocab_info
    assert framed.create_encoder()("seven foxes").tolist() == [info.bos_idx, *ids.tolist(), info.eos_idx]
    assert framed.create_raw_encoder()("seven foxes").tolist() == ids.tolist()
    assert info.size == sentencepiece.SentencePieceProcessor(model_file=str(model)).get_piece_size()
    assert info.pad_idx is None


def test_what_is_no_model_is_refused(model, tmp_path):
    (tmp_path / "x.model").write_bytes(b"nothing of the kind")
    for path in (tmp_path / "x.model", tmp_path / "absent.model"):
        with pytest.raises(TokenizerModelError, match="readable"):
            load_spm(path, SpmConfig())
    bare = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_writer=bare,
        vocab_size=40,
        hard_vocab_limit=False,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "bare.model").write_bytes(bare.getvalue())
    with pytest.raises(TokenizerModelError, match="BOS"):
        load_spm(tmp_path / "bare.model", SpmConfig(add_bos=True))


def test_fairseq2_finds_family_archs_and_cards():
    resolver = get_dependency_resolver()
    assert resolver.resolve(TokenizerFamily, key="jepa_tok_spm").name == "jepa_tok_spm"
    family = resolver.resolve(ModelFamily, key="jepa_tok_lm")
    assert family.get_archs() == set(ARCHS)
    for flag in ("supports_fsdp", "supports_layerwise_ac", "supports_compilation", "supports_meta"):
        assert getattr(family, flag)
    store = resolver.resolve(AssetStore)
    for name, make in ARCHS.items():
        config = family.get_model_config(store.retrieve_card(f"jepa_tok_lm_{name}"))
        assert isinstance(config, SpeechLMConfig) and config == make()
