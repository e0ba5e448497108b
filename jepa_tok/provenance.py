"""Where a figure comes from: the commit of the checkout, the machine, the versions of packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("jepa-tok", "torch", "fairseq2", "transformers", "numpy", "soxr", "scikit-learn", "jiwer", "sentencepiece")


def commit() -> str | None:
    """The checkout's commit, with `-dirty` where tracked files differ from it; None outside a checkout."""
    here = Path(__file__)
    # An installed copy may lie in somebody else's checkout, which does not track it.
    if _git("ls-files", "--error-unmatch", here.name, folder=here.parent) is None:
        return None
    return _git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*", folder=here.parent)


def _git(*arguments: str, folder: Path) -> str | None:
    """What git prints; None where that is nothing, where it fails and where there is no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def machine() -> str:
    """Processor, cores, memory, GPU, system."""
    name = platform.processor() or platform.machine()
    memory = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
        memory = f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (OSError, ValueError):
        pass
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{name}, {os.cpu_count()} cores{memory}{gpu}, {platform.system()}"


def versions(*more: str) -> dict[str, str]:
    """Python and the installed packages that results may depend on, and those that a caller names."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
