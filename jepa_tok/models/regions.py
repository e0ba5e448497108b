"""What of a model is compiled, or computed again in the backward pass, one by one: for recipes and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from jepa_tok.models.conformer import ConformerBlock
from jepa_tok.models.daam import DaamGate
from jepa_tok.models.generator import Mrf
from jepa_tok.models.layers import ConvNeXtBlock, HifiGanResBlock, SnakeBeta

BLOCKS = (ConvNeXtBlock, HifiGanResBlock, Mrf, ConformerBlock)
REGIONS = (SnakeBeta, DaamGate, ConvNeXtBlock, HifiGanResBlock, ConformerBlock)


def block_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    """The lists of residual and Conformer blocks in a model; a block's memory is what one step of recomputing takes.

    Lists inside blocks are left out.
    """
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) and all(isinstance(block, BLOCKS) for block in child):
            yield child
        elif not isinstance(child, BLOCKS):
            yield from block_lists(child)


def compile_regions(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Compiles blocks, activations and gates in place, with the arguments of `torch.compile`; names in checkpoints stay.

    Blocks of one shape share what is compiled, which whole stages would not.
    """
    # Each shape of a block is a variant of the same code, with and without gradients; the default of 8 serves one of them.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 256)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 1024)
    if torch.cuda.is_available() and getattr(torch.backends.cuda.matmul, "fp32_precision", "none") == "tf32":
        # fairseq2 sets this by PyTorch's new names, the compiler asks by the old one, which raises until both agree.
        torch.set_float32_matmul_precision("high")
    for module in model.modules():
        if isinstance(module, REGIONS):
            module.compile(*args, **kwargs)
