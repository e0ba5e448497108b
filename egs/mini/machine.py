"""Where and of what the demo was run: commit, date, machine, versions, seeds, for the head of the report."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from egs.mini import steps
from jepa_tok.provenance import commit, machine, versions


def describe() -> dict[str, Any]:
    """Content of run.json."""
    return {
        "title": "jepa-tok demo: the whole thread on synthetic speech",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit() or "unknown (not a checkout)",
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
