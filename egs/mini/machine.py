"""Where and of what the demo was run: commit, date, machine, versions, seeds, for the head of the report."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from egs.mini import steps


def describe(out: Path, root: Path) -> dict[str, Any]:
    """Content of run.json."""
    return {
        "title": "jepa-tok demo: the whole thread on synthetic speech",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(root),
        "seeds": {
            "corpus": steps.SEED_CORPUS,
            "training": steps.SEED_TRAINING,
            "sampling": steps.SEED_SAMPLING,
            "probes": " ".join(map(str, steps.SEEDS_PROBES)),
        },
        "machine": machine(),
        "versions": versions(),
        "manifest": "corpus/all.jsonl",
    }


def commit(root: Path) -> str:
    """The checkout's commit, marked where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return "unknown (no git)"
    return done.stdout.strip() or "unknown (not a checkout)"


def machine() -> str:
    """Processor, cores in use, memory, system."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError):
        memory = ""
    return f"{name}, {os.cpu_count()} cores, one used at a time{memory}, {platform.system()}"


def versions() -> dict[str, str]:
    """Python and the packages that matter most."""
    found = {"python": platform.python_version()}
    for name in ("torch", "fairseq2", "jepa-tok"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
