"""Corpora in (manifests, Kaldi folders, folders of audio) and out (token shards), and what turns one into the other."""

from __future__ import annotations

from jepa_tok.corpus.manifest import Utterance, filter_corpus, read_corpus, write_manifest
from jepa_tok.corpus.schema import ShardMetadata, TokenRow, column_types
from jepa_tok.corpus.shards import (
    TokenShardWriter,
    find_shards,
    read_metadata,
    read_shards,
    shard_path,
    write_shard,
)

__all__ = [
    "ShardMetadata",
    "TokenRow",
    "TokenShardWriter",
    "Utterance",
    "column_types",
    "filter_corpus",
    "find_shards",
    "read_corpus",
    "read_metadata",
    "read_shards",
    "shard_path",
    "write_manifest",
    "write_shard",
]
