"""What the heads read: the tokens, and the controls that get the same head and the same pooling.

`tokens`, `random` (an untrained tokenizer's tokens) and `logmel` each give frames [T, F] and one pooled vector [F'] for
each utterance. A control that cannot be had is kept as `Missing`, with the reason, so that every table tells of it.

    N utterances   T frames   D code dimensions   F features
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from probes import features
from probes.data import ProbeData, ProbeError, read_tokens
from probes.results import Row

SHUFFLED = "the first input with labels permuted within train, within dev and within test"
"""Permuted over all parts at once they would score below chance: what test has more of, training would lack."""


class Source(Protocol):
    """One input of the heads."""

    name: str
    note: str

    def pooled(self, seed: int) -> Any:
        """float32 [N, F'], an array or CSR: one vector an utterance."""
        ...

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """N compact arrays of T frames each, and the function that makes float32 [T, F] of one: `features.OneHot` where they are codes."""
        ...


@dataclass(frozen=True)
class Missing:
    """A control that is not available, and why."""

    name: str
    reason: str


@dataclass
class Codes:
    """Codes of each utterance; `by_seed` where each seed has a tokenizer of its own."""

    name: str
    radices: tuple[int, ...]
    by_seed: Callable[[int], list[np.ndarray]]
    note: str = ""
    transitions: bool = False
    values: features.Values | None = None
    """What codes stand for; None reads them as levels of FSQ."""

    _pooled: dict[int, tuple[list[np.ndarray], Any]] = field(default_factory=dict, repr=False)

    def pooled(self, seed: int) -> Any:
        """float32 [N, F']: `features.pool_all`."""
        codes = self.by_seed(seed)
        known = self._pooled.get(id(codes))  # seeds that share their codes share the vectors
        if known is None:
            x = features.pool_all(codes, self.radices, transitions=self.transitions, values=self.values)
            known = self._pooled[id(codes)] = (codes, x)
        return known[1]

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """Codes [T, D], and their one-hot form [T, sum of radices]."""
        return self.by_seed(seed), features.OneHot(tuple(self.radices))


@dataclass
class Latents:
    """What the tokenizer had before its quantiser: the same heads without what quantising costs."""

    read: Callable[[int], np.ndarray]
    """utterance -> float32 [T, F]"""

    size: int
    name: str = "latent"
    note: str = ""
    _frames: list[np.ndarray] | None = field(default=None, repr=False)

    def pooled(self, seed: int) -> np.ndarray:
        """float32 [N, F']: `features.pool_frames` of each utterance."""
        return np.stack([features.pool_frames(z) for z in self.frames(seed)[0]])

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """Latents [T, F]."""
        if self._frames is None:
            self._frames = [self.read(i) for i in progress(range(self.size), "latents")]
        return self._frames, lambda z: z


@dataclass
class Mels:
    """Log-mels of each utterance, in the frames of the tokens."""

    read: Callable[[int, int], np.ndarray]
    """(utterance, number of filters) -> float32 [T, subframes, filters]."""

    size: int
    name: str = "logmel"
    note: str = ""
    _pooled: np.ndarray | None = field(default=None, repr=False)
    _frames: list[np.ndarray] | None = field(default=None, repr=False)

    POOLED_FILTERS, FRAME_FILTERS = 128, 40

    def pooled(self, seed: int) -> np.ndarray:
        """float32 [N, F']: `features.pool_mels` of 128 log-mels, averaged within each frame."""
        if self._pooled is None:
            rows = self._progress(self.POOLED_FILTERS)
            self._pooled = np.stack([features.pool_mels(m.mean(1)) for m in rows])
        return self._pooled

    def frames(self, seed: int) -> tuple[list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
        """40 log-mels of each sub-frame: [T, subframes * 40]."""
        if self._frames is None:
            self._frames = [m.reshape(len(m), -1) for m in self._progress(self.FRAME_FILTERS)]
        return self._frames, lambda mels: mels

    def _progress(self, filters: int) -> list[np.ndarray]:
        return [self.read(i, filters) for i in progress(range(self.size), "log-mels")]


def each(inputs: Sequence[Source | Missing], rows: list[Row], shuffled: str) -> Iterator[tuple[Source, Row, bool]]:
    """Source, its row, and whether labels are to be shuffled: every input, then the first anew with shuffled labels.

    Rows are put into `rows` in this order, those of missing inputs too, which are not given. `shuffled` is the note of the last.
    """
    for source, shuffle in [*((source, False) for source in inputs), (inputs[0], True)]:
        row = Row("shuffled" if shuffle else source.name)
        rows.append(row)
        if isinstance(source, Missing):
            row.note, row.available = source.reason, False
            continue
        row.note = shuffled if shuffle else source.note
        yield source, row, shuffle


def progress(items: Any, what: str) -> Any:
    """`items` with a progress bar on stderr where it is a terminal."""
    return tqdm(items, desc=what, leave=False, disable=not sys.stderr.isatty())


def sources(
    data: ProbeData,
    *,
    random_tokens: str | Path | None = None,
    random_config: str | None = None,
    tokenizer: str | Path | None = None,
    transitions: bool = False,
) -> list[Source | Missing]:
    """Tokens, random, latent and logmel, in this order.

    Raises ProbeError where random tokens or the tokenizer do not fit the tokens, AudioError where audio that exists cannot be read.
    """
    out: list[Source | Missing] = [Codes("tokens", data.radices, lambda seed: data.codes, transitions=transitions)]
    unreachable = _unreachable(data)
    if random_tokens is not None:
        codes = _random_from_shards(data, random_tokens)
        out.append(
            Codes(
                "random",
                data.radices,
                lambda seed: codes,
                f"one untrained tokenizer, from '{random_tokens}'",
                transitions,
            )
        )
    elif random_config is None:
        out.append(Missing("random", "not available: neither `--random-tokens` nor `--random-config` was given"))
    elif unreachable:
        out.append(Missing("random", f"not available: {unreachable}"))
    else:
        cache: dict[int, list[np.ndarray]] = {}
        name = random_config

        def tokenize(seed: int) -> list[np.ndarray]:
            if seed not in cache:
                cache[seed] = _random_from_audio(data, name, seed)
            return cache[seed]

        note = f"untrained `{name}` tokenizers, a new one for each seed, their quantisers calibrated as stage 2 does"
        out.append(Codes("random", data.radices, tokenize, note, transitions))
    if tokenizer is None:
        out.append(Missing("latent", "not available: `--tokenizer` was not given"))
    elif unreachable:
        out.append(Missing("latent", f"not available: {unreachable}"))
    else:
        out.append(_latents(data, tokenizer))
    if unreachable:
        out.append(Missing("logmel", f"not available: {unreachable}"))
    else:
        note = "20 ms log-mels of the same frames" + ("; without transitions" if transitions else "")
        out.append(Mels(lambda i, filters: _mels(data, i, filters), len(data), note=note))
    return out


def _unreachable(data: ProbeData) -> str:
    """Why audio cannot be read; empty where it can."""
    paths = [row.get("path") for row in data.info]
    if not any(paths):
        return "the labels name no audio paths"
    lost = [i for i, p in enumerate(paths) if not p or not Path(str(p)).is_file()]
    if lost:
        first = lost[0]
        return f"audio of {len(lost)} of {len(data)} utterances is not at its path (the first is '{data.ids[first]}')"
    return ""


def _random_from_shards(data: ProbeData, path: str | Path) -> list[np.ndarray]:
    other = read_tokens(path)
    if other.meta.hash == data.meta.hash:
        raise ProbeError(
            f"`--random-tokens` must come from another tokenizer than `--tokens`, but '{path}' is of {other.meta.hash} too."
        )
    if other.radices != data.radices:
        raise ProbeError(
            f"`--random-tokens` must have the dimensions and levels of `--tokens`, but '{path}' has others."
        )
    rows = {name: i for i, name in enumerate(other.ids)}
    codes = []
    for name, own in zip(data.ids, data.codes):
        if name not in rows:
            raise ProbeError(f"`--random-tokens` must hold every utterance of `--tokens`, but '{path}' lacks '{name}'.")
        codes.append(other.codes[rows[name]])
        if len(codes[-1]) != len(own):
            raise ProbeError(
                f"`--random-tokens` must have as many frames as `--tokens`, but '{name}' has {len(codes[-1])} instead of "
                f"{len(own)} in '{path}'; make them with an untrained tokenizer of the same configuration."
            )
    return codes


def _random_from_audio(data: ProbeData, config: str, seed: int) -> list[np.ndarray]:
    """Codes by the adapter `random`, whose quantiser is set to the clips: a control with dead digits would be too weak."""
    from jepa_tok.adapters import make_adapter

    adapter = make_adapter(f"random:{config}:{seed}")
    if adapter.radices != data.radices:
        raise ProbeError(
            f"`--random-config` must have the dimensions and levels of the tokens, but '{config}' has others."
        )
    order = np.random.default_rng([seed, 8]).permutation(len(data)).tolist()
    adapter.fit(_wave(data, i, adapter.sample_rate) for i in order)
    rows = progress(range(len(data)), f"untrained tokenizer, seed {seed}")
    return [adapter.encode(_wave(data, i, adapter.sample_rate)) for i in rows]


def _latents(data: ProbeData, path: str | Path) -> Latents:
    from jepa_tok import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_pretrained(path)
    if tokenizer.hash != data.meta.hash:
        raise ProbeError(
            f"`--tokenizer` must be the one that made the tokens ({data.meta.hash}), but '{path}' is {tokenizer.hash}."
        )

    def read(i: int) -> np.ndarray:
        return tokenizer.latents(_wave(data, i, tokenizer.sample_rate), sample_rate=tokenizer.sample_rate).numpy()

    return Latents(read, len(data), note="before the quantiser of the tokens")


def _wave(data: ProbeData, i: int, sample_rate: int) -> Any:
    from jepa_tok.audio import load_audio

    row = data.info[i]
    return load_audio(str(row["path"]), sample_rate, start=row.get("start"), end=row.get("end"))


def _mels(data: ProbeData, i: int, filters: int) -> np.ndarray:
    rate, hop = data.meta.sample_rate, data.meta.hop
    return features.mel_frames(_wave(data, i, rate), rate, hop, subframes_of(hop, rate), filters)


def subframes_of(hop: int, sample_rate: int) -> int:
    """Number of sub-frames, 20 ms or more each, that a frame of `hop` samples is cut into evenly."""
    most = max(1, hop * 50 // sample_rate)
    return next(n for n in range(most, 0, -1) if hop % n == 0)
