"""Batches of token shards for one rank: planned from lengths, the same on every machine, resumed exactly.

Clips longer than `max_frames` are cut into pieces (nothing is dropped for its length), pieces are shuffled within windows
of shards, grouped by length, batched, and batches dealt out to ranks. Tokens are read a window at a time, so memory is
bounded for any corpus; a reader's state is an epoch and a position.

    B clips of a batch   T frames   G tokens of a frame
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from fairseq2.datasets import DataReader, DataReadError
from fairseq2.recipe.error import RecipeError
from typing_extensions import Self, override

from jepa_tok._fairseq2.reader_state import check_identity
from jepa_tok._fairseq2.token_data import Piece, TokenBatch, TokenSplit
from jepa_tok.errors import JepaTokError


@final
class TokenReader(DataReader[TokenBatch]):
    """Batches of a split for one rank.

    Training: each epoch has an order of its own, drawn from `seed` and its number; the few batches that would leave ranks
    unequal are dropped (others each epoch), unless that would leave none. Validation (`train=False`): every piece once,
    in order of length; ranks that are done return empty lists until all are.
    """

    def __init__(
        self,
        split: TokenSplit,
        *,
        max_frames: int,
        batch_frames: int,
        train: bool,
        rank: int = 0,
        world_size: int = 1,
        num_accumulate: int = 1,
        seed: int = 0,
        window_frames: int = 10_000_000,
    ) -> None:
        if batch_frames < max_frames:
            raise RecipeError(
                f"`dataset.batch_frames` must be at least `dataset.max_frames` ({max_frames}), but is {batch_frames} instead."
            )
        self._split, self._max_frames, self._batch_frames, self._train = split, max_frames, batch_frames, train
        self._rank, self._world, self._accumulate, self._seed = rank, world_size, num_accumulate, seed
        self._window_frames = window_frames
        self._epoch, self._position = 0, 0
        self._plan: list[tuple[int, list[Piece]]] | None = None
        self._windows: list[list[int]] = []
        self._loaded: tuple[int, dict[int, tuple[str, np.ndarray]]] = (-1, {})

    # Planning -----------------------------------------------------------------------------------------------------------

    def plan(self) -> list[tuple[int, list[Piece]]]:
        """(window, pieces) of every batch of this epoch, of all ranks; ranks take turns."""
        rng = np.random.default_rng([self._seed, self._epoch])
        self._windows = self._group_files(rng)
        batches: list[tuple[int, list[Piece]]] = []
        for number, files in enumerate(self._windows):
            pieces = [p for file in files for p in self._split.pieces(file, self._max_frames)]
            if self._train:
                pieces = [pieces[i] for i in rng.permutation(len(pieces))]
            pieces.sort(key=lambda p: p.frames)  # stable: equal lengths stay shuffled
            window = [(number, batch) for batch in self._fill(pieces)]
            if self._train:
                window = [window[i] for i in rng.permutation(len(window))]
            batches += window
        if self._train and len(batches) % self._world:
            rest = len(batches) % self._world
            batches = batches[:-rest] if len(batches) > rest else [batches[i % rest] for i in range(self._world)]
        return batches

    def _group_files(self, rng: np.random.Generator) -> list[list[int]]:
        """Files in windows of at most `window_frames` (one file at least), in an order of the epoch's own."""
        order = np.arange(len(self._split.files))
        if self._train:
            rng.shuffle(order)
        windows: list[list[int]] = []
        room = 0
        for file in order.tolist():
            frames = int(self._split.lengths[self._split.first_row[file] : self._split.first_row[file + 1]].sum())
            if not windows or frames > room:
                windows.append([])
                room = self._window_frames
            windows[-1].append(file)
            room -= frames
        return windows

    def _fill(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Batches of neighbours in length, each of at most `batch_frames` with its padding."""
        batch: list[Piece] = []
        for piece in pieces:  # ascending: the newcomer is the longest
            if batch and (len(batch) + 1) * piece.frames > self._batch_frames:
                yield batch
                batch = []
            batch.append(piece)
        if batch:
            yield batch

    # Reading ------------------------------------------------------------------------------------------------------------

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[TokenBatch]:
        if self._plan is None:
            self._plan = self.plan()
        stride = self._world * self._accumulate
        if self._position * stride >= len(self._plan):
            raise StopIteration
        turns = self._plan[self._position * stride : (self._position + 1) * stride]
        self._position += 1
        return [self._collate(*batch) for batch in turns[self._rank :: self._world]]

    def _collate(self, window: int, pieces: list[Piece]) -> TokenBatch:
        if self._loaded[0] != window:
            self._loaded = (-1, {})  # the old window goes before the new one comes
            rows: dict[int, tuple[str, np.ndarray]] = {}
            try:
                for file in self._windows[window]:
                    rows |= self._split.read(file)
            except JepaTokError as e:
                raise DataReadError(str(e)) from None
            self._loaded = (window, rows)
        rows = self._loaded[1]
        lengths = torch.tensor([p.frames for p in pieces])
        ids = torch.zeros(len(pieces), int(lengths.max()), self._split.metadata.num_groups, dtype=torch.int64)
        for i, p in enumerate(pieces):
            ids[i, : p.frames] = torch.from_numpy(rows[p.row][1][p.first : p.first + p.frames].astype(np.int64))
        return TokenBatch(
            ids,
            lengths,
            torch.tensor([p.first > 0 for p in pieces]),
            torch.tensor([p.cut_after for p in pieces]),
            int(lengths.sum()),
            [rows[p.row][0] for p in pieces],
        )

    @override
    def reset(self) -> None:
        self._epoch, self._position, self._plan = self._epoch + self._train, 0, None

    @override
    def state_dict(self) -> dict[str, object]:
        return {"epoch": self._epoch, "position": self._position, **self._identity()}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        check_identity(state_dict, self._identity())
        self._epoch, self._position = int(state_dict["epoch"]), int(state_dict["position"])  # type: ignore[call-overload]
        self._plan = None

    def _identity(self) -> dict[str, Any]:
        """All that the plan follows from."""
        return {
            "tokenizer": self._split.metadata.hash,
            "rows": self._split.fingerprint,
            "max_frames": self._max_frames,
            "batch_frames": self._batch_frames,
            "window_frames": self._window_frames,
            "seed": self._seed,
            "num_accumulate": self._accumulate,
            "world_size": self._world,
        }

    @property
    @override
    def num_accumulate(self) -> int:
        return self._accumulate
