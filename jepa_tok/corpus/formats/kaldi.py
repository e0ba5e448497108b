"""Kaldi text: one file a property, one line an utterance, in the order of the corpus.

    OUT/tokens            utt1 10023 5 ...    flat: token g of frame t is at t * G + g
    OUT/utt2num_frames    utt1 2
    OUT/utt2num_samples   utt1 19195          at the tokenizer's rate, as in ESPnet
    OUT/utt2dur           utt1 0.799792       seconds, to the microsecond
    OUT/text, utt2spk     columns `text` and `speaker`, where they are there
    OUT/utt2NAME          every other column; numbers as JSON writes them, an absent value is an absent line

Kaldi's own tools want files sorted and spk2utt beside utt2spk: `utils/fix_data_dir.sh` and `utils/utt2spk_to_spk2utt.pl` of
Kaldi see to both. Files that were sorted alike are read back here, in the new order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jepa_tok.corpus.formats.common import ExportInfo, json_values, make_row, parse_values, require_files
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.errors import CorpusError

OWN_FILES = ("tokens", "utt2num_frames", "utt2num_samples", "utt2dur")


def file_of(column: str) -> str:
    """Name of the file of a column; raises CorpusError where it cannot be one."""
    name = {"text": "text", "speaker": "utt2spk"}.get(column, f"utt2{column}")
    if column == "spk" or name in OWN_FILES or not re.fullmatch(r"\w[\w.\-]*", column):
        raise CorpusError(f"the column `{column}` cannot be a Kaldi file {name}; name the columns to keep without it.")
    return name


class Writer:
    """OUT/tokens and its companions."""

    dtype = None

    def __init__(self, folder: Path, metadata: ShardMetadata, columns: Mapping[str, str], rows_per_shard: int) -> None:
        self._rate, self._columns = metadata.sample_rate, columns
        names = [*OWN_FILES, *(file_of(c) for c in columns)]
        self._files = {name: (folder / name).open("w", encoding="utf-8", newline="\n") for name in names}

    def add(self, row: TokenRow) -> None:
        """See RowWriter."""
        if not row.id or re.search(r"\s", row.id):
            raise CorpusError(
                f"the id '{row.id}' must have no blanks and not be empty in Kaldi text; rename it, or export to jsonl."
            )
        lines = {
            "tokens": " ".join(map(str, row.ids.flatten().tolist())),
            "utt2num_frames": str(row.ids.shape[0]),
            "utt2num_samples": str(row.num_samples),
            "utt2dur": f"{row.num_samples / self._rate:.6f}",
        }
        for column, value in json_values(row.info).items():
            text = value if isinstance(value, str) else json.dumps(value)
            if re.search(r"[\n\r]", text):
                raise CorpusError(
                    f"the column `{column}` of '{row.id}' must have no line breaks in Kaldi text; name the columns to keep "
                    "without it, or export to jsonl."
                )
            lines[file_of(column)] = text
        for name, text in lines.items():
            self._files[name].write(f"{row.id} {text}\n")

    def close(self) -> None:
        """See RowWriter."""
        for file in self._files.values():
            file.close()


class _Lines:
    """One file, read beside the others: the value of an utterance where its line is next, or None."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = self._read()
        self.step()

    def _read(self) -> Iterator[tuple[int, str]]:
        # Not `read_lines` of manifests: hours of tokens are one line, longer than any line of a manifest.
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield number, line.decode().removesuffix("\n")
                except UnicodeDecodeError:
                    raise CorpusError(f"{self.path}:{number}: the line must be UTF-8, but is not.") from None

    def step(self) -> None:
        number, line = next(self._lines, (0, ""))
        self.place, (self.id, blank, self.value) = f"{self.path}:{number}", line.partition(" ")
        self.ended = number == 0
        if not self.ended and not blank:
            raise CorpusError(f"{self.place}: the line must be 'utterance value', but is '{line}' instead.")

    def take(self, id: str) -> str | None:
        if self.ended or self.id != id:
            return None
        value = self.value
        self.step()
        return value


def read_rows(folder: Path, info: ExportInfo) -> Iterator[TokenRow]:
    """See RowReader; all files must have the utterances in the order of `tokens`."""
    required = ("tokens", "utt2num_samples")
    names = {column: file_of(column) for column in info.columns}
    require_files(folder, *required, *names.values())
    tokens, samples = (_Lines(folder / name) for name in required)
    columns = {column: _Lines(folder / name) for column, name in names.items()}
    while not tokens.ended:
        id, place = tokens.id, tokens.place
        flat = _integers(tokens.take(id), f"{place} ('{id}')")
        num_samples = samples.take(id)
        if num_samples is None:
            raise CorpusError(
                f"{samples.place}: the next utterance must be '{id}', as in tokens, but is '{samples.id}'."
            )
        (size,) = _integers(num_samples, f"{samples.path} ('{id}')")
        values: dict[str, Any] = {}
        for column, lines in columns.items():
            at, text = lines.place, lines.take(id)
            if text is not None:
                values |= parse_values({column: _value(text, info.columns[column], at)}, info.columns, at)
        yield make_row(id, flat, size, values, info.metadata, place)
    for lines in (samples, *columns.values()):
        if not lines.ended:
            raise CorpusError(
                f"{lines.place}: the utterance '{lines.id}' is not in tokens, or in another order there; sort all files alike."
            )


def _integers(text: str | None, place: str) -> list[int]:
    try:
        return [int(word) for word in (text or "").split(" ")]
    except ValueError:
        raise CorpusError(f"{place}: the values must be whole numbers between single blanks, but are not.") from None


def _value(text: str, kind: str, place: str) -> Any:
    if kind == "string" or (kind == "double" and text in ("NaN", "Infinity", "-Infinity")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise CorpusError(f"{place}: the value must be {kind}, but is '{text}' instead.") from None
