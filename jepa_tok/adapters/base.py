"""What the probes, and whoever compares tokenizers, need of one: a wave goes in, codes come out.

An adapter is found by the entry point group `jepa_tok.tokenizers`; a SPEC is `NAME` or `NAME:ARGUMENT` of one of them, or a
tokenizer of this package: its folder, or the name of a packaged one.

    S samples   T frames   D codes of a frame   F features
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jepa_tok.errors import AdapterError
from jepa_tok.files import atomic_writer

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "jepa_tok.tokenizers"
"""Each entry point names a callable that takes ARGUMENT, empty where a SPEC has none, and gives an Adapter."""

CTC_RATE = 50.0
"""Positions a second that CTC wants for speech: well above the 15 characters or so that are spoken in one."""


class Adapter(ABC):
    """One tokenizer. Set the four attributes, and write `fingerprint` and `encode`; the rest has defaults."""

    name: str
    """As tables show it."""

    sample_rate: int
    """Of the waves that it takes, in Hz."""

    frame_rate: float
    """Frames a second. A wave of S samples has about S / sample_rate * frame_rate of them, and at least one."""

    radices: tuple[int, ...]
    """Number of values of each of the D codes of a frame."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """16 hex digits of all that codes depend on (weights, settings, fitted state): the key of caches. See `fingerprint_of`.

        Known before `fit`, too, and another one after it where `fit` learns something.
        """

    @abstractmethod
    def encode(self, wave: Tensor) -> np.ndarray:
        """Wave float32 [S], S >= 1, mono at `sample_rate` -> codes [T, D] of `code_dtype`.

        Raises AdapterError where `fit` is needed first.
        """

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Codes [T, D] -> float32 [T, F]: what they stand for.

        By default code k of L stands for -1 + (2k + 1) / L, the middle of its bin, which is right where neighbouring codes are
        alike, as in FSQ. Codebooks give the vectors that their indices name.
        """
        return ((2.0 * codes.astype(np.float32) + 1.0) / np.asarray(self.radices, np.float32) - 1.0).astype(np.float32)

    def latents(self, wave: Tensor) -> np.ndarray | None:
        """Wave [S] -> float32 [T, F] before quantising, in the frames of its codes; None where there is no such thing."""
        return None

    def codes_of(self, latents: np.ndarray) -> np.ndarray | None:
        """Latents [T, F] of `latents` -> the codes that `encode` gives; None where they do not follow from latents alone.

        Whoever has a clip's latents need not hear it again for its codes.
        """
        return None

    def fit(self, waves: Iterable[Tensor]) -> None:  # noqa: B027  (most learn nothing)
        """Learns from training audio, for those that do; the others leave `waves` unread.

        `waves` are clips as `encode` takes them, in random order: reading may stop once there are enough. Raises AdapterError
        where there are too few.
        """

    def state(self) -> dict[str, np.ndarray]:
        """What `fit` learned; empty where it learns nothing."""
        return {}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Takes back what `state` gave, instead of `fit`; raises AdapterError where it is that of another adapter."""
        if state:
            raise AdapterError(f"`{self.name}` learns nothing, but is given a state of {', '.join(sorted(state))}.")

    def to(self, device: str) -> None:  # noqa: B027  (not all have a model)
        """Moves the model there, where there is one; waves and codes stay on the CPU."""

    @property
    def slots(self) -> int:
        """CTC positions of a frame: as many as bring `frame_rate` nearest to 50 a second, at least one."""
        return max(1, round(CTC_RATE / self.frame_rate))

    @property
    def bits_per_second(self) -> float:
        """Of codes that are all equally likely."""
        return self.frame_rate * sum(math.log2(n) for n in self.radices)

    @property
    def code_dtype(self) -> np.dtype:
        """uint16, or uint32 where a radix asks for it."""
        return np.dtype(np.uint16 if max(self.radices) <= 2**16 else np.uint32)

    def check(self, codes: np.ndarray) -> np.ndarray:
        """Gives `codes` back; raises AdapterError where they are not what `encode` promises."""
        if codes.ndim != 2 or not len(codes) or codes.shape[1] != len(self.radices) or codes.dtype != self.code_dtype:
            raise AdapterError(
                f"`{self.name}` must give codes of {self.code_dtype} [T, {len(self.radices)}] with T >= 1, but gave "
                f"{codes.dtype} {list(codes.shape)} instead."
            )
        most = codes.max(0)
        over = np.flatnonzero(most >= np.asarray(self.radices))
        if len(over):
            d = int(over[0])
            raise AdapterError(
                f"`{self.name}` must give codes below {self.radices[d]} in dimension {d}, but gave {most[d]} instead."
            )
        return codes

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.name}', {self.frame_rate:g} Hz x {len(self.radices)} codes, {self.bits_per_second:g} bit/s)"


# --- finding


def names() -> list[str]:
    """Names of all installed adapters."""
    return sorted({e.name for e in entry_points(group=GROUP)})


def make_adapter(spec: str | os.PathLike[str]) -> Adapter:
    """The adapter that `spec` names.

    :raises AdapterError: Nothing has this name, a package or weights are missing, or what the entry point gives is no Adapter.
    :raises ConfigError: A tokenizer folder of this package is broken.
    """
    text = os.fspath(spec)
    name, _, argument = text.partition(":")
    found = {
        e.value: e for e in entry_points(group=GROUP) if e.name == name
    }  # an egg-info beside a checkout counts twice
    if len(found) > 1:
        raise AdapterError(f"`{name}` must be one adapter, but {' and '.join(sorted(found))} both have this name.")
    if not found:
        from jepa_tok.adapters.ours import Ours
        from jepa_tok.hub import find_pretrained, list_pretrained

        if Path(text).expanduser().is_dir() or find_pretrained(text):
            return Ours.from_pretrained(text)
        raise AdapterError(
            f"'{text}' must be a tokenizer folder, a packaged tokenizer ({', '.join(list_pretrained()) or 'none yet'}) or an adapter "
            f"({', '.join(names()) or 'none is installed: install jepa-tok anew'}), with an argument behind a colon where it takes one, but is none of them."
        )
    return _checked(name, _load(*found.values())(argument))


def _load(entry: EntryPoint) -> Callable[[str], Any]:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise AdapterError(f"adapter `{entry.name}` ({entry.value}) cannot be loaded: {error}.") from None


def _checked(name: str, adapter: Any) -> Adapter:
    if not isinstance(adapter, Adapter):
        raise AdapterError(
            f"the entry point of `{name}` must give an Adapter, but gave {type(adapter).__name__} instead."
        )
    for attribute in ("name", "sample_rate", "frame_rate", "radices"):
        if not hasattr(adapter, attribute):
            raise AdapterError(f"the adapter `{name}` must have the attribute `{attribute}`, but has none.")
    return adapter


def require(module: str, name: str) -> Any:
    """The imported `module` that adapter `name` needs; raises AdapterError, which says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise AdapterError(
            f"`{name}` needs {module.partition('.')[0]}, which cannot be imported ({reason}); `pip install 'jepa-tok[adapters]'` installs it."
        ) from None


# --- caches


def fingerprint_of(*parts: Any) -> str:
    """First 16 hex digits of the SHA-256 over parts that are plain values, arrays, tensors, or mappings from names to them."""
    digest = hashlib.sha256()

    def add(key: str, part: Any) -> None:
        if isinstance(part, Mapping):
            for name in sorted(part):
                add(f"{key}/{name}", part[name])
        elif hasattr(part, "shape"):  # a tensor's dtype may be one that numpy lacks: its bytes are taken
            data = part if isinstance(part, np.ndarray) else _bytes_of(part)
            digest.update(f"\n{key} {part.dtype} {list(part.shape)}\n".encode())
            digest.update(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        else:
            digest.update(f"\n{key} {json.dumps(part, sort_keys=True)}\n".encode())

    for index, part in enumerate(parts):
        add(str(index), part)
    return digest.hexdigest()[:16]


def _bytes_of(tensor: Any) -> np.ndarray:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def fit_once(adapter: Adapter, waves: Iterable[Tensor], path: str | os.PathLike[str]) -> None:
    """Fits `adapter`, or takes its state from the safetensors file `path`, which is written after a fit.

    The file's name is the caller's: `adapter.fingerprint` before fitting and what names the training audio belong in it. Raises
    AdapterError where the file is of another adapter or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save

    target = Path(path)
    if target.is_file():
        try:
            adapter.load_state(load_file(target))
        except (SafetensorError, OSError, AdapterError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise AdapterError(
                f"'{target}' must hold what `{adapter.name}` learned, but: {reason}; delete it to fit anew."
            ) from None
        return
    adapter.fit(waves)
    state = adapter.state()
    if state:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(target) as file:
            file.write(save({name: np.ascontiguousarray(x) for name, x in state.items()}))
