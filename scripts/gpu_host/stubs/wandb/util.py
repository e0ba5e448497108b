"""Asked by fairseq2 for the id of a run, before `wandb.init`."""

from __future__ import annotations

import uuid


def generate_id() -> str:
    """Eight characters, as wandb's are."""
    return uuid.uuid4().hex[:8]
