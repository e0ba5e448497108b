"""A flat binary file for language model training, and `TokenBin`, which maps it into memory.

    OUT/tokens.bin    the tokens of all utterances back to back, little endian, row-major [frames, G]
    OUT/offsets.npy   int64 [utterances + 1]: utterance i is frames offsets[i] to offsets[i + 1]
    OUT/rows.jsonl    id, n_frames, n_samples and columns of each utterance, a line each
    OUT/metadata.json counts, vocabularies, and `dtype`: uint16 (uint32 or int64 where a vocabulary is wider)

No header, no separators: two lines of numpy read it (G = 19, dtype uint16).

    tokens = np.memmap("OUT/tokens.bin", dtype="<u2", mode="r").reshape(-1, 19)  # [frames of all utterances, G]
    offsets = np.load("OUT/offsets.npy")                                         # tokens[offsets[i] : offsets[i + 1]]
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from jepa_tok.corpus.formats.common import (
    ExportInfo,
    json_values,
    make_row,
    parse_values,
    read_json_lines,
    require_files,
    require_local,
)
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.utterance import one_line
from jepa_tok.errors import CorpusError
from jepa_tok.files import as_path

if TYPE_CHECKING:
    import numpy as np

BIN_FILE, OFFSETS_FILE, ROWS_FILE = "tokens.bin", "offsets.npy", "rows.jsonl"


class Writer:
    """OUT/tokens.bin with its index."""

    dtype: str

    def __init__(self, folder: Path, metadata: ShardMetadata, columns: Mapping[str, str], rows_per_shard: int) -> None:
        widest = max(metadata.vocab_sizes)
        self.dtype = "uint16" if widest <= 2**16 else "uint32" if widest <= 2**32 else "int64"
        self._tokens = (folder / BIN_FILE).open("wb")
        self._offsets = (folder / OFFSETS_FILE).open("wb")
        self._rows = (folder / ROWS_FILE).open("w", encoding="utf-8", newline="\n")
        self._count = self._frames = 0
        self._header(0)
        self._offsets.write((0).to_bytes(8, "little"))

    def _header(self, length: int) -> None:
        # numpy pads headers of one axis to the same size whatever the length: it is filled in at the end.
        from numpy.lib import format as npy

        npy.write_array_header_1_0(self._offsets, {"descr": "<i8", "fortran_order": False, "shape": (length,)})

    def add(self, row: TokenRow) -> None:
        """See RowWriter."""
        import numpy as np

        self._tokens.write(row.ids.numpy().astype(np.dtype(self.dtype).newbyteorder("<")).tobytes())
        self._frames += row.ids.shape[0]
        self._count += 1
        self._offsets.write(self._frames.to_bytes(8, "little"))
        line = {"id": row.id, "n_frames": row.ids.shape[0], "n_samples": row.num_samples, **json_values(row.info)}
        self._rows.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        """See RowWriter."""
        self._offsets.seek(0)
        self._header(self._count + 1)
        for file in (self._tokens, self._offsets, self._rows):
            file.close()


class TokenBin:
    """The tokens of a `bin` export, mapped into memory: any utterance at once, none of them loaded.

        data = TokenBin("exp/tokens_bin")
        data[7]                      # uint16 [T, G]: a read-only view of the file
        data.tokens[1000:2000]       # uint16 [1000, G]: a window over utterances' borders

    Raises CorpusError where a file is missing or does not have the size that the index says.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        import numpy as np

        self.folder = as_path(folder)
        require_local(self.folder, "what is mapped into memory")
        self.info = ExportInfo.read(self.folder)
        if self.info.layout != "bin":
            raise CorpusError(
                f"{self.folder}: the format must be bin, but is {self.info.layout}; `jepa-tok export` converts it."
            )
        require_files(self.folder, BIN_FILE, OFFSETS_FILE, ROWS_FILE)
        self.metadata = self.info.metadata
        groups = self.metadata.num_groups
        path = self.folder / OFFSETS_FILE
        try:
            self.offsets = np.load(path, mmap_mode="r", allow_pickle=False)
            dtype = np.dtype(self.info.dtype).newbyteorder("<")
        except (ValueError, OSError, TypeError) as e:
            raise CorpusError(f"{path}: not a readable index: {one_line(e)}; export the tokens again.") from None
        expected, size = (self.info.utterances + 1,), (self.folder / BIN_FILE).stat().st_size
        if self.offsets.shape != expected or self.offsets.dtype != np.dtype("<i8") or self.offsets[0] != 0:
            raise CorpusError(f"{path}: the index must be int64 {list(expected)} from 0, but is not; export again.")
        frames = int(self.offsets[-1])
        if size != frames * groups * dtype.itemsize or frames != self.info.frames:
            raise CorpusError(
                f"{self.folder / BIN_FILE}: the file must have {frames * groups * dtype.itemsize} bytes "
                f"({frames} frames), but has {size}; export the tokens again."
            )
        data = np.memmap(self.folder / BIN_FILE, dtype, "r") if size else np.zeros(0, dtype)
        self.tokens: np.ndarray = data.reshape(-1, groups)
        """[frames of all utterances, G]"""

    @property
    def num_frames(self) -> int:
        """Frames of all utterances."""
        return len(self.tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Tokens [T, G] of one utterance, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)}")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def rows(self) -> Iterator[dict[str, Any]]:
        """id, n_frames, n_samples and columns of each utterance, in order."""
        for _, line in read_json_lines(self.folder / ROWS_FILE):
            yield line


def read_rows(folder: Path, info: ExportInfo) -> Iterator[TokenRow]:
    """See RowReader."""
    data = TokenBin(folder)
    for number, (place, line) in enumerate(read_json_lines(folder / ROWS_FILE)):
        if number == len(data):
            raise CorpusError(f"{place}: there must be {len(data)} lines, one an utterance of the index, but are more.")
        id, frames, samples = (line.pop(name, None) for name in ("id", "n_frames", "n_samples"))
        tokens = data[number]
        if len(tokens) != frames:
            raise CorpusError(f"{place}: `n_frames` must be {len(tokens)}, as the index says, but is {frames}.")
        values = parse_values(line, info.columns, place)
        yield make_row(id, tokens.reshape(-1), samples, values, info.metadata, place)
