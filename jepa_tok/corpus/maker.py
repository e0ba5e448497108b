"""One shard of a corpus: its utterances encoded, bad files noted, the file written. Every engine makes shards with it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jepa_tok.corpus.audio_source import Cell, Slice
from jepa_tok.corpus.encode import READERS, encode_utterances
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.shards import list_shards, read_state, write_numbered_shard, write_state
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import as_path, remove

GIVE_BACK = 100.0
"""Seconds of audio after which freed memory is given back to the system."""

Heard = Callable[[Utterance, float], None]
"""Called after each utterance with its seconds of audio, 0 where it was skipped."""


@dataclass
class ShardMaker:
    """What making a shard takes but its utterances; goes to other machines by pickling."""

    out: str
    """Folder of the shards, a path or a URL."""
    source: str | None
    """Path of the corpus, which must still be there when files are skipped; None where it has none."""
    folder: str | None
    """Folder on this machine that all audio is in, which must be there and hold something then; None where there is none."""
    tokenizer: Any
    metadata: ShardMetadata
    columns: Mapping[str, str]
    """Types of the columns carried through."""
    batch_seconds: float | None = None
    """As for `encode_utterances`."""
    strict: bool = False
    """Whether the first bad file is an error."""
    replace: bool = False
    """Whether shards are made anew though they are there."""

    def make(
        self, index: int, members: Sequence[Utterance], workers: int = READERS, heard: Heard | None = None
    ) -> None:
        """Writes shard `index` of these utterances, whole or not at all.

        Raises CorpusError at the first bad file if `strict`, where the source, an archive of it or the folder of all audio
        has vanished, and where the shard cannot be written.
        """
        rows, skipped = self._encode(members, workers, heard)
        if skipped:
            lost = {skip["id"] for skip in skipped}
            self._check_there(u for u in members if u.id in lost)
        extra = {**self.metadata.extra, "shard": index, "skipped": skipped}
        if self.replace:
            self._remove(index)  # before: killed in between, the shard is missing and made again, never there twice
        write_numbered_shard(self.out, index, rows, dataclasses.replace(self.metadata, extra=extra), self.columns)
        give_memory_back()

    def _check_there(self, lost: Iterable[Utterance]) -> None:
        # A disk that went away is no reason to skip all that is on it.
        again = "run the same command again, it goes on."
        listed = dict.fromkeys(filter(None, map(_opened, lost)))  # in order, each once
        for place in [self.source, *listed]:
            if place is not None and not is_there(place):
                raise CorpusError(f"{place}: was there at the start, but has vanished; bring it back and {again}")
        if self.folder is not None and _is_empty(self.folder):
            raise CorpusError(
                f"{self.folder}: all audio of the corpus is in this folder, but it has vanished, is empty or was never "
                f"there; bring it back and {again}"
            )

    def _remove(self, index: int) -> None:
        # Only now a finished corpus is no longer finished: `strict` may end before anything of it changes.
        if old := list_shards(self.out).get(index):
            state = read_state(self.out)
            if state["state"] == "done":
                state.pop("shards", None)
                write_state(self.out, {**state, "state": "running"})
            remove(old)

    def _encode(
        self, members: Sequence[Utterance], workers: int, heard: Heard | None
    ) -> tuple[list[TokenRow], list[dict[str, str]]]:
        # Rows, and ids and reasons of what was skipped, both in the order of `members`.
        rate = self.metadata.sample_rate
        rows: list[TokenRow | None] = [None] * len(members)
        skips: dict[int, str] = {}
        kept = 0.0  # seconds of audio since memory was given back
        # Closed at once when something ends the loop: its readers must not outlive it.
        with contextlib.closing(encode_utterances(members, self.tokenizer, self.batch_seconds, workers)) as results:
            for at, result in results:
                u, seconds = members[at], 0.0
                if isinstance(result, AudioError):
                    if self.strict:
                        raise CorpusError(f"utterance '{u.id}': {result}")
                    skips[at] = str(result)
                elif result.tokenizer not in ("", self.metadata.hash):
                    raise CorpusError(
                        f"tokens must be of tokenizer {self.metadata.hash}, but are of {result.tokenizer}."
                    )
                else:
                    seconds = result.num_samples / rate
                    rows[at] = TokenRow(u.id, result.ids, result.num_samples, u.info)
                    kept += seconds
                    if kept >= GIVE_BACK:
                        give_memory_back()
                        kept = 0.0
                if heard is not None:
                    heard(u, seconds)
        skipped = [{"id": members[at].id, "reason": skips[at]} for at in sorted(skips)]
        return [row for row in rows if row is not None], skipped


def give_memory_back() -> None:
    """Asks the C library to give memory that is freed back to the system; nothing happens where it is not glibc.

    Tensors of ever other lengths leave holes in its heap, which it keeps: the process would grow by some 80 MiB where
    what is in use hardly grows (docs/speed.md). It takes some 6 ms.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _opened(utterance: Utterance) -> str | None:
    # The tar or parquet file that was read to know of the utterance; a Kaldi archive, of which wav.scp tells, was not.
    part = utterance.part
    return part.file if isinstance(part, Cell) or (isinstance(part, Slice) and part.size is not None) else None


def _is_empty(folder: str) -> bool:
    # Whether a local folder holds nothing, as one does that a disk was mounted on, or is not there.
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except PermissionError:  # which may be entered, though not listed
        return False
    except OSError:
        return True


def is_there(path: str) -> bool:
    """Whether `path`, perhaps a URL, exists and can be asked for."""
    try:
        return as_path(path).exists()
    except Exception:  # remote file systems raise errors of their own kinds
        return False
