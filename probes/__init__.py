"""Probes: what do the tokens hold? Speech recognition, speakers, emotion and other labels, each beside its controls.

`data` reads, `splits` divides, `inputs` turns tokens (or a control) into numbers, `features` pools them; `linear`, `ctc` and
`decoding` are the heads; `asr`, `speaker` and `classify` fit and score, `trials` verifies, `intervals` tells how sure a number is,
`results` writes, `cli` is `python -m probes`.
"""

from __future__ import annotations
