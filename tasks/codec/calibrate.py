"""Sets the quantiser to the encoder's latents, once, before stage 2 starts.

N frames   D dimensions
"""

from __future__ import annotations

import numpy as np
import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError

from jepa_tok.corpus.manifest import Utterance
from jepa_tok.models.codec import Codec
from jepa_tok.monitor import code_entropies
from tasks.speech import sample_waves


@torch.no_grad()
def calibrate_quantiser(
    codec: Codec, utterances: list[Utterance], *, frames: int, seed: int, crop_seconds: float
) -> None:
    """Calibrates `codec.fsq` on up to `frames` latent frames of training clips; a `tanh` bound has nothing to set.

    RecipeError where no training file can be read.
    """
    if codec.fsq.scale is None:
        return
    device = next(codec.encoder.parameters()).device
    codec.encoder.eval()
    kept: list[torch.Tensor] = []
    count = 0
    for wave in sample_waves(utterances, np.random.default_rng([seed, 4]), crop_seconds):
        kept.append(codec.encoder(wave[None].to(device)).latents[0].float().cpu())
        count += len(kept[-1])
        if count >= frames:
            break
    if not kept:
        raise RecipeError("the quantiser cannot be calibrated: none of the training files can be read.")
    latents = torch.cat(kept)[:frames].to(device)  # [N, D]
    codec.fsq.calibrate(latents)
    usage = code_entropies(codec.fsq.quantize(latents).cpu(), codec.fsq.radices)
    log.info(
        "Quantiser: {} latent frames; code usage {:.3f}, least {:.3f}.",
        len(latents),
        float(usage.mean()),
        float(usage.min()),
    )
