"""The fairseq2 extension: families, architectures, hooks and cards are there once the package is installed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetStore
from fairseq2.datasets import DatasetFamily
from fairseq2.models import ModelFamily
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import get_dependency_resolver

import jepa_tok._fairseq2  # noqa: F401
from jepa_tok._fairseq2.models import apply_ac, apply_fsdp, create_codec, create_jepa, layer_stacks
from jepa_tok._fairseq2.sndfile import bundled_sndfile, link_sndfile, preload_sndfile
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.regions import compile_regions
from jepa_tok.presets import PRESETS, codec_config, jepa_config
from jepa_tok.training_config import CodecConfig, JepaConfig


@pytest.mark.parametrize(
    ("name", "config_kls", "make", "fsdp"),
    [("jepa_tok_encoder", JepaConfig, jepa_config, True), ("jepa_tok_codec", CodecConfig, codec_config, False)],
)
def test_model_families(name, config_kls, make, fsdp) -> None:
    family = get_dependency_resolver().resolve(ModelFamily, key=name)
    assert family.get_archs() == set(PRESETS)
    assert family.config_kls is config_kls
    for arch in ("paper", "tiny"):
        assert family.maybe_get_arch_config(arch) == make(arch)
    assert config_kls() == make("paper")  # the defaults are the paper's
    assert family.supports_layerwise_ac and family.supports_compilation and family.supports_fsdp is fsdp


def test_dataset_family_and_cards() -> None:
    resolver = get_dependency_resolver()
    assert resolver.resolve(DatasetFamily, key="jepa_tok_speech").name == "jepa_tok_speech"
    store = resolver.resolve(AssetStore)
    for kind in ("encoder", "codec"):
        for arch in PRESETS:
            card = store.retrieve_card(f"jepa_tok_{kind}_{arch}")
            family = resolver.resolve(ModelFamily, key=f"jepa_tok_{kind}")
            assert family.get_model_config(card) == family.maybe_get_arch_config(arch)
    for name in ("jepa_tok_mini", "jepa_tok_librispeech"):
        card = store.retrieve_card(name)
        config = resolver.resolve(DatasetFamily, key="jepa_tok_speech").get_dataset_config(card)
        assert config.manifests and config.split == "train"  # type: ignore[attr-defined]


def tiny_jepa() -> Jepa:
    config = jepa_config("tiny")
    config.encoder.dropout = 0.0
    torch.manual_seed(0)
    return Jepa(config)


def losses_and_gradients(model: Jepa) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    wave = 0.1 * torch.randn(2, 38_400, generator=generator)
    lengths = torch.tensor([38_400, 20_000])
    mask = model.sample_mask(model.encoder.num_frames(lengths), generator)
    loss = model(wave, lengths, mask, 0.5).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_neither_names_nor_gradients() -> None:
    plain, recomputed = tiny_jepa(), tiny_jepa()
    apply_ac(recomputed, 1)
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    loss, gradients = losses_and_gradients(plain)
    again, others = losses_and_gradients(recomputed)
    torch.testing.assert_close(loss, again)
    assert len(gradients) == len(others)
    for a, b in zip(gradients.values(), others.values()):
        torch.testing.assert_close(a, b)


def test_compiled_regions_change_neither_names_nor_gradients() -> None:
    plain, compiled = tiny_jepa(), tiny_jepa()
    graphs: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(len(inputs))
        return module.forward

    compile_regions(compiled, backend=backend, dynamic=False)
    assert list(plain.state_dict()) == list(compiled.state_dict())
    loss, gradients = losses_and_gradients(plain)
    again, others = losses_and_gradients(compiled)
    torch.testing.assert_close(loss, again)
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value)
    # Per encoder and stage an activation, a block and a gate, with and without gradients; the Conformers beside them.
    assert len(graphs) > 2 * 3 * 5
    losses_and_gradients(compiled)
    assert len(graphs) < 50  # the same shapes again: nothing is compiled anew


def test_student_and_teacher_are_wrapped_alike() -> None:
    model = tiny_jepa()
    stacks = list(layer_stacks(model))
    for student, teacher in ((model.encoder, model.target_encoder),):
        assert any(s is student.stages for s in stacks) and any(s is teacher.stages for s in stacks)
        assert any(s is student.conformers for s in stacks) and any(s is teacher.conformers for s in stacks)
    assert any(s is model.predictor.conformers for s in stacks)


def test_contradicting_configs_are_refused_in_one_line() -> None:
    jepa = jepa_config("tiny")
    jepa.mask.ratio = 2.0
    codec = codec_config("tiny")
    codec.tokenizer.quantizer.dim = 64
    for create, config in ((create_jepa, jepa), (create_codec, codec)):
        with pytest.raises(RecipeError, match="config_overrides") as caught:
            create(config)  # type: ignore[operator]
        assert caught.value.__cause__ is None and "\n" not in str(caught.value)


def test_libsndfile_is_linked_into_the_environment(tmp_path: Path) -> None:
    assert preload_sndfile()
    bundled = bundled_sndfile()
    if bundled is None:
        pytest.skip("this soundfile wheel brings no library of its own")
    for _ in range(2):  # a second link replaces the first
        link = link_sndfile(tmp_path)
    assert link is not None and os.path.samefile(link, bundled)
    assert ctypes.CDLL(str(link)).sf_version_string


def test_fsdp_keeps_the_audio_in_float32_and_the_gradients() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    loss, gradients = losses_and_gradients(tiny_jepa())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for dtype in (torch.float32, torch.bfloat16):
            policy = MixedPrecisionPolicy(dtype, torch.float32)

            def wrapper(module, reshard_after_forward=True, policy=policy):
                return fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)

            model = apply_fsdp(tiny_jepa(), "layer", wrapper)
            heard = []
            model.encoder.front.register_forward_pre_hook(lambda _, args, heard=heard: heard.append(args[0].dtype))
            sharded, found = losses_and_gradients(model)
            assert heard == [torch.float32]
            torch.testing.assert_close(sharded.float(), loss, rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=0.0)
            if dtype is torch.float32:
                for name, gradient in gradients.items():
                    own = found[name].full_tensor()
                    torch.testing.assert_close(own.reshape(gradient.shape), gradient, rtol=1e-4, atol=1e-5)
        with pytest.raises(RecipeError, match="must be 'layer'"):
            apply_fsdp(tiny_jepa(), "stack", wrapper)
    finally:
        dist.destroy_process_group()
