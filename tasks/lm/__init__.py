"""Task: next-token prediction on packed speech tokens."""

from __future__ import annotations

from tasks.lm.baselines import fit_baselines as fit_baselines
from tasks.lm.metrics import METRICS as METRICS
from tasks.lm.units import LMEvalUnit as LMEvalUnit
from tasks.lm.units import LMTrainUnit as LMTrainUnit
