"""Tables on disk, for lists that memory would not hold."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jepa_tok.errors import CorpusError


class Scratch:
    """An SQLite database in the system's folder for temporary files (TMPDIR); it goes with the process, however that ends.

    Threads may share it. Every method raises CorpusError where the disk is full or gone.
    """

    def __init__(self) -> None:
        with _telling():
            # An empty name is a database in a temporary file, deleted while open. For threads, SQLite takes turns.
            self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = OFF")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Runs a statement that gives no rows."""
        with _telling():
            self._db.execute(statement, values)

    def insert(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs an INSERT for each of `rows`, as they come."""
        with _telling():
            self._db.execute("BEGIN")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")

    def rows(self, query: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """What a SELECT gives."""
        with _telling():
            yield from self._db.execute(query, values)


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        place = os.environ.get("TMPDIR")
        raise CorpusError(
            f"the list of utterances must fit into the folder for temporary files ({f'TMPDIR, {place}' if place else 'TMPDIR is not set'}), "
            f"but does not: {error}; make room there, or set TMPDIR to a folder on a larger disk."
        ) from None
