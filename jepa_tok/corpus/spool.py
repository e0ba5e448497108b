"""A corpus of any size as a list that lies on disk: millions of utterances cost no memory to speak of.

Rows go to the folder for temporary files (see `jepa_tok.corpus.scratch`): some 300 bytes an utterance. An index of ids, built by
an external sort once all rows are in, finds those that are there twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import overload

from jepa_tok.corpus.audio_source import audio_file, part_from_json, part_to_json
from jepa_tok.corpus.manifest import Entry, check_entries, conditions, iter_corpus, select
from jepa_tok.corpus.schema import column_types
from jepa_tok.corpus.scratch import Scratch
from jepa_tok.corpus.utterance import Refused, Utterance, fail, refused, taken
from jepa_tok.errors import CorpusError
from jepa_tok.files import is_url


def spool_corpus(
    source: str | os.PathLike[str] | Iterable[Utterance],
    *,
    split: str | None = None,
    where: str | Iterable[str] | None = None,
    allow_pipes: bool = False,
    strict: bool = True,
    name: str = "utterances",
) -> UtteranceList:
    """The utterances of `source`, or utterances from elsewhere under the `name` they have in messages, on disk.

    Reads and checks as `read_corpus` does, except that without `strict` rows that break a rule are left out and listed
    in `refused`; the second of two rows with one id is one of them. Raises CorpusError too where the disk is full.
    """
    left_out: list[Refused] = []
    refuse = fail if strict else left_out.append
    if isinstance(source, (str, os.PathLike)):
        name, entries = str(source), iter_corpus(source, allow_pipes=allow_pipes, refuse=refuse)
    else:
        entries = check_entries(source, name, refuse)
    utterances = UtteranceList(select(entries, name, conditions(split, where), left_out))
    twice = utterances.drop_duplicates()
    if twice and strict:
        raise CorpusError(twice[0].reason)
    utterances.refused = left_out + twice
    return utterances


class UtteranceList(Sequence[Utterance]):
    """Utterances on disk as a sequence; each access makes a new Utterance, so changing one changes nothing here."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        """Takes each place and utterance as it comes; ids may be there twice until `drop_duplicates`."""
        self.refused: list[Refused] = []
        """Rows of the source that were left out."""
        self._db = Scratch()
        self.folder: str | None = None
        """The deepest folder that all audio is in; None where some is behind a URL or from a command."""
        self._db.execute("CREATE TABLE rows (id TEXT, row TEXT, part TEXT, place TEXT)")
        made = ((u.id, _row_to_json(u), part_to_json(u.part), place) for place, u in self._within_folder(entries))
        self._db.insert("INSERT INTO rows VALUES (?, ?, ?, ?)", made)
        self._count()

    def drop_duplicates(self) -> list[Refused]:
        """Removes every row whose id an earlier one has, and gives those removed, in order."""
        self._db.execute("CREATE INDEX ids ON rows (id)")
        first = "SELECT id, min(rowid) AS at FROM rows GROUP BY id HAVING count(*) > 1"
        found = self._db.rows(
            f"SELECT rows.id, rows.row, rows.place, kept.place FROM ({first}) JOIN rows USING (id) "
            "JOIN rows AS kept ON kept.rowid = at WHERE rows.rowid > at ORDER BY rows.rowid"
        )
        twice = [refused(place, taken(id, place, earlier), id, json.loads(row)[1]) for id, row, place, earlier in found]
        if twice:
            # Into a new table, so that row numbers have no gaps.
            self._db.execute(
                "CREATE TABLE kept AS SELECT * FROM rows WHERE rowid IN (SELECT min(rowid) FROM rows GROUP BY id) ORDER BY rowid"
            )
            self._db.execute("DROP TABLE rows")
            self._db.execute("ALTER TABLE kept RENAME TO rows")
            self._count()
        else:
            self._db.execute("DROP INDEX ids")
        return twice

    @cached_property
    def columns(self) -> dict[str, str]:
        """Types of the columns of `info`: see `column_types`, which raises CorpusError for a reserved name."""
        return column_types(u.info for u in self)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name ids, paths, segments and columns of all utterances, in order."""
        sha = hashlib.sha256()
        for (row,) in self._db.rows("SELECT row FROM rows ORDER BY rowid"):
            sha.update(row.encode() + b"\n")
        return sha.hexdigest()[:16]

    def __len__(self) -> int:
        return self._len

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...

    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self._len)
            if step == 1:
                return list(self._read(start, stop))
            return [self[i] for i in range(start, stop, step)]
        at = range(self._len)[index]
        return next(self._read(at, at + 1))

    def __iter__(self) -> Iterator[Utterance]:
        return self._read(0, self._len)

    def _read(self, start: int, stop: int) -> Iterator[Utterance]:
        span = (start + 1, stop)  # row numbers count from 1
        for row, part in self._db.rows("SELECT row, part FROM rows WHERE rowid BETWEEN ? AND ? ORDER BY rowid", span):
            id, path, begin, end, info = json.loads(row)
            yield Utterance(id, path, begin, end, info, part_from_json(part))

    def _within_folder(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        # The entries as they are; at their end `folder` is known.
        folder, is_local = "", True
        for place, u in entries:
            file = audio_file(u)
            if file is None or is_url(file):
                is_local = False
            elif is_local:
                file = os.path.abspath(file)
                folder = folder or os.path.dirname(file)
                while not file.startswith(os.path.join(folder, "")) and folder != os.path.dirname(folder):
                    folder = os.path.dirname(folder)
            yield place, u
        self.folder = folder if folder and is_local else None

    def _count(self) -> None:
        ((self._len,),) = self._db.rows("SELECT count(*) FROM rows")


def _row_to_json(u: Utterance) -> str:
    return json.dumps([u.id, u.path, u.start, u.end, u.info], sort_keys=True)
