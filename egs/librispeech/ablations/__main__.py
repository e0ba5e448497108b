"""The sweep: trains and measures every variant with every seed, and writes tables.

    python -m egs.librispeech.ablations --manifest all.jsonl [--sounds esc10.jsonl] --out exp/ablations [--groups gates,masking] [--seeds 0 1 2]

The manifest has the columns `split` (train, dev), `speaker` and `duration_s`, as `egs.librispeech.prepare` writes it. OUT gets `cells/*.json`, one a
cell, `ablations.md` and `ablations.json`. A cell that is there is not run again: the same command goes on where it was stopped.
`--tables-only` writes the tables of the cells that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import recipes  # noqa: F401  (one thread, and libsndfile; before torch)

# isort: split
from egs.librispeech.ablations.cell import SweepSettings, cell_path, run_cell
from egs.librispeech.ablations.data import DataSettings, prepare
from egs.librispeech.ablations.page import write_page
from egs.librispeech.ablations.variants import GROUPS, Group, Variant, chosen, needed
from jepa_tok.errors import ConfigError, JepaTokError
from jepa_tok.files import write_text


def check_settings(settings: SweepSettings, out: Path) -> None:
    """Writes OUT/sweep.json, or raises ConfigError where the cells of OUT were made with other settings."""
    path = out / "sweep.json"
    ours = asdict(settings)
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(ours, indent=2) + "\n")
        return
    theirs = json.loads(path.read_text())
    if theirs != ours:
        flat = [_flat(ours), _flat(theirs)]
        name = next(key for key in flat[0] if flat[0][key] != flat[1].get(key))
        raise ConfigError(f"'{out}' holds a sweep whose `{name}` is {flat[1].get(name)}, but {flat[0][name]} is asked for; take another folder.")  # fmt: skip


def _flat(values: dict) -> dict:
    return {
        key: v
        for k, value in values.items()
        for key, v in (_flat(value) if isinstance(value, dict) else {k: value}).items()
    }


def sweep(
    settings: SweepSettings, groups: list[Group], seeds: list[int], out: Path, names: list[str] | None = None
) -> list[str]:
    """Runs the cells that are not there yet, seed by seed, so that each group has its first early; returns the names of those that failed."""
    check_settings(settings, out)
    prepare(settings.data, out)
    by_name = {v.name: v for v in needed(groups, names=names)}
    order = [(v.name, seed) for extra in (False, True) for seed in seeds for v in needed(groups, extra, names)]
    cells = list(dict.fromkeys(order))
    failed: list[str] = []
    for i, (key, seed) in enumerate(cells, 1):
        variant = by_name[key]
        name = f"{variant.name}-{seed}"
        if cell_path(out, variant, seed).exists():
            continue
        if variant.encoder is not None and f"{variant.encoder}-{seed}" in failed:
            failed.append(name)
            continue
        log = run_cell(variant, seed, settings, out, command_of(settings, variant, seed))
        if log is not None:
            failed.append(name)
            print(f"ablations: cell {name} failed; its log is {log}", file=sys.stderr)
        else:
            found = json.loads(cell_path(out, variant, seed).read_text())
            print(f"{i}/{len(cells)} {name}: {found['seconds']} s", flush=True)
    return failed


def command_of(settings: SweepSettings, variant: Variant, seed: int) -> str:
    """The command that makes one cell (and those that it builds on), its files without their folders."""
    data, usual = settings.data, SweepSettings(DataSettings(""))
    words = ["python -m egs.librispeech.ablations", f"--manifest {Path(data.manifest).name}"]
    if data.sounds is not None:
        words.append(f"--sounds {Path(data.sounds).name}")
    words.append(f"--out exp/ablations --variants {variant.name} --seeds {seed}")
    pairs = [(asdict(settings), asdict(usual)), (asdict(data), asdict(usual.data))]
    for ours, theirs in pairs:
        words += [
            f"--{k.replace('_', '-')} {v}"
            for k, v in ours.items()
            if k not in ("data", "manifest", "sounds") and v != theirs[k]
        ]
    return " ".join(words)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    usual = SweepSettings(DataSettings(""))
    parser = argparse.ArgumentParser(
        prog="python -m egs.librispeech.ablations",
        description="Ablations at micro scale.",
        epilog="example: python -m egs.librispeech.ablations --manifest exp/librispeech/data/all.jsonl --out exp/ablations",
    )
    parser.add_argument("--manifest", type=Path, help="corpus of speech with the splits train and dev")
    parser.add_argument(
        "--sounds",
        type=Path,
        help="corpus of labelled sounds with the splits train and dev; without it, no group of sounds",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the sweep")
    parser.add_argument("--groups", help=f"some of {','.join(g.name for g in GROUPS)} (default: all)")
    parser.add_argument(
        "--variants",
        help="some of the groups' variants, by the names of their cells, and what they build on (default: all)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument(
        "--jepa-steps", type=int, default=usual.jepa_steps, help="steps of stage 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--codec-steps", type=int, default=usual.codec_steps, help="steps of stage 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--jepa-batch", type=int, default=usual.jepa_batch, help="pieces of a step of stage 1 (default: %(default)s)"
    )
    parser.add_argument(
        "--codec-batch", type=int, default=usual.codec_batch, help="crops of a step of stage 2 (default: %(default)s)"
    )
    parser.add_argument(
        "--valid-readers", type=int, default=usual.data.valid_readers, help="readers held out (default: %(default)s)"
    )
    parser.add_argument("--train-readers", type=int, help="most training readers (default: all)")
    parser.add_argument("--tables-only", action="store_true", help="only write the tables of the cells that are there")
    parser.add_argument(
        "--page", type=Path, help="page to write; what stands above its tables is kept (default: OUT/ablations.md)"
    )
    parser.add_argument("--json", type=Path, help="data to write (default: OUT/ablations.json)")
    args = parser.parse_args(argv)
    failed: list[str] = []
    try:
        groups = chosen(args.groups.split(",") if args.groups else None)
        if not args.tables_only:
            if args.manifest is None:
                raise ConfigError("`--manifest` must name a corpus, but is missing.")
            sounds = None if args.sounds is None else str(args.sounds.resolve())
            data = DataSettings(
                str(args.manifest.resolve()), sounds, valid_readers=args.valid_readers, train_readers=args.train_readers
            )
            if sounds is None:
                groups = [g for g in groups if "sounds" not in g.name]
            settings = SweepSettings(data, args.jepa_steps, args.codec_steps, args.jepa_batch, args.codec_batch)
            failed = sweep(settings, groups, args.seeds, args.out, args.variants.split(",") if args.variants else None)
        page = write_page(
            args.out, groups, args.page or args.out / "ablations.md", args.json or args.out / "ablations.json"
        )
    except (JepaTokError, ValueError, OSError) as error:
        print(f"ablations: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {page}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
