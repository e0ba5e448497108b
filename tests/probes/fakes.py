"""Made-up corpora and adapters for the tests of suites: a clip is a tone whose pitch tells its speaker, if not much else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jepa_tok import save_audio
from jepa_tok.adapters import Adapter, fingerprint_of

RATE, HOP = 8_000, 800


class Pitch(Adapter):
    """Codes that name the pitch: the planted signal. `encoded` counts the clips it was given."""

    name, sample_rate, frame_rate, radices = "pitch", RATE, RATE / HOP, (16, 4)

    def __init__(self, argument: str = "") -> None:
        self.encoded = 0
        self.argument = argument

    @property
    def fingerprint(self) -> str:
        return fingerprint_of("pitch", self.argument)

    def encode(self, wave: torch.Tensor) -> np.ndarray:
        self.encoded += 1
        frames = torch.nn.functional.pad(wave, (0, -len(wave) % HOP)).reshape(-1, HOP)
        bins = torch.fft.rfft(frames).abs()[:, 5:].argmax(1) // 5  # bins of 10 Hz: a step of 50 Hz
        codes = torch.stack([bins.clamp(0, 15), torch.arange(len(bins)) % 4], dim=1)
        return codes.numpy().astype(self.code_dtype)

    def latents(self, wave: torch.Tensor) -> np.ndarray:
        return self.values(self.encode(wave)) + np.float32(0.001)


class Noise(Pitch):
    """Codes that hold nothing."""

    name = "noise"

    @property
    def fingerprint(self) -> str:
        return fingerprint_of("noise")

    def encode(self, wave: torch.Tensor) -> np.ndarray:
        codes = super().encode(wave)
        seed = int(abs(float(wave[:100].sum())) * 1e6) % 2**31
        return np.random.default_rng(seed).integers(0, self.radices, codes.shape).astype(self.code_dtype)


class Learner(Pitch):
    """Learns the length of each clip that it hears, and refuses to encode before."""

    name = "learner"

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.heard = np.zeros(0, np.int64)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of("learner", self.heard)

    def fit(self, waves: Iterable[torch.Tensor]) -> None:
        self.heard = np.array(sorted(len(wave) for wave in waves), np.int64)

    def state(self) -> dict[str, np.ndarray]:
        return {"heard": self.heard}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.heard = state["heard"]

    def encode(self, wave: torch.Tensor) -> np.ndarray:
        assert len(self.heard)
        return super().encode(wave)


def write_corpus(root: Path, speakers: int = 6, each: int = 10, *, name: str = "tones") -> Path:
    """ROOT/tones.jsonl: speaker s sounds at 100 (s + 1) Hz; every clip has a length of its own, so that it can be told."""
    draw = np.random.default_rng(0 if name == "tones" else list(name.encode()))  # no two corpora share sound
    words = ["one", "two", "three", "four"]
    rows = []
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for s in range(speakers):
        for k in range(each):
            size = 3_000 + 100 * (s * each + k)
            pitch = 100 * (s + 1) + draw.normal()
            wave = 0.3 * np.sin(2 * np.pi * pitch * np.arange(size) / RATE) + 0.01 * draw.normal(size=size)
            save_audio(folder / f"s{s}-{k}.wav", wave.astype(np.float32), RATE)
            own = f"s{s}-{k}" if name == "tones" else f"{name}-s{s}-{k}"
            row: dict[str, Any] = {"id": own, "path": f"{name}/s{s}-{k}.wav", "speaker": f"s{s}", "size": size}
            row |= {"text": f"{words[s % 4]} {words[k % 4]}", "high": "yes" if s % 2 else "no"}
            row["split"] = ["train", "train", "train", "dev", "test", "test"][s % 6]
            row["split_utt"] = "test" if k % 5 == 4 else "dev" if k % 5 == 3 else "train"
            rows.append(row)
    manifest = root / f"{name}.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def write_suite(path: Path, tasks: str, manifest: str = "tones.jsonl") -> Path:
    """A suite's file; `tasks` in YAML's flow style."""
    path.write_text(f"about: tones\nmanifest: {manifest}\ntasks: {tasks}\n")
    return path


def command(root: Path, specs: str, seeds: str = "0") -> list[str]:
    """`run` of ROOT/tones.yaml with the tokenizers `specs`, to ROOT/out."""
    given = ["run", "--suite", root / "tones.yaml", "--data", root, "--out", root / "out", "--seeds", *seeds.split()]
    return [*map(str, given), *(["--tokenizers", specs] if specs else [])]


TASKS = "{speaker: {probe: classify, column: speaker, split_column: split_utt}}"


def table(tmp_path: Path, task: str = "speaker") -> dict[str, dict[str, Any]]:
    """Rows of a table by name."""
    found = json.loads((tmp_path / "out/results.json").read_text())
    return {row["name"]: row for row in next(t for t in found["tables"] if t["task"] == task)["rows"]}


def ages(tmp_path: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out/cells").iterdir()}
