"""How the tokens are used: levels of each dimension, ids of each group, the bits that an entropy coder would need.

    N frames   D code dimensions   G groups

Entropies are those of the empirical distribution of each dimension or group by itself, over all frames of the corpus. A
group of 16,384 ids seen N times cannot show more than log2 N bits: `seen_limit` says so where it binds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from jepa_tok.monitor import code_entropies
from jepa_tok.tokens import Tokens


def code_usage(clips: list[Tokens], frame_rate: float) -> dict[str, Any]:
    """Bit rates and usage over the tokens of a corpus (of one tokenizer)."""
    first = clips[0]
    codes = torch.cat([clip.codes for clip in clips])  # [N, D]
    ids = torch.cat([clip.ids for clip in clips])  # [N, G]
    radices = list(first.radices)
    full = torch.tensor(radices, dtype=torch.float64).log2()
    shares = code_entropies(codes, radices).double()  # [D]
    groups = [_group(column, size) for column, size in zip(ids.T, first.vocab_sizes)]
    return {
        "frames": len(ids),
        "bit_rate": frame_rate * float(full.sum()),
        "entropy_bit_rate": frame_rate * float((shares * full).sum()),
        "normalised_entropy": float(shares.mean()),
        "least_normalised_entropy": float(shares.min()),
        "dead_dimensions": int((shares == 0.0).sum()),
        "dimensions": [round(float(share), 4) for share in shares],
        "groups": groups,
    }


def _group(column: Tensor, size: int) -> dict[str, Any]:
    p = torch.bincount(column, minlength=size).double() / len(column)
    p = p[p > 0]
    entropy = float(-(p * p.log2()).sum())
    return {
        "vocabulary": size,
        "used": len(p),
        "entropy_bits": round(abs(entropy), 4),
        "normalised_entropy": round(abs(entropy) / math.log2(size), 4) if size > 1 else 1.0,
        "seen_limit": round(min(1.0, math.log2(len(column)) / math.log2(size)), 4) if size > 1 else 1.0,
    }
