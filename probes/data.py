"""Token shards and labels, joined by utterance id into one table that the probes read.

N utterances   T frames   D code dimensions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_tok.errors import CorpusError, JepaTokError

if TYPE_CHECKING:
    from jepa_tok.corpus.schema import ShardMetadata
    from jepa_tok.corpus.utterance import Utterance

MOST = 0.5  # share of the tokens that must have a label row: below it, the two files hardly belong together


class ProbeError(JepaTokError):
    """Labels, splits or tokens do not allow the probe that was asked for."""


@dataclass
class ProbeData:
    """N utterances: their codes and what is known of them; rows are in the order of the shards."""

    ids: list[str]
    codes: list[np.ndarray]
    """uint16 [T, D] for each utterance."""

    num_samples: list[int]
    """Length of each utterance in samples, as the token shards tell it."""

    info: list[dict[str, Any]]
    """Label columns of each utterance; `path`, `start`, `end` where audio is known."""

    meta: ShardMetadata
    """What the shards say of their tokenizer: hash, radices of the D dimensions, frame rate, sample rate."""

    counts: dict[str, Any] = field(default_factory=dict)
    """What was read, joined and left out."""

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int] | np.ndarray) -> ProbeData:
        """The utterances `rows`, in that order."""
        pick = [int(i) for i in rows]
        return ProbeData(
            ids=[self.ids[i] for i in pick],
            codes=[self.codes[i] for i in pick],
            num_samples=[self.num_samples[i] for i in pick],
            info=[self.info[i] for i in pick],
            meta=self.meta,
            counts=dict(self.counts),
        )

    @property
    def radices(self) -> tuple[int, ...]:
        """Levels of each of the D dimensions."""
        return self.meta.radices

    def has(self, column: str) -> bool:
        """Whether any utterance has a value in `column`."""
        return any(_value(row.get(column)) is not None for row in self.info)

    def values(self, column: str) -> list[str | None]:
        """The value of each utterance in `column`; None where it has none."""
        return [_value(row.get(column)) for row in self.info]


def _value(value: Any) -> str | None:
    """Labels are compared as text, whatever type the manifest gave them; blanks and NaN count as missing."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value).strip() or None


def load(tokens: str | Path, labels: str | Path | None = None) -> ProbeData:
    """Reads token shards (a folder or one parquet file) and joins the label rows of the same ids.

    Label columns win over the columns that the shards carry. Utterances without a label row are left out and counted.
    Raises ProbeError where ids repeat or most utterances have no label row, CorpusError where a file breaks its format.
    """
    data = read_tokens(tokens)
    if labels is None:
        return data
    rows = read_labels(labels)
    missing = [i for i, name in enumerate(data.ids) if name not in rows]
    if len(missing) > MOST * len(data):
        raise ProbeError(
            f"Of {len(data)} utterances in '{tokens}' {len(missing)} have no row in '{labels}' (the first is "
            f"'{data.ids[missing[0]]}'); `--labels` must describe the same corpus by the same ids."
        )
    unused = len(set(rows) - set(data.ids))
    counts = {**data.counts, "without_label_row": len(missing), "label_rows_without_tokens": unused}
    counts["ids_without_label_row"] = [data.ids[i] for i in missing]
    kept = set(range(len(data))) - set(missing)
    data = data.select(sorted(kept))
    data.counts = counts
    data.info = [{**info, **rows[name]} for name, info in zip(data.ids, data.info)]
    return data


def read_tokens(path: str | Path) -> ProbeData:
    """Reads token shards and unpacks them into codes.

    Raises ProbeError where there are no utterances or an id repeats, CorpusError for broken shards.
    """
    from jepa_tok.corpus.shards import read_metadata, read_shards
    from jepa_tok.packing import unpack

    meta = read_metadata(path)
    data = ProbeData(ids=[], codes=[], num_samples=[], info=[], meta=meta)
    seen: set[str] = set()
    for row in read_shards(path):
        if row.id in seen:
            raise ProbeError(f"Utterance ids must be unique, but '{row.id}' occurs twice in '{path}'.")
        seen.add(row.id)
        data.ids.append(row.id)
        data.codes.append(unpack(row.ids, meta.radices, meta.group_size).numpy().astype(np.uint16))
        data.num_samples.append(int(row.num_samples))
        data.info.append(dict(row.info))
    if not data.ids:
        raise ProbeError(f"Token shards must hold at least one utterance, but '{path}' holds none.")
    data.counts = {"utterances": len(data), "frames": sum(len(c) for c in data.codes)}
    return data


def read_labels(path: str | Path) -> dict[str, dict[str, Any]]:
    """Label rows by utterance id, from a JSONL or TSV manifest or a Kaldi data dir; `path`, `start`, `end` are columns too.

    A JSONL or TSV file of labels alone, without the column `path`, will do: then no audio is reachable.
    Raises CorpusError where the file breaks its format.
    """
    from jepa_tok.corpus.manifest import read_corpus

    source = Path(path)
    if source.is_file() and source.suffix in (".jsonl", ".tsv") and not _has_paths(source):
        return _bare_labels(source)
    rows = {}
    for u in read_corpus(source):
        rows[u.id] = row_of(u)
    return rows


def row_of(u: Utterance) -> dict[str, Any]:
    """Label columns of an utterance, and where its audio is: `path`, `start`, `end` where they are known."""
    span = {"path": u.path, "start": u.start, "end": u.end}
    return {**u.info, **{k: v for k, v in span.items() if v is not None}}


def _has_paths(source: Path) -> bool:
    """Whether the first row of a manifest names audio."""
    from jepa_tok.corpus.manifest import read_lines

    first = next((line for _, line in read_lines(source) if line.strip()), "")
    return "path" in first.split("\t") if source.suffix == ".tsv" else '"path"' in first


def _bare_labels(source: Path) -> dict[str, dict[str, Any]]:
    """Rows of a manifest that has no audio: `id` and labels."""
    from jepa_tok.corpus.manifest import Unique, read_lines

    ids, rows, header = Unique(), {}, [""]
    for number, line in read_lines(source):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        if source.suffix == ".tsv" and header == [""]:
            header = line.split("\t")
            continue
        if source.suffix == ".tsv":
            cells = line.split("\t")
            if len(cells) != len(header):
                raise CorpusError(
                    f"{place}: the row must have {len(header)} cells as the header, but has {len(cells)}."
                )
            row: Any = dict(zip(header, cells))
        else:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise CorpusError(f"{place}: the line must be a JSON object, but is {line[:40]!r} instead.")
        name = ids.check(str(row.pop("id", "") or ""), place)
        rows[name] = {k: v for k, v in row.items() if v not in (None, "")}
    return rows


def labelled(data: ProbeData, *columns: str) -> ProbeData:
    """The utterances that have a value in every one of `columns`; those that have not are counted.

    Raises ProbeError where a column is absent altogether.
    """
    for column in columns:
        if not data.has(column):
            known = sorted({k for row in data.info for k in row if not k.startswith("_")})
            raise ProbeError(
                f"The label column `{column}` must be a column of the labels (of token shards and `--labels`, or of a suite's "
                f"manifest), but is none; columns there: {', '.join(known) or 'none'}."
            )
    table = [data.values(column) for column in columns]
    keep = [i for i in range(len(data)) if all(values[i] is not None for values in table)]
    out = data.select(keep)
    out.counts["without_label"] = len(data) - len(keep)
    out.counts["used"] = len(keep)
    return out


def drop_rare(data: ProbeData, column: str, least: int) -> ProbeData:
    """The utterances whose value in `column` occurs at least `least` times; the others are counted."""
    values = data.values(column)
    times = {v: values.count(v) for v in set(values)}
    keep = [i for i, v in enumerate(values) if times[v] >= least]
    out = data.select(keep)
    rare = sorted(str(v) for v, n in times.items() if n < least)
    out.counts.update(used=len(keep), dropped_classes=rare, dropped_utterances=len(data) - len(keep))
    return out
