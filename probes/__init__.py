"""Linear probes: what do the tokens hold? Speech recognition, speakers and emotion, each beside its controls.

`data` reads, `splits` divides, `inputs` turns tokens (or a control) into numbers, `linear`, `speaker`, `emotion` and `asr`
fit and score, `results` writes, `cli` is `python -m probes`.
"""

from __future__ import annotations
