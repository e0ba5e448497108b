"""Long audio: memory whatever the length, sound where windows meet, and how far an edit is felt.

    python benchmarks/long.py --tokenizer exp/tokenizer --audio data/dev.jsonl [--parts seams edit memory] [--out FILE.json]

seams   The clips of each speaker, end to end, are encoded and decoded in windows, once from the start and once from half a window
        later, so that each place where windows meet in one run lies amid a window in the other. There: spectral flux (5 ms hops, the
        largest within 20 ms), the largest step between neighbouring samples within 10 ms, the log-mel error against the
        input within 200 ms; at seams, at the same places amid a window, and their paired difference. And for codes: the
        share that two windows which overlap give alike, by frames from where they meet.
edit    Second 100 of the audio is replaced; the first and last second with changed tokens, and with changed samples.
memory  `jepa-tok encode` and `jepa-tok decode` of files of growing length, made from the same clips over and over: peak resident
        memory and speed of each process.

Without --audio: synthetic noise, which shows that it runs and nothing else. --random-init PRESET in place of --tokenizer measures
memory and speed; seams of untrained weights say nothing.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import load_tokenizer, machine, print_table, run_main, run_verb, tokenizer_parser, write_json
from jepa_tok import SpeechTokenizer, save_audio
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.models.logmel import LogMel
from jepa_tok.windows import cut_frames

FLUX_HOP, FLUX_WINDOW = 120, 480
"""5 ms and 20 ms, in samples at 24 kHz."""


# Audio ----------------------------------------------------------------------------------------------------------------


def read_speech(manifest: Path | None, where: list[str] | None, rate: int, limit: float) -> list[Tensor]:
    """One long wave for each speaker, `limit` seconds in all; noise without a manifest."""
    if manifest is None:
        return [0.1 * torch.randn(round(limit * rate), generator=torch.Generator().manual_seed(0))]
    speakers: dict[str, list[Tensor]] = {}
    total = 0.0
    for row in read_corpus(manifest, where=where):
        if total < limit:
            wave = load_utterance(row, rate)
            speakers.setdefault(str(row.info.get("speaker", "")), []).append(wave)
            total += len(wave) / rate
    return [torch.cat(waves) for waves in speakers.values()]


def repeat(waves: list[Tensor], samples: int) -> Iterator[Tensor]:
    """The waves over and over, until there are so many samples."""
    while samples > 0:
        for wave in waves:
            if samples > 0:
                yield wave[:samples]
                samples -= len(wave)


# Seams ----------------------------------------------------------------------------------------------------------------


def flux(wave: Tensor) -> Tensor:
    """Spectral flux [n]: root mean square over bins of the change in dB from one 5 ms step to the next."""
    spectrum = torch.stft(wave, FLUX_WINDOW, FLUX_HOP, window=torch.hann_window(FLUX_WINDOW), return_complex=True).abs()
    decibel = 20 * torch.log10(spectrum + 1e-3)
    return (decibel[:, 1:] - decibel[:, :-1]).square().mean(0).sqrt()


def mel_error(wave: Tensor, reference: Tensor, rate: int) -> Tensor:
    """Mean absolute difference of log-mels in dB at 100 Hz, [n]."""
    logmel = LogMel(rate, 1024, rate // 100, 80)
    to_db = 20.0 / math.log(10.0) * LogMel.DEVIATION
    return (logmel(wave[None]) - logmel(reference[None]))[0].abs().mean(1) * to_db


def at_boundaries(tokenizer: SpeechTokenizer, wave: Tensor, offset: int) -> tuple[dict[int, list[float]], set[int]]:
    """Measures at each frame boundary of a wave that is heard from frame `offset` on, and which boundaries are seams."""
    hop, rate = tokenizer.hop, tokenizer.sample_rate
    wave = wave[offset * hop :]
    tokens = tokenizer.encode(wave)
    made = tokenizer.decode(tokens)
    changes, errors = flux(made), mel_error(made, wave, rate)
    rows = {}
    for boundary in range(1, tokens.num_frames - 1):
        at = boundary * hop
        near = changes[at // FLUX_HOP - 4 : at // FLUX_HOP + 4]
        step = (made[at - 240 : at + 240].diff()).abs().max()
        error = errors[at * 100 // rate - 20 : at * 100 // rate + 20]
        rows[offset + boundary] = [float(near.max()), float(step), float(error.mean())]
    size, context = tokenizer.config.window.frames(tokenizer.frame_rate)
    return rows, {offset + w.last for w in cut_frames(tokens.num_frames, size, context)} & set(rows)


def measure_seams(tokenizer: SpeechTokenizer, waves: list[Tensor]) -> dict[str, Any]:
    """Means at seams and amid windows, with the standard error of the paired difference, and the share of codes alike."""
    size, context = tokenizer.config.window.frames(tokenizer.frame_rate)
    long = [wave for wave in waves if len(wave) > 2 * size * tokenizer.hop]
    pairs = []
    for wave in long:
        runs = [at_boundaries(tokenizer, wave, offset) for offset in (0, (size - 2 * context) // 2)]
        for (mine, seams), (other, others) in (runs, runs[::-1]):
            pairs += [(mine[b], other[b]) for b in sorted(seams - others) if b in other]
    values = np.array(pairs)  # [seams, 2, measures]
    found: dict[str, Any] = {"seams": len(pairs), "measures": {}}
    for name, (here, there) in zip(
        ("flux, dB", "largest step of samples", "log-mel error, dB"), values.transpose(2, 1, 0)
    ):
        found["measures"][name] = {
            "at seams": here.mean(), "amid windows": there.mean(), "difference": (here - there).mean(),
            "standard error": (here - there).std(ddof=1) / math.sqrt(len(pairs)),
        }  # fmt: skip
    found["codes alike"] = agreement(tokenizer, long)
    return found


def agreement(tokenizer: SpeechTokenizer, waves: list[Tensor]) -> dict[str, float]:
    """Share of codes that two windows which overlap give alike, by frames between the code and the seam."""
    size, context = tokenizer.config.window.frames(tokenizer.frame_rate)
    alike: dict[int, list[float]] = {}
    for wave in waves:
        windows = list(cut_frames(tokenizer.num_frames(len(wave)), size, context))
        codes = [
            tokenizer.encode(wave[w.start * tokenizer.hop : (w.start + w.size) * tokenizer.hop]).codes for w in windows
        ]
        for (a, x), (b, y) in zip(zip(windows, codes), zip(windows[1:], codes[1:])):
            for t in range(b.start, a.start + a.size):
                same = (x[t - a.start] == y[t - b.start]).float().mean()
                alike.setdefault(min(abs(t - a.last), abs(t + 1 - a.last)), []).append(float(same))
    return {str(distance): float(np.mean(values)) for distance, values in sorted(alike.items())}


# Edits ----------------------------------------------------------------------------------------------------------------


def measure_edit(tokenizer: SpeechTokenizer, waves: list[Tensor], seconds: float) -> dict[str, Any]:
    """Seconds of the first and last change where second 100 becomes noise."""
    rate = tokenizer.sample_rate
    wave = torch.cat(list(repeat(waves, round(seconds * rate))))
    edited = wave.clone()
    edited[100 * rate : 101 * rate] = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(1))
    before, after = tokenizer.encode(wave), tokenizer.encode(edited)
    frames = (before.ids != after.ids).any(1).nonzero().flatten()
    samples = (tokenizer.decode(before) != tokenizer.decode(after)).nonzero().flatten()
    return {
        "seconds": seconds,
        "first changed token, s": float(frames.min()) / tokenizer.frame_rate,
        "last changed token, s": float(frames.max() + 1) / tokenizer.frame_rate,
        "first changed sample, s": float(samples.min()) / rate,
        "last changed sample, s": float(samples.max() + 1) / rate,
    }


# Memory ---------------------------------------------------------------------------------------------------------------


def measure_memory(options: list[str], waves: list[Tensor], hours: list[float], rate: int) -> list[dict[str, float]]:
    """Peak memory and speed of encoding and decoding one file of each length."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for length in hours:
            source, tokens, out = (Path(folder, name) for name in ("long.flac", "long.parquet", "out"))
            save_audio(source, repeat(waves, round(length * 3600 * rate)), rate)
            encode, encode_peak = run_verb(["encode", str(source), "-o", str(tokens), "--overwrite", *options])
            decode, decode_peak = run_verb(["decode", str(tokens), str(out), "--overwrite", *options])
            rows.append(
                {
                    "hours": length,
                    "encode peak, MiB": encode_peak,
                    "decode peak, MiB": decode_peak,
                    "encode, x real time": length * 3600 / encode,
                    "decode, x real time": length * 3600 / decode,
                }
            )
            print_table([rows[-1]])
    return rows


def main() -> int:
    """Command line; see the module's docstring."""
    parser = tokenizer_parser("Memory, seams and locality of long audio.")
    parser.add_argument("--audio", type=Path, metavar="MANIFEST", help="speech, by speaker (default: noise)")
    parser.add_argument("--where", nargs="+", metavar="COLUMN=VALUE", help="rows of the manifest to take")
    parser.add_argument("--minutes", type=float, default=60.0, help="of speech taken from the manifest (default: 60)")
    parser.add_argument("--parts", nargs="+", choices=("seams", "edit", "memory"), default=["seams", "edit", "memory"])
    parser.add_argument(
        "--hours",
        nargs="+",
        type=float,
        default=[0.01, 0.1, 1.0, 10.0],
        help="lengths for memory (default: .01 .1 1 10)",
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    tokenizer, options = load_tokenizer(args)
    waves = read_speech(args.audio, args.where, tokenizer.sample_rate, args.minutes * 60)
    found: dict[str, Any] = {
        "machine": machine(), "tokenizer": tokenizer.config.name, "hash": tokenizer.hash,
        "audio": str(args.audio or "noise"), "minutes": sum(map(len, waves)) / tokenizer.sample_rate / 60,
    }  # fmt: skip
    if "seams" in args.parts:
        found["seams"] = measure_seams(tokenizer, waves)
        print(f"{found['seams']['seams']} seams")
        print_table([{"": name, **row} for name, row in found["seams"]["measures"].items()])
        print_table([{"frames from the seam": k, "codes alike": v} for k, v in found["seams"]["codes alike"].items()])
    if "edit" in args.parts:
        found["edit"] = measure_edit(tokenizer, waves, min(3600.0, args.minutes * 60))
        print_table([found["edit"]])
    if "memory" in args.parts:
        found["memory"] = measure_memory(options, waves, args.hours, tokenizer.sample_rate)
    if args.out:
        write_json(args.out, found)
    return 0


if __name__ == "__main__":
    run_main(main)
