"""Is a tokenized corpus what it says? Every file, row and total is checked again, and with audio at hand a sample of tokens.

Nothing is written. Memory: a batch of rows at a time, and 8 bytes an utterance to find ids that are there twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_tok.corpus.formats import ExportInfo, open_tokens
from jepa_tok.corpus.formats.common import METADATA_FILE, first_line
from jepa_tok.corpus.schema import ShardMetadata, TokenRow, from_table
from jepa_tok.corpus.shards import (
    CORPUS_FILE,
    content_hash,
    list_shards,
    named_hash,
    open_shard,
    read_metadata,
    read_shards,
    read_state,
)
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import as_path

KEPT = 100
"""Failures whose lines are kept; the rest are counted."""

ANEW = "delete it and run `jepa-tok tokenize` again with the same command"


@dataclass
class VerifyReport:
    """What was checked, and what failed."""

    path: str
    checks: dict[str, str] = field(default_factory=dict)
    """Name of each check -> what was found; one that could not be made says so."""
    failed: dict[str, int] = field(default_factory=dict)
    """Name of a check -> failures."""
    failures: list[str] = field(default_factory=list)
    """A line each: place, rule, what was found, how to mend it; the first KEPT of them."""

    @property
    def sound(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def fail(self, check: str, message: str) -> None:
        """Counts a failure of `check`."""
        self.failed[check] = self.failed.get(check, 0) + 1
        if len(self.failures) < KEPT:
            self.failures.append(message)


def verify_tokens(
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    source: str | os.PathLike[str] | None = None,
    sample: int = 20,
    seed: int = 0,
    progress: bool | None = None,
) -> VerifyReport:
    """Checks the tokens at `path`: a tokenized corpus, a folder of shards, a shard, or an export in any format.

    With `tokenizer` (a SpeechTokenizer) and `source` (what `read_corpus` reads), `sample` utterances, drawn with `seed`, are encoded
    again and their tokens compared. Raises CorpusError where there are no tokens, and where the tokenizer is not the one that made
    them; whatever else is wrong is in the report.
    """
    if (tokenizer is None) != (source is None):
        raise CorpusError(
            "`tokenizer` and `source` must be given together: a sample is encoded with one from the other."
        )
    if sample < 1:
        raise CorpusError(f"`sample` must be at least 1, but is {sample} instead.")
    place = as_path(path)
    if not place.exists():
        raise CorpusError(f"{place}: no such file or folder.")
    report = VerifyReport(str(place))
    exported = ExportInfo.read(place) if place.is_dir() and (place / METADATA_FILE).exists() else None
    tokens = _Shards(place, report) if exported is None or exported.layout == "parquet" else _Export(place, report)
    tokens.check_files()
    if tokenizer is not None and tokens.metadata is not None and tokenizer.hash != tokens.metadata.hash:
        raise CorpusError(
            f"{place}: made by tokenizer {tokens.metadata.hash}, but the one given is {tokenizer.hash}; give the one that made it."
        )
    totals = _check_rows(tokens, report, progress)
    _check_totals(place, totals, tokens.metadata, exported, report)
    if tokenizer is None:
        report.checks["audio"] = "not checked: needs a tokenizer and the source of the corpus"
    elif "rows" in report.failed or not totals.rows:
        report.checks["audio"] = "not checked: the rows are damaged"
    else:
        _check_audio(tokens, totals.rows, tokenizer, source, sample, seed, report)
    return report


# Files ----------------------------------------------------------------------------------------------------------------


class _Shards:
    """Parquet shards: files, names, content, metadata; rows with their place, those of a damaged shard left out."""

    def __init__(self, path: Path, report: VerifyReport) -> None:
        self.path, self.report = path, report
        self.metadata: ShardMetadata | None = None
        self.files = [path] if path.is_file() else sorted(path.glob("tokens-*.parquet"))
        self.state: dict[str, Any] | None = None
        if path.is_dir() and (path / CORPUS_FILE).exists():
            self.state = read_state(path)
        if not self.files and self.state is None:
            raise CorpusError(f"{path}: the folder must hold token shards (tokens-*.parquet), but holds none.")

    def check_files(self) -> None:
        report, state = self.report, self.state
        report.checks["state"] = f"not checked: there is no {CORPUS_FILE}"
        if state is not None:
            report.checks["state"] = state["state"]
            if state["state"] != "done":
                report.fail(
                    "state",
                    f"{self.path}: the corpus must be done, but is {state['state']}; run `jepa-tok tokenize` again with the same command, it goes on.",
                )
        self._check_names()
        hashed = [f for f in self.files if named_hash(f) is not None]
        report.checks["content"] = f"{len(hashed)} of {len(self.files)} shards are named by their content"
        for file in hashed:
            found = content_hash(file)
            if found != named_hash(file):
                report.fail(
                    "content",
                    f"{file}: the bytes must give the name's hash, but give {found}: the shard is damaged; {ANEW}.",
                )
        self._check_metadata()

    def _check_names(self) -> None:
        report, state = self.report, self.state
        report.checks["shards"] = str(len(self.files))
        try:
            numbered = list_shards(self.path) if self.path.is_dir() else {}
        except CorpusError as e:
            report.fail("shards", str(e))
            return
        if state is None:
            return
        again = "run `jepa-tok tokenize` again with the same command, it makes what is missing"
        for index in sorted(set(range(state["num_shards"])) - set(numbered)):
            report.fail(
                "shards", f"{self.path}: shard {index} of {state['num_shards']} must be there, but is missing; {again}."
            )
        listed = {s["file"]: s["rows"] for s in state.get("shards", ())}
        for file in self.files:
            if file not in numbered.values() or (listed and file.name not in listed):
                report.fail(
                    "shards",
                    f"{file}: must be one of the shards that {CORPUS_FILE} names, but is not; move it away and {again}.",
                )

    def _check_metadata(self) -> None:
        report, sound = self.report, []
        listed = {s["file"]: s["rows"] for s in (self.state or {}).get("shards", ())}
        for file in self.files:
            try:
                found = read_metadata(file)
            except CorpusError as e:
                report.fail("metadata", str(e))
                continue
            self.metadata = self.metadata or found
            wanted = self.state["hash"] if self.state else self.metadata.hash
            if found != self.metadata or found.hash != wanted:
                report.fail(
                    "metadata",
                    f"{file}: the shard must be of tokenizer {wanted}, but is of {found.hash}, or of other settings; move it away.",
                )
                continue
            if self.state and found.extra.get("corpus") != self.state.get("corpus"):
                report.fail(
                    "metadata",
                    f"{file}: the shard must be of corpus {self.state.get('corpus')}, but is of {found.extra.get('corpus')}; {ANEW}.",
                )
            rows = open_shard(file).metadata.num_rows
            if listed.get(file.name, rows) != rows:
                report.fail(
                    "metadata",
                    f"{file}: the shard must have {listed[file.name]} rows, as {CORPUS_FILE} says, but has {rows}; {ANEW}.",
                )
            sound.append(file)
        self.files = sound
        report.checks["metadata"] = f"tokenizer {self.metadata.hash}" if self.metadata else "none is readable"

    def rows(self) -> Iterator[tuple[str, TokenRow]]:
        """Place and row of every sound row; a bad one is a failure."""
        import pyarrow as pa

        for shard in self.files:
            metadata, first = read_metadata(shard), 0
            try:
                for batch in open_shard(shard).iter_batches(batch_size=1024):
                    yield from self._sound(pa.Table.from_batches([batch]), metadata, shard, first)
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as e:
                self.report.fail("rows", f"{shard}: the shard is damaged from row {first} on: {first_line(e)}; {ANEW}.")

    def _sound(self, table: Any, metadata: ShardMetadata, shard: Path, first: int) -> Iterator[tuple[str, TokenRow]]:
        try:
            rows = list(from_table(table, metadata, str(shard), first))
        except CorpusError:  # then one by one, so that each bad one is named
            for at in range(table.num_rows):
                try:
                    (row,) = from_table(table.slice(at, 1), metadata, str(shard), first + at)
                except CorpusError as e:
                    self.report.fail("rows", f"{str(e).rstrip('.')}; the shard is damaged: {ANEW}.")
                else:
                    yield f"{shard}, row {first + at}", row
        else:
            yield from ((f"{shard}, row {first + at}", row) for at, row in enumerate(rows))

    def pick(self, numbers: set[int]) -> Iterator[tuple[str, TokenRow]]:
        """The rows of these numbers; only their shards are read."""
        first = 0
        for shard in self.files:
            size = open_shard(shard).metadata.num_rows
            if not numbers.isdisjoint(range(first, first + size)):
                for at, row in enumerate(read_shards(shard)):
                    if first + at in numbers:
                        yield f"{shard}, row {at}", row
            first += size


class _Export:
    """An export that is not parquet: its reader checks each row and ends at the first bad one."""

    def __init__(self, path: Path, report: VerifyReport) -> None:
        self.path, self.report = path, report
        self._tokens = open_tokens(path)
        self.metadata: ShardMetadata | None = self._tokens.metadata

    def check_files(self) -> None:
        self.report.checks["format"] = self._tokens.layout
        self.report.checks["metadata"] = f"tokenizer {self._tokens.metadata.hash}"

    def rows(self) -> Iterator[tuple[str, TokenRow]]:
        try:
            yield from ((f"{self.path}, row {at}", row) for at, row in enumerate(self._tokens.rows()))
        except CorpusError as e:
            self.report.fail("rows", str(e))

    def pick(self, numbers: set[int]) -> Iterator[tuple[str, TokenRow]]:
        return ((f"{self.path}, row {at}", row) for at, row in enumerate(self._tokens.rows()) if at in numbers)


# Rows, ids, totals ----------------------------------------------------------------------------------------------------


@dataclass
class _Totals:
    rows: int = 0
    frames: int = 0
    samples: int = 0


def _check_rows(tokens: _Shards | _Export, report: VerifyReport, progress: bool | None) -> _Totals:
    from tqdm import tqdm

    totals, hashes = _Totals(), array("Q")
    disable = None if progress is None else not progress
    for _, row in tqdm(tokens.rows(), unit="utt", desc="verify", disable=disable):
        totals.rows += 1
        totals.frames += row.ids.shape[0]
        totals.samples += row.num_samples
        hashes.append(_hash(row.id))
    bad = report.failed.get("rows", 0)
    report.checks["rows"] = f"{totals.rows} are sound" + (f", {bad} are not" if bad else "")
    report.checks["ids"] = "not checked: the rows are damaged" if bad else "unique"
    if not bad:
        for place, id, other in _twice(hashes, tokens.rows):
            report.fail(
                "ids",
                f"{place} ('{id}'): ids must be unique, but {other} has the same; make the tokens anew from a corpus without it.",
            )
    return totals


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _twice(hashes: array[int], rows: Callable[[], Iterator[tuple[str, TokenRow]]]) -> Iterator[tuple[str, str, str]]:
    # Place and id of each row whose id was there before, and where; ids themselves are compared, where hashes are equal.
    import numpy as np

    values = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.zeros(0, np.uint64)
    suspects = set(values[1:][values[1:] == values[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for place, row in rows():
        if _hash(row.id) in suspects:
            if row.id in seen:
                yield place, row.id, seen[row.id]
            seen.setdefault(row.id, place)


def _check_totals(
    path: Path, totals: _Totals, metadata: ShardMetadata | None, exported: ExportInfo | None, report: VerifyReport
) -> None:
    hours = totals.samples / metadata.sample_rate / 3600 if metadata else 0.0
    found: dict[str, Any] = {"written": totals.rows, "frames": totals.frames}
    state = read_state(path) if path.is_dir() and (path / CORPUS_FILE).exists() else None
    name = CORPUS_FILE
    if state is not None and state["state"] == "done" and metadata is not None:
        told: dict[str, Any] = state
        found |= {"tokens": totals.frames * metadata.num_groups, "hours": hours}
        found |= {"utterances": totals.rows + state["skipped"], "skipped": _count_skipped(path)}
    elif exported is not None:
        name = METADATA_FILE
        told = {"written": exported.utterances, "frames": exported.frames, "samples": exported.samples}
        found["samples"] = totals.samples
    else:
        report.checks["totals"] = f"not checked: no file tells them ({totals.rows} rows, {totals.frames} frames)"
        return
    report.checks["totals"] = f"{totals.rows} rows, {totals.frames} frames, {hours:.4g} h"
    for key, value in found.items():
        if not math.isclose(told[key], value, rel_tol=1e-9):
            report.fail(
                "totals",
                f"{path / name}: `{key}` must be what the files hold ({value}), but is {told[key]}; mend what else is told here, then write it anew.",
            )


def _count_skipped(path: Path) -> int:
    file = path / "skipped.jsonl"
    if not file.exists():
        return 0
    with file.open("rb") as lines:
        return sum(1 for line in lines if json.loads(line))


# Audio ----------------------------------------------------------------------------------------------------------------


def _check_audio(
    tokens: _Shards | _Export, rows: int, tokenizer: Any, source: Any, sample: int, seed: int, report: VerifyReport
) -> None:
    import numpy as np

    from jepa_tok.corpus.encode import encode_utterances
    from jepa_tok.corpus.manifest import read_corpus

    numbers = np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False)
    chosen = {row.id: (place, row) for place, row in tokens.pick(set(numbers.tolist()))}
    there = [u for u in read_corpus(source) if u.id in chosen]
    for id in sorted(set(chosen) - {u.id for u in there}):
        report.fail(
            "audio",
            f"{chosen[id][0]} ('{id}'): the utterance must be in {source}, but is not; give the source that was tokenized.",
        )
    metadata = ShardMetadata.of(tokenizer)
    codes = differ = 0
    for at, result in encode_utterances(there, tokenizer):
        place, row = chosen[there[at].id]
        place = f"{place} ('{row.id}')"
        if isinstance(result, AudioError):
            report.fail("audio", f"{place}: the audio must be readable, but is not: {result}")
        elif result.num_samples != row.num_samples:
            report.fail(
                "audio",
                f"{place}: the audio must have {row.num_samples} samples, but has {result.num_samples}: it has changed; tokenize it again.",
            )
        else:
            kept = metadata.tokens(row).codes  # [T, D]
            wrong = int((kept != result.codes).sum())
            codes, differ = codes + kept.numel(), differ + wrong
            if wrong:
                report.fail(
                    "audio",
                    f"{place}: {wrong} of {kept.numel()} codes differ from those that its audio gives now: the audio or the tokens have changed, or they were made in batches (--batch-seconds) or on another device; tokenize it again.",
                )
    report.checks["audio"] = f"{len(chosen)} utterances encoded again: {differ} of {codes} codes differ"
