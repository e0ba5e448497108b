"""`python -m egs.mini.corpus OUT`: the embedded corpus, made on the spot by espeak-ng. Synthetic speech, fixed seeds.

Writes OUT/wav/*.wav (mono, 16 bit, 22.05 kHz), OUT/{all,train,dev,test}.jsonl (paths relative to OUT) and
OUT/corpus.json, which says what this is. Splits are by speaker and by sentence: no speaker and no sentence of dev or test
occurs in train. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jepa_tok.errors import CorpusError, JepaTokError
from jepa_tok.files import write_text

from .voices import SAMPLE_RATE, SPLITS, STYLES, VOICES, Plan, Voice, make_plan

NOTE = (
    "Synthetic: espeak-ng reads sentences written for this project. Its voices stand in for speakers and its settings of rate, "
    "pitch, range and volume for emotions. It proves that the code runs; it measures nothing about real speech."
)


def make_corpus(
    out: str | Path,
    *,
    seed: int = 0,
    sentences_per_speaker: int = 8,
    voices: tuple[Voice, ...] = VOICES,
    quiet: bool = False,
) -> dict[str, Any]:
    """Makes the corpus in `out` and returns its summary (also OUT/corpus.json). Utterances that are there are kept.

    Raises CorpusError where espeak-ng is not installed or cannot speak an utterance.
    """
    out = Path(out).resolve()
    plan = make_plan(seed, sentences_per_speaker, voices)
    (out / "wav").mkdir(parents=True, exist_ok=True)
    _forget_other_plan(out, plan)
    _speak([p for p in plan if not _wav(out, p).exists()], out, quiet)

    rows = [_row(p, out) for p in plan]
    _write_lines(out / "all.jsonl", rows)
    for split in SPLITS:
        _write_lines(out / f"{split}.jsonl", [row for row in rows if row["split"] == split])
    summary = {
        "name": "mini",
        "note": NOTE,
        "seed": seed,
        "made_by": "espeak-ng (pip package espeakng-loader 0.2.4)",
        "utterances": len(rows),
        "minutes": round(sum(row["duration_s"] for row in rows) / 60, 2),
        "splits": {
            split: {
                "utterances": len(part),
                "minutes": round(sum(row["duration_s"] for row in part) / 60, 2),
                "speakers": len({row["speaker"] for row in part}),
                "sentences": len({row["text"] for row in part}),
            }
            for split in SPLITS
            if (part := [row for row in rows if row["split"] == split])
        },
        "emotions": [style.name for style in STYLES],
        "voices": {voice.speaker: voice.name for voice in voices},
        "digest": digest(_wav(out, p) for p in plan),
    }
    write_text(out / "corpus.json", json.dumps(summary, indent=2) + "\n")
    return summary


def digest(paths: Iterable[Path]) -> str:
    """First 16 hex digits of the SHA-256 over names and bytes of `paths`, in order."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def _wav(out: Path, plan: Plan) -> Path:
    return out / "wav" / f"{plan.id}.wav"


def _forget_other_plan(out: Path, plan: list[Plan]) -> None:
    # Wav files of another seed or size carry the same names but other sounds: they go before anything is kept.
    mark = out / "plan.sha256"
    wanted = hashlib.sha256(repr(plan).encode()).hexdigest() + "\n"
    if not mark.exists() or mark.read_text() != wanted:
        for old in (out / "wav").glob("mini-*.wav"):
            old.unlink()
        write_text(mark, wanted)


def _speak(plan: list[Plan], out: Path, quiet: bool) -> None:
    if not plan:
        return
    from tqdm import tqdm

    requests = [
        {
            "path": str(_wav(out, p)),
            "text": p.sentence,
            "voice": p.voice.name,
            "rate": p.rate,
            "pitch": p.pitch,
            "range": p.range,
            "volume": p.volume,
        }
        for p in plan
    ]
    command = [sys.executable, str(Path(__file__).with_name("espeak.py"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as speaker:
        assert speaker.stdin and speaker.stdout and speaker.stderr
        bar = tqdm(total=len(plan), desc="espeak-ng", unit="utt", disable=True if quiet else None)
        for request in requests:
            try:
                speaker.stdin.write(json.dumps(request) + "\n")
                speaker.stdin.flush()
            except BrokenPipeError:
                pass
            line = speaker.stdout.readline()
            if not line:
                reason = speaker.stderr.read().strip().splitlines()
                raise CorpusError(reason[-1] if reason else f"The espeak-ng process stopped at '{request['path']}'.")
            answer = json.loads(line)
            if "error" in answer:
                raise CorpusError(f"{answer['error']} (for '{request['path']}').")
            if answer["rate"] != SAMPLE_RATE:
                raise CorpusError(
                    f"espeak-ng must give {SAMPLE_RATE} Hz, but gave {answer['rate']} for '{request['path']}'."
                )
            bar.update()
        bar.close()
        speaker.stdin.close()


def _row(plan: Plan, out: Path) -> dict[str, Any]:
    path = _wav(out, plan)
    samples = (path.stat().st_size - 44) // 2  # a WAV header of 44 bytes, then 16-bit samples
    return {
        "id": plan.id,
        "path": path.relative_to(out).as_posix(),
        "duration_s": round(samples / SAMPLE_RATE, 4),
        "sample_rate": SAMPLE_RATE,
        "corpus": "mini",
        "speaker": plan.voice.speaker,
        "gender": plan.voice.gender,
        "language": "en",
        "text": plan.text,
        "emotion": plan.style.name,
        "split": plan.voice.split,
        "split_utt": plan.split_utt,
    }


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def main(argv: list[str] | None = None) -> int:
    """Command line; errors are one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m egs.mini.corpus", description=NOTE)
    parser.add_argument("out", type=Path, help="folder to write to, e.g. exp/demo/corpus")
    parser.add_argument("--seed", type=int, default=0, help="who says what, and the jitter of each style (default: 0)")
    parser.add_argument("--sentences-per-speaker", type=int, default=8, help="each is said in every style (default: 8)")
    options = parser.parse_args(argv)
    try:
        summary = make_corpus(options.out, seed=options.seed, sentences_per_speaker=options.sentences_per_speaker)
    except JepaTokError as error:
        print(error, file=sys.stderr)
        return 2
    parts = ", ".join(
        f"{k} {v['utterances']} utterances of {v['speakers']} speakers" for k, v in summary["splits"].items()
    )
    print(f"{summary['minutes']} minutes of synthetic speech in {options.out} ({parts}; digest {summary['digest']}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
