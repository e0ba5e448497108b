"""What a run has found so far, on disk: an evaluation that was killed goes on where it was.

OUT/partial.jsonl: a line that says what is evaluated, then one line an utterance, flushed as it is done; gone when the run ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepa_tok.evaluation.metrics import Scores
from jepa_tok.evaluation.summary import Found
from jepa_tok.files import write_text

FILE = "partial.jsonl"


class Partial:
    """The utterances that are done: by id what was found, and the ids [T, G] of its tokens."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Reads what a run of the same `settings` left; what a run of others left is thrown away."""
        self.path = out / FILE
        self.done: dict[str, tuple[list[Found], list[list[int]] | None]] = {}
        head = json.dumps(settings, sort_keys=True)
        lines = self.path.read_text(encoding="utf-8").split("\n") if self.path.exists() else []
        if lines and lines[0] == head:
            for line in lines[1:-1]:  # the last is empty, or was cut off
                row = json.loads(line)
                found = [Found(**{**f, "scores": Scores(**f["scores"])}) for f in row["found"]]
                self.done[row["id"]] = (found, row["ids"])
        kept = [head, *lines[1:-1]] if self.done else [head]
        write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, id: str, found: Sequence[Found], ids: list[list[int]] | None) -> None:
        """One more utterance is done."""
        self.done[id] = (list(found), ids)
        row = {"id": id, "found": [asdict(f) for f in found], "ids": ids}
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        """Removes the file where the results are written by now."""
        self._file.close()
        if finished:
            self.path.unlink()
