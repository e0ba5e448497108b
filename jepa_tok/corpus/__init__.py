"""Corpora in (manifests, Kaldi folders, folders of audio, parquet, tar shards) and out (token shards), and what turns one into the other."""

from __future__ import annotations

from jepa_tok.corpus.audio_source import load_utterance, open_audio
from jepa_tok.corpus.encode import encode_utterances
from jepa_tok.corpus.export import export_tokens
from jepa_tok.corpus.formats import open_tokens
from jepa_tok.corpus.formats.binary import TokenBin
from jepa_tok.corpus.manifest import iter_corpus, read_corpus, write_manifest
from jepa_tok.corpus.run import CorpusRun, TokenizeSummary
from jepa_tok.corpus.schema import ShardMetadata, TokenRow, column_types
from jepa_tok.corpus.shards import (
    TokenShardWriter,
    content_hash,
    find_shards,
    list_shards,
    read_metadata,
    read_shards,
    write_numbered_shard,
    write_shard,
)
from jepa_tok.corpus.spool import UtteranceList, spool_corpus
from jepa_tok.corpus.tokenize import tokenize_corpus
from jepa_tok.corpus.utterance import Refused, Utterance
from jepa_tok.corpus.verify import verify_tokens
from jepa_tok.corpus.verify_files import VerifyReport

__all__ = [
    "CorpusRun",
    "Refused",
    "ShardMetadata",
    "TokenBin",
    "TokenRow",
    "TokenShardWriter",
    "TokenizeSummary",
    "Utterance",
    "UtteranceList",
    "VerifyReport",
    "column_types",
    "content_hash",
    "encode_utterances",
    "export_tokens",
    "find_shards",
    "iter_corpus",
    "list_shards",
    "load_utterance",
    "open_audio",
    "open_tokens",
    "read_corpus",
    "read_metadata",
    "read_shards",
    "spool_corpus",
    "tokenize_corpus",
    "verify_tokens",
    "write_manifest",
    "write_numbered_shard",
    "write_shard",
]
