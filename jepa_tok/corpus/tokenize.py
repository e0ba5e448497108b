"""A corpus in, token shards out: resumable, each utterance exactly once, every bad file named.

Which utterance belongs to which shard is settled before the first is read: shard k holds utterances k * rows_per_shard
onwards, in the order of the manifest. A shard appears whole or not at all, and carries the list of the files that were
skipped in it, so a run killed at any instant and started again makes the shards that are missing and nothing else, and
the result has the same bytes as that of an uninterrupted run. `OUT/corpus.json` says what is being made of what, so that
two corpora or two tokenizers never mix in one folder.

    OUT/tokens-00000.parquet ...   the tokens; see jepa_tok.corpus.shards
    OUT/skipped.jsonl              id, path and reason of every bad file
    OUT/corpus.json                state (running or done), tokenizer, counts, hours, speed, command
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepa_tok.corpus.encode import encode_utterances
from jepa_tok.corpus.manifest import Utterance, check_corpus, read_corpus
from jepa_tok.corpus.schema import ShardMetadata, TokenRow, column_types
from jepa_tok.corpus.shards import (
    CORPUS_FILE,
    CORPUS_FORMAT,
    open_shard,
    read_metadata,
    read_state,
    list_shards,
    write_numbered_shard,
)
from jepa_tok.errors import AudioError, CorpusError

SKIPPED_FILE = "skipped.jsonl"


@dataclass(frozen=True)
class TokenizeSummary:
    """What a finished run made; also what OUT/corpus.json holds, with the tokenizer's config added."""

    source: str
    out: str
    hash: str
    """Of the tokenizer."""
    corpus: str
    """Digest of the list of utterances."""
    utterances: int
    """In the list; written + skipped."""
    written: int
    skipped: int
    num_shards: int
    hours: float
    """Of audio that was written."""
    frames: int
    tokens: int
    seconds: float
    """Time of the last run that made shards (an earlier, killed one is not counted)."""
    hours_per_second: float
    """Audio that run tokenized, in hours, over its time."""
    command: str


def tokenize_corpus(
    source: str | os.PathLike[str] | Sequence[Utterance],
    out: str | os.PathLike[str],
    tokenizer: Any,
    *,
    split: str | None = None,
    where: str | Iterable[str] | None = None,
    batch_seconds: float | None = None,
    rows_per_shard: int = 500,
    strict: bool = False,
    retry_skipped: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    workers: int = 2,
    command: str | None = None,
    name: str = "utterances",
) -> TokenizeSummary:
    """Tokenizes `source` into the folder `out`, or goes on with it.

    `source` is what `read_corpus` reads (see there for `split` and `where`), or utterances with ids that differ; `name`
    is then what stands for them in corpus.json.

    Clips are encoded one at a time, so that no id depends on what else is in the corpus; `batch_seconds` makes padded
    batches of clips of like length, up to that many seconds: faster on a GPU, and equal but for the last bits of a float
    (see SpeechTokenizer.encode), reproducibly so for one corpus and one `rows_per_shard`. A bad file is skipped, listed and counted; with `strict` the first one raises CorpusError. `retry_skipped` makes shards with
    skipped files anew; `overwrite` makes all of them anew. `progress`: None shows a bar on terminals, True always.
    Raises CorpusError where `out` belongs to another corpus, tokenizer or `rows_per_shard`, where another process is
    writing to it, and where not one utterance could be tokenized.
    """
    run = CorpusRun(source, out, tokenizer, split=split, where=where, rows_per_shard=rows_per_shard, name=name)
    try:
        run.start(overwrite=overwrite)
        run.tokenize(
            run.pending(retry_skipped=retry_skipped or strict),
            batch_seconds=batch_seconds,
            strict=strict,
            progress=progress,
            workers=workers,
        )
        return run.finish(command)
    finally:
        run.close()


class CorpusRun:
    """`tokenize_corpus` in its steps, for those who share the shards out among processes.

    Every process makes one; rank 0 calls `start`; after a barrier, each calls `tokenize(pending()[rank::world])`; after
    another, rank 0 calls `finish`. No two processes make the same shard, so nothing else is shared.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[Utterance],
        out: str | os.PathLike[str],
        tokenizer: Any,
        *,
        split: str | None = None,
        where: str | Iterable[str] | None = None,
        rows_per_shard: int = 500,
        name: str = "utterances",
    ) -> None:
        if rows_per_shard < 1:
            raise CorpusError(f"`rows_per_shard` must be at least 1, but is {rows_per_shard} instead.")
        self.out, self.tokenizer = Path(out), tokenizer
        if isinstance(source, (str, os.PathLike)):
            self.source, self.utterances = str(source), read_corpus(source, split=split, where=where)
        else:
            self.source, self.utterances = name, check_corpus(source, name, split=split, where=where)
        self.rows_per_shard = rows_per_shard
        self.num_shards = -(-len(self.utterances) // rows_per_shard)
        self.columns = column_types(u.info for u in self.utterances)
        self.digest = _digest(self.utterances)
        self.metadata = ShardMetadata.of(tokenizer, corpus=self.digest)
        self._lock: int | None = None
        self._spent = self._heard = 0.0  # seconds of work, seconds of audio, of this run

    def start(self, overwrite: bool = False) -> None:
        """Claims the folder for this corpus and tokenizer, or raises CorpusError where it belongs to others."""
        if self.out.exists() and not self.out.is_dir():
            raise CorpusError(f"{self.out}: the output must be a folder, but is a file.")
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.out)
        for left_over in self.out.glob("tokens-*.parquet.tmp"):
            left_over.unlink()
        if overwrite:
            for old in [*self.out.glob("tokens-*.parquet"), self.out / SKIPPED_FILE, self.out / CORPUS_FILE]:
                old.unlink(missing_ok=True)
        given = self._fingerprint()
        if (self.out / CORPUS_FILE).exists():
            state = read_state(self.out)
            for key, value in given.items():
                if state.get(key) != value:
                    raise CorpusError(
                        f"{self.out}: the folder's `{key}` must be {value} to go on, but is {state.get(key)}; "
                        "take another output folder, or overwrite this one."
                    )
        elif any(self.out.glob("tokens-*.parquet")):
            raise CorpusError(
                f"{self.out}: the folder holds token shards but no {CORPUS_FILE} that says of what; "
                "take another output folder, or overwrite this one."
            )
        else:
            self._write_state({"state": "running", **given, "source": self.source, "num_shards": self.num_shards})

    def pending(self, retry_skipped: bool = False) -> list[int]:
        """Indices of the shards still to be made; `retry_skipped` adds those in which files were skipped."""
        missing, there = [], list_shards(self.out)
        for index in range(self.num_shards):
            if index not in there or (retry_skipped and self._shard_skips(index, there[index])):
                missing.append(index)
        return missing

    def tokenize(
        self,
        shards: Sequence[int],
        *,
        batch_seconds: float | None = None,
        strict: bool = False,
        progress: bool | None = None,
        workers: int = 2,
    ) -> None:
        """Makes these shards; raises CorpusError at the first bad file if `strict`."""
        from tqdm import tqdm

        if not shards:
            return
        began = time.monotonic()
        total, bad = sum(len(self._members(k)) for k in shards), 0
        rate = self.metadata.sample_rate
        disable = None if progress is None else not progress  # None: tqdm looks whether stderr is a terminal
        with tqdm(total=total, unit="utt", desc="tokenize", disable=disable, dynamic_ncols=True) as bar:
            for index in shards:
                members = self._members(index)
                rows: list[TokenRow | None] = [None] * len(members)
                skips: dict[int, str] = {}
                for at, result in encode_utterances(members, self.tokenizer, batch_seconds, workers):
                    u = members[at]
                    if isinstance(result, AudioError):
                        if strict:
                            raise CorpusError(f"utterance '{u.id}': {result}")
                        skips[at] = str(result)
                        bad += 1
                    else:
                        if result.tokenizer not in ("", self.metadata.hash):
                            raise CorpusError(
                                f"tokens must be of tokenizer {self.metadata.hash}, but are of {result.tokenizer}."
                            )
                        rows[at] = TokenRow(u.id, result.ids, result.num_samples, u.info)
                        self._heard += result.num_samples / rate
                    bar.update()
                    speed = self._heard / max(time.monotonic() - began, 1e-9)
                    bar.set_postfix_str(
                        f"{self._heard / 3600:.3g} h of audio, {speed / 3600:.2g} h/s ({speed:.0f}x real time), "
                        f"{bad} skipped",
                        refresh=False,
                    )
                skipped = [{"id": members[at].id, "reason": skips[at]} for at in sorted(skips)]
                extra = {**self.metadata.extra, "shard": index, "skipped": skipped}
                for old in self.out.glob(f"tokens-{index:05d}.*.parquet"):
                    old.unlink()
                write_numbered_shard(
                    self.out,
                    index,
                    [row for row in rows if row is not None],
                    dataclasses.replace(self.metadata, extra=extra),
                    self.columns,
                )
        self._spent += time.monotonic() - began

    def finish(self, command: str | None = None) -> TokenizeSummary:
        """Counts what the shards hold, writes skipped.jsonl and corpus.json; raises CorpusError where one is missing."""
        import pyarrow.compute as pc

        written = frames = samples = 0
        skipped: list[dict[str, str]] = []
        paths = {u.id: u.path for u in self.utterances}
        there = list_shards(self.out)
        for index in range(self.num_shards):
            path = there.get(index)
            if path is None:
                raise CorpusError(
                    f"{self.out}: shard {index} must be there at the end, but is missing; rerun the tokenization."
                )
            skips = self._shard_skips(index, path)
            table = open_shard(path).read(columns=["n_frames", "n_samples"])
            if table.num_rows + len(skips) != len(self._members(index)):
                raise CorpusError(f"{path}: the shard does not account for all its utterances; delete it and rerun.")
            written += table.num_rows
            frames += pc.sum(table.column("n_frames")).as_py() or 0
            samples += pc.sum(table.column("n_samples")).as_py() or 0
            skipped += [{"id": s["id"], "path": paths[s["id"]], "reason": s["reason"]} for s in skips]
        if not written:
            for path in there.values():
                path.unlink()
            (self.out / CORPUS_FILE).unlink()
            with contextlib.suppress(OSError):  # other files may be in it
                self.out.rmdir()
            raise CorpusError(
                f"{self.source}: at least one of {len(self.utterances)} utterances must be readable, but none is; "
                f"the first: {skipped[0]['reason']}"
            )

        before = read_state(self.out)
        if before["state"] == "done" and not self._spent:
            seconds, speed, command = before["seconds"], before["hours_per_second"], before["command"]
        else:
            seconds = round(self._spent, 3)
            speed = self._heard / 3600 / self._spent if self._spent else 0.0
        summary = TokenizeSummary(
            source=self.source,
            out=str(self.out),
            hash=self.metadata.hash,
            corpus=self.digest,
            utterances=len(self.utterances),
            written=written,
            skipped=len(skipped),
            num_shards=self.num_shards,
            hours=samples / self.metadata.sample_rate / 3600,
            frames=frames,
            tokens=frames * self.metadata.num_groups,
            seconds=seconds,
            hours_per_second=speed,
            command=shlex.join(sys.argv) if command is None else command,
        )
        _write(self.out / SKIPPED_FILE, "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in skipped))
        self._write_state(
            {
                "state": "done",
                **self._fingerprint(),
                **dataclasses.asdict(summary),
                "columns": self.columns,
                "tokenizer": dataclasses.asdict(self.tokenizer.config),
            }
        )
        return summary

    def close(self) -> None:
        """Lets other processes have the folder; the end of the process does so too."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _members(self, index: int) -> list[Utterance]:
        return self.utterances[index * self.rows_per_shard : (index + 1) * self.rows_per_shard]

    def _fingerprint(self) -> dict[str, Any]:
        return {"hash": self.metadata.hash, "corpus": self.digest, "rows_per_shard": self.rows_per_shard}

    def _shard_skips(self, index: int, path: Path) -> list[dict[str, str]]:
        # Of a shard that is there; raises CorpusError if it is not one of this run.
        found = read_metadata(path)
        if found != self.metadata or found.extra.get("corpus") != self.digest or found.extra.get("shard") != index:
            raise CorpusError(f"{path}: the shard is of another corpus or tokenizer; delete it and rerun.")
        return found.extra["skipped"]

    def _write_state(self, state: dict[str, Any]) -> None:
        _write(self.out / CORPUS_FILE, json.dumps({"format": CORPUS_FORMAT, **state}, indent=1, ensure_ascii=False))


def _digest(utterances: Sequence[Utterance]) -> str:
    sha = hashlib.sha256()
    for u in utterances:
        sha.update(json.dumps([u.id, u.path, u.start, u.end, u.info], sort_keys=True).encode() + b"\n")
    return sha.hexdigest()[:16]


def _lock(folder: Path) -> int | None:
    # Held by the open descriptor, so it goes with the process however that ends; absent where the system has none.
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CorpusError(f"{folder}: another process is tokenizing into this folder; wait for it or end it.") from None
    except OSError:
        pass  # some network file systems have no locks
    return descriptor


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
