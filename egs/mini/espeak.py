"""Speak with espeak-ng's C API: one JSON request a line on stdin, one mono 16-bit WAV file each; run as a subprocess.

The library keeps state from one utterance to the next (the same words twice give different samples) and must neither be
initialised twice nor used from threads. So this module runs in a process of its own and forks once per utterance: each
starts from the same untouched library, and its samples depend on its request alone.

    request: {"path", "text", "voice", "rate", "pitch", "range", "volume"}; answer: {"path", "samples"} or {"path", "error"}
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import wave
from pathlib import Path
from typing import Any

from jepa_tok.files import atomic_path

# espeak-ng/speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
CHARS_UTF8 = 1
RATE, VOLUME, PITCH, RANGE = 1, 2, 3, 4
LONGEST_PATH = 140
"""The library cuts its data path at 160 characters, file name included."""

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speak(request: dict[str, Any], library: str, data: str) -> tuple[bytes, int]:
    """Samples (16-bit little-endian PCM) and their rate; call at most once in a process. Raises RuntimeError."""
    lib = ctypes.CDLL(library)
    rate = lib.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data.encode(), INITIALIZE_DONT_EXIT)
    if rate <= 0:
        raise RuntimeError(f"espeak-ng did not start with its data in '{data}' (code {rate})")
    # The breath of some voices is noise, seeded by the clock: in one version by the library's own seed, in another by libc's.
    if hasattr(lib, "espeak_ng_SetRandSeed"):
        lib.espeak_ng_SetRandSeed(ctypes.c_long(1))
    ctypes.CDLL(None).srand(1)
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    lib.espeak_SetSynthCallback(collect)
    if lib.espeak_SetVoiceByName(request["voice"].encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice '{request['voice']}'")
    for parameter, name in ((RATE, "rate"), (VOLUME, "volume"), (PITCH, "pitch"), (RANGE, "range")):
        lib.espeak_SetParameter(parameter, int(request[name]), 0)
    text = request["text"].encode() + b"\0"
    if lib.espeak_Synth(text, len(text), 0, 1, 0, CHARS_UTF8, None, None) != 0 or not chunks:
        raise RuntimeError(f"espeak-ng could not say '{request['text']}'")
    return b"".join(chunks), rate


def write_wav(path: Path, pcm: bytes, rate: int) -> None:
    """Writes a mono 16-bit WAV file, whole or not at all."""
    with atomic_path(path) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)


def _answer(request: dict[str, Any], library: str, data: str) -> dict[str, Any]:
    try:
        pcm, rate = speak(request, library, data)
        write_wav(Path(request["path"]), pcm, rate)
        return {"path": request["path"], "samples": len(pcm) // 2, "rate": rate}
    except (RuntimeError, OSError) as error:
        return {"path": request["path"], "error": str(error)}


def main() -> int:
    """Answers each request of stdin on stdout, in order."""
    try:
        import espeakng_loader
    except ImportError:
        print("espeak-ng is missing; install it with `pip install espeakng-loader==0.2.4`.", file=sys.stderr)
        return 2
    library, data = str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())
    # A short, readable way to the library's data, where the environment lies deep in the file system.
    with tempfile.TemporaryDirectory(prefix="espeak-") as folder:
        if len(data) > LONGEST_PATH:
            os.symlink(data, os.path.join(folder, "espeak-ng-data"))
            data = os.path.join(folder, "espeak-ng-data")
        for line in sys.stdin:
            receive, send = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(receive)
                with os.fdopen(send, "w") as out:
                    out.write(json.dumps(_answer(json.loads(line), library, data)))
                os._exit(0)
            os.close(send)
            with os.fdopen(receive) as answer:
                told = answer.read()
            _, status = os.waitpid(child, 0)
            print(
                told or json.dumps({"path": json.loads(line)["path"], "error": f"espeak-ng died (status {status})"}),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
