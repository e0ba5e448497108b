"""Tokens in other formats than parquet shards: a module each, with a `Writer` and its inverse `read_rows`.

| format  | module      | for                                                                              |
|---------|-------------|----------------------------------------------------------------------------------|
| parquet | parquet.py  | `datasets`, polars, pandas, fairseq2: the shards that `tokenize` writes          |
| bin     | binary.py   | memory-mapped training of language models                                        |
| jsonl   | jsonl.py    | scripts, `jq`, `datasets`                                                        |
| kaldi   | kaldi.py    | Kaldi and ESPnet data folders                                                    |
| shar    | shar.py     | Lhotse                                                                           |

Each exported folder has a metadata.json (`common.ExportInfo`); a folder of plain shards is read without one.
"""

from __future__ import annotations

from jepa_tok.corpus.formats.common import ExportInfo, RowReader, RowWriter, TokenSource, open_tokens

FORMATS = ("parquet", "bin", "jsonl", "kaldi", "shar")

__all__ = ["FORMATS", "ExportInfo", "RowReader", "RowWriter", "TokenSource", "open_tokens"]
