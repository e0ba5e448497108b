"""Lhotse Shar: cuts without audio whose field `tokens` is an array [T, G], in sequential shards.

    OUT/shar/cuts.000000.jsonl.gz    a MonoCut a line: text, speaker, gender and language in its supervision, other columns custom
    OUT/shar/tokens.000000.tar       an .npy and its Lhotse manifest for each cut, in the same order

    cuts = lhotse.CutSet.from_shar(in_dir="OUT/shar")
    next(iter(cuts)).load_tokens()   # uint16 [T, G]

A cut and its supervision last as long as the frames, up to one frame longer than the clip, whose own length is the custom field
`n_samples`: of an array, Lhotse loads the frames that a cut's duration rounds to, and would lose a last frame that is less than
half full; `trim_to_supervisions` makes a cut of the supervision.

The layout is that of lhotse.shar (ArrayTarWriter, LazySharIterator), which takes every file of a folder for a field: hence
the folder of its own, with metadata.json outside. Written and read without lhotse.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from jepa_tok.corpus.formats.common import ExportInfo, json_values, make_row, parse_values
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.utterance import one_line
from jepa_tok.errors import CorpusError
from jepa_tok.files import glob_in

FOLDER = "shar"
SUPERVISION = ("text", "speaker", "gender", "language")
"""Columns that a Lhotse supervision has fields for; they are text there."""

TAKEN = ("load_tokens", "sampling_rate", "shard_origin", "shar_epoch", "dataloading_info")
"""Custom fields that a cut goes by, or that Lhotse's readers and samplers write: of the first, `load_tokens()` would be the value."""


class Writer:
    """OUT/shar/cuts.*.jsonl.gz and tokens.*.tar."""

    dtype = None

    def __init__(self, folder: Path, metadata: ShardMetadata, columns: Mapping[str, str], rows_per_shard: int) -> None:
        for column in TAKEN:
            if column in columns:
                raise CorpusError(
                    f"the column `{column}` must not be a custom field of a Lhotse cut, which has another meaning for it; "
                    "name the columns to keep without it, or export to jsonl."
                )
        self._folder, self._metadata, self._size = folder / FOLDER, metadata, rows_per_shard
        self._fields = [c for c in SUPERVISION if columns.get(c) == "string"]
        self._kind = (
            "<u2" if max(metadata.vocab_sizes) <= 2**16 else "<i8"
        )  # torch, which Lhotse goes by, has few unsigned
        self._count = 0
        self._files: list[Any] = []
        self._folder.mkdir()

    def add(self, row: TokenRow) -> None:
        """See RowWriter."""
        import numpy as np

        path = PurePosixPath(row.id + ".npy")
        if "\0" in row.id or str(path.parent / path.stem) != row.id:
            raise CorpusError(f"the id {row.id!r} cannot name a member of a tar file; rename it, or export to jsonl.")
        if self._count % self._size == 0:
            self._next_shard()
        self._count += 1
        tar, _, cuts = self._files
        ids = row.ids.numpy().astype(self._kind)  # [T, G]
        buffer = io.BytesIO()
        np.save(buffer, ids, allow_pickle=False)
        array = {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": list(ids.shape)}
        shift = 1 / self._metadata.frame_rate
        manifest = {"array": array, "temporal_dim": 0, "frame_shift": shift, "start": 0}
        for suffix, data in ((".npy", buffer.getvalue()), (".json", json.dumps(manifest).encode() + b"\n")):
            member = tarfile.TarInfo(row.id + suffix)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        cuts.write(json.dumps(self._cut(row), ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def _cut(self, row: TokenRow) -> dict[str, Any]:
        frames = {"start": 0, "duration": len(row.ids) / self._metadata.frame_rate, "channel": 0}
        values = json_values(row.info)
        fields = {name: values.pop(name) for name in self._fields if name in values}
        supervisions = [{"id": row.id, "recording_id": row.id, **frames, **fields}] if fields else []
        # Lhotse looks for the rate of a cut without a recording here, when it cuts, pads or mixes.
        custom = {"sampling_rate": self._metadata.sample_rate, "n_samples": row.num_samples, **values}
        return {"id": row.id, **frames, "supervisions": supervisions, "custom": custom, "type": "MonoCut"}

    def _next_shard(self) -> None:
        self.close()
        number = self._count // self._size
        tar = tarfile.open(self._folder / f"tokens.{number:06d}.tar", "w")  # noqa: SIM115  (closed by `close`)
        raw = (self._folder / f"cuts.{number:06d}.jsonl.gz").open("wb")
        # No time and no name in the header: the same rows give the same bytes.
        self._files = [tar, raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0)]

    def close(self) -> None:
        """See RowWriter."""
        for file in reversed(self._files):
            file.close()
        self._files = []


def read_rows(folder: Path, info: ExportInfo) -> Iterator[TokenRow]:
    """See RowReader."""
    shards = sorted(glob_in(folder / FOLDER, "cuts.*.jsonl.gz"))
    for shard in shards:
        tar = shard.with_name(shard.name.replace("cuts.", "tokens.", 1).replace(".jsonl.gz", ".tar"))
        try:
            with shard.open("rb") as raw, gzip.open(raw) as cuts, tar.open("rb") as file:
                yield from _read_shard(cuts, file, info, shard, tar)
        except (tarfile.TarError, zlib.error, EOFError, OSError) as e:
            raise CorpusError(
                f"{shard}: the shard or its {tar.name} is damaged: {one_line(e)}; export the tokens again."
            ) from None


def _read_shard(cuts: Any, file: IO[bytes], info: ExportInfo, shard: Path, tar: Path) -> Iterator[TokenRow]:
    import numpy as np

    with tarfile.open(fileobj=file, mode="r|") as archive:
        arrays = (m for m in archive if m.name.endswith(".npy"))
        for number, line in enumerate(cuts, start=1):
            place = f"{shard}:{number}"
            try:
                cut = json.loads(line)
                id, custom = cut["id"], dict(cut["custom"])
                samples = custom.pop("n_samples")
                del custom["sampling_rate"]
                fields = {c: s[c] for s in cut["supervisions"] for c in SUPERVISION if c in s}
            except (ValueError, KeyError, TypeError) as e:
                raise CorpusError(
                    f"{place}: the line must be a cut that `jepa-tok export` wrote, but is not: {e!r}."
                ) from None
            member = next(arrays, None)
            if member is None or member.name != f"{id}.npy":
                found = "nothing" if member is None else f"'{member.name}'"
                raise CorpusError(f"{place}: the next array of {tar.name} must be '{id}.npy', but is {found}.")
            stream = archive.extractfile(member)
            try:
                ids = np.load(io.BytesIO(stream.read() if stream else b""), allow_pickle=False)
            except (ValueError, EOFError) as e:
                raise CorpusError(f"{tar} ('{id}'): not a numpy array: {one_line(e)}.") from None
            values = parse_values({**fields, **custom}, info.columns, place)
            yield make_row(id, ids.reshape(-1), samples, values, info.metadata, place)
        if next(arrays, None) is not None:
            raise CorpusError(f"{tar}: the archive must have an array for each cut of {shard.name}, but has more.")
