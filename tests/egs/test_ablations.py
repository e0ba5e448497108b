"""The sweep: statistics against scipy and by hand, what is compared with what, cells that are not run twice, and a cell as a whole."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.stats import ttest_rel, wilcoxon

import recipes  # noqa: F401  (preloads libsndfile)

# isort: split
from egs.librispeech.ablations import __main__ as program
from egs.librispeech.ablations.cell import CODEC_LOSSES, SweepSettings, cell_path
from egs.librispeech.ablations.data import SECONDS, DataSettings, choose_readers, prepare
from egs.librispeech.ablations.measure import mean_of, r2_of
from egs.librispeech.ablations.page import MARK, write_page
from egs.librispeech.ablations.paired import compare
from egs.librispeech.ablations.variants import GROUPS, Variant, chosen, merged, needed
from jepa_tok.config_dict import from_dict, to_dict
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.errors import ConfigError, CorpusError
from jepa_tok.files import write_text
from jepa_tok.presets import codec_config, jepa_config
from jepa_tok.training_config import CodecConfig, JepaConfig

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = list({v.name: v for group in GROUPS for v in group.variants}.values())


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Readers a to d (train) and e (dev), an utterance of noise each; that of b is too short for validation."""
    rng = np.random.default_rng(0)
    rows = []
    for i, (speaker, seconds) in enumerate((("a", 10.0), ("b", 2.0), ("c", 6.5), ("d", 9.7), ("e", 7.0))):
        soundfile.write(tmp_path / f"{speaker}.wav", 0.1 * rng.standard_normal(round(seconds * 16_000)), 16_000)
        split = "dev" if speaker == "e" else "train"
        rows.append(
            {"id": f"u{i}", "path": f"{speaker}.wav", "speaker": speaker, "duration_s": seconds, "split": split}
        )
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "all.jsonl"


def test_comparison_equals_scipy_and_a_mean_by_hand() -> None:
    rng = np.random.default_rng(1)
    names = [f"r{i}" for i in range(12)]
    a = {s: {n: float(x) for n, x in zip(names, rng.normal(size=12))} for s in range(3)}
    b = {s: {n: x + float(rng.normal(0.3, 0.2)) for n, x in a[s].items()} for s in range(3)}
    means = [{s: float(np.mean(list(units.values()))) for s, units in side.items()} for side in (a, b)]
    found = compare(means[0], means[1], a, b)
    assert found is not None and (found.seeds, found.units) == (3, 12)
    assert found.difference == pytest.approx(np.mean([means[1][s] - means[0][s] for s in range(3)]))
    assert found.p_seeds == pytest.approx(ttest_rel(list(means[1].values()), list(means[0].values())).pvalue)
    by_reader = [np.mean([b[s][n] - a[s][n] for s in range(3)]) for n in sorted(names)]
    assert found.p_units == pytest.approx(wilcoxon(by_reader).pvalue)
    assert found.interval is not None and found.interval.low < np.mean(by_reader) < found.interval.high
    # Only what both have is compared.
    fewer = compare(means[0], {0: means[1][0], 9: 100.0}, a, {0: b[0], 9: b[1]})
    assert fewer is not None and fewer.seeds == 1 and fewer.p_seeds is None
    assert compare(means[0], {9: 1.0}, a, {9: b[1]}) is None
    same = compare(means[0], means[0], a, a)
    assert same is not None and same.difference == 0.0 and same.p_seeds is None and same.p_units is None


def test_t_test_of_three_seeds_by_hand() -> None:
    found = compare(
        {0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 2.0, 2: 3.0}, {s: {} for s in range(3)}, {s: {} for s in range(3)}
    )
    t = 2.0 / (1.0 / math.sqrt(3))  # with two degrees of freedom the tail is (1 - t / sqrt(t^2 + 2)) / 2
    assert found is not None and found.p_seeds == pytest.approx(1.0 - t / math.sqrt(t * t + 2.0))


def test_measures_of_units_and_of_all() -> None:
    found = mean_of([1.0, 3.0, 8.0], ["a", "a", "b"])
    assert found.value == 4.0 and found.units == {"a": 2.0, "b": 8.0}
    r2 = r2_of([(1.0, 2.0), (1.0, 6.0), (3.0, 4.0)], ["a", "a", "b"])
    assert r2.value == pytest.approx(1 - 5 / 12) and r2.units == {"a": pytest.approx(0.75), "b": pytest.approx(0.25)}


def test_every_variant_is_a_config_that_holds_together() -> None:
    for variant in VARIANTS:
        if variant.kind == "codec":
            usual, changes = codec_config("tiny"), merged(CODEC_LOSSES, variant.overrides)
            config = from_dict(CodecConfig, merged(to_dict(usual), changes))
            config.check()
            rate = config.tokenizer.encoder.frame_rate
            bits = sum(map(math.log2, config.tokenizer.quantizer.radices)) * rate
            assert not variant.name.startswith("rate-") or rate == float(variant.name.split("-")[1])
            assert not variant.name.endswith("bits") or bits == pytest.approx(640, rel=1e-3), variant.name
        else:
            from_dict(JepaConfig, merged(to_dict(jepa_config("tiny")), variant.overrides)).check()


def test_stage_1_comes_before_what_builds_on_it() -> None:
    order = [v.name for v in needed(chosen(None))]
    assert len(order) == len(set(order)) == len(VARIANTS)
    for v in VARIANTS:
        assert v.encoder is None or order.index(v.encoder) < order.index(v.name)
    assert [g.name for g in chosen(["masking", "gates"])] == ["gates", "masking"]
    assert [v.name for v in needed(GROUPS[:1], names=["gate-none"])] == ["gate-none"]
    assert [v.name for v in needed(list(GROUPS), names=["frozen-feature"])] == ["feature", "frozen-feature"]
    with pytest.raises(ValueError, match=r"`--variants` must be of base, .* but has 'noise'"):
        needed(list(GROUPS), names=["noise"])
    with pytest.raises(ValueError, match=r"`--groups` must be of gates, .* but has 'noise'"):
        chosen(["noise"])


def test_validation_readers_are_not_trained_on(manifest: Path, tmp_path: Path) -> None:
    rows = list(read_corpus(manifest))
    assert choose_readers(rows, 2) == ["e", "c"]  # of `dev`, then the one with the least audio of those that can
    with pytest.raises(CorpusError, match="needs 5 readers"):
        choose_readers(rows, 5)
    out = tmp_path / "out"
    prepare(DataSettings(str(manifest), valid_readers=2), out)
    pieces = {name: list(read_corpus(out / "data" / f"{name}.jsonl")) for name in ("train", "valid", "fit")}
    assert [u.info["speaker"] for u in pieces["valid"]] == ["e", "e", "c", "c"]
    assert {u.info["speaker"] for u in pieces["train"]} == {"a", "b", "d"}
    assert {u.id for u in pieces["fit"]} <= {u.id for u in pieces["train"]} and len(pieces["fit"]) == 4
    wave, rate = soundfile.read(pieces["valid"][1].path)
    assert rate == 24_000 and len(wave) == round(SECONDS * rate)


def fake_cell(variant: Variant, seed: int, settings: SweepSettings, out: Path, command: str) -> None:
    """Stands in for `run_cell`: writes what a cell would."""
    names = {"untrained": ["mel_r2"], "jepa": ["prediction_r2", "mel_r2", "speaker"], "codec": ["mel"]}[variant.kind]
    extra = ["effective_rank", "between_clip_share", "bit_rate", "bits_used", "code_usage"]
    rng = np.random.default_rng([seed, len(variant.name)])
    units = {n: {f"r{i}": float(x) for i, x in enumerate(rng.normal(size=6))} for n in names}
    found = {n: {"value": float(np.mean(list(u.values()))), "units": u} for n, u in units.items()}
    found |= {n: {"value": 1.0, "units": {}} for n in extra}
    cell = {"variant": variant.name, "kind": variant.kind, "seed": seed, "command": command, "commit": "c0ffee", "hardware": "a machine",
            "seconds": 1.0, "training_seconds": 1.0, "cpu_seconds": 1.0, "parameters": 10, "settings": asdict(settings), "found": found}  # fmt: skip
    cell_path(out, variant, seed).parent.mkdir(exist_ok=True)
    write_text(cell_path(out, variant, seed), json.dumps(cell))


def test_finished_cells_are_not_run_again_and_settings_are_kept(manifest, tmp_path, monkeypatch, capsys) -> None:
    ran: list[str] = []

    def run_cell(variant, seed, settings, out, command):
        if variant.name == "gate-sigmoid" and len(ran) < 5:
            return str(out / "logs" / "x.log")  # as of a cell that was killed
        ran.append(f"{variant.name}-{seed}")
        fake_cell(variant, seed, settings, out, command)
        return None

    monkeypatch.setattr(program, "run_cell", run_cell)
    out = tmp_path / "sweep"
    command = [
        "--manifest",
        str(manifest),
        "--out",
        str(out),
        "--groups",
        "gates",
        "--valid-readers",
        "2",
        "--seeds",
        "0",
        "1",
    ]
    assert program.main(command) == 1 and "cell gate-sigmoid-0 failed; its log is" in capsys.readouterr().err
    first = list(ran)
    assert "base-0" in first and "gate-sigmoid-0" not in first and first.index("untrained-0") < first.index("base-1")
    assert program.main(command) == 0
    assert ran == [*first, "gate-sigmoid-0"]
    assert program.main(["--out", str(out), "--groups", "gates", "--tables-only"]) == 0 and len(ran) == len(first) + 1
    assert program.main([*command, "--jepa-steps", "7"]) == 2
    error = capsys.readouterr().err
    assert "whose `jepa_steps` is" in error and error.count("\n") == 1
    assert program.main(["--out", str(tmp_path / "none"), "--tables-only"]) == 2


def test_page_keeps_what_is_written_by_hand_and_tells_what_is_missing(manifest, tmp_path) -> None:
    settings = SweepSettings(DataSettings(str(manifest), valid_readers=2))
    prepare(settings.data, tmp_path)
    group = chosen(["gates"])[0]
    for variant in group.variants[:2]:
        for seed in range(3 if variant is group.reference else 2):
            fake_cell(variant, seed, settings, tmp_path, program.command_of(settings, variant, seed))
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\nRead this.\n\n{MARK}\n\nold\n")
    write_page(tmp_path, [group], page, tmp_path / "data.json")
    text = page.read_text()
    assert text.startswith("# Mine\n\nRead this.\n\n") and "\nold\n" not in text
    assert "encoder's stages: no gate (seed 2); sigmoid; squeeze-excite;" in text
    row = next(line for line in text.splitlines() if line.startswith("| no gate | 2 |"))
    data = json.loads((tmp_path / "data.json").read_text())
    values = {(c["variant"], c["seed"]): c["found"]["prediction_r2"] for c in data["cells"]}
    assert f"{np.mean([values['gate-none', s] - values['base', s] for s in range(2)]):+.3f} [" in row
    assert str(tmp_path) not in text and str(tmp_path) not in (tmp_path / "data.json").read_text()
    with pytest.raises(ConfigError, match="must hold finished cells"):
        write_page(tmp_path / "empty", [group], page, tmp_path / "data.json")


FEW = """
import sys
from egs.librispeech.ablations import __main__ as program
few = [type(g)(g.name, g.title, g.variants[:1] + g.variants[-1:], g.measures) for g in program.chosen(["gates", "masking-codec"])]
program.chosen = lambda _: few
sys.exit(program.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_cells_of_all_kinds_end_to_end(manifest, tmp_path) -> None:
    """An untrained encoder, stage 1 and stage 2 on it, two steps each, in processes of their own; then their page."""
    options = ["--valid-readers", "2", "--seeds", "3", "--jepa-steps", "2", "--codec-steps", "2"]
    options += ["--jepa-batch", "2", "--codec-batch", "2"]
    # Not in this process: what other tests ran in it, a fork may not survive.
    done = subprocess.run(
        [sys.executable, "-c", FEW, "--manifest", str(manifest), "--out", str(tmp_path / "sweep"), *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "sweep" / "cells").glob("*.json")}
    assert set(found) == {"untrained-3", "base-3", "frozen-base-3", "frozen-untrained-3"}
    assert set(found["base-3"]["found"]["mel_r2"]["units"]) == {"e", "c"}
    assert found["frozen-base-3"]["found"]["bit_rate"]["value"] == 640.0
    for cell in found.values():
        assert all(math.isfinite(m["value"]) for m in cell["found"].values()) and cell["cpu_seconds"] > 0
    text = (tmp_path / "sweep" / "ablations.md").read_text()
    assert "| untrained encoder | 1 |" in text and "STOI" in text
