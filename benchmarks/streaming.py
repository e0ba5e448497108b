"""Streams on one thread: how far ahead of real time, how long a frame takes, what comes late by design, what memory is held.

    python -m benchmarks.streaming (--tokenizer FOLDER | --random-init PRESET) [--audio CORPUS ...] [--out FILE.json]

Chunks of 20 ms are pushed as fast as they are taken, and each frame is decoded when its ids come. Time of a frame: of the
`push` that completes it, and of the `decode` of it, over all frames behind the first ten. Beside it the whole clip in one
forward pass of the same models: what single frames cost. The lag of resampling is the most audio that soxr holds back; a
frame's ids come `algorithmic` ms after its first sample, plus the time of its push. Speed does not depend on what is said:
untrained weights and noise show it.

With --audio, clips of these corpora are streamed, and the codes of each clip's stream compared with those of one forward pass
over the whole: the layers are the same, the order in which float32 sums run is not.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import load_tokenizer, machine, print_table, run_main, tokenizer_parser, write_json
from jepa_tok import SpeechTokenizer
from jepa_tok.audio import Resampler
from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.errors import JepaTokError
from jepa_tok.inference import exact_inference
from jepa_tok.models.stream import StreamEncoder
from jepa_tok.streaming import StreamingSession

WARM_UP = 10
"""Frames that are not counted: buffers are allocated and kernels chosen."""

RATES = [8_000, 16_000, 24_000, 44_100, 48_000]


class Stopwatch:
    """Wall and processor seconds of a block; on a busy machine the second is what a quiet one would take."""

    def __enter__(self) -> Stopwatch:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu


def measure_stream(tokenizer: SpeechTokenizer, wave: Tensor, chunk: int) -> dict[str, Any]:
    """Streams a wave [S] in chunks of `chunk` samples, encoding and decoding: speed, times of frames, memory."""
    pushes: list[Stopwatch] = []  # those that completed a frame
    others: list[Stopwatch] = []
    decodes: list[Stopwatch] = []
    with StreamingSession(tokenizer) as stream:
        for piece in wave.split(chunk):
            with Stopwatch() as push:
                ids = stream.push(piece)
            (pushes if ids.shape[0] else others).append(push)
            if ids.shape[0]:
                with Stopwatch() as decode:
                    stream.decode(ids)
                decodes.append(decode)
        memory = stream.state_bytes
    frame = tokenizer.hop / tokenizer.sample_rate
    return {
        "encode": times_of_frames(pushes, others, frame),
        "decode": times_of_frames(decodes, [], frame),
        "state_bytes": memory,
    }


def times_of_frames(frames: list[Stopwatch], others: list[Stopwatch], seconds: float) -> dict[str, float]:
    """Times of frames of so many seconds of audio, in ms, and how far ahead of real time they and other chunks are done."""
    wall = torch.tensor([w.wall for w in frames[WARM_UP:]], dtype=torch.float64)
    cpu = torch.tensor([w.cpu for w in frames[WARM_UP:]], dtype=torch.float64)
    other_wall, other_cpu = sum(w.wall for w in others) / len(frames), sum(w.cpu for w in others) / len(frames)
    return {
        "times real time": seconds / (float(wall.mean()) + other_wall),
        "median ms": 1000.0 * float(wall.median()),
        "p95 ms": 1000.0 * float(wall.quantile(0.95)),
        "max ms": 1000.0 * float(wall.max()),
        "CPU: times real time": seconds / (float(cpu.mean()) + other_cpu),
        "CPU: median ms": 1000.0 * float(cpu.median()),
    }


def measure_whole(tokenizer: SpeechTokenizer, wave: Tensor, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Audio per second of the same models on the whole wave [S] at once; the best of some, wall and processor time."""
    encodes: list[Stopwatch] = []
    decodes: list[Stopwatch] = []
    with exact_inference(tokenizer, tokenizer.device):
        for _ in range(repeats):
            with Stopwatch() as encode:
                latents = tokenizer.encoder(wave[None]).latents
            values = tokenizer.fsq.dequantize(tokenizer.fsq.quantize(latents))
            with Stopwatch() as decode:
                tokenizer.generator(values)
            encodes.append(encode)
            decodes.append(decode)
    seconds = wave.shape[0] / tokenizer.sample_rate
    return {
        side: {
            "whole clip": seconds / min(w.wall for w in watches),
            "whole clip, CPU": seconds / min(w.cpu for w in watches),
        }
        for side, watches in {"encode": encodes, "decode": decodes}.items()
    }


def measure_agreement(tokenizer: SpeechTokenizer, waves: list[Tensor]) -> dict[str, Any]:
    """How many codes differ between streams and whole clips [S], and by how much the latents do."""
    codes = differing = 0
    farthest = 0.0
    with exact_inference(tokenizer, tokenizer.device):
        for wave in waves:
            whole = tokenizer.encoder(wave[None]).latents[0]
            streamed = StreamEncoder(tokenizer.encoder).hear(wave, last=True).latents[0]
            different = tokenizer.fsq.quantize(whole) != tokenizer.fsq.quantize(streamed)
            codes, differing = codes + different.numel(), differing + int(different.sum())
            farthest = max(farthest, float((whole - streamed).abs().max()))
    return {
        "clips": len(waves),
        "minutes": sum(map(len, waves)) / tokenizer.sample_rate / 60,
        "codes": codes,
        "codes that differ": differing,
        "largest difference of z": farthest,
    }


def read_clips(corpora: list[str], each: int, rate: int) -> list[Tensor]:
    """`each` clips [S] of each corpus, spread evenly over it."""
    rows = []
    for corpus in corpora:
        found = read_corpus(corpus)
        rows += found[:: max(1, len(found) // each)][:each]
    return [load_utterance(row, rate) for row in rows]


def resampling_lag(rate: int, target: int) -> float:
    """Most milliseconds of audio that resampling holds back, over three seconds in chunks of 10 ms."""
    resampler, taken, given, lag = Resampler(rate, target), 0, 0, 0.0
    for piece in torch.zeros(3 * rate).split(rate // 100):
        taken += piece.shape[0]
        given += resampler.push(piece).shape[0]
        lag = max(lag, taken / rate - given / target)
    return 1000.0 * lag


def main() -> int:
    """Command line; see the module's docstring."""
    parser = tokenizer_parser("Speed, latency and memory of streams on one thread.")
    parser.add_argument("--audio", nargs="+", metavar="CORPUS", help="manifests or folders of speech (default: noise)")
    parser.add_argument("--clips", type=int, default=50, help="of each corpus, spread evenly over it (default: 50)")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of audio that is streamed for times (default: 120)"
    )
    parser.add_argument("--chunk-ms", type=float, default=20.0, help="length of a chunk (default: 20)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer, _ = load_tokenizer(args)
    rate = tokenizer.sample_rate
    size = round(args.seconds * rate)
    clips = read_clips(args.audio, args.clips, rate) if args.audio else []
    wave = torch.cat(clips)[:size] if clips else 0.1 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    if wave.shape[0] < 2 * WARM_UP * tokenizer.hop:
        raise JepaTokError(f"the audio must have at least {2 * WARM_UP} frames, but has {wave.shape[0] / rate:.1f} s.")

    found: dict[str, Any] = {
        "machine": machine(), "tokenizer": tokenizer.config.name, "hash": tokenizer.hash, "untrained": not args.tokenizer,
        "audio": args.audio or "noise", "seconds": wave.shape[0] / rate, "chunk_ms": args.chunk_ms, "threads": 1,
    }  # fmt: skip
    found |= measure_stream(tokenizer, wave, max(1, round(args.chunk_ms * rate / 1000)))
    found["whole_clip_times_real_time"] = measure_whole(tokenizer, wave)
    frame_ms = 1000.0 * tokenizer.hop / rate
    lags = {r: resampling_lag(r, rate) for r in RATES}
    found["frame_ms"] = frame_ms
    found["decoder_delay_ms"] = 1000.0 * tokenizer.config.generator.delay / rate
    found["resampling_lag_ms"] = {str(r): lag for r, lag in lags.items()}

    if clips:
        found["agreement"] = measure_agreement(tokenizer, clips)

    whole = found["whole_clip_times_real_time"]
    print_table([{"": side, **found[side], **whole[side]} for side in ("encode", "decode")])
    print_table(
        [{"rate": r, "lag of resampling, ms": lag, "algorithmic, ms": frame_ms + lag} for r, lag in lags.items()]
    )
    print(f"decoder: {found['decoder_delay_ms']:.1f} ms late; states: {found['state_bytes']:,} bytes")
    if clips:
        print_table([found["agreement"]])
    if args.out:
        write_json(args.out, found)
    return 0


if __name__ == "__main__":
    run_main(main)
