"""How long a suite's tasks take once tokens exist, on made-up codes of so many hours: seconds a cell of each task, peak memory.

    python -m benchmarks.probes --hours 10

Codes of 128 digits of four levels at 2.5 Hz lean on their speaker and on their words, so that heads have something to fit. They
are written to a cache and read back as a suite's are. A suite measures each task once a tokenizer, control and seed, and each cell
holds its own shuffled control: `minutes` is for `--rows` of them and three seeds, in one process.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, print_table, run_main, write_json
from jepa_tok.corpus.utterance import Utterance
from probes import cache, features
from probes.entries import Clips, Meta, View
from probes.suite import Task

RADICES = (4,) * 128
META = Meta("0" * 16, RADICES, 2.5, 24_000, 19)
SPEAKERS, WORDS, SEEDS = 40, 300, 3

TASKS = (
    Task("asr", "asr", {"column": "text", "split_column": "split"}),
    Task("speaker", "speaker", {"column": "speaker", "split_column": "split_utt", "verification_column": "split"}),
    Task("gender", "classify", {"column": "gender", "speaker_column": "speaker", "split_column": "split"}),
    Task("emotion", "classify", {"column": "emotion", "speaker_column": "speaker", "folds": 5}),
)


def make_corpus(hours: float, seed: int = 0) -> list[Utterance]:
    """Clips of 2 to 24 s, 12 s in the mean, of 40 speakers with words, genders and emotions drawn for them."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("aeiounrtsldhcm"))
    words = ["".join(draw.choice(letters, draw.integers(2, 8))) for _ in range(WORDS)]
    rows: list[Utterance] = []
    left = hours * 3600
    while left > 0:
        i, seconds = len(rows), float(draw.uniform(2, 22))
        speaker = i % SPEAKERS
        info: dict[str, Any] = {"speaker": f"s{speaker:02d}", "gender": "FM"[speaker % 2], "seconds": seconds}
        info["text"] = " ".join(draw.choice(words, max(1, int(2.5 * seconds))))
        info["emotion"] = ["anger", "happiness", "neutral", "sadness"][int(draw.integers(4))]
        info["split"] = "test" if speaker % 5 == 4 else "dev" if speaker % 5 == 3 else "train"
        info["split_utt"] = ("train", "train", "train", "dev", "test")[(i // SPEAKERS + speaker) % 5]
        rows.append(Utterance(f"u{i:06d}", f"/none/u{i:06d}.wav", info=info))
        left -= seconds
    return rows


def make_codes(u: Utterance) -> tuple[np.ndarray, int]:
    """Codes of a made-up clip: a third lean on the speaker, a third on the letters of the frame."""
    draw = np.random.default_rng(int(u.id[1:]))
    frames = int(np.ceil(2.5 * u.info["seconds"]))
    codes = draw.integers(0, 4, (frames, len(RADICES)))
    voice = np.random.default_rng(int(u.info["speaker"][1:]) + 10**6).integers(0, 4, len(RADICES))
    text = np.frombuffer(u.info["text"].encode(), np.uint8)
    heard = np.resize(text, (frames, 40)) % 4
    codes[:, :43] = np.where(draw.random((frames, 43)) < 0.5, voice[:43], codes[:, :43])
    codes[:, 43:83] = np.where(draw.random((frames, 40)) < 0.7, heard, codes[:, 43:83])
    return codes, round(u.info["seconds"] * META.sample_rate)


def measure(hours: float, rows: int, names: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row a step and task."""
    corpus = make_corpus(hours)
    dtype = np.dtype(np.uint8)
    cache.fill(folder, corpus, make_codes, dtype, lambda count: None)
    began = time.monotonic()
    frames = cache.open_frames(folder, [u.id for u in corpus])
    pooled = cache.pooled(folder, 0, lambda: features.pool_all(frames, RADICES))
    found = [_row("pooled once", time.monotonic() - began, rows)]
    clips = Clips(frames, pooled, View("codes", META))
    for task in TASKS:
        if task.name in names:
            data = task.prepare(clips.data(corpus))
            began = time.monotonic()
            outcome = task.run(data, clips.source(data), 0, "cpu")
            metric = next(iter(outcome.better))
            value = outcome.rows[0].as_dict()["metrics"][metric]["mean"]
            found.append(_row(task.name, time.monotonic() - began, rows * SEEDS) | {"metric": metric, "value": value})
    return found


def _row(what: str, seconds: float, times: int) -> dict[str, Any]:
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "task": what,
        "s": round(seconds, 2),
        "minutes": seconds * times / 60,
        "peak MiB": peak,
        "metric": "",
        "value": "",
    }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Time of a suite's tasks on made-up codes.")
    parser.add_argument("--hours", type=float, default=10.0, help="default: 10")
    parser.add_argument("--rows", type=int, default=4, help="tokenizers and controls in a table; default: 4")
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    head = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.hours, args.rows, args.tasks, Path(folder))
    print_table(found)
    if args.out:
        write_json(args.out, head | {"hours": args.hours, "rows": found})
    return 0


if __name__ == "__main__":
    run_main(main)
