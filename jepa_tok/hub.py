"""Tokenizer folders: finding, reading and writing them.

A folder holds `config.json`, {"format": "jepa-tok/1", "hash": ..., "weights": ..., "config": {...}}, and `model.safetensors`, the
weights of inference: never a pickle. `hash` may be absent; where it stands, weights that do not give it are refused, so that a
folder whose two files do not belong together cannot make tokens. `weights` is `full`, also where it is absent, or `int8`
(`compact`); the hash is that of the weights as they are loaded, whichever way they are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jepa_tok.compact import compact as compacted
from jepa_tok.compact import expand
from jepa_tok.config import TokenizerConfig
from jepa_tok.config_dict import differences, from_dict, to_dict
from jepa_tok.errors import ConfigError

FORMAT = "jepa-tok/1"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FULL, INT8 = "full", "int8"
"""Ways to store the weights."""
CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Packaged tokenizers, one folder each."""


@dataclass(frozen=True)
class TokenizerFolder:
    """What `read_folder` found."""

    path: Path
    config: TokenizerConfig
    tensors: dict[str, Tensor]
    """Weights by name, as a model takes them."""
    hash: str
    weights: str
    """How they are stored: `full` or `int8`."""


def list_pretrained() -> list[str]:
    """Names of the packaged tokenizers."""
    return sorted(p.parent.name for p in CHECKPOINTS.glob(f"*/{CONFIG_FILE}"))


def find_pretrained(name_or_folder: str | os.PathLike[str]) -> Path | None:
    """The tokenizer folder that is meant, or None where there is none.

    A folder that is there and holds a config.json comes first, then the packaged tokenizer of that name: `small` means the
    packaged one unless the working folder has a tokenizer folder `small`; `./small` never does.
    """
    folder = Path(name_or_folder).expanduser()
    if (folder / CONFIG_FILE).is_file() and os.fspath(name_or_folder):
        return folder
    return CHECKPOINTS / name_or_folder if os.fspath(name_or_folder) in list_pretrained() else None


def resolve_pretrained(name_or_folder: str | os.PathLike[str]) -> Path:
    """The tokenizer folder meant by a path or by the name of a packaged one (`find_pretrained`); raises ConfigError where there is none."""
    if not isinstance(name_or_folder, (str, os.PathLike)):
        raise ConfigError(
            f"a tokenizer must be the path of a folder or a name, but is {type(name_or_folder).__name__} instead."
        )
    found = find_pretrained(name_or_folder)
    if found is not None:
        return found
    given = os.fspath(name_or_folder)
    folder = Path(given).expanduser()
    if given and folder.exists():
        if not folder.is_dir():
            raise ConfigError(f"a tokenizer must be a folder, but '{given}' is a file instead.")
        raise ConfigError(f"'{given}' must hold {CONFIG_FILE} and {WEIGHTS_FILE}, but {CONFIG_FILE} is missing.")
    raise ConfigError(
        f"'{given}' must be a tokenizer folder or the name of a packaged tokenizer ({', '.join(list_pretrained()) or 'none yet'}), but is neither; "
        "`python -m recipes.codec.export RUN_DIR OUT_DIR` makes a folder of a trained one."
    )


def read_config(folder: Path) -> TokenizerConfig:
    """The config of a tokenizer folder; raises ConfigError, naming the file, where something is wrong with it."""
    return _read_config(folder / CONFIG_FILE)[0]


def tokenizer_hash(config: TokenizerConfig, tensors: Mapping[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over the config and each tensor's name, dtype, shape and bytes.

    The device plays no part. Weights cast to another dtype are another tokenizer. Of the config only what differs from the
    defaults counts, so that a field that a later version adds leaves the names of earlier tokenizers as they are.
    """
    digest = hashlib.sha256(json.dumps(differences(config), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def read_folder(name_or_folder: str | os.PathLike[str]) -> TokenizerFolder:
    """Reads and checks a tokenizer folder; raises ConfigError, naming the file, where something is wrong with it."""
    folder = resolve_pretrained(name_or_folder)
    config, expected, weights = _read_config(folder / CONFIG_FILE)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise ConfigError(f"'{folder}' must hold {CONFIG_FILE} and {WEIGHTS_FILE}, but {WEIGHTS_FILE} is missing.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"'{path}' must be a safetensors file, but cannot be read: {reason}.") from None
    if weights == INT8:
        try:
            tensors = expand(tensors)
        except ConfigError as error:
            raise ConfigError(f"'{path}': {error}") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ConfigError(f"'{path}' must hold finite floats, but tensor `{name}` does not.")
    found = tokenizer_hash(config, tensors)
    if expected is not None and expected != found:
        raise ConfigError(
            f"'{folder}' must hold the tokenizer {expected}, but its files give {found} instead: they are damaged, edited or not from one save."
        )
    return TokenizerFolder(folder, config, tensors, found, weights)


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raises ConfigError where names or shapes are not those that the config asks for."""
    for kind, names in (("lacks", set(expected) - set(found)), ("has the unknown", set(found) - set(expected))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(
                f"'{path}' {kind} tensor `{min(names)}`{more}; its config asks for {len(expected)} tensors."
            )
    for name, tensor in expected.items():
        if tensor.shape != found[name].shape:
            raise ConfigError(
                f"'{path}' tensor `{name}` must have shape {list(tensor.shape)}, but has {list(found[name].shape)} instead."
            )


def write_folder(
    folder: str | os.PathLike[str], config: TokenizerConfig, tensors: Mapping[str, Tensor], compact: bool = False
) -> Path:
    """Writes a tokenizer folder, or replaces the two files of one; raises ConfigError rather than touch another folder.

    With `compact` the weights are rounded (`jepa_tok.compact`): what is written is another tokenizer, under its own hash.

    A new folder appears whole or not at all. In one that exists each file is replaced whole, other files stay, and the
    hash tells a folder that a crash left with one file of each.
    """
    target = Path(folder).expanduser()
    if target.exists() and not target.is_dir():
        raise ConfigError(f"`folder` must be a folder, but '{target}' is a file instead.")
    if target.is_dir() and any(target.iterdir()) and not _is_tokenizer(target / CONFIG_FILE):
        raise ConfigError(
            f"`folder` must be new, empty or a tokenizer's, but '{target}' holds other files; choose another."
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stored = compacted(tensors) if compact else tensors
    record: dict[str, Any] = {"format": FORMAT, "hash": tokenizer_hash(config, expand(stored) if compact else tensors)}
    record |= {"weights": INT8 if compact else FULL, "config": to_dict(config)}
    text = json.dumps(record, indent=2) + "\n"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the folder, not in it: on one file system, and never seen by who lists the folder.
        scratch = target.absolute().parent / f".{target.absolute().name}.{os.getpid()}.tmp"
        try:
            scratch.mkdir()
            save_file(stored, scratch / WEIGHTS_FILE, metadata={"format": "pt", "jepa_tok": FORMAT})
            (scratch / CONFIG_FILE).write_text(text, encoding="utf-8")
            # safetensors lets the owner alone read its files; a tokenizer is for whoever may read its folder.
            (scratch / WEIGHTS_FILE).chmod((scratch / CONFIG_FILE).stat().st_mode & 0o777)
            if target.is_dir():
                os.replace(scratch / WEIGHTS_FILE, target / WEIGHTS_FILE)
                os.replace(scratch / CONFIG_FILE, target / CONFIG_FILE)
            else:
                os.replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"tokenizer could not be written to '{target}': {getattr(error, 'strerror', None) or error}."
        ) from None
    return target


def _read_config(path: Path) -> tuple[TokenizerConfig, str | None, str]:
    """The config, the hash where one is recorded, and how the weights are stored."""
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' must be a JSON file, but cannot be read: {error}.") from None
    if not isinstance(record, dict) or not isinstance(record.get("format"), str):
        raise ConfigError(f"'{path}' must be a tokenizer's config with a `format`, but has none.")
    if record["format"] != FORMAT:
        raise ConfigError(
            f"'{path}' must have format '{FORMAT}', but has '{record['format']}' instead; another version of jepa-tok wrote it."
        )
    unknown = sorted(set(record) - {"format", "hash", "weights", "config"})
    if unknown:
        raise ConfigError(f"'{path}' has the unknown field `{unknown[0]}`; it may have format, hash, weights, config.")
    if not isinstance(record.get("config"), dict):
        raise ConfigError(f"'{path}' must have a mapping `config`, but has {record.get('config')!r} instead.")
    expected = record.get("hash")
    if expected is not None and not isinstance(expected, str):
        raise ConfigError(f"'{path}' must have a string `hash`, but has {expected!r} instead.")
    weights = record.get("weights", FULL)
    if weights not in (FULL, INT8):
        raise ConfigError(f"'{path}' must have `weights` '{FULL}' or '{INT8}', but has {weights!r} instead.")
    try:
        return parse_config(record["config"]), expected, weights
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from None


def parse_config(values: Mapping[str, Any]) -> TokenizerConfig:
    """A checked TokenizerConfig of nested plain values; raises ConfigError."""
    try:
        config = from_dict(TokenizerConfig, values)
        config.check()
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"tokenizer config has a value of a wrong type: {error}.") from None
    return config


def _is_tokenizer(path: Path) -> bool:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["format"]).startswith("jepa-tok/")
    except (OSError, ValueError, KeyError, TypeError):
        return False
