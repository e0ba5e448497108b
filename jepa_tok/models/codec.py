"""Stage 2: encoder, quantiser, generator and discriminators in one module with all their losses (paper, section 3.4).

    B clips   S samples   T frames   D dimensions

One call of `Codec` gives the discriminators' loss and the generator's; their sum is back-propagated once. Neither reaches
the other's weights: the discriminators judge a detached reconstruction, and the generator's terms see the discriminators'
weights as constants. So one optimizer with two parameter groups trains both, and data-parallel wrappers see one forward
pass. Discriminator parameters are those whose names match `(module\\.)?discriminator\\.`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from jepa_tok.models.discriminator import Discriminator, Feature
from jepa_tok.models.encoder import Encoder, EncoderOutput
from jepa_tok.models.fsq import FSQ
from jepa_tok.models.generator import Generator
from jepa_tok.models.layers import sequence_mask
from jepa_tok.models.losses import (
    Spectra,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    l1_loss,
    mel_loss,
    stft_loss,
    unevenness,
)
from jepa_tok.models.loudness import loudness_loss
from jepa_tok.models.mel_head import MelHead
from jepa_tok.models.segments import cut, draw_starts, sample_counts
from jepa_tok.models.source import PitchDecoder
from jepa_tok.training_config import CodecConfig


@dataclass
class CodecOutput:
    """Losses (float32 scalars) and what they were computed from."""

    generator_loss: Tensor
    """Sum of l1, stft, mel, loudness, adversarial + feature_matching, usage and mel_head, each times its weight."""

    discriminator_loss: Tensor
    """Least-squares GAN loss of the discriminators, summed over them; 0 where they did not run."""

    l1: Tensor
    """This and all that judges a reconstruction: exactly 0 without `synthesis`. In training, of one that has the tracked pitch."""

    stft: Tensor
    """Exactly 0 in training with `stft_weight` 0."""

    mel: Tensor
    """Exactly 0 with `mel_weight` 0."""

    loudness: Tensor
    """Exactly 0 with `loudness_weight` 0."""

    mel_head: Tensor
    """In nats, weighted where the head has an exponent; exactly 0 without a mel head."""

    pitch: Tensor
    """Mean absolute error of log pitch where the original is voiced, nats; exactly 0 without `pitch_dims`."""

    voiced_windows: Tensor
    """Windows of 10 ms, over all clips, that `pitch` is the mean of; 0 where nothing is voiced, and so is `pitch`."""

    voicing: Tensor
    """Cross-entropy of whether the original is voiced, nats; exactly 0 without `pitch_dims`."""

    usage: Tensor
    """Exactly 0 with `usage_weight` 0."""

    adversarial: Tensor
    """Least-squares GAN loss of the generator; exactly 0 without `adversarial`."""

    feature_matching: Tensor
    """Exactly 0 without `adversarial`."""

    reconstruction: Tensor | None
    """[B, S] float32, zero past each clip's samples; in training of the segments of `generator_seconds`; None without `synthesis`."""

    codes: Tensor
    """[B, T, D] int64; what stands past a clip's frames means nothing."""

    latents: Tensor
    """[B, T, D] before quantisation, zero past each clip's frames."""

    frame_lengths: Tensor
    """Frames of each clip, int64 [B]."""


@dataclass
class _AtHead:
    """A batch on its way, where the mel head stands."""

    encoded: EncoderOutput
    """What the encoder heard."""

    quantised: Tensor
    """[B, T, D] values of the codes."""

    codes: Tensor
    """[B, T, D]."""

    x: Tensor
    """[B, C, L] steps of the generator; without a mel head what its stages begin with."""

    mask: Tensor | None
    """[B, L], which of them are the clips' own."""

    frame_lengths: Tensor
    """Frames of each clip that are decoded, int64 [B]."""

    whole: bool
    """Whether these are all that the encoder heard."""


class Codec(nn.Module):
    """Trains the tokenizer's decoder, and with `freeze_encoder=False` its encoder through the straight-through quantiser.

    With `average_decay`, `average` holds a moving average of the weights of what trains; evaluation runs with it.

    :param config: Shapes and loss weights.
    :raises ConfigError: Fields of `config` contradict each other.
    """

    updates: Tensor

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.encoder = Encoder(config.tokenizer.encoder)
        self.fsq = FSQ(config.tokenizer.quantizer)
        self.generator = Generator(config.tokenizer.generator)
        self.discriminator = Discriminator(config.discriminator)
        self.mel_head: MelHead | None = None
        if config.mel_head_stage:
            self.mel_head = MelHead(config.tokenizer.generator, config.mel_head_stage, config.mel_head_exponent)
        self.average: nn.ModuleDict | None = None
        if config.average_decay:
            parts = ["generator"] if config.freeze_encoder else ["encoder", "fsq", "generator"]
            parts += ["mel_head"] if config.mel_head_stage else []
            self.average = nn.ModuleDict({name: copy.deepcopy(getattr(self, name)) for name in parts})
            self.register_buffer("updates", torch.zeros((), dtype=torch.float32))
        self.freeze().train()

    def freeze(self) -> Codec:
        """Takes the gradient from encoder and quantiser where the config freezes them, and from the pitch networks, which are fitted before
        training; to be called again by who turns all on.

        With encoder and quantiser frozen the tokens are settled before stage 2: it trains the decoder alone.
        """
        for pitch in (self.encoder.pitch, self.generator.pitch):
            if pitch is not None:
                pitch.requires_grad_(False)
        # The pitch networks were fitted through the quantiser: what would even out their codes would shift what is read from them.
        self.fsq.settled_dims = self.config.tokenizer.encoder.pitch_dims
        if self.config.freeze_encoder:
            self.encoder.requires_grad_(False)
            self.fsq.requires_grad_(False)
        if self.average is not None:
            self.average.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> Codec:
        """As of any module, but the encoder stays in evaluation mode: dropout would flip codes that the tokenizer keeps."""
        super().train(mode)
        self.encoder.eval()
        if self.average is not None:
            self.average.eval()
        return self

    def part(self, name: str) -> nn.Module:
        """`encoder`, `fsq`, `generator` or `mel_head`: as it trains in training mode, in evaluation its average where there is one."""
        if self.average is not None and not self.training and name in self.average:
            return self.average[name]
        return getattr(self, name)

    @torch.no_grad()
    def sync_average(self) -> None:
        """Sets the average to the weights as they are, as at the start of a run."""
        if self.average is not None:
            for name, average in self.average.items():
                average.load_state_dict(getattr(self, name).state_dict())
            self.updates.zero_()

    @torch.no_grad()
    def update_average(self) -> None:
        """One step of the moving average, after each optimizer step; the first steps count for more, so that it starts warm."""
        if self.average is None:
            return
        self.updates += 1
        # A tensor, not a number: nothing waits for the device.
        share = 1.0 - ((1.0 + self.updates) / (10.0 + self.updates)).clamp_max(self.config.average_decay)
        for name, average in self.average.items():
            averages: list[Tensor] = list(average.parameters())
            if averages:  # a quantiser bounded by `tanh` has none
                # All at once: hundreds of small launches would take a tenth of a step.
                steps = list(torch._foreach_sub(list(getattr(self, name).parameters()), averages))  # type: ignore[arg-type]
                torch._foreach_mul_(steps, share)
                torch._foreach_add_(averages, steps)

    def forward(
        self,
        wave: Tensor,
        lengths: Tensor | None = None,
        adversarial: bool = True,
        disc: bool = True,
        synthesis: bool = True,
    ) -> CodecOutput:
        """Reconstructs a batch and computes all losses, as means over each clip's own samples.

        :param wave: [B, S] at 24 kHz in [-1, 1], S >= 1.
        :param lengths: Samples of each clip [B]; None if each has S.
        :param adversarial: Whether the generator hears the discriminators. While they warm up it should not: what an
            untrained discriminator says is noise.
        :param disc: Whether the discriminators train. With both flags False they do not run, and their parameters get no
            gradient: DistributedDataParallel then needs `find_unused_parameters=True`; with `disc=True` it never does.
        :param synthesis: Whether a waveform is made. Without it the mel head alone judges, no stage above it runs, and both
            flags before mean nothing.
        """
        if lengths is not None:
            wave = wave * sequence_mask(lengths, wave.shape[1])
        at, wave, lengths = self._decode_to_head(wave, lengths, segment=self.training)
        encoded = at.encoded

        c = self.config
        zero = at.x.new_zeros((), dtype=torch.float32)
        losses = dict.fromkeys(("l1", "stft", "mel", "loudness", "adversarial", "feature_matching"), zero)
        g_loss = d_loss = usage = mel_head = pitch = voicing = voiced_windows = zero
        fake: Tensor | None = None
        pitch_decoder = self.part("generator").pitch
        truth = pitch_decoder.truth(wave, lengths) if isinstance(pitch_decoder, PitchDecoder) else None
        if synthesis:
            # Taught at the true pitch, evaluated at the one that is told: where harmonics stand a little off, spectral losses ask for noise
            # between them, and the voice that comes of it is hoarse.
            forced = None
            if self.training and truth is not None and isinstance(pitch_decoder, PitchDecoder):
                tracked, voiced, own = truth
                forced = torch.where(voiced & own, tracked, pitch_decoder(at.quantised)[0])
            fake = self._synthesise(at, wave, lengths, forced)
            g_loss, d_loss, losses = self._judge_reconstruction(fake, wave, lengths, adversarial, disc)
        head = self.part("mel_head") if self.mel_head is not None else None
        if isinstance(head, MelHead):
            shared = head.same_windows(c.tokenizer.encoder) and at.whole
            mel_head = head.loss(at.x, wave, lengths, encoded.logmel if shared else None)
            g_loss = g_loss + c.mel_head_weight * mel_head
        if isinstance(pitch_decoder, PitchDecoder) and truth is not None:
            with torch.no_grad():
                pitch, voicing = pitch_decoder.errors(at.quantised, *truth)
                voiced_windows = (truth[1] & truth[2]).sum().float()
        if c.usage_weight:
            usage = self._usage(encoded)
            g_loss = g_loss + c.usage_weight * usage
        return CodecOutput(
            generator_loss=g_loss,
            discriminator_loss=d_loss,
            mel_head=mel_head,
            pitch=pitch,
            voiced_windows=voiced_windows,
            voicing=voicing,
            usage=usage,
            reconstruction=fake,
            codes=at.codes,
            latents=encoded.latents,
            frame_lengths=encoded.lengths,
            **losses,
        )

    def reconstruct(self, wave: Tensor, lengths: Tensor | None = None) -> tuple[EncoderOutput, Tensor, Tensor]:
        """wave [B, S] -> what the encoder heard, codes [B, T, D], reconstruction [B, S]."""
        at, wave, lengths = self._decode_to_head(wave, lengths)
        return at.encoded, at.codes, self._synthesise(at, wave, lengths)

    def steps_to_head(self, wave: Tensor) -> Tensor:
        """wave [B, S] -> [B, C, L], the steps that the mel head judges."""
        return self._decode_to_head(wave, None)[0].x

    def _decode_to_head(
        self, wave: Tensor, lengths: Tensor | None, segment: bool = False
    ) -> tuple[_AtHead, Tensor, Tensor | None]:
        """Encodes wave [B, S], quantises, and decodes as far as the mel head; gives what is to be decoded of wave and lengths, too.

        :param segment: Whether only a random segment of `generator_seconds` of each clip is decoded; the encoder hears all of it.
        """
        if self.config.freeze_encoder:
            # At the weights' own precision: the decoder is to learn from the codes that the tokenizer will make, and bf16
            # autocast changes two in a hundred of them.
            with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
                encoded = self.encoder(wave, lengths)
        else:
            encoded = self.part("encoder")(wave, lengths)
        quantised, codes = self.part("fsq")(encoded.latents)
        generator = self.part("generator")
        assert isinstance(generator, Generator)
        frames = encoded.lengths
        size = round(self.config.generator_seconds * self.config.tokenizer.encoder.frame_rate) if segment else 0
        whole = not 0 < size < quantised.shape[1]
        if not whole:
            hop = self.config.tokenizer.encoder.hop
            lengths = sample_counts(wave, lengths)
            starts = draw_starts(frames, size)
            wave = cut(nn.functional.pad(wave, (0, quantised.shape[1] * hop - wave.shape[1])), starts * hop, size * hop)
            lengths, frames = (lengths - starts * hop).clamp_max(size * hop), frames.clamp_max(size)
            quantised = cut(quantised, starts, size)
        x, mask = generator.begin(quantised, frames)
        at_head = generator.upsample(x, mask, end=self.config.mel_head_stage)
        return _AtHead(encoded, quantised, codes, *at_head, frame_lengths=frames, whole=whole), wave, lengths

    def _synthesise(self, at: _AtHead, wave: Tensor, lengths: Tensor | None, pitch: Tensor | None = None) -> Tensor:
        """Decodes the rest of the way, to the reconstruction [B, S] of wave [B, S].

        :param pitch: Log pitch that the source is drawn at; None: the one that the codes tell.
        """
        generator = self.part("generator")
        assert isinstance(generator, Generator)
        frames = sequence_mask(at.frame_lengths, at.quantised.shape[1])
        source = generator.source(at.quantised, frames, pitch=pitch)
        x, mask = generator.upsample(at.x, at.mask, start=self.config.mel_head_stage)
        fake = generator.head(x, mask, source=source)[:, : wave.shape[1]]
        if lengths is not None:  # the last frame reaches past the clip's last sample
            fake = fake * sequence_mask(lengths, wave.shape[1])
        return fake

    def _judge_reconstruction(
        self, fake: Tensor, wave: Tensor, lengths: Tensor | None, adversarial: bool, disc: bool
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The generator's weighted loss and the discriminators', and each term by its name in `CodecOutput`."""
        c = self.config
        zero = fake.new_zeros(())
        d_loss = adversarial_loss = matching = stft = mel = loudness = zero
        if disc or adversarial:
            real_part, fake_part, sizes = self._segments(wave, fake, lengths)
            with torch.set_grad_enabled(disc and torch.is_grad_enabled()):
                real_maps = self.discriminator(real_part, sizes)
        if disc:
            d_loss = discriminator_loss(real_maps, self.discriminator(fake_part.detach(), sizes))
        if adversarial:
            fake_maps = self._judge(fake_part, sizes)
            adversarial_loss = generator_loss(fake_maps)
            matching = feature_matching_loss(real_maps, fake_maps)

        l1 = l1_loss(fake, wave, lengths)
        g_loss = c.l1_weight * l1 + c.adversarial_weight * (adversarial_loss + matching)
        spectra = Spectra(fake, wave, lengths)
        if c.stft_weight or not self.training:
            stft = stft_loss(spectra, c.stft_ffts)
            g_loss = g_loss + c.stft_weight * stft
        if c.mel_weight:
            mel = mel_loss(spectra, c.mel_ffts, c.tokenizer.encoder.sample_rate)
            g_loss = g_loss + c.mel_weight * mel
        if c.loudness_weight:
            loudness = loudness_loss(fake, wave, lengths, c.tokenizer.encoder.sample_rate)
            g_loss = g_loss + c.loudness_weight * loudness
        terms = {
            "l1": l1,
            "stft": stft,
            "mel": mel,
            "loudness": loudness,
            "adversarial": adversarial_loss,
            "feature_matching": matching,
        }
        return g_loss, d_loss, terms

    def _judge(self, fake: Tensor, lengths: Tensor | None) -> list[list[Feature]]:
        """Feature maps of `fake` with the discriminators' weights as constants."""
        constants = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        constants.update(self.discriminator.named_buffers())
        return functional_call(self.discriminator, constants, (fake, lengths))

    def _segments(self, wave: Tensor, fake: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the discriminators judge of [B, S]: all of it, or in training a random segment of each clip."""
        size = round(self.config.adversarial_seconds * self.config.tokenizer.encoder.sample_rate)
        if not self.training or size == 0 or size >= wave.shape[1]:
            return wave, fake, lengths
        lengths = sample_counts(wave, lengths)
        starts = draw_starts(lengths, size)
        return cut(wave, starts, size), cut(fake, starts, size), lengths.clamp_max(size)

    def _usage(self, encoded: EncoderOutput) -> Tensor:
        """How far each dimension's bounded values are from even use of (-1, 1), by their first two moments; mean over D.

        Even values have mean 0 and mean square 1/3. Without this a fine-tuned encoder drives dimensions into a single level,
        from where no gradient leads back.
        """
        real = sequence_mask(encoded.lengths, encoded.latents.shape[1])[..., None]
        with torch.autocast(encoded.latents.device.type, enabled=False):
            fsq = self.part("fsq")
            assert isinstance(fsq, FSQ)
            values = fsq.bound(encoded.latents) * real  # [B, T, D]
            count = real.sum()
            mean, square = values.sum((0, 1)) / count, values.square().sum((0, 1)) / count
            return unevenness(mean, square, 1.0 / 3.0)
