"""Family `jepa_tok_lm`: a language model of packed speech tokens on fairseq2's own transformer decoder (LLaMA's).

Layout `flat`: tokens [T, G] are read row by row, 47.5 a second at 2.5 Hz; position p predicts token p, slot p mod G.

    position   0       1        2        ...  T*G
    input      start   token 0  token 1       token T*G-1
    target     token 0 token 1  token 2       (end)

`start` says whether a clip begins here or was cut from a longer one. The end of a clip is a yes-or-no question of its own
at each frame boundary (positions G, 2G, ..., T*G), so that no vocabulary needs another id.

    B clips   T frames   G tokens of a frame (slots)   C model width
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.factory import LLaMAFactory
from fairseq2.models.transformer_lm import TransformerLMDecoder
from fairseq2.nn import BatchLayout, IncrementalStateBag
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor, nn

from jepa_tok._fairseq2.lm_layers import DigitEmbedding, DigitHead, DigitLayout, IdEmbedding, IdHead, LogitFilter

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

LM_FAMILY = "jepa_tok_lm"

MAX_FULL_VOCAB = 2**20
"""Ids of a slot beyond which a `full` embedding or head would not fit a GPU."""


@dataclass(kw_only=True)
class SpeechLMConfig(Validatable):
    """Defaults are the dimensions of a 1B-class LLaMA. `recipes.lm` fills the last five fields from the token shards."""

    model_dim: int = 2048
    """Width of the backbone (C)."""

    num_layers: int = 16
    """Decoder layers."""

    num_heads: int = 32
    """Attention heads."""

    num_kv_heads: int = 8
    """Key and value heads (grouped-query attention); a divisor of `num_heads`."""

    ffn_dim: int = 8192
    """Inner width of the gated feed-forward layers."""

    max_seq_len: int = 8192
    """Positions that the model can see: 8,192 are 172 s at 47.5 tokens/s."""

    rope_theta: float = 500_000.0
    """Base of the rotary position encoding."""

    dropout_p: float = 0.0
    """Dropout after attention and feed-forward layers."""

    embedding: Literal["factorised", "full"] = "factorised"
    """`factorised`: sum of digit embeddings. `full`: a row for each id."""

    head: Literal["factorised", "full"] = "factorised"
    """`factorised`: a softmax a digit. `full`: one softmax over the ids of a slot."""

    digit_chain: bool = True
    """Whether a factorised head conditions each digit on those before it in the token, and directly on the same slot a
    frame earlier; otherwise digits of a token are independent given the hidden state."""

    radices: list[int] = field(default_factory=lambda: [4] * 128)
    """Levels of each of the D code dimensions."""

    group_size: int = 7
    """Digits in a token."""

    frame_rate: float = 2.5
    """Frames per second of audio."""

    sample_rate: int = 24_000
    """Samples per second of audio."""

    tokenizer: str = ""
    """Hash of the tokenizer whose tokens the model speaks; empty where unknown."""

    @property
    def num_groups(self) -> int:
        """Tokens per frame (G)."""
        return math.ceil(len(self.radices) / self.group_size)

    @property
    def max_frames(self) -> int:
        """Frames that fit into `max_seq_len`, beside the start."""
        return (self.max_seq_len - 1) // self.num_groups

    def validate(self) -> ValidationResult:
        """fairseq2 calls this on every configuration; errors are one line each."""
        result = ValidationResult()
        if self.group_size < 1 or not self.radices or min(self.radices, default=0) < 1:
            result.add_error("`radices` must be a list of positive integers and `group_size` at least 1.")
            return result
        if min(self.model_dim, self.num_layers, self.num_heads, self.num_kv_heads, self.ffn_dim) < 1:
            result.add_error("`model_dim`, `num_layers`, `num_heads`, `num_kv_heads` and `ffn_dim` must be at least 1.")
            return result
        if self.model_dim % (2 * self.num_heads):
            result.add_error(
                f"`model_dim` must be a multiple of twice `num_heads` ({2 * self.num_heads}), but is {self.model_dim} instead."
            )
        if self.num_heads % self.num_kv_heads:
            result.add_error(
                f"`num_heads` must be a multiple of `num_kv_heads` ({self.num_kv_heads}), but is {self.num_heads} instead."
            )
        if self.max_frames < 1:
            result.add_error(
                f"`max_seq_len` must hold a start and a frame ({self.num_groups + 1}), but is {self.max_seq_len} instead."
            )
        widest = max(
            math.prod(self.radices[i : i + self.group_size]) for i in range(0, len(self.radices), self.group_size)
        )
        if "full" in (self.embedding, self.head) and widest > MAX_FULL_VOCAB:
            result.add_error(f"`full` tables need at most {MAX_FULL_VOCAB} ids a token, but {widest} are asked for.")
        return result

    def backbone(self) -> LLaMAConfig:
        """What fairseq2's LLaMA factory is told."""
        return LLaMAConfig(
            model_dim=self.model_dim,
            max_seq_len=self.max_seq_len,
            vocab_size=1,  # no table of theirs is made
            num_layers=self.num_layers,
            num_attn_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            ffn_inner_dim=self.ffn_dim,
            ffn_inner_dim_scale=1.0,
            ffn_inner_dim_multiple_of=1,
            rope_theta=self.rope_theta,
            dropout_p=self.dropout_p,
        )


class LMLoss(NamedTuple):
    """Sums over a batch, in nats; a NamedTuple so that FSDP2 finds the tensors in it."""

    token_nll: Tensor
    """[G]: of tokens, by slot."""

    end_nll: Tensor
    """Of the end-or-not decisions at frame boundaries."""

    num_frames: Tensor
    """Real frames; each has G tokens."""


class SpeechLM(nn.Module):
    """Embedding, fairseq2's transformer decoder, head, and the end-of-clip decision.

    The decoder is called `decoder`, as in fairseq2's TransformerLM: its FSDP, activation checkpointing and compile hooks
    then work on this model as they are.
    """

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.config = config
        self.layout = DigitLayout(config.radices, config.group_size)
        dim = config.model_dim
        self.start = nn.Embedding(2, dim)
        self.embedding = (DigitEmbedding if config.embedding == "factorised" else IdEmbedding)(self.layout, dim)
        self.decoder: TransformerLMDecoder = LLaMAFactory(config.backbone()).create_decoder()
        self.head: DigitHead | IdHead
        if config.head == "factorised":
            self.head = DigitHead(self.layout, dim, chain=config.digit_chain)
        else:
            self.head = IdHead(self.layout, dim)
        self.end = nn.Linear(dim, 1)

    def forward(self, ids: Tensor, lengths: Tensor, cut_before: Tensor, cut_after: Tensor) -> LMLoss:
        """Loss of clips under teacher forcing.

        ids [B, T, G] (anything valid past a clip's length), lengths [B] in frames, cut_before and cut_after [B]: whether
        a clip is the continuation of one, or was cut at its end (then its end is no end and is not asked for).
        """
        frames = ids.size(1)
        hidden = self.hidden(ids, cut_before)  # [B, 1 + T * G, C]
        number = torch.arange(1, frames + 1, device=ids.device)  # [T]
        real = number <= lengths.unsqueeze(1)  # [B, T]
        nll = self.token_nll(hidden[:, :-1].unflatten(1, (frames, -1)), ids)  # [B, T, G]
        token_nll = (nll * real.unsqueeze(-1)).sum((0, 1))

        ends = number == lengths.unsqueeze(1)
        asked = real & ~(ends & cut_after.unsqueeze(1))
        logits = self.end_logits(hidden[:, self.layout.num_groups :: self.layout.num_groups])  # [B, T]
        end_nll = F.binary_cross_entropy_with_logits(logits, ends.float(), weight=asked.float(), reduction="sum")
        return LMLoss(token_nll, end_nll, real.sum())

    def hidden(self, ids: Tensor, cut_before: Tensor, state: IncrementalStateBag | None = None) -> Tensor:
        """ids [B, T, G] (T may be 0), cut_before [B] -> hidden states [B, 1 + T * G, C].

        Clips of a batch are padded on the right, where a causal model cannot look: no mask is needed, so that the fused
        attention kernels stay in play. With a fresh `state` this fills the cache for `step`.
        """
        start = self.start(cut_before.long()).unsqueeze(1)
        tokens = self.embedding(ids).flatten(1, 2)
        return self._decode(torch.cat([start.to(tokens.dtype), tokens], dim=1), state)

    def step(self, ids: Tensor, slot: int, state: IncrementalStateBag) -> Tensor:
        """Feeds token ids [B] of a slot, whatever came before being in `state`; returns the hidden state [B, C]."""
        return self._decode(self.embedding.step(ids, slot).unsqueeze(1), state).squeeze(1)

    def _decode(self, x: Tensor, state: IncrementalStateBag | None) -> Tensor:
        out = self.decoder(x, BatchLayout.of(x), state_bag=state)
        if state is not None:
            state.increment_step_nr(x.size(1))
        return out

    def token_nll(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden [B, T, G, C], ids [B, T, G] -> nats [B, T, G], float32."""
        return self.head.nll(hidden, ids)

    def end_logits(self, hidden: Tensor) -> Tensor:
        """hidden [..., C] at frame boundaries -> logits [...] of the clip ending here, float32."""
        return self.end(hidden).squeeze(-1).float()

    def sample_token(
        self, hidden: Tensor, last: Tensor | None, slot: int, noise: Tensor, filter_: LogitFilter
    ) -> tuple[Tensor, Tensor]:
        """hidden [B, C], last [B] (the slot's ids a frame earlier, if there is one), noise [B, K] in [0, 1) -> ids [B] and
        their nats [B] under the unfiltered model."""
        return self.head.sample(hidden, last, slot, noise, filter_)

    def compile_loss(self, *args: Any, **kwargs: Any) -> None:
        """Called by fairseq2's compile hook, beside compiling the decoder layer by layer."""
        self.token_nll = torch.compile(self.token_nll, *args, **kwargs)  # type: ignore[method-assign]


def create_lm(config: SpeechLMConfig) -> SpeechLM:
    """Factory of the family."""
    return SpeechLM(config)


def large() -> SpeechLMConfig:
    """About 1B parameters, the dimensions of LLaMA 3.2 1B."""
    return SpeechLMConfig()


def base() -> SpeechLMConfig:
    """About 115M parameters: what 9,000 h (1.5 G tokens) can feed at some ten tokens a parameter."""
    return SpeechLMConfig(
        model_dim=768, num_layers=12, num_heads=12, num_kv_heads=12, ffn_dim=3072, max_seq_len=4096, rope_theta=10_000.0
    )


def small() -> SpeechLMConfig:
    """About 19M parameters."""
    return SpeechLMConfig(
        model_dim=384, num_layers=8, num_heads=6, num_kv_heads=6, ffn_dim=1536, max_seq_len=2048, rope_theta=10_000.0
    )


def tiny() -> SpeechLMConfig:
    """About 1M parameters, for CPUs."""
    return SpeechLMConfig(
        model_dim=128, num_layers=4, num_heads=4, num_kv_heads=4, ffn_dim=384, max_seq_len=1024, rope_theta=10_000.0
    )


ARCHS = {"large": large, "base": base, "small": small, "tiny": tiny}


def register_lm(container: DependencyContainer) -> None:
    """Registers the families jepa_tok_lm, jepa_tok_tokens and jepa_tok_spm."""
    from fairseq2.composition import register_model_family
    from fairseq2.models.transformer_lm import (
        apply_ac_to_transformer_lm,
        apply_fsdp_to_transformer_lm,
        compile_transformer_lm,
    )
    from fairseq2.runtime.config_registry import ConfigRegistrar

    from jepa_tok._fairseq2.text import register_spm
    from jepa_tok._fairseq2.token_data import register_tokens

    # The hooks are typed for TransformerLM, but touch only `decoder` and `compile_loss`.
    hooks: dict[str, Any] = {
        "compiler": compile_transformer_lm,
        "fsdp_applier": apply_fsdp_to_transformer_lm,
        "layerwise_ac_applier": apply_ac_to_transformer_lm,
    }
    register_model_family(container, LM_FAMILY, SpeechLM, SpeechLMConfig, factory=create_lm, **hooks)
    arch = ConfigRegistrar(container, SpeechLMConfig)
    for name, make in ARCHS.items():
        arch(name)(make)
    register_tokens(container)
    register_spm(container)
