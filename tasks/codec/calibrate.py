"""Sets the quantiser to the encoder's latents, once, before stage 2 starts.

N frames   D dimensions
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from jepa_tok.models.encoder import Encoder
from jepa_tok.models.fsq import FSQ
from jepa_tok.monitor import code_entropies


@torch.no_grad()
def calibrate_quantiser(encoder: Encoder, fsq: FSQ, waves: Iterable[Tensor], frames: int) -> None:
    """Calibrates `fsq` on up to `frames` latent frames of `waves`; a `tanh` bound has nothing to set.

    RecipeError where there is no clip.
    """
    if fsq.scale is None:
        return
    device = next(encoder.parameters()).device
    encoder.eval()
    kept: list[Tensor] = []
    count = 0
    for wave in waves:
        kept.append(encoder(wave[None].to(device)).latents[0].float().cpu())
        count += len(kept[-1])
        if count >= frames:
            break
    if not kept:
        raise RecipeError("the quantiser cannot be calibrated: none of the training files can be read.")
    latents = torch.cat(kept)[:frames].to(device)  # [N, D]
    fsq.calibrate(latents)
    usage = code_entropies(fsq.quantize(latents).cpu(), fsq.radices)
    log.info(
        "Quantiser: {} latent frames; code usage {:.3f}, least {:.3f}.",
        len(latents),
        float(usage.mean()),
        float(usage.min()),
    )
