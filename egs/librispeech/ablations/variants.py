"""What is compared: the micro models and the groups of variants.

`micro` is `tiny` with a front at 50 Hz instead of 100 and three stages instead of five, narrow ones. It keeps the frame of 400 ms, 128 dimensions of 4
levels, a DAAM gate a stage; no dimension is kept for the pitch, so that all of them are compared. What holds z to the sound
is the anchor on log-mels, and targets are normalised over the clip, as in the presets; masking is at the input, which the presets left for that of
features because of what these tables say. A variant is what it changes of that.

Two ways to a codec: on the frozen encoder of a stage 1 run, as the paper's code does, for what stage 1 is compared in; and encoder and decoder
together, from nothing (`freeze_encoder: false`), for frame rates and quantisers, where a stage 1 for each would cost twice as much.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ENCODER: dict[str, Any] = {
    "front_hop": 480, "front_channels": 32, "n_mels": 64, "channels": [48, 64, 192], "strides": [2, 2, 5], "blocks": [1, 1, 1],
    "stage_conformers": [0, 1, 0], "conformer_heads": 2, "dropout": 0.0, "pitch_dims": 0,
}  # fmt: skip
GENERATOR: dict[str, Any] = {
    "head_hop": 480, "input_channels": 192, "channels": [96, 64, 64], "strides": [5, 2, 2], "blocks": [1, 1, 2], "stage_conformers": [1, 0, 0],
    "conformer_heads": 2, "pitch_dims": 0,
}  # fmt: skip
JEPA: dict[str, Any] = {
    "encoder": ENCODER, "predictor": {"dim": 64, "heads": 2}, "anchor": {"kind": "features", "clusters": 32}, "target_norm": "clip",
    "target_decay": 0.95, "prediction_weight": 0.2, "mask": {"place": "input"},
}  # fmt: skip
"""The target's decay is below the paper's .996: in so few steps that one would hardly follow."""


@dataclass(frozen=True)
class Variant:
    """One thing that is trained and measured, with every seed."""

    name: str
    kind: Literal["untrained", "jepa", "codec"]
    title: str
    """Row of the tables."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Of the model's configuration: `JepaConfig`, or for a codec `TokenizerConfig` and the rest of `CodecConfig`."""

    encoder: str | None = None
    """Codec: the variant of stage 1 whose encoder it takes; None: an untrained one."""

    data: Literal["train", "both"] = "train"
    sounds: bool = False
    """Whether it is measured on sounds, too."""

    extra: bool = False
    """Whether it waits until the others have all seeds: what a sweep that is cut short lacks."""


@dataclass(frozen=True)
class Group:
    """Variants that one table compares with the first of them."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    measures: tuple[str, ...]
    first: str | None = None
    """What the reference is called in this table, where its own title says too little."""

    def title_of(self, variant: Variant) -> str:
        """Row of the group's tables."""
        return self.first if self.first is not None and variant is self.reference else variant.title

    @property
    def reference(self) -> Variant:
        return self.variants[0]


def merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """`b` over `a`, mapping by mapping."""
    both = dict(a)
    for key, value in b.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


def jepa(name: str, title: str, overrides: dict[str, Any] | None = None, **more: Any) -> Variant:
    """A stage 1 variant."""
    return Variant(name, "jepa", title, merged(JEPA, overrides or {}), **more)


def codec(
    name: str,
    title: str,
    levels: list[int] | None = None,
    *,
    stage1: Variant | None = None,
    encoder: dict[str, Any] | None = None,
    **more: Any,
) -> Variant:
    """A stage 2 variant: on the encoder of `stage1`, frozen, or with `encoder` over `ENCODER`, trained together with the decoder."""
    shape = merged(ENCODER, encoder or {}) if stage1 is None else stage1.overrides["encoder"]
    dim = shape.get("latent_dim", 128)
    # Widest first: upsampling is cheapest at the frame rate.
    generator = merged(GENERATOR, {"latent_dim": dim, "strides": sorted(shape["strides"], reverse=True)})
    tokenizer = {"encoder": shape, "quantizer": {"dim": dim, "levels": levels or [4]}, "generator": generator}
    overrides: dict[str, Any] = {"tokenizer": tokenizer}
    if stage1 is None:
        overrides |= {"freeze_encoder": False, "usage_weight": 1.0}
    trained = stage1 is not None and stage1.kind == "jepa"
    return Variant(name, "codec", title, overrides, encoder=stage1.name if trained and stage1 else None, **more)


def at_rate(rate: float, dim: int) -> dict[str, Any]:
    """An encoder of `rate` frames a second and `dim` dimensions: strides are left out, from the front's 50 Hz."""
    strides = {5.0: [2, 1, 5], 10.0: [1, 1, 5], 12.5: [2, 2, 1], 25.0: [2, 1, 1]}[rate]
    return {"strides": strides, "latent_dim": dim}


NO_ANCHOR = {"anchor": {"kind": "posteriors", "clusters": 0}}
FEATURE = {"mask": {"place": "feature"}}
VICREG = {"variance_weight": 1.0, "covariance_weight": 0.04}

BASE = jepa("base", "reference", sounds=True)
UNTRAINED = Variant("untrained", "untrained", "untrained", JEPA)
BOTH = jepa("both", "speech and sounds", data="both", sounds=True)
GATES = (
    BASE,
    jepa("gate-none", "no gate", {"encoder": {"daam": False}}),
    *(
        jepa(f"gate-{gate}", gate, {"encoder": {"gate": gate}}, extra=gate == "squeeze-excite")
        for gate in ("sigmoid", "squeeze-excite", "static")
    ),
)
MASKING = (
    BASE,
    jepa("posteriors", "anchor on posteriors", {"anchor": {"kind": "posteriors"}}),
    jepa("anchor-only", "anchor alone (no prediction)", {"prediction_weight": 0.0}),
    jepa("input-free", "no anchor", NO_ANCHOR),
    jepa("feature", "feature masking", FEATURE),
    jepa("feature-free", "feature masking, no anchor, targets as they are (paper)", merged(merged(FEATURE, NO_ANCHOR), {"target_norm": "none"})),
    jepa("feature-vicreg", "feature masking, variance and covariance instead of the anchor", merged(merged(FEATURE, NO_ANCHOR), VICREG)),
    jepa("input-vicreg", "variance and covariance instead of the anchor", merged(NO_ANCHOR, VICREG), extra=True),
    jepa("blocks", "masks of four equal blocks", {"mask": {"law": "blocks"}}, extra=True),
    jepa("ratio-25", "a quarter of the frames masked", {"mask": {"ratio": 0.25}}, extra=True),
    jepa("ratio-75", "three quarters masked", {"mask": {"ratio": 0.75}}, extra=True),
    jepa("layer", "targets normalised over dimensions", {"target_norm": "layer"}, extra=True),
)  # fmt: skip
FROZEN = codec("frozen-base", "reference", stage1=BASE, extra=True)
FROZEN_UNTRAINED = codec("frozen-untrained", "untrained encoder", stage1=UNTRAINED, extra=True)

CODEC = codec("codec", "2.5 Hz, 128 dimensions of 4 levels", sounds=True)
# 640 bit/s: dimensions of 4 levels, and a few of 3 or 2 where that does not come out even (639.6 bit/s at 12.5 and 25 Hz).
EQUAL_BITS = {5.0: [4] * 64, 10.0: [4] * 32, 12.5: [4] * 24 + [3] * 2, 25.0: [4] * 11 + [3] + [2] * 2}

OBJECTIVE = "input masking, anchor on log-mels, targets normalised over the clip"
STAGE1 = ("prediction_r2", "mel_r2", "speaker")
STAGE2 = ("mel", "stft", "stoi")

GROUPS = (
    Group("gates", "Gates of the encoder's stages", (*GATES, UNTRAINED), STAGE1, "DAAM"),
    Group("masking", "Masking and anchor", (*MASKING, UNTRAINED), STAGE1, OBJECTIVE),
    Group(
        "rates", "Frame rates at 640 bit/s",
        (
            CODEC,
            *(codec(f"rate-{r:g}-bits", f"{r:g} Hz, {len(n)} dimensions", n, encoder=at_rate(r, len(n)), extra=r == 12.5) for r, n in EQUAL_BITS.items()),
        ), STAGE2,
    ),
    Group(
        "distortion", "Levels and dimensions at 2.5 Hz",
        (
            CODEC,
            *(codec(f"levels-{n}", f"128 x {n} levels", [n], extra=n in (3, 6)) for n in (2, 3, 6, 8)),
            *(codec(f"dim-{d}", f"{d} x 4 levels", encoder={"latent_dim": d}, extra=d == 64) for d in (32, 64, 256)),
            codec("dim-256-levels-2", "256 x 2 levels", [2], encoder={"latent_dim": 256}, extra=True),
        ), STAGE2,
    ),
    Group("sounds", "Speech alone against speech and sounds: stage 1", (BASE, BOTH), (*STAGE1, "sound_class"), "speech alone"),
    Group(
        "sounds-codec", "Speech alone against speech and sounds: stage 2",
        (CODEC, codec("codec-both", "speech and sounds", data="both", sounds=True)), (*STAGE2, "sound_mel", "sound_stft"), "speech alone",
    ),
    Group(
        "rates-dims", "Frame rates at 128 dimensions of 4 levels",
        (CODEC, *(codec(f"rate-{r:g}-dims", f"{r:g} Hz", encoder=at_rate(r, 128), extra=True) for r in EQUAL_BITS)), STAGE2,
    ),
    Group(
        "gates-codec", "Gates: reconstruction from the frozen encoder",
        (FROZEN, *(codec(f"frozen-{v.name}", v.title, stage1=v, extra=True) for v in GATES[1:]), FROZEN_UNTRAINED), STAGE2, "DAAM",
    ),
    Group(
        "masking-codec", "Masking and anchor: reconstruction from the frozen encoder",
        (FROZEN, *(codec(f"frozen-{v.name}", v.title, stage1=v, extra=True) for v in MASKING[1:]), FROZEN_UNTRAINED), STAGE2, OBJECTIVE,
    ),
)  # fmt: skip


def chosen(names: list[str] | None) -> list[Group]:
    """The groups of these names, in their order here; ValueError for an unknown one."""
    known = [group.name for group in GROUPS]
    for name in names or []:
        if name not in known:
            raise ValueError(f"`--groups` must be of {', '.join(known)}, but has '{name}' instead.")
    return [group for group in GROUPS if names is None or group.name in names]


def needed(groups: list[Group], extra: bool | None = None, names: list[str] | None = None) -> list[Variant]:
    """Each variant of the groups once, behind the stage 1 that it takes its encoder from; ValueError for unknown `names`.

    :param extra: Only those that are `extra`, or only those that are not.
    :param names: Only these.
    """
    by_name = {v.name: v for v in (*GATES, *MASKING, *(v for group in GROUPS for v in group.variants))}
    for name in names or []:
        if name not in by_name:
            raise ValueError(f"`--variants` must be of {', '.join(by_name)}, but has '{name}' instead.")
    wanted = [v for g in groups for v in g.variants if extra in (None, v.extra) and (names is None or v.name in names)]
    return [by_name[name] for name in dict.fromkeys(n for v in wanted for n in (v.encoder, v.name) if n is not None)]
