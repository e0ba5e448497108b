"""Configuration of the tokenize recipe; the names are those of `jepa_tok.corpus.tokenize_corpus`."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult

from recipes.common import default_common


@dataclass(kw_only=True)
class TokenizeConfig(Validatable):
    """What to tokenize, and with what."""

    source: str = ""
    """A .jsonl or .tsv manifest, a Kaldi data folder, a folder of audio, .parquet with audio in it, or .tar shards; a path or
    a URL: see docs/corpora.md."""

    tokenizer: str = ""
    """Folder or name of a tokenizer."""

    split: str | None = None
    """Only utterances whose `split` is this."""

    where: list[str] = field(default_factory=list)
    """Only utterances with these values, each `column=value`."""

    allow_pipes: bool = False
    """Whether the commands in a Kaldi wav.scp are run; only for data that you trust."""

    rows_per_shard: int = 500
    """Utterances in a shard, which is also the unit of work of a process."""

    batch_seconds: float | None = None
    """Clips of like length share batches of up to that many seconds; one at a time where not given."""

    workers: int = 2
    """Threads that read audio, in each process."""

    strict: bool = False
    """Whether to stop at the first bad file, rather than skip, name and count it."""

    retry_skipped: bool = False
    """Whether to make shards with skipped files anew."""

    overwrite: bool = False
    """Whether to make all shards anew, whatever OUT was made of."""

    # Processes wait for the slowest at the end, by up to the time of a shard.
    gang: GangSection = field(default_factory=lambda: GangSection(timeout=24 * 60))

    common: CommonSection = field(default_factory=default_common)

    def validate(self) -> ValidationResult:
        """Called by fairseq2."""
        result = ValidationResult()
        for name in ("source", "tokenizer"):
            if not getattr(self, name):
                result.add_error(f"`{name}` must be given, but is empty.")
        if self.workers < 1:
            result.add_error(f"`workers` must be at least 1, but is {self.workers} instead.")
        return result
