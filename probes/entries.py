"""What stands in a row of a suite's tables: a tokenizer's codes, its latents, codes that were made before, or log-mels.

SPEC            codes of the adapter that `jepa_tok.adapters.make_adapter` makes of it
random          `random:CONFIG` with the config of the first of our tokenizers that is named: the same encoder, untrained
latent:SPEC     what that adapter has before its quantiser: the same probe without the cost of quantising
NAME=FOLDER     token shards (`--tokens`), taken as they are
logmel          log-mels in frames of 400 ms, the control that is in every table

N utterances   T frames   D code dimensions   F features   M mel filters
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.utterance import Utterance
from probes import features
from probes.cache import Frames, Make
from probes.data import ProbeData, ProbeError, read_tokens, row_of

if TYPE_CHECKING:
    from torch import Tensor

    from jepa_tok.adapters import Adapter

LOGMEL = "logmel"
LATENT = "latent:"
RANDOM = "random"
MEL_RATE, MEL_HOP, MEL_SUBFRAMES = 24_000, 9_600, 20
FRAME_FILTERS, POOLED_FILTERS = 40, 128


@dataclass(frozen=True)
class Meta:
    """What the probes ask of a tokenizer, as `ShardMetadata` has it of ours."""

    hash: str
    radices: tuple[int, ...]
    frame_rate: float
    sample_rate: int
    num_groups: int
    """CTC positions of a frame."""

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate / self.frame_rate)


@dataclass(frozen=True)
class View:
    """How heads read an entry's frames; needs no model, so that other processes can have it."""

    kind: str
    """`codes`, `latents` or `logmel`."""

    meta: Meta
    note: str = ""

    @property
    def expand(self) -> Callable[[np.ndarray], np.ndarray]:
        """Makes float32 [T, F] for a head over time of a clip's frames as the cache has them: one-hot where they are codes."""
        if self.kind == "codes":
            return features.OneHot(self.meta.radices)
        width = MEL_SUBFRAMES * FRAME_FILTERS if self.kind == LOGMEL else None
        return lambda frames: np.array(frames[:, :width], np.float32)  # a copy: the cache is read-only


class Entry(ABC):
    """One row of the tables: makes the frames of an utterance."""

    name: str
    dtype: np.dtype
    """Of the frames in the cache."""

    bits_per_second: float | None = None

    @property
    @abstractmethod
    def view(self) -> View:
        """How its frames are read; `view.meta.hash` names all that they depend on, and changes with `fit`."""

    @abstractmethod
    def make(self, u: Utterance) -> tuple[np.ndarray, int]:
        """Frames [T, W] of an utterance, and its number of samples: a `cache.Make`."""

    def fit(self, waves: Callable[[int], Iterable[Tensor]], path: Callable[[str], Path]) -> None:  # noqa: B027
        """Learns from training audio at a sample rate, or takes what it learned from `path(fingerprint)`; mostly nothing."""

    def pool(self, frames: Frames) -> Any:
        """float32 [N, F], an array or CSR: statistics of each clip over time, the same for codes of whatever tokenizer."""
        view = self.view
        if view.kind == "codes":
            return features.pool_all(frames, view.meta.radices)
        return np.stack([features.pool_frames(z) for z in frames])

    def check(self, corpus: str, utterances: Sequence[Utterance]) -> None:  # noqa: B027
        """Raises ProbeError where it can be told beforehand that `make` will not do."""


class Tokenizer(Entry):
    """Codes of an adapter, or with `latents` what it has before its quantiser."""

    def __init__(self, spec: str, device: str, *, latents: bool = False) -> None:
        from jepa_tok.adapters import make_adapter

        self.adapter: Adapter = make_adapter(spec)
        self.adapter.to(device)
        self.latents = latents
        self.name = LATENT + spec if latents else spec
        codes = np.dtype(np.uint8) if max(self.adapter.radices) <= 256 else self.adapter.code_dtype
        self.dtype = np.dtype(np.float32) if latents else codes
        self.bits_per_second = None if latents else self.adapter.bits_per_second

    @property
    def view(self) -> View:
        a = self.adapter
        meta = Meta(a.fingerprint, tuple(a.radices), float(a.frame_rate), int(a.sample_rate), int(a.slots))
        return View("latents", meta, "before the quantiser") if self.latents else View("codes", meta)

    def fit(self, waves: Callable[[int], Iterable[Tensor]], path: Callable[[str], Path]) -> None:
        from jepa_tok.adapters import fit_once

        fit_once(self.adapter, waves(self.adapter.sample_rate), path(self.adapter.fingerprint))

    def make(self, u: Utterance) -> tuple[np.ndarray, int]:
        wave = load_utterance(u, self.adapter.sample_rate)
        if not self.latents:
            return self.adapter.check(self.adapter.encode(wave)), len(wave)
        z = self.adapter.latents(wave)
        if z is None:
            raise ProbeError(
                f"`{self.name}` must be of a tokenizer that has latents, but `{self.adapter.name}` has none."
            )
        return z, len(wave)

    def made_of(self, latents: Frames) -> Make | None:
        """What makes codes of the same adapter's latents of a corpus instead of its audio; None where that cannot be."""
        if self.latents or self.adapter.codes_of(np.array(latents[0])) is None:
            return None
        place = {name: i for i, name in enumerate(latents.ids)}

        def make(u: Utterance) -> tuple[np.ndarray, int]:
            codes = self.adapter.codes_of(np.array(latents[place[u.id]]))
            assert codes is not None
            return self.adapter.check(codes), latents.num_samples[place[u.id]]

        return make

    def pool(self, frames: Frames) -> Any:
        """Moments are of what the codes stand for, as the adapter says."""
        if self.latents:
            return super().pool(frames)
        return features.pool_all(frames, self.adapter.radices, values=self.adapter.values)


class Shards(Entry):
    """Codes from token shards of one of our tokenizers."""

    def __init__(self, name: str, folder: str) -> None:
        data = read_tokens(folder)
        m = data.meta
        self.name, self.folder = name, folder
        self.dtype = np.dtype(np.uint8 if max(m.radices) <= 256 else np.uint16)
        self.bits_per_second = float(m.frame_rate * np.log2(np.asarray(m.radices, np.float64)).sum())
        self._rows = {i: (c.astype(self.dtype), n) for i, c, n in zip(data.ids, data.codes, data.num_samples)}
        # Shards may change under one tokenizer's hash: what they hold is the key.
        digest = hashlib.sha256(m.hash.encode())
        for i, (codes, samples) in self._rows.items():
            digest.update(f"{i} {samples}".encode() + codes.tobytes())
        meta = Meta(digest.hexdigest()[:16], tuple(m.radices), m.frame_rate, m.sample_rate, m.num_groups)
        self._view = View("codes", meta, f"token shards of tokenizer {m.hash}")

    @property
    def view(self) -> View:
        return self._view

    def make(self, u: Utterance) -> tuple[np.ndarray, int]:
        return self._rows[u.id]

    def check(self, corpus: str, utterances: Sequence[Utterance]) -> None:
        lost = [u.id for u in utterances if u.id not in self._rows]
        if lost:
            raise ProbeError(
                f"`--tokens {self.name}={self.folder}` must hold every utterance of {corpus}, but lacks {len(lost)} of "
                f"{len(utterances)} (the first is '{lost[0]}')."
            )


class LogMels(Entry):
    """Log-mels in frames of 400 ms: 40 of each 20 ms for heads over time, 128 averaged over the frame for pooling."""

    name = LOGMEL
    dtype = np.dtype(np.float16)
    view = View(
        LOGMEL,
        Meta("logmel-40-128-v1", (), MEL_RATE / MEL_HOP, MEL_RATE, MEL_SUBFRAMES),
        "log-mels of 400 ms through the same heads",
    )

    def make(self, u: Utterance) -> tuple[np.ndarray, int]:
        wave = load_utterance(u, MEL_RATE)
        fine = features.mel_frames(wave, MEL_RATE, MEL_HOP, MEL_SUBFRAMES, FRAME_FILTERS)
        broad = features.mel_frames(wave, MEL_RATE, MEL_HOP, MEL_SUBFRAMES, POOLED_FILTERS)
        return np.concatenate([fine.reshape(len(fine), -1), broad.mean(1)], axis=1), len(wave)

    def pool(self, frames: Frames) -> Any:
        return np.stack([features.pool_frames(m[:, MEL_SUBFRAMES * FRAME_FILTERS :]) for m in frames])


def make_entries(specs: Sequence[str], tokens: Sequence[str], device: str) -> list[Entry]:
    """The rows that the command names, and log-mels last. Raises ProbeError for a wrong or repeated name, and what is raised by
    adapters and shards that cannot be had."""
    if LOGMEL in specs:
        raise ProbeError(f"`{LOGMEL}` is in every table; leave it out of `--tokenizers`.")
    trained = [
        Tokenizer(spec.removeprefix(LATENT), device, latents=spec.startswith(LATENT))
        for spec in specs
        if spec != RANDOM
    ]
    entries: list[Entry] = list(trained)
    if RANDOM in specs:
        entries.insert(specs.index(RANDOM), Tokenizer(_untrained(trained), device))
    for given in tokens:
        name, equals, folder = given.partition("=")
        if not (name and equals and folder):
            raise ProbeError(f"`--tokens` must be NAME=FOLDER, but is '{given}'.")
        entries.append(Shards(name, folder))
    if not entries:
        raise ProbeError("`--tokenizers` or `--tokens` must name at least one tokenizer, but neither does.")
    entries.append(LogMels())
    seen = [e.name for e in entries]
    twice = sorted({n for n in seen if seen.count(n) > 1})
    if twice:
        raise ProbeError(f"Each row of the tables must have a name of its own, but `{twice[0]}` is given twice.")
    return entries


def _untrained(named: Sequence[Tokenizer]) -> str:
    """`random:CONFIG` with the config of the first of our tokenizers; raises ProbeError where there is none."""
    own = next(filter(None, map(untrained_of, named)), None)
    if own is None:
        raise ProbeError(
            f"`{RANDOM}` takes the config of the first of our tokenizers in `--tokenizers`, but there is none; name a config, as in "
            f"`{RANDOM}:small`."
        )
    return own


def untrained_of(entry: Tokenizer) -> str | None:
    """`random:CONFIG` with the config of a tokenizer of ours; None for others', and for what is untrained itself."""
    from jepa_tok.adapters.ours import Ours

    name = entry.adapter.name
    if not isinstance(entry.adapter, Ours) or name.startswith(f"{RANDOM}:"):
        return None
    return f"{RANDOM}:{name.removeprefix('stage1:')}"


@dataclass
class Clips:
    """An entry's frames of a corpus and their pooled statistics: what all its tasks share."""

    frames: Frames
    pooled: Any
    """float32 [N, F], an array or CSR."""

    view: View

    def data(self, utterances: Sequence[Utterance]) -> ProbeData:
        """The table that a probe's `prepare` takes; `utterances` in the order of the frames."""
        info = [row_of(u) for u in utterances]
        frames: Any = list(self.frames)
        meta: Any = self.view.meta
        counts = {"utterances": len(info), "frames": len(self.frames.data)}
        return ProbeData(list(self.frames.ids), frames, list(self.frames.num_samples), info, meta, counts)

    def source(self, data: ProbeData) -> Cached:
        """The `inputs.Source` of the rows that `prepare` kept."""
        place = {name: i for i, name in enumerate(self.frames.ids)}
        return Cached(self, np.array([place[name] for name in data.ids], dtype=np.int64))


@dataclass
class Cached:
    """Some rows of `Clips` as an `inputs.Source`; what heads call the tokens, be it a control."""

    clips: Clips
    rows: np.ndarray
    name: str = "tokens"

    @property
    def note(self) -> str:
        """For the tables."""
        return self.clips.view.note

    def pooled(self, seed: int) -> Any:
        """float32 [N, F], an array or CSR; the same for all seeds."""
        return self.clips.pooled[self.rows]

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """Views of the memory map, and what makes float32 [T, F] of one."""
        return [self.clips.frames[int(i)] for i in self.rows], self.clips.view.expand
