"""The parts of `verify_tokens` that look at files: names, content, metadata, and rows with their places.

`Shards` is for parquet, `Export` for every other format; both have `metadata`, `skipped`, `check_files`, `rows` and `pick`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_tok.config import QuantizerConfig
from jepa_tok.config_dict import from_dict
from jepa_tok.corpus.formats import open_tokens
from jepa_tok.corpus.schema import RESERVED, ShardMetadata, TokenRow, from_table
from jepa_tok.corpus.shards import (
    CORPUS_FILE,
    content_hash,
    list_shards,
    named_hash,
    open_shard,
    read_metadata,
    read_shards,
    read_state,
    shard_files,
)
from jepa_tok.corpus.utterance import one_line, short
from jepa_tok.errors import ConfigError, CorpusError

KEPT = 100
"""Failures whose lines are kept; the rest are counted."""


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


class Shards:
    """Parquet shards: files, names, content, metadata; rows with their place, those of a damaged shard left out."""

    def __init__(self, path: Path, report: VerifyReport, exported: bool) -> None:
        self.path, self.report = path, report
        self.metadata: ShardMetadata | None = None
        self.skipped = 0
        """Files that the shards say were skipped."""
        self.files: list[Path] = [path] if path.is_file() else shard_files(path)
        self.state: dict[str, Any] | None = None
        if path.is_dir() and (path / CORPUS_FILE).exists():
            self.state = read_state(path)
        if path.is_file() and not _looks_like_parquet(path):
            raise CorpusError(f"{path}: must be a token shard, a folder of them or an export, but is another file.")
        if not self.files and self.state is None:
            raise CorpusError(f"{path}: the folder must hold token shards (tokens-*.parquet), but holds none.")
        # How to mend a damaged shard, and how to get one that is missing.
        if exported:
            self._anew = self._rest = "export the tokens again"
        elif self.state is not None:
            self._rest = "run the same `jepa-tok tokenize` command again, it makes what is missing"
            self._anew = "delete it and " + self._rest
        else:
            self._rest = (
                f"without a {CORPUS_FILE} it cannot be made again here: take a whole copy, or tokenize to a new folder"
            )
            self._anew = self._rest

    def check_files(self) -> None:
        """Checks state, names, content and metadata; what fails the last has no rows to be checked."""
        report, state = self.report, self.state
        report.checks["state"] = f"not checked: there is no {CORPUS_FILE}"
        if state is not None:
            report.checks["state"] = state["state"]
            if state["state"] != "done":
                report.fail(
                    "state",
                    f"{self.path}: the corpus must be done, but is {state['state']}; {self._rest}.",
                )
        self._check_names()
        hashed = [f for f in self.files if named_hash(f) is not None]
        report.checks["content"] = f"{len(hashed)} of {len(self.files)} shards are named by their content"
        for file in hashed:
            found = content_hash(file)
            if found != named_hash(file):
                report.fail(
                    "content",
                    f"{file}: the bytes must give the name's hash, but give {found}: the shard is damaged; {self._anew}.",
                )
        self._check_metadata()

    def _check_names(self) -> None:
        # Files that are none of the corpus's have no rows to be checked.
        report, state = self.report, self.state
        report.checks["shards"] = str(len(self.files))
        try:
            numbered = list_shards(self.path) if self.path.is_dir() else {}
        except CorpusError as e:
            report.fail("shards", str(e))
            return
        size = state["num_shards"] if state is not None else max(numbered, default=-1) + 1
        missing = (index for index in range(size) if index not in numbered)
        for index in itertools.islice(missing, KEPT):  # corpus.json may tell any number
            report.fail("shards", f"{self.path}: shard {index} of {size} must be there, but is missing; {self._rest}.")
        if state is None:
            return
        if state["state"] == "done" and "shards" not in state:
            report.fail(
                "state", f"{self.path / CORPUS_FILE}: `shards` must name all shards, but is missing; {self._rest}."
            )
        listed = {s["file"] for s in state.get("shards", ())}
        foreign = [f for f in self.files if f not in numbered.values() or (listed and f.name not in listed)]
        for file in foreign:
            report.fail(
                "shards",
                f"{file}: must be one of the shards that {CORPUS_FILE} names, but is not; move it away and {self._rest}.",
            )
        self.files = [f for f in self.files if f not in foreign]

    def _check_metadata(self) -> None:
        report, sound = self.report, []
        listed = {s["file"]: s["rows"] for s in (self.state or {}).get("shards", ())}
        for file in self.files:
            try:
                found = read_metadata(file)
            except CorpusError as e:
                report.fail("metadata", f"{str(e).rstrip('.')}; {self._anew}.")
                continue
            self.metadata = self.metadata or found
            wanted = (self.state or {}).get("hash", self.metadata.hash)
            if found != self.metadata or found.hash != wanted:
                report.fail(
                    "metadata",
                    f"{file}: the shard must be of tokenizer {wanted}, but is of {found.hash}, or of other settings; move it away; {self._rest}.",
                )
                continue
            if self.state and found.extra.get("corpus") != self.state.get("corpus", found.extra.get("corpus")):
                report.fail(
                    "metadata",
                    f"{file}: the shard must be of corpus {self.state.get('corpus')}, but is of {found.extra.get('corpus')}; {self._anew}.",
                )
            rows = open_shard(file).metadata.num_rows
            if listed.get(file.name, rows) != rows:
                report.fail(
                    "metadata",
                    f"{file}: the shard must have {listed[file.name]} rows, as {CORPUS_FILE} says, but has {rows}; {self._anew}.",
                )
            self.skipped += len(found.extra.get("skipped", ()))
            sound.append(file)
        self.files = sound
        self._check_told()
        report.checks["metadata"] = f"tokenizer {self.metadata.hash}" if self.metadata else "none is readable"

    def _check_told(self) -> None:
        # What a finished corpus.json tells beside counts and hashes must be what its shards tell.
        if self.state is None or self.state["state"] != "done" or self.metadata is None or not self.files:
            return
        found = {
            "columns": _columns(self.files[0]),
            "tokenizer": "a config with the levels, groups and rates of the shards",
            "rows_per_shard": _rows_per_shard(self.files, self.state["num_shards"]),
        }
        told = {key: self.state.get(key) for key in found}
        if _is_config_of(told["tokenizer"], self.metadata):
            told["tokenizer"] = found["tokenizer"]
        for key, value in found.items():
            if value is not None and told[key] != value:
                self.report.fail(
                    "state",
                    f"{self.path / CORPUS_FILE}: `{key}` must be {value}, as the shards tell, but is {short(told[key])}; "
                    "put the file back as it was, or tokenize with --overwrite.",
                )

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
                self.report.fail(
                    "rows", f"{shard}: the shard is damaged from row {first} on: {one_line(e)}; {self._anew}."
                )

    def _sound(self, table: Any, metadata: ShardMetadata, shard: Path, first: int) -> Iterator[tuple[str, TokenRow]]:
        try:
            rows = list(from_table(table, metadata, str(shard), first))
        except CorpusError:  # then one by one, so that each bad one is named
            for at in range(table.num_rows):
                try:
                    (row,) = from_table(table.slice(at, 1), metadata, str(shard), first + at)
                except CorpusError as e:
                    self.report.fail("rows", f"{str(e).rstrip('.')}; the shard is damaged: {self._anew}.")
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


def _columns(shard: Path) -> dict[str, str]:
    """Types of the columns that a shard carries through."""
    return {field.name: str(field.type) for field in open_shard(shard).schema_arrow if field.name not in RESERVED}


def _rows_per_shard(shards: list[Path], num_shards: int) -> int | None:
    """Utterances of each shard but the last, skipped ones counted; None where one shard is all, or they do not tell."""
    for shard in shards:
        extra = read_metadata(shard).extra
        if extra.get("shard", num_shards) < num_shards - 1:
            return int(open_shard(shard).metadata.num_rows + len(extra.get("skipped", ())))
    return None


def _is_config_of(config: Any, metadata: ShardMetadata) -> bool:
    """Whether a tokenizer with this config makes such tokens, as far as metadata tells."""
    try:
        quantizer = from_dict(QuantizerConfig, config["quantizer"])
        encoder = config["encoder"]
        hop = encoder["front_hop"] * math.prod(encoder["strides"])
        levels = (tuple(quantizer.radices), quantizer.group_size, encoder["sample_rate"], hop)
    except (ConfigError, KeyError, TypeError, AttributeError):
        return False
    return levels == (metadata.radices, metadata.group_size, metadata.sample_rate, metadata.hop)


def _looks_like_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".parquet" or file.read(4) == b"PAR1"


class Export:
    """An export that is not parquet: its reader checks each row and ends at the first bad one."""

    skipped = 0
    """An export holds none."""

    def __init__(self, path: Path, report: VerifyReport) -> None:
        self.path, self.report = path, report
        self._tokens = open_tokens(path)
        self.metadata: ShardMetadata | None = self._tokens.metadata

    def check_files(self) -> None:
        """Names the format; opening has checked the rest."""
        self.report.checks["format"] = self._tokens.layout
        self.report.checks["metadata"] = f"tokenizer {self._tokens.metadata.hash}"

    def rows(self) -> Iterator[tuple[str, TokenRow]]:
        """Place and row of each row up to the first bad one, which is a failure."""
        try:
            yield from ((f"{self.path}, row {at}", row) for at, row in enumerate(self._tokens.rows()))
        except CorpusError as e:
            self.report.fail("rows", str(e))

    def pick(self, numbers: set[int]) -> Iterator[tuple[str, TokenRow]]:
        """The rows of these numbers."""
        return ((f"{self.path}, row {at}", row) for at, row in enumerate(self._tokens.rows()) if at in numbers)
