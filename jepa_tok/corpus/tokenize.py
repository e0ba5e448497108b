"""A corpus in, token shards out: resumable, each utterance exactly once, every bad file named.

`jepa_tok.corpus.run` says what is in the folder, `jepa_tok.corpus.maker` makes a shard, `jepa_tok.corpus.ray_engine` has
them made on other machines.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

from jepa_tok.corpus.encode import READERS
from jepa_tok.corpus.run import CorpusRun, TokenizeSummary
from jepa_tok.corpus.utterance import Utterance, manifest_seconds
from jepa_tok.errors import CorpusError

ENGINES = ("local", "ray")


def tokenize_corpus(
    source: str | os.PathLike[str] | Sequence[Utterance],
    out: str | os.PathLike[str],
    tokenizer: Any,
    *,
    split: str | None = None,
    where: str | Iterable[str] | None = None,
    allow_pipes: bool = False,
    batch_seconds: float | None = None,
    rows_per_shard: int = 500,
    strict: bool = False,
    retry_skipped: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    engine: str = "local",
    workers: int | None = None,
    command: str | None = None,
    name: str = "utterances",
) -> TokenizeSummary:
    """Tokenizes `source` into the folder `out`, or goes on with it; either may be a URL that fsspec knows.

    `source` is what `spool_corpus` reads (see there for `split`, `where` and `allow_pipes`), an UtteranceList that it made, or
    other utterances with ids that differ; `name` is then what stands for them in corpus.json.

    Clips are encoded one at a time, so that no id depends on what else is in the corpus; `batch_seconds` makes padded
    batches of clips of like length, up to that many seconds: faster on a GPU, and equal but for the last bits of a float
    (see SpeechTokenizer.encode), reproducibly so for one corpus and one `rows_per_shard`. Bad files, and rows of the source
    that break a rule, are skipped, listed and counted; with `strict` the first one raises CorpusError. `retry_skipped` makes
    shards with skipped files anew; `overwrite` makes all of them anew. `progress`: None shows a bar on terminals, True always.

    `engine` "local" works in this process, where `workers` (2) threads read audio; "ray" in `workers` (all CPUs, or GPUs)
    actors of the Ray cluster at hand, or of one on this machine, each with a tokenizer on its own CPU or, where `tokenizer`
    is on one, GPU.

    Raises CorpusError where `out` belongs to another corpus, tokenizer, `rows_per_shard` or `batch_seconds`, where another
    process is writing to it, and where not one utterance could be tokenized.
    """
    if engine not in ENGINES:
        raise CorpusError(f"`engine` must be one of {', '.join(ENGINES)}, but is '{engine}' instead.")
    run = CorpusRun(
        source,
        out,
        tokenizer,
        split=split,
        where=where,
        allow_pipes=allow_pipes,
        rows_per_shard=rows_per_shard,
        batch_seconds=batch_seconds,
        strict=strict,
        retry_skipped=retry_skipped,
        name=name,
    )
    try:
        run.start(overwrite=overwrite)
        with Progress(run, progress) as bar:
            if engine == "ray":
                from jepa_tok.corpus.ray_engine import make_shards

                make_shards(run, workers, bar)
            else:
                for index in run.pending():
                    run.make(index, workers or READERS, bar.heard)
        return run.finish(command)
    finally:
        run.close()


class Progress:
    """A bar on stderr: hours of audio where the manifest tells all lengths, else utterances; speed, skips, time to go."""

    def __init__(self, run: CorpusRun, show: bool | None) -> None:
        import sys

        from tqdm import tqdm

        show = sys.stderr.isatty() if show is None else show
        pending = run.pending()
        self._began = time.monotonic()
        self._seconds, self._skipped = 0.0, 0
        self._by_length = False
        total: float | None = None
        if show and pending:
            total = _total_seconds(run)
            self._by_length = total is not None
        layout = "{desc}: {percentage:3.0f}%|{bar}| {n:.4g}/{total:.4g} {unit} [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(
            total=sum(len(run.members(k)) for k in pending) if total is None else total / 3600,
            unit="utterances" if total is None else "h",
            desc="tokenize",
            disable=not (show and pending),
            dynamic_ncols=True,
            bar_format=layout,
        )

    def heard(self, utterance: Utterance, seconds: float) -> None:
        """After each utterance: its seconds of audio, 0 where it was skipped."""
        self.add(1, manifest_seconds(utterance) or 0.0 if self._by_length else 0.0, seconds, int(seconds == 0))

    def add(self, utterances: int, expected: float, seconds: float, skipped: int) -> None:
        """After any number of utterances that the manifest says last `expected` seconds."""
        self._seconds += seconds
        self._skipped += skipped
        if self._bar.disable:
            return
        speed = self._seconds / max(time.monotonic() - self._began, 1e-9)
        self._bar.set_postfix_str(
            f"{self._seconds / 3600:.3g} h of audio, {speed / 3600:.2g} h/s ({speed:.0f}x real time), "
            f"{self._skipped} skipped",
            refresh=False,
        )
        self._bar.update(expected / 3600 if self._by_length else utterances)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _total_seconds(run: CorpusRun) -> float | None:
    total = 0.0
    for index in run.pending():
        for u in run.members(index):
            seconds = manifest_seconds(u)
            if seconds is None or seconds < 0:
                return None
            total += seconds
    return total
