"""How long a suite's tasks take once tokens exist, on made-up codes of so many hours: seconds a cell of each task, peak memory.

    python -m benchmarks.probes --hours 10                    # 128 digits of four levels at 2.5 Hz, as ours
    python -m benchmarks.probes --hours 10 --codes kmeans     # two codes of 256 at 40 Hz, as `melkm`
    python -m benchmarks.probes --updates                     # one update of the linear ASR head alone

Codes lean on their speaker and on their words, so that heads have something to fit. They are written to a cache and read back as a
suite's are. A suite measures each task once a tokenizer, control and seed, and each cell holds its own shuffled control: `minutes` is
for `--rows` of them and three seeds, in one process. `cpu s` is what the process itself took, whatever else the machine did.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, print_table, run_main, write_json
from jepa_tok.corpus.utterance import Utterance
from probes import cache, ctc, features
from probes.entries import Clips, Meta, View
from probes.suite import Task

CODES = {
    "fsq": Meta("0" * 16, (4,) * 128, 2.5, 24_000, 19),
    "kmeans": Meta("1" * 16, (256,) * 2, 40.0, 24_000, 1),
}
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


def make_codes(u: Utterance, meta: Meta) -> tuple[np.ndarray, int]:
    """Codes of a made-up clip: a third of the digits leans on the speaker, a third on the letters of the frame; of large codebooks, the
    first on the letter and the second on the speaker."""
    draw = np.random.default_rng(int(u.id[1:]))
    frames, dims, levels = int(np.ceil(meta.frame_rate * u.info["seconds"])), len(meta.radices), meta.radices[0]
    codes = draw.integers(0, levels, (frames, dims))
    voice = np.random.default_rng(int(u.info["speaker"][1:]) + 10**6).integers(0, levels, dims)
    text = np.frombuffer(u.info["text"].encode(), np.uint8).astype(np.int64)
    spoken, said = dims // 3, max(1, dims // 3)
    heard = np.resize(text, (frames, said)) if dims > 2 else text[np.arange(frames) * len(text) // frames][:, None]
    codes[:, :said] = np.where(draw.random((frames, said)) < 0.7, heard % levels, codes[:, :said])
    of_voice = slice(said, said + max(1, spoken))
    codes[:, of_voice] = np.where(draw.random(codes[:, of_voice].shape) < 0.5, voice[of_voice], codes[:, of_voice])
    return codes, round(u.info["seconds"] * meta.sample_rate)


def measure(hours: float, kind: str, rows: int, names: list[str], folder: Path) -> list[dict[str, Any]]:
    """A row a step and task."""
    corpus, meta = make_corpus(hours), CODES[kind]
    cache.fill(folder, corpus, partial(make_codes, meta=meta), np.dtype(np.uint8), lambda count: None)
    clock = Clock()
    frames = cache.open_frames(folder, [u.id for u in corpus])
    pooled = cache.pooled(folder, 0, lambda: features.pool_all(frames, meta.radices))
    found = [clock.row("pooled once", rows)]
    clips = Clips(frames, pooled, View("codes", meta))
    for task in TASKS:
        if task.name in names:
            data = task.prepare(clips.data(corpus))
            clock = Clock()
            outcome = task.run(data, clips.source(data), 0, "cpu")
            metric = next(iter(outcome.better))
            value = outcome.rows[0].as_dict()["metrics"][metric]["mean"]
            found.append(clock.row(task.name, rows * SEEDS) | {"metric": metric, "value": value})
    return found


def measure_updates(kind: str, head: str) -> dict[str, Any]:
    """One update of an ASR head on 64 s of speech, the mean over a pass of a quarter of an hour."""
    corpus, meta = make_corpus(0.25), CODES[kind]
    frames = [make_codes(u, meta)[0].astype(np.uint8) for u in corpus]
    labels = [[1 + "abcdefghijklmnopqrstuvwxyz ".index(c) for c in u.info["text"]] for u in corpus]
    clips = ctc.Clips(frames, features.OneHot(meta.radices), labels, meta.num_groups, meta.frame_rate)
    options = {"kind": head, "size": 28, "context": ctc.default_context(clips), "lr": 0.01, "decay": 0.1}
    most = ctc.UPDATES, ctc.MOST_UPDATES
    ctc.UPDATES, ctc.MOST_UPDATES = 1, 1  # batches as long as they may be, and one pass
    try:
        for part in ([0, 1], range(len(corpus))):  # the first time, to load what torch loads late
            clock = Clock()
            ctc.train(clips, part, [0], epochs=1, seed=0, device="cpu", **options)
        count = len(clips.batches(range(len(corpus))))
        return {"codes": kind, "head": head, "updates": count} | clock.seconds(1 / count)
    finally:
        ctc.UPDATES, ctc.MOST_UPDATES = most


class Clock:
    """Time since it was made."""

    def __init__(self) -> None:
        self.wall, self.own = time.monotonic(), time.process_time()

    def seconds(self, share: float = 1.0) -> dict[str, float]:
        """On the wall and of this process."""
        wall, own = time.monotonic() - self.wall, time.process_time() - self.own
        return {"s": round(wall * share, 3), "cpu s": round(own * share, 3)}

    def row(self, what: str, times: int) -> dict[str, Any]:
        """Of the table; `minutes` are of the process, for `times` such cells."""
        found = self.seconds()
        # ru_maxrss is in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "task": what,
            **found,
            "minutes": found["cpu s"] * times / 60,
            "peak MiB": peak,
            "metric": "",
            "value": "",
        }


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Time of a suite's tasks on made-up codes.")
    parser.add_argument("--hours", type=float, default=10.0, help="default: 10")
    parser.add_argument("--codes", choices=list(CODES), default="fsq", help="shape of the codes; default: fsq")
    parser.add_argument("--rows", type=int, default=4, help="tokenizers and controls in a table; default: 4")
    parser.add_argument(
        "--updates", action="store_true", help="time one update of the linear ASR head on each shape of codes instead"
    )
    names = [task.name for task in TASKS]
    parser.add_argument("--tasks", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the numbers here")
    args = parser.parse_args()
    head = machine()
    if args.updates:
        found = [measure_updates(kind, "linear") for kind in CODES]
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(args.hours, args.codes, args.rows, args.tasks, Path(folder))
    print_table(found)
    if args.out:
        write_json(
            args.out, head | {"rows": found} | ({} if args.updates else {"hours": args.hours, "codes": args.codes})
        )
    return 0


if __name__ == "__main__":
    run_main(main)
