"""Reads the model out of a run's checkpoints, for the next stage and for export; files of one process or of several.

OUT/checkpoints/model.yaml                               family and configuration
OUT/checkpoints/step_N/model/pp_00/tp_00/sdp_XX.pt       weights, one file a shard (FSDP) or one alone
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_tok.config_dict import from_dict
from jepa_tok.errors import ConfigError, JepaTokError

ENCODER_FAMILY = "jepa_tok_encoder"
CODEC_FAMILY = "jepa_tok_codec"
"""Families of models, by which fairseq2 and a checkpoint's card name them."""


class CheckpointError(JepaTokError):
    """A run's checkpoint is missing or is not of the family that is asked for."""


@dataclass
class RunCheckpoint:
    """A checkpoint of a run, its weights not yet read."""

    family: str
    config: Mapping[str, Any]
    step: int
    folder: Path
    """The step's `model` folder."""

    def config_as(self, family: str, kls: type) -> Any:
        """The model's configuration; CheckpointError where the run trained another family."""
        if self.family != family:
            raise CheckpointError(
                f"'{self.folder}' must hold a model of family {family}, but holds {self.family} instead."
            )
        return from_dict(kls, self.config)

    def state(self, build: Callable[[], nn.Module]) -> dict[str, Tensor]:
        """Weights by name. `build` makes the model, on no device, for the shapes that shards are joined to."""
        files = sorted(self.folder.glob("pp_00/tp_00/sdp_*.pt"))
        if not files:
            raise CheckpointError(f"'{self.folder}' must hold pp_00/tp_00/sdp_00.pt, but does not.")
        shards = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
        if len(shards) == 1:
            return dict(shards[0])
        with torch.device("meta"):
            shapes = {name: t.shape for name, t in build().state_dict().items()}
        state = {}
        for name, first in shards[0].items():
            # Buffers are whole in every file; parameters are cut along their first dimension, the last files maybe empty.
            if first.shape != shapes[name]:
                first = torch.cat([shard[name] for shard in shards if name in shard])
            state[name] = first
        return state


def find_checkpoint(path: str | Path, step: int | None = None) -> RunCheckpoint:
    """Finds a checkpoint by its run's folder, its `checkpoints` folder, or a `step_N` folder.

    :param step: Which step; the last one by default.
    :raises CheckpointError: There is none.
    """
    path = Path(path)
    if path.name == "model" and path.parent.name.startswith("step_"):
        path = path.parent
    named = re.fullmatch(r"step_(\d+)", path.name)
    if named and path.is_dir():
        if step is not None and step != int(named[1]):
            raise CheckpointError(f"'{path}' names its step already; `step` must not be {step}.")
        root, step = path.parent, int(named[1])
    else:
        root = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    card = root / "model.yaml"
    steps = sorted(
        int(found[1]) for p in root.glob("step_*/model") if (found := re.fullmatch(r"step_(\d+)", p.parent.name))
    )
    if not card.is_file() or not steps:
        raise CheckpointError(f"'{path}' must be the folder of a run with checkpoints, but has none.")
    if step is None:
        step = steps[-1]
    if step not in steps:
        raise CheckpointError(f"'{root}' has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.")
    family, config = _read_card(card)
    return RunCheckpoint(family, config, step, root / f"step_{step}" / "model")


def _read_card(card: Path) -> tuple[str, Mapping[str, Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(card)
        return str(content["model_family"]), content["model_config"]
    except (YAMLError, KeyError, TypeError) as ex:
        raise CheckpointError(f"'{card}' must be a model's card, but is not: {' '.join(str(ex).split())}.") from None


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of a submodule: names that start with `prefix` and a dot, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in state.items() if name.startswith(prefix + ".")}


def difference(ours: Any, theirs: Any) -> str | None:
    """The first field in which two configurations differ, as `name (ours, theirs)`; None where they are equal."""
    from dataclasses import fields, is_dataclass

    if type(ours) is not type(theirs):
        raise ConfigError(f"cannot compare {type(ours).__name__} with {type(theirs).__name__}.")
    for f in fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        if a != b:
            inner = difference(a, b) if is_dataclass(a) else None
            return f"{f.name}.{inner}" if inner else f"`{f.name}` ({a} against {b})"
    return None
