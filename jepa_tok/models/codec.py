"""Stage 2: encoder, quantiser, generator and discriminators in one module with all their losses (paper, section 3.4).

    B clips   S samples   T frames   D dimensions

One call of `Codec` gives the discriminators' loss and the generator's; their sum is back-propagated once. Neither reaches
the other's weights: the discriminators judge a detached reconstruction, and the generator's terms see the discriminators'
weights as constants. So one optimizer with two parameter groups trains both, and data-parallel wrappers see one forward
pass. Discriminator parameters are those whose names match `(module\\.)?discriminator\\.`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jepa_tok.models.discriminator import Discriminator, Feature
from jepa_tok.models.encoder import Encoder, EncoderOutput
from jepa_tok.models.fsq import FSQ
from jepa_tok.models.generator import Generator
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.losses import discriminator_loss, feature_matching_loss, generator_loss, l1_loss, stft_loss
from jepa_tok.training_config import CodecConfig


@dataclass
class CodecOutput:
    """Losses (float32 scalars) and what they were computed from."""

    generator_loss: Tensor
    """l1_weight * l1 + stft_weight * stft + adversarial_weight * (adversarial + feature_matching)."""

    discriminator_loss: Tensor
    """Least-squares GAN loss of the discriminators, summed over them; 0 where they did not run."""

    l1: Tensor
    stft: Tensor
    adversarial: Tensor
    """Least-squares GAN loss of the generator; exactly 0 without `adversarial`."""

    feature_matching: Tensor
    """Exactly 0 without `adversarial`."""

    reconstruction: Tensor
    """[B, S] float32, zero past each clip's samples."""

    codes: Tensor
    """[B, T, D] int64; what stands past a clip's frames means nothing."""

    latents: Tensor
    """[B, T, D] before quantisation, zero past each clip's frames."""

    frame_lengths: Tensor
    """Frames of each clip, int64 [B]."""


class Codec(nn.Module):
    """Trains the tokenizer's decoder, and with `freeze_encoder=False` its encoder through the straight-through quantiser.

    :param config: Shapes and loss weights.
    :raises ConfigError: Fields of `config` contradict each other.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        config.tokenizer.check()
        self.config = config
        self.encoder = Encoder(config.tokenizer.encoder)
        self.fsq = FSQ(config.tokenizer.quantizer)
        self.generator = Generator(config.tokenizer.generator)
        self.discriminator = Discriminator(config.discriminator)
        self.freeze().train()

    def freeze(self) -> Codec:
        """Takes the gradient from encoder and quantiser where the config freezes them; to be called again by who turns all on.

        With both frozen the tokens are settled before stage 2: it trains the decoder alone.
        """
        if self.config.freeze_encoder:
            self.encoder.requires_grad_(False)
            self.fsq.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> Codec:
        """As of any module, but the encoder stays in evaluation mode: dropout would flip codes that the tokenizer keeps."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self, wave: Tensor, lengths: Tensor | None = None, adversarial: bool = True, disc: bool = True
    ) -> CodecOutput:
        """Reconstructs a batch and computes all losses, as means over each clip's own samples.

        :param wave: [B, S] at 24 kHz in [-1, 1], S >= 1.
        :param lengths: Samples of each clip [B]; None if each has S.
        :param adversarial: Whether the generator hears the discriminators. While they warm up it should not: what an
            untrained discriminator says is noise.
        :param disc: Whether the discriminators train. With both flags False they do not run, and their parameters get no
            gradient: DistributedDataParallel then needs `find_unused_parameters=True`; with `disc=True` it never does.
        """
        if lengths is not None:
            wave = wave * sequence_mask(lengths, wave.shape[1])
        encoded, codes, fake = self.reconstruct(wave, lengths)

        zero = fake.new_zeros(())
        d_loss = adversarial_loss = matching = zero
        if disc or adversarial:
            with torch.set_grad_enabled(disc and torch.is_grad_enabled()):
                real_maps = self.discriminator(wave, lengths)
        if disc:
            d_loss = discriminator_loss(real_maps, self.discriminator(fake.detach(), lengths))
        if adversarial:
            fake_maps = self._judge(fake, lengths)
            adversarial_loss = generator_loss(fake_maps)
            matching = feature_matching_loss(real_maps, fake_maps)

        c = self.config
        l1 = l1_loss(fake, wave, lengths)
        stft = stft_loss(fake, wave, lengths, ffts=c.stft_ffts)
        g_loss = c.l1_weight * l1 + c.stft_weight * stft + c.adversarial_weight * (adversarial_loss + matching)
        return CodecOutput(
            generator_loss=g_loss,
            discriminator_loss=d_loss,
            l1=l1,
            stft=stft,
            adversarial=adversarial_loss,
            feature_matching=matching,
            reconstruction=fake,
            codes=codes,
            latents=encoded.latents,
            frame_lengths=encoded.lengths,
        )

    def reconstruct(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[EncoderOutput, Tensor, Tensor]:
        """wave [B, S] -> what the encoder heard, codes [B, T, D], reconstruction [B, S]."""
        if self.config.freeze_encoder:
            # At the weights' own precision: the decoder is to learn from the codes that the tokenizer will make, and bf16
            # autocast changes two in a hundred of them.
            with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
                encoded = self.encoder(wave, lengths)
        else:
            encoded = self.encoder(wave, lengths)
        quantised, codes = self.fsq(encoded.latents)
        fake = self.generator(quantised, encoded.lengths)[:, : wave.shape[1]]
        if lengths is not None:  # the last frame reaches past the clip's last sample
            fake = fake * sequence_mask(lengths, wave.shape[1])
        return encoded, codes, fake

    def _judge(self, fake: Tensor, lengths: Tensor | None) -> list[list[Feature]]:
        """Feature maps of `fake` with the discriminators' weights as constants."""
        constants = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        constants.update(self.discriminator.named_buffers())
        return functional_call(self.discriminator, constants, (fake, lengths))
