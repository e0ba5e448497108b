"""Tokenizing corpora: where the time goes, and whether speed and memory keep as a corpus grows.

    python -m benchmarks.corpus (--tokenizer FOLDER | --random-init PRESET) --audio CORPUS ... [--sizes 100 10000] [--out FILE.json]

--clips are the first of a corpus, or as many of each of several, in random order; with --pieces, a piece of each of a random length.

share   `tokenize_corpus` of the clips in this process: the part of its wall time that is spent inside the
        encoder, for one thread and for two.
growth  `jepa-tok tokenize` of corpora of --sizes clips, made of those clips over and over under new ids, in processes of
        their own: clips a second by the run's own clock, and peak resident memory. The smallest size runs before and after
        each other one, and the ratio is to the median of those runs, so that a busy machine shows in their spread.
heap    Clips for each CPU second of this process, and its memory, after each shard of --rows-per-shard of the clips, which come
        --times over under new ids: resident, at its peak, and by glibc's own count what is in use and what is free but kept. With
        --keep-heap, without asking the C library to give freed memory back.
list    Resident memory that a list of --utterances takes while a corpus is read.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile as sf
import torch

from benchmarks.common import load_tokenizer, machine, print_table, run_main, run_verb, tokenizer_parser, write_json
from benchmarks.parts import timed
from jepa_tok import SpeechTokenizer
from jepa_tok.corpus import CorpusRun, maker, tokenize_corpus
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.corpus.spool import spool_corpus
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import ConfigError

PARTS = ("share", "heap", "growth", "list")


def choose(sources: list[Path], count: int, pieces: tuple[float, float] | None, seed: int) -> list[Utterance]:
    """`count` clips; of several sources as many of each, drawn and in random order, under ids that begin with the source's name.

    :param pieces: Least and most seconds of the random piece that stands for a clip, clips over and over until there are `count`.
    Raises ConfigError where no clip is longer than those.
    """
    draw = random.Random(seed)
    clips: list[Utterance] = []
    for source in sources:
        rows = read_corpus(source)
        if len(sources) > 1:
            rows = draw.sample(rows, min(count // len(sources), len(rows)))
        clips += [dataclasses.replace(u, id=f"{source.stem}_{u.id}") for u in rows]
    if len(sources) > 1:
        draw.shuffle(clips)
    if pieces is None:
        return clips[:count]
    low, high = pieces
    long = [(u, seconds) for u in clips if (seconds := sf.info(u.path).duration) > high]
    if not long:
        raise ConfigError(f"`--pieces` of up to {high:g} s need clips that are longer, but {sources[0]} has none.")
    found = []
    for i in range(count):
        u, seconds = long[i % len(long)]
        size = draw.uniform(low, high)
        start = draw.uniform(0.0, seconds - size)
        found.append(dataclasses.replace(u, id=f"{u.id}/{i}", start=start, end=start + size))
    return found


def measure_share(tokenizer: SpeechTokenizer, clips: list[Utterance], threads: int) -> dict[str, Any]:
    """Wall time of tokenizing the clips, and how much of it the model takes."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder, timed({"encoder": tokenizer.encoder}) as spent:
        start = time.perf_counter()
        summary = tokenize_corpus(clips, Path(folder, "out"), tokenizer, progress=False)
        wall = time.perf_counter() - start
    inside = spent["encoder"]
    return {
        "threads": threads, "clips": len(clips), "hours": summary.hours, "wall, s": wall, "encoder, s": inside,
        "share": inside / wall, "x real time": summary.hours * 3600 / wall,
    }  # fmt: skip


def measure_growth(options: list[str], clips: list[Utterance], sizes: list[int]) -> list[dict[str, Any]]:
    """Speed and peak memory of a process for each size, smallest first and last."""
    small, *others = sorted(sizes)
    order = [small] + [size for other in others for size in (small, other, small)] + [small]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, size in enumerate(order):
            manifest, out = Path(folder, f"{number}.jsonl"), Path(folder, f"out{number}")
            with manifest.open("w") as file:
                for i in range(size):
                    u = clips[i % len(clips)]
                    span = {"start": u.start, "end": u.end} if u.end is not None else {}
                    file.write(json.dumps({"id": f"clip{i:08d}", "path": u.path, **span}) + "\n")
            _, peak = run_verb(["tokenize", str(manifest), str(out), *options])
            state = json.loads((out / "corpus.json").read_text())
            rows.append({"clips": size, "clips/s": state["written"] / state["seconds"], "peak, MiB": peak})
            print_table([rows[-1]])
    base = statistics.median(row["clips/s"] for row in rows if row["clips"] == small)
    for row in rows:
        row["to the smallest"] = row["clips/s"] / base
    return rows


def resident(which: str = "VmRSS") -> int:
    """Resident memory of this process in bytes; `VmHWM`: at its peak (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


class _Mallinfo(ctypes.Structure):
    """What mallinfo2 of glibc gives."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def malloc() -> dict[str, float]:
    """MiB that malloc has given out, and that it holds for later; empty where it is not glibc's, of 2.33 or later."""
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return {}
    ask.restype = _Mallinfo
    found = ask()
    return {"in use, MiB": (found.uordblks + found.hblkhd) / 2**20, "free, MiB": found.fordblks / 2**20}


def measure_heap(tokenizer: SpeechTokenizer, clips: list[Utterance], rows: int, keep: bool) -> list[dict[str, Any]]:
    """Speed and memory of each shard of so many clips."""
    if keep:
        maker.give_memory_back = lambda: None
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = CorpusRun(clips, Path(folder, "out"), tokenizer, rows_per_shard=rows)
        run.start()
        for index in run.pending():
            began = time.process_time()
            run.make(index)
            size = len(run.members(index))
            found.append(
                {
                    "clips": index * rows + size,
                    "clips/cpu s": size / (time.process_time() - began),
                    "resident, MiB": resident() / 2**20,
                    "peak, MiB": resident("VmHWM") / 2**20,
                    **malloc(),
                }
            )
            print_table([found[-1]])
        run.close()
    return found


def measure_list(utterances: int) -> dict[str, Any]:
    """Growth of resident memory while a manifest of so many lines is read."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder, "list.jsonl")
        with manifest.open("w") as file:
            for i in range(utterances):
                file.write(
                    f'{{"id": "speaker{i % 997}/utterance{i:09d}", "path": "audio/{i}.flac", "text": "ten words of text"}}\n'
                )
        before, began = resident(), time.perf_counter()
        listed = spool_corpus(manifest)
        assert len(listed) == utterances
        return {
            "utterances": utterances, "growth, MiB": (resident() - before) / 2**20, "seconds": time.perf_counter() - began
        }  # fmt: skip


def main() -> int:
    """Command line; see the module's docstring."""
    parser = tokenizer_parser("Where time goes in tokenizing a corpus, and what grows with it.")
    parser.add_argument("--audio", nargs="+", type=Path, metavar="CORPUS", required=True)
    parser.add_argument("--clips", type=int, default=300, help="for the share, and to be repeated (default: 300)")
    parser.add_argument(
        "--pieces", nargs=2, type=float, metavar=("LOW", "HIGH"), help="seconds of random pieces in place of clips"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 10_000], help="of corpora (default: 100 10000)")
    parser.add_argument("--utterances", type=int, default=1_000_000, help="of the list (default: a million)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows-per-shard", type=int, default=100, help="of the part heap (default: 100)")
    parser.add_argument("--times", type=int, default=1, help="see the part heap (default: 1)")
    parser.add_argument("--keep-heap", action="store_true", help="see the part heap")
    args = parser.parse_args()

    tokenizer, options = load_tokenizer(args)
    found: dict[str, Any] = {"machine": machine(), "tokenizer": tokenizer.config.name}
    clips = choose(args.audio, args.clips, args.pieces, args.seed)
    found |= {"clips": len(clips), "audio": [str(a) for a in args.audio], "pieces, s": args.pieces, "seed": args.seed}
    if "list" in args.parts:
        found["list"] = measure_list(args.utterances)
        print_table([found["list"]])
    if "share" in args.parts:
        tokenizer.encode(0.1 * torch.randn(48_000))  # kernels are chosen
        found["share"] = [measure_share(tokenizer, clips, threads) for threads in (1, 2)]
        print_table(found["share"])
    if "heap" in args.parts:
        again = [dataclasses.replace(u, id=f"{u.id}/{i}") for i in range(args.times) for u in clips]
        found["heap"] = measure_heap(tokenizer, again, args.rows_per_shard, args.keep_heap)
        print_table(found["heap"])
    if "growth" in args.parts:
        found["growth"] = measure_growth(options, clips, args.sizes)
        print_table(found["growth"])
    if args.out:
        write_json(args.out, found)
    return 0


if __name__ == "__main__":
    run_main(main)
