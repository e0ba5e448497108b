"""Sets the quantiser to the encoder's latents, and a mel head to a trained generator, once, before stage 2 starts.

N frames   D dimensions
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from torch import Tensor, nn

from jepa_tok.models.codec import Codec
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.fsq import FSQ
from jepa_tok.monitor import code_entropies


@torch.no_grad()
def calibrate_quantiser(
    encoder: Encoder, fsq: FSQ, waves: Iterable[Tensor], frames: int, below: float | None = None
) -> None:
    """Calibrates `fsq` on up to `frames` latent frames of `waves`; a `tanh` bound has nothing to set.

    With `below` only those dimensions whose codes use less than this share of their entropy, and none that tell the pitch: what was
    fitted to them would be lost (`fit_pitch`).

    RecipeError where there is no clip.
    """
    if fsq.scale is None:
        return
    encoder.eval()
    latents = rows_of_waves(encoder, lambda wave: encoder(wave).latents[0], waves, frames)
    if latents is None:
        raise RecipeError("the quantiser cannot be calibrated: none of the training files can be read.")
    latents = latents[:frames]  # [N, D]
    poor = None
    if below is not None:
        poor = code_entropies(fsq.quantize(latents).cpu(), fsq.radices) < below
        poor[fsq.config.dim - encoder.config.pitch_dims :] = False
    fsq.calibrate(latents, poor)
    usage = code_entropies(fsq.quantize(latents).cpu(), fsq.radices)
    log.info(
        "Quantiser: {} of {} dimensions set on {} latent frames; code usage {:.3f}, least {:.3f}.",
        len(usage) if poor is None else int(poor.sum()),
        len(usage),
        len(latents),
        float(usage.mean()),
        float(usage.min()),
    )


@torch.no_grad()
def fit_mel_head(codec: Codec, waves: Iterable[Tensor], steps: int) -> None:
    """Fits the mel head of `codec`, where it has one, on up to `steps` steps of the stage below it.

    RecipeError where there is no clip.
    """
    head = codec.mel_head
    if head is None:
        return
    codec.train()  # the weights, not their average, which nobody has set yet; the encoder stays in evaluation mode

    def heard_and_told(wave: Tensor) -> Tensor:
        x = codec.steps_to_head(wave)[0].T  # [L, C]
        logmel = head.logmel(wave)[0]  # [L * W, M], but for the windows behind the clip's end
        whole = len(logmel) // head.windows
        return torch.cat([x[:whole].float(), logmel[: whole * head.windows].reshape(whole, -1)], dim=1)

    rows = rows_of_waves(codec, heard_and_told, waves, steps)
    if rows is None:
        raise RecipeError("the mel head cannot be fitted: none of the training files can be read.")
    channels = head.out.in_channels
    head.fit(rows[:, :channels], rows[:, channels:])
    log.info("Mel head: fitted on {} steps.", len(rows))


def rows_of_waves(
    model: nn.Module, make: Callable[[Tensor], Tensor], waves: Iterable[Tensor], count: int
) -> Tensor | None:
    """What `make` gives of each wave [1, S] on the model's device, [n, ...], until there are `count` rows or more; None of no wave."""
    device = next(model.parameters()).device
    kept: list[Tensor] = []
    for wave in waves:
        kept.append(make(wave[None].to(device)).float().cpu())
        if sum(map(len, kept)) >= count:
            break
    return torch.cat(kept).to(device) if kept else None
