"""A folder of token shards in the making: what belongs where, what is still missing, what it all comes to.

Which utterance belongs to which shard is settled before the first is read: shard k holds utterances k * rows_per_shard
onwards, in the order of the manifest. A shard appears whole or not at all, and carries the list of the files that were
skipped in it, so a run killed at any instant and started again makes the shards that are missing and nothing else, and
the result has the same bytes as that of an uninterrupted run. A shard whose bytes contradict the hash in its name is moved
aside (to `tokens-00000.HASH.damaged`) and made again; to find them, each run first reads the shards that are there. `OUT/corpus.json`
says what is being made of what, so that two corpora or two tokenizers never mix in one folder.

    OUT/tokens-00000.0123456789abcdef.parquet ...   the tokens; see jepa_tok.corpus.shards
    OUT/tokens-00001.0123456789abcdef.empty ...     the shards of which all files were skipped
    OUT/skipped.jsonl                               id, path and reason of every bad file and every refused row
    OUT/corpus.json                                 state (running or done), tokenizer, counts, hours, speed, command;
                                                    `shards`: file and rows of each, its hash being in its name
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jepa_tok
from jepa_tok.corpus.encode import READERS
from jepa_tok.corpus.folder import check_apart
from jepa_tok.corpus.maker import Heard, ShardMaker, is_there
from jepa_tok.corpus.schema import ShardMetadata
from jepa_tok.corpus.shards import (
    CORPUS_FILE,
    content_hash,
    list_shards,
    named_hash,
    open_shard,
    read_metadata,
    read_state,
    shard_files,
    write_state,
    writing,
)
from jepa_tok.corpus.spool import UtteranceList, spool_corpus
from jepa_tok.corpus.utterance import Utterance, reading
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path, atomic_writer, glob_in, is_url, lock_folder, move, remove, unlock

log = logging.getLogger(__name__)

SKIPPED_FILE = "skipped.jsonl"

DECIDING = {
    "hash": "tokenizer (`hash`)",
    "corpus": "list of utterances (`corpus`, a digest)",
    "rows_per_shard": "`rows_per_shard`",
    "batch_seconds": "`batch_seconds`",
}
"""Entries of corpus.json that decide a shard's bytes, and what they are called in messages."""


@dataclass(frozen=True)
class TokenizeSummary:
    """What a finished run made; also what OUT/corpus.json holds, with the tokenizer's config and the shards added."""

    source: str
    out: str
    hash: str
    """Of the tokenizer."""
    corpus: str
    """Digest of the list of utterances."""
    utterances: int
    """In the source; written + skipped."""
    written: int
    skipped: int
    """Bad files, and rows of the source that were refused."""
    refused: int
    """Of those, the rows that were refused."""
    num_shards: int
    hours: float
    """Of audio that was written."""
    frames: int
    tokens: int
    seconds: float
    """Time of the last run that made shards (an earlier, killed one is not counted)."""
    hours_per_second: float
    """Audio that run tokenized, in hours, over its time."""
    times_real_time: float
    """The same in seconds over seconds."""
    command: str
    version: str
    """Of jepa-tok."""


class CorpusRun:
    """`tokenize_corpus` in its steps, for those who share the shards out among processes.

    Every process makes one; rank 0 calls `start`; after a barrier, each lists `pending()`; after another, each calls
    `make` for its share of the list; after a last one, rank 0 calls `finish`. No two processes make the same shard, so
    nothing else is shared. Raises CorpusError as `spool_corpus` does, and where `out` is in a folder that is searched. See
    `tokenize_corpus` for the parameters.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Utterance],
        out: str | os.PathLike[str],
        tokenizer: Any,
        *,
        split: str | None = None,
        where: str | Iterable[str] | None = None,
        allow_pipes: bool = False,
        rows_per_shard: int = 500,
        batch_seconds: float | None = None,
        strict: bool = False,
        retry_skipped: bool = False,
        name: str = "utterances",
    ) -> None:
        if rows_per_shard < 1:
            raise CorpusError(f"`rows_per_shard` must be at least 1, but is {rows_per_shard} instead.")
        if batch_seconds is not None and not batch_seconds > 0:
            raise CorpusError(f"`batch_seconds` must be greater than 0, but is {batch_seconds} instead.")
        self.out, self.tokenizer = as_path(out), tokenizer
        self.source = str(source) if isinstance(source, (str, os.PathLike)) else name
        check_apart(self.source, self.out)
        self.utterances = _spool(source, split, where, allow_pipes, strict, name)
        self.rows_per_shard = rows_per_shard
        self.num_shards = -(-len(self.utterances) // rows_per_shard)
        with _about(self.source):
            self.columns = self.utterances.columns
        self.digest = self.utterances.digest
        self.metadata = ShardMetadata.of(tokenizer, corpus=self.digest)
        self.maker = ShardMaker(
            out=str(self.out),
            source=self.source if is_there(self.source) else None,
            folder=self.utterances.folder,
            tokenizer=tokenizer,
            metadata=self.metadata,
            columns=self.columns,
            batch_seconds=batch_seconds,
            strict=strict,
            replace=retry_skipped or strict,
        )
        self._lock: int | None = None
        self._pending: list[int] | None = None
        self._began = 0.0

    def start(self, overwrite: bool = False) -> None:
        """Claims the folder for this corpus and tokenizer, or raises CorpusError where it belongs to others.

        Damaged shards are moved aside, with a warning in the log for each.
        """
        with writing(self.out):
            if self.out.exists() and not self.out.is_dir():
                raise CorpusError(f"{self.out}: the output must be a folder, but is a file.")
            self.out.mkdir(parents=True, exist_ok=True)
        if not is_url(self.out):
            busy = f"{self.out}: another process is tokenizing into this folder; wait for it or end it."
            self._lock = lock_folder(self.out, busy)
        for name in ("tokens-*", SKIPPED_FILE, CORPUS_FILE):
            for left_over in glob_in(self.out, f"{name}.*.tmp"):
                remove(left_over)
        if overwrite:
            shards = [*shard_files(self.out), *glob_in(self.out, "tokens-*.damaged")]
            for old in [*shards, self.out / SKIPPED_FILE, self.out / CORPUS_FILE]:
                remove(old, missing_ok=True)
        given = self._fingerprint()
        done = False
        if (self.out / CORPUS_FILE).exists():
            state = read_state(self.out)
            for key, value in given.items():
                if state.get(key, "not told") != value:
                    raise CorpusError(
                        f"{self.out}: the folder must go on with the {DECIDING[key]} that it was begun with, "
                        f"{state.get(key, 'not told')}, but is given {value}; give the same, or another output folder, or "
                        "--overwrite this one."
                    )
            done = state["state"] == "done"
        elif shard_files(self.out):
            raise CorpusError(
                f"{self.out}: the folder holds token shards but no {CORPUS_FILE} that says of what; "
                "take another output folder, or --overwrite this one."
            )
        self._put_damaged_aside()
        missing = set(self.pending()) - set(list_shards(self.out))
        if missing or not done:  # where shards are only replaced, the first to be so says that the corpus is running
            state = {"state": "running", **given, "source": self.source, "num_shards": self.num_shards}
            write_state(self.out, state)

    def pending(self) -> list[int]:
        """Indices of the shards still to be made, with `retry_skipped` and `strict` also those in which files were skipped."""
        if self._pending is None:
            there = list_shards(self.out)
            self._pending = [
                k for k in range(self.num_shards) if k not in there or (self.maker.replace and self._skips(k, there[k]))
            ]
            self._began = time.monotonic()
        return self._pending

    def members(self, index: int) -> Sequence[Utterance]:
        """The utterances of shard `index`."""
        return self.utterances[index * self.rows_per_shard : (index + 1) * self.rows_per_shard]

    def make(self, index: int, workers: int = READERS, heard: Heard | None = None) -> None:
        """Makes shard `index`; see `ShardMaker.make`."""
        self.maker.make(index, self.members(index), workers, heard)

    def finish(self, command: str | None = None) -> TokenizeSummary:
        """Counts what the shards hold, writes skipped.jsonl and corpus.json; raises CorpusError where one is missing.

        A corpus that was finished before, and in which nothing was pending, is left as it is.
        """
        if not self.pending() and (summary := self._summary_of_before()):
            return summary
        made, refused = set(self.pending()), len(self.utterances.refused)
        written = skipped = frames = samples = new_samples = 0
        reason = ""
        shards: list[dict[str, Any]] = []
        with writing(self.out / SKIPPED_FILE), atomic_writer(self.out / SKIPPED_FILE) as file:
            for row in self.utterances.refused:
                file.write(_json_line({"id": row.id, "path": row.path, "reason": row.reason}))
            for index, path in self._all_shards():
                counts, skips = self._count(index, path)
                for skip in skips:
                    file.write(_json_line(skip))
                    reason = reason or skip["reason"]
                own_frames, own_samples = (sum(counts.column(c).to_pylist()) for c in ("n_frames", "n_samples"))
                shards.append({"file": path.name, "rows": counts.num_rows, "skipped": len(skips)})
                written += counts.num_rows
                skipped += len(skips)
                frames += own_frames
                samples += own_samples
                new_samples += own_samples if index in made else 0
        if not written:
            self._clear()
            raise CorpusError(
                f"{self.source}: at least one of {len(self.utterances)} utterances must be readable, but none is; "
                f"the first: {reason}"
            )

        if made:
            seconds = time.monotonic() - self._began
            speed = new_samples / self.metadata.sample_rate / seconds
        else:  # counted anew, nothing more
            before = read_state(self.out)
            seconds, speed = before.get("seconds", 0.0), before.get("times_real_time", 0.0)
        summary = TokenizeSummary(
            source=self.source,
            out=str(self.out),
            hash=self.metadata.hash,
            corpus=self.digest,
            utterances=len(self.utterances) + refused,
            written=written,
            skipped=skipped + refused,
            refused=refused,
            num_shards=self.num_shards,
            hours=samples / self.metadata.sample_rate / 3600,
            frames=frames,
            tokens=frames * self.metadata.num_groups,
            seconds=round(seconds, 3),
            hours_per_second=speed / 3600,
            times_real_time=speed,
            command=shlex.join(sys.argv) if command is None else command,
            version=jepa_tok.__version__,
        )
        write_state(
            self.out,
            {
                "state": "done",
                **self._fingerprint(),
                **dataclasses.asdict(summary),
                "columns": self.columns,
                "shards": shards,
                "tokenizer": dataclasses.asdict(self.tokenizer.config),
            },
        )
        return summary

    def close(self) -> None:
        """Lets other processes have the folder; the end of the process does so too."""
        unlock(self._lock)
        self._lock = None

    def _put_damaged_aside(self) -> None:
        for path in shard_files(self.out):
            with reading(str(path)):
                damaged = named_hash(path) not in (None, content_hash(path))
            if damaged:
                aside = path.with_suffix(".damaged")  # without .parquet, by which `datasets` finds files
                with writing(aside):
                    move(path, aside)
                log.warning(
                    "%s: the shard is damaged: its bytes contradict the hash in its name; it is now %s, and made again.",
                    path,
                    aside.name,
                )

    def _fingerprint(self) -> dict[str, Any]:
        # What DECIDING names; a folder goes on only with the same.
        return {
            "hash": self.metadata.hash,
            "corpus": self.digest,
            "rows_per_shard": self.rows_per_shard,
            "batch_seconds": self.maker.batch_seconds,
        }

    def _all_shards(self) -> Iterator[tuple[int, Path]]:
        there = list_shards(self.out)
        for index in range(self.num_shards):
            if index not in there:
                raise CorpusError(
                    f"{self.out}: shard {index} must be there at the end, but is missing; run the same command again."
                )
            yield index, there[index]

    def _count(self, index: int, path: Path) -> tuple[Any, list[dict[str, str]]]:
        # A table of frames and samples of each row, and what skipped.jsonl gets of this shard.
        table = open_shard(path).read(columns=["n_frames", "n_samples"])
        skips = self._skips(index, path)
        members = self.members(index)
        if table.num_rows + len(skips) != len(members):
            raise CorpusError(
                f"{path}: the shard does not account for all its utterances; delete it and run the same command again."
            )
        paths = {u.id: u.path for u in members} if skips else {}
        return table, [{"id": s["id"], "path": paths[s["id"]], "reason": s["reason"]} for s in skips]

    def _skips(self, index: int, path: Path) -> list[dict[str, str]]:
        # The skipped files of a shard; raises CorpusError if it is not one of this run.
        found = read_metadata(path)
        if found != self.metadata or found.extra.get("corpus") != self.digest or found.extra.get("shard") != index:
            raise CorpusError(
                f"{path}: the shard is of another corpus or tokenizer; delete it and run the same command again."
            )
        return found.extra["skipped"]

    def _summary_of_before(self) -> TokenizeSummary | None:
        if not (self.out / CORPUS_FILE).exists():
            return None
        state = read_state(self.out)
        refused = len(self.utterances.refused)
        names = [field.name for field in dataclasses.fields(TokenizeSummary)]
        files = [path.name for path in list_shards(self.out).values()]
        if (
            state["state"] != "done"
            or not all(name in state for name in names)
            or state["refused"] != refused
            or [shard["file"] for shard in state.get("shards", [])] != files
            or state["num_shards"] != self.num_shards
            or not (self.out / SKIPPED_FILE).exists()
        ):
            return None
        # The folder may have been moved since.
        return TokenizeSummary(**{name: state[name] for name in names} | {"out": str(self.out)})

    def _clear(self) -> None:
        for path in [*list_shards(self.out).values(), self.out / SKIPPED_FILE, self.out / CORPUS_FILE]:
            remove(path)
        if not is_url(self.out):  # `rmdir` of a URL removes what is in the folder, too
            with contextlib.suppress(OSError):  # other files may be in it
                self.out.rmdir()


@contextlib.contextmanager
def _about(source: str) -> Iterator[None]:
    try:
        yield
    except CorpusError as e:
        raise CorpusError(f"{source}: {e}") from None


def _json_line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _spool(
    source: str | os.PathLike[str] | Iterable[Utterance],
    split: str | None,
    where: str | Iterable[str] | None,
    allow_pipes: bool,
    strict: bool,
    name: str,
) -> UtteranceList:
    before = source.refused if isinstance(source, UtteranceList) else []
    if strict and before:
        raise CorpusError(before[0].reason)
    if isinstance(source, UtteranceList) and split is None and not where:
        return source
    utterances = spool_corpus(source, split=split, where=where, allow_pipes=allow_pipes, strict=strict, name=name)
    utterances.refused[:0] = before
    return utterances
