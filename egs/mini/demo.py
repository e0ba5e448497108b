"""`python -m egs.mini.demo`: the whole thread on the embedded corpus, stage by stage, in minutes on two CPU cores.

    1 corpus   2 stage 1   3 stage 2 and export   4 tokens   5 language model   6 continuation   7 probes   8 report

Each step is a command of its own, printed as it can be typed, and recorded in OUT/commands.jsonl with its seconds and status;
its output goes to OUT/logs. A step that is done is not run again while its command, its config and all before it are the
same; training that was killed resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from egs.mini.machine import describe
from egs.mini.steps import STAGES, Step, make_steps
from jepa_tok.errors import AudioError
from jepa_tok.files import write_text

ROOT = Path(__file__).resolve().parents[2]
SHOWN = re.compile(r"(Train|Validation|Valid).{0,20}Metrics.*?\(step (\d+)\) - (.*)")
DEAD_AFTER = 3
"""Lines of a failed command's log that are shown."""


class StepFailed(Exception):
    """A command ended with a status other than 0, or without what it should make."""


def run_demo(
    out: Path, first: int = 1, final: int = len(STAGES), configs: Path | None = None, clips: Sequence[Path] = ()
) -> None:
    """Runs the stages `first` to `final` into `out`; raises StepFailed at the first command that fails."""
    begun = time.monotonic()
    (out / "logs").mkdir(parents=True, exist_ok=True)
    (out / ".stamps").mkdir(exist_ok=True)
    key, ran = "", 0
    for step in make_steps(_short(out), configs or Path("egs/mini/configs"), clips):
        key = _key(step, key)
        if not first <= step.stage <= final:
            continue
        if _done(step, out, key):
            print(f"demo: stage {step.stage}, {step.name}: done before", flush=True)
            continue
        if step.name == "report":
            write_text(out / "run.json", json.dumps(describe(), indent=2) + "\n")
        _run(step, out, key)
        ran += 1
    print(f"demo: {ran} command{'' if ran == 1 else 's'} run in {_clock(time.monotonic() - begun)}", flush=True)


def _short(out: Path) -> Path:
    """`out` as the commands name it: from the checkout's root, where they run, if it is inside."""
    out = out.resolve()
    return out.relative_to(ROOT) if out.is_relative_to(ROOT) else out


def _key(step: Step, before: str) -> str:
    """Digest of the command, its configs and the key of the step before: a change runs all that follows anew."""
    total = hashlib.sha256(f"{before}\n{step.line}\n".encode())
    for config in step.configs:
        total.update((ROOT / config).read_bytes())
    return total.hexdigest()


def _done(step: Step, out: Path, key: str) -> bool:
    stamp = out / ".stamps" / step.name.replace(" ", "_")
    return stamp.exists() and stamp.read_text() == f"done {key}" and all((ROOT / path).exists() for path in step.makes)


def _run(step: Step, out: Path, key: str) -> None:
    """Runs one command, tells of its progress, records it."""
    stamp = out / ".stamps" / step.name.replace(" ", "_")
    if not stamp.exists() or stamp.read_text() != f"begun {key}":
        for path in step.makes:  # of other settings: nothing of it may be resumed
            path = ROOT / path
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_text(stamp, f"begun {key}")
    print(f"demo: stage {step.stage} ({STAGES[step.stage]})\n  $ {step.line}", flush=True)
    log = out / "logs" / f"{step.name.replace(' ', '_')}.log"
    cpu = _cpu_seconds()
    begun, started = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    status: int | str = "interrupted"
    try:
        status = _execute(step, log)
        lacking = [str(path) for path in step.makes if not (ROOT / path).exists()]
    finally:
        seconds, cpu = round(time.monotonic() - begun, 2), round(_cpu_seconds() - cpu, 2)
        row = {
            "stage": step.stage,
            "name": step.name,
            "command": step.line,
            "seconds": seconds,
            "cpu_seconds": cpu,
            "status": status,
            "started": started,
            "key": key[:12],
        }
        with (out / "commands.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    if status != 0 or lacking:
        tail = "\n".join(
            f"  | {line[:400]}" for line in log.read_text("utf-8", errors="replace").splitlines()[-DEAD_AFTER:]
        )
        why = f"ended with status {status}" if status != 0 else f"did not make {lacking[0]}"
        raise StepFailed(
            f"{tail}\ndemo: error: {step.name} {why}; its output is in {log}. The same command goes on from here."
        )
    write_text(stamp, f"done {key}")
    print(f"  done in {_clock(seconds)}", flush=True)


def _execute(step: Step, log: Path) -> int:
    """Runs the command from the checkout's root; its output goes to `log`, its metrics in short to the console."""
    # One thread: tiny models run several times faster so, and results do not hang on the number of cores.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "FAIRSEQ2_NO_PROGRESS": "1"}
    with log.open("w", encoding="utf-8") as file, subprocess.Popen(
        step.argv(sys.executable), cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                _tell(line)
        except BaseException:
            process.terminate()
            raise
    return process.returncode


def _tell(line: str) -> None:
    """A short form of a line with metrics, every fifth publication of training and each validation."""
    found = SHOWN.search(line)
    if found:
        kind, step, values = found.groups()
        if kind != "Train" or int(step) % 50 == 0:
            values = " | ".join(values.split(" | ")[:4])
            print(f"  {'training' if kind == 'Train' else 'validation':10} step {step:>4}  {values}", flush=True)


def _cpu_seconds() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def main(argv: list[str] | None = None) -> int:
    """Command line; the last line says where the report is."""
    stages = ", ".join(f"{number} {name}" for number, name in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m egs.mini.demo", description=f"The whole thread on the embedded corpus. Stages: {stages}."
    )
    parser.add_argument("--out", type=Path, default=ROOT / "exp" / "demo", help="the run's folder (default: exp/demo)")
    parser.add_argument("--stage", type=int, default=1, choices=STAGES, metavar="N", help="first stage (default: 1)")
    parser.add_argument(
        "--stop-stage",
        type=int,
        default=len(STAGES),
        choices=STAGES,
        metavar="M",
        help=f"last stage (default: {len(STAGES)})",
    )
    parser.add_argument(
        "--configs", type=Path, help="folder with stage1.yaml, stage2.yaml and lm.yaml (default: egs/mini/configs)"
    )
    parser.add_argument(
        "--clip", type=Path, action="append", default=[], metavar="FILE", help="audio of your own to hear on the report's page; may be repeated"
    )  # fmt: skip
    options: Any = parser.parse_args(argv)
    clips = [clip.resolve() for clip in options.clip]
    try:
        for clip in clips:  # before the minutes that the rest takes
            from jepa_tok.audio import load_audio

            load_audio(clip)
    except AudioError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)  # the command that runs must end with the demo
    try:
        run_demo(
            options.out.resolve(),
            options.stage,
            options.stop_stage,
            options.configs and options.configs.resolve(),
            clips,
        )
    except StepFailed as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    page = options.out.resolve() / "report.html"
    print(
        f"demo: report: {page}"
        if options.stop_stage == len(STAGES)
        else f"demo: stages {options.stage} to {options.stop_stage} done in {options.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
