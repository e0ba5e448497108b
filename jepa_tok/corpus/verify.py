"""Is a tokenized corpus what it says? Every file, row and total is checked again, and with audio at hand a sample of tokens.

Nothing is written. Memory: a batch of rows at a time, and 8 bytes an utterance to find ids that are there twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jepa_tok.corpus.formats import ExportInfo
from jepa_tok.corpus.formats.common import METADATA_FILE, RowsDigest
from jepa_tok.corpus.run import SKIPPED_FILE
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.shards import CORPUS_FILE, read_state
from jepa_tok.corpus.spool import UtteranceList, spool_corpus
from jepa_tok.corpus.utterance import check_there, short
from jepa_tok.corpus.verify_files import Export, Shards, VerifyReport
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import as_path


def verify_tokens(
    path: str | os.PathLike[str],
    *,
    tokenizer: Any = None,
    source: str | os.PathLike[str] | None = None,
    split: str | None = None,
    where: str | Iterable[str] | None = None,
    allow_pipes: bool = False,
    sample: int = 20,
    seed: int = 0,
    progress: bool | None = None,
) -> VerifyReport:
    """Checks the tokens at `path`: a tokenized corpus, a folder of shards, a shard, or an export in any format.

    With `tokenizer` (a SpeechTokenizer) and `source` (read as it was tokenized: see `spool_corpus`, for `split`, `where` and
    `allow_pipes` too), `sample` utterances, drawn with `seed`, are encoded again and their tokens compared. Raises
    CorpusError where there are no tokens, where corpus.json or metadata.json cannot be read, and where the tokenizer is not
    the one that made the tokens; whatever else is wrong is in the report.
    """
    if (tokenizer is None) != (source is None):
        raise CorpusError(
            "`tokenizer` and `source` must be given together: a sample is encoded with one from the other."
        )
    if sample < 1:
        raise CorpusError(f"`sample` must be at least 1, but is {sample} instead.")
    if seed < 0:
        raise CorpusError(f"`seed` of the sample must be at least 0, but is {seed} instead.")
    place = as_path(path)
    check_there(place)
    report = VerifyReport(str(place))
    exported = ExportInfo.read(place) if place.is_dir() and (place / METADATA_FILE).exists() else None
    tokens: Shards | Export
    if exported is None or exported.layout == "parquet":
        tokens = Shards(place, report, exported is not None)
    else:
        tokens = Export(place, report)
    tokens.check_files()
    if tokenizer is not None and tokens.metadata is not None and tokenizer.hash != tokens.metadata.hash:
        raise CorpusError(
            f"{place}: made by tokenizer {tokens.metadata.hash}, but the one given is {tokenizer.hash}; give the one that made it."
        )
    totals = _check_rows(tokens, report, progress)
    _check_totals(place, totals, tokens.metadata, exported, report)
    if tokenizer is None or source is None:
        report.checks["audio"] = "not checked: needs a tokenizer and the source of the corpus"
    elif "rows" in report.failed or not totals.rows:
        report.checks["audio"] = "not checked: the rows are damaged"
    else:
        chosen = _draw(tokens, totals.rows, sample, seed)
        utterances = spool_corpus(source, split=split, where=where, allow_pipes=allow_pipes, strict=False)
        _check_audio(chosen, utterances, tokenizer, str(source), report)
    return report


# Rows, ids, totals ----------------------------------------------------------------------------------------------------


@dataclass
class _Totals:
    rows: int = 0
    frames: int = 0
    samples: int = 0
    skipped: int = 0
    """Files, as the shards tell; skipped.jsonl has the refused rows besides."""
    digest: RowsDigest = field(default_factory=RowsDigest)


def _check_rows(tokens: Shards | Export, report: VerifyReport, progress: bool | None) -> _Totals:
    from tqdm import tqdm

    totals, hashes = _Totals(skipped=tokens.skipped), array("Q")
    disable = None if progress is None else not progress
    for _, row in tqdm(tokens.rows(), unit="utt", desc="verify", disable=disable):
        totals.rows += 1
        totals.frames += row.ids.shape[0]
        totals.samples += row.num_samples
        totals.digest.add(row)
        hashes.append(_hash(row.id))
    bad = report.failed.get("rows", 0)
    report.checks["rows"] = f"{totals.rows} are sound" + (f", {bad} are not" if bad else "")
    # Two files of one number have the same ids, of which there is nothing more to say.
    unclear = (
        "the rows are damaged" if bad else "the shards are not those of the corpus" if "shards" in report.failed else ""
    )
    report.checks["ids"] = f"not checked: {unclear}" if unclear else "unique"
    if not unclear:
        for place, id, other in _twice(hashes, tokens.rows):
            report.fail(
                "ids",
                f"{place} ('{id}'): ids must be unique, but {other} has the same; make the tokens anew from a corpus without it.",
            )
    return totals


def _hash(id: str) -> int:
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest(), "little")


def _twice(hashes: array[int], rows: Callable[[], Iterator[tuple[str, TokenRow]]]) -> Iterator[tuple[str, str, str]]:
    # Place and id of each row whose id was there before, and where; ids themselves are compared, where hashes are equal.
    import numpy as np

    values = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.zeros(0, np.uint64)
    suspects = set(values[1:][values[1:] == values[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for place, row in rows():
        if _hash(row.id) in suspects:
            if row.id in seen:
                yield place, row.id, seen[row.id]
            seen.setdefault(row.id, place)


def _check_totals(
    path: Path, totals: _Totals, metadata: ShardMetadata | None, exported: ExportInfo | None, report: VerifyReport
) -> None:
    hours = totals.samples / metadata.sample_rate / 3600 if metadata else 0.0
    groups = metadata.num_groups if metadata else 0
    found: dict[str, Any] = {"frames": totals.frames}
    state = read_state(path) if path.is_dir() and (path / CORPUS_FILE).exists() else {"state": "none"}
    if exported is not None:
        name, mend = METADATA_FILE, "export the tokens again"
        told: dict[str, Any] = {
            "frames": exported.frames,
            "utterances": exported.utterances,
            "samples": exported.samples,
        }
        found |= {"utterances": totals.rows, "samples": totals.samples}
        if exported.digest:
            told["digest"], found["digest"] = exported.digest, totals.digest.hexdigest()
    elif state["state"] == "done":
        name, mend, told = (
            CORPUS_FILE,
            f"delete {SKIPPED_FILE} if it is there and run the same `jepa-tok tokenize` command again, it counts anew",
            state,
        )
        skipped = _count_skipped(path / SKIPPED_FILE, mend, report)
        found |= {"written": totals.rows, "skipped": skipped, "utterances": totals.rows + skipped}
        found["refused"] = skipped - totals.skipped
        found |= {"tokens": totals.frames * groups, "hours": hours}
    else:
        report.checks["totals"] = f"not checked: no file tells them ({totals.rows} rows, {totals.frames} frames)"
        return
    if report.failed.keys() & {"shards", "metadata", "rows"}:
        report.checks["totals"] = f"not checked: not all rows are sound ({totals.rows} rows, {totals.frames} frames)"
        return
    report.checks["totals"] = f"{totals.rows} rows, {totals.frames} frames, {hours:.4g} h"
    for key, value in found.items():
        given = told.get(key)
        if isinstance(value, (int, float)) and isinstance(given, (int, float)):
            same = math.isclose(given, value, rel_tol=1e-9)
        else:
            same = given == value
        if not same:
            report.fail(
                "totals", f"{path / name}: `{key}` must be {value}, which the files hold, but is {given}; {mend}."
            )


def _count_skipped(path: Path, mend: str, report: VerifyReport) -> int:
    """Lines of skipped.jsonl; one that is none that `tokenize` writes is a failure."""
    count = 0
    if not path.exists():
        return 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            count += 1
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "path", "reason")):
                given = short(line[:200].decode("utf-8", "replace").rstrip())
                report.fail(
                    "totals",
                    f"{path}:{number}: must be an object with `id`, `path` and `reason`, but is {given}; {mend}.",
                )
    return count


# Audio ----------------------------------------------------------------------------------------------------------------


def _draw(tokens: Shards | Export, rows: int, sample: int, seed: int) -> dict[str, tuple[str, TokenRow]]:
    """Id -> place and row of some of the rows."""
    import numpy as np

    numbers = np.random.default_rng(seed).choice(rows, min(sample, rows), replace=False)
    return {row.id: (place, row) for place, row in tokens.pick(set(numbers.tolist()))}


def _check_audio(
    chosen: dict[str, tuple[str, TokenRow]],
    utterances: UtteranceList,
    tokenizer: Any,
    source: str,
    report: VerifyReport,
) -> None:
    from jepa_tok.corpus.encode import encode_utterances

    there = [u for u in utterances if u.id in chosen]
    for id in sorted(set(chosen) - {u.id for u in there}):
        report.fail(
            "audio",
            f"{chosen[id][0]} ('{id}'): the utterance must be in {source}, but is not; give the source that was tokenized, with the same --where and --split.",
        )
    metadata = ShardMetadata.of(tokenizer)
    codes = differ = 0
    for at, result in encode_utterances(there, tokenizer):
        place, row = chosen[there[at].id]
        place = f"{place} ('{row.id}')"
        if isinstance(result, AudioError):
            report.fail("audio", f"{place}: the audio must be readable, but is not: {result}")
        elif result.num_samples != row.num_samples:
            report.fail(
                "audio",
                f"{place}: the audio must have {row.num_samples} samples, but has {result.num_samples}: it has changed; tokenize it again.",
            )
        else:
            kept = metadata.tokens(row).codes  # [T, D]
            wrong = int((kept != result.codes).sum())
            codes, differ = codes + kept.numel(), differ + wrong
            if wrong:
                report.fail(
                    "audio",
                    f"{place}: {wrong} of {kept.numel()} codes differ from those that its audio gives now: the audio or the tokens have changed, or they were made in batches (--batch-seconds) or on another device; tokenize it again.",
                )
    report.checks["audio"] = f"{len(chosen)} utterances encoded again: {differ} of {codes} codes differ"
