"""Dataset family `jepa_tok_speech`: which manifests, which rows, and how clips become batches.

N clips of the corpus
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import soundfile
from fairseq2.composition import register_dataset_family
from fairseq2.logging import log
from fairseq2.recipe.config import DatasetSection
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from jepa_tok.corpus.audio_source import Cell, open_audio
from jepa_tok.corpus.manifest import Utterance, read_corpus
from jepa_tok.corpus.utterance import manifest_seconds
from jepa_tok.errors import AudioError, CorpusError
from jepa_tok.files import is_url

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

SPEECH_FAMILY = "jepa_tok_speech"


def register_speech_dataset(container: DependencyContainer) -> None:
    """Registers the dataset family."""
    register_dataset_family(container, SPEECH_FAMILY, SpeechDataset, SpeechDatasetConfig, opener=open_speech_dataset)


@dataclass(kw_only=True)
class SpeechDatasetConfig:
    """What the data is: manifests and which of their rows are for training and for validation."""

    manifests: list[str] = field(default_factory=list)
    """Corpora as `read_corpus` takes them: JSONL or TSV manifests, Kaldi data folders, folders of audio, parquet, tar shards.
    An id that an earlier one has gets `#` and the corpus's number."""

    split: str | None = "train"
    """Value of the column `split` of training rows; null takes every row."""

    valid_manifests: list[str] = field(default_factory=list)
    """Corpora for validation; empty means those of `manifests`."""

    valid_split: str | None = "dev"
    """Value of the column `split` of validation rows; null takes every row of `valid_manifests` (none without them)."""


@dataclass(kw_only=True)
class SpeechDatasetSection(DatasetSection):
    """`dataset` section of the recipes: which data, and how it becomes batches."""

    family: str | None = SPEECH_FAMILY

    batch_size: int = 64
    """Clips of a training step, over all ranks and accumulated batches: a step sees the same clips on one GPU and on
    eight (but each rank's mean loss weighs the same, and masks are drawn by rank, so losses agree in expectation only)."""

    max_batch_seconds: float | None = None
    """If given, also ends a step where its padded audio, over all ranks and accumulated batches, would pass this; then steps
    differ in their number of clips. At least `crop_seconds` for each rank's each batch."""

    crop_seconds: float = 15.0
    """Longer clips are cropped to this, at a random place in training and from their start in validation."""

    min_seconds: float = 0.0
    """Shorter clips are left out of training."""

    pad_seconds: float = 0.4
    """Batches are padded to a multiple of this, so that few shapes occur (kernels are built and tuned for each)."""

    num_workers: int = 2
    """Threads that decode ahead; 0 decodes in the training loop."""

    prefetch: int = 4
    """Batches that are decoded ahead."""

    cache_audio: bool = False
    """Keeps decoded audio in memory (96 kB a second): for corpora of a few hours."""

    valid_batch_size: int = 16
    """Clips of a validation batch, on each rank."""

    max_valid_clips: int | None = None
    """If given, validation takes this many clips, spread evenly over the list."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()
        for name, least in (("batch_size", 1), ("valid_batch_size", 1), ("num_workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                result.add_error(f"`{name}` must be at least {least}, but is {getattr(self, name)} instead.")
        for name in ("crop_seconds", "pad_seconds"):
            if getattr(self, name) <= 0.0:
                result.add_error(f"`{name}` must be greater than 0, but is {getattr(self, name)} instead.")
        if self.max_batch_seconds is not None and self.max_batch_seconds < self.crop_seconds:
            result.add_error(
                f"`max_batch_seconds` must be at least `crop_seconds` ({self.crop_seconds}), but is {self.max_batch_seconds} instead."
            )
        return result


@dataclass
class SpeechDataset:
    """The clips of a corpus, for training and for validation; ids are unique in each."""

    train: list[Utterance]
    valid: list[Utterance]


def open_speech_dataset(config: SpeechDatasetConfig) -> SpeechDataset:
    """Reads the manifests; RecipeError, in one line, where they break their format or nothing is left."""
    if not config.manifests:
        raise RecipeError(
            "`dataset.config_overrides.manifests` must name at least one manifest or folder of audio, but is empty instead."
        )
    hint = "; `dataset.config_overrides` has `split` and `valid_split`, null takes every row"

    def read(sources: list[str], split: str | None) -> list[Utterance]:
        utterances: list[Utterance] = []
        problems: list[str] = []
        taken: set[str] = set()
        for number, source in enumerate(sources, start=1):
            try:
                found = read_corpus(source, split=split)
            except CorpusError as ex:
                problems.append(str(ex).rstrip("."))
                continue
            _rename_taken(found, taken, source, number)
            utterances += found
        # Of several corpora some may have no row of a split; anything else that is wrong is wrong with all of them.
        if problems and (not utterances or any("split" not in problem for problem in problems)):
            raise RecipeError(problems[0] + (hint if split is not None and "split" in problems[0] else "") + ".")
        return utterances

    train = read(config.manifests, config.split)
    if config.valid_manifests:
        valid = read(config.valid_manifests, config.valid_split)
    elif config.valid_split is not None:
        valid = read(config.manifests, config.valid_split)
    else:
        valid = []
    return SpeechDataset(train, valid)


def _rename_taken(found: list[Utterance], taken: set[str], source: str, number: int) -> None:
    """Makes ids of a corpus differ from those `taken` by corpora before it, and adds them.

    Corpora that number their clips have ids in common, and audio kept in memory, speakers and samples go by id.
    """
    same = [u for u in found if u.id in taken]
    taken.update(u.id for u in found)
    if not same:
        return
    first = same[0].id
    for u in same:
        while u.id in taken:
            u.id += f"#{number}"
        taken.add(u.id)
    log.warning("{} ids of {} are in a corpus before it too; they go by other names here, the first, '{}', by '{}'.", len(same), source, first, same[0].id)  # fmt: skip


def clip_seconds(utterances: Sequence[Utterance]) -> list[float | None]:
    """Length of each clip, from the manifest or the file's header; None where the file cannot be read."""
    # A length that is none is not told.
    told = [seconds if (seconds := manifest_seconds(u)) and seconds > 0.0 else None for u in utterances]
    whole = sum(t is None and (isinstance(u.part, Cell) or is_url(u.path)) for u, t in zip(utterances, told))
    if whole:
        log.warning("{} of {} clips in parquet files or behind URLs have no `duration_s`: all their audio is read for their lengths, by each process at each start.", whole, len(told))  # fmt: skip
    return [_header_seconds(u) or None if t is None else t for u, t in zip(utterances, told)]


def _header_seconds(u: Utterance) -> float | None:
    try:
        # Over a network a clip read at once is one request, a header and what its reader looks for besides are several.
        with open_audio(u, in_place=not is_url(u.path)) as source:
            info = soundfile.info(source)
        return max(info.frames / info.samplerate - (u.start or 0.0), 0.0)
    except (AudioError, soundfile.SoundFileError, RuntimeError, OSError):
        return None
