"""recipes.lm and recipes.lm.generate: baselines, training, resume after SIGKILL, two processes, continuations as WAV."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fairseq2")

from fairseq2.recipe.config import (
    ActivationCheckpointingConfig,
    AdamWConfig,
    AssetsConfig,
    CommonSection,
    CosineAnnealingLRConfig,
    LRSchedulerSection,
    MetricRecordersConfig,
    MixedPrecisionConfig,
    ModelSection,
    OptimizerSection,
    RegimeSection,
    TensorBoardConfig,
    TrainerSection,
)
from fairseq2.recipe.error import RecipeError
from fairseq2.recipe.run import run

from jepa_tok import packing
from jepa_tok._fairseq2.lm import LM_FAMILY, SpeechLM, SpeechLMConfig
from jepa_tok._fairseq2.lm_layers import LogitFilter
from jepa_tok.corpus.schema import ShardMetadata, TokenRow
from jepa_tok.corpus.shards import TokenShardWriter
from jepa_tok.tokens import Tokens
from recipes.lm.config import LMDatasetSection, LMRecipeConfig
from recipes.lm.generate.config import LMGenerateConfig, PromptSection, SamplingSection
from recipes.lm.generate.recipe import LMGenerateRecipe
from recipes.lm.recipe import LMRecipe
from tasks.lm import fit_baselines
from tasks.lm.generate import continue_prompts, draw_noise

ROOT = Path(__file__).resolve().parents[2]
RADICES = (3, 2, 4, 2, 3)
METADATA = ShardMetadata("a" * 16, RADICES, 3, (24, 6), 2.5, 24_000)
TINY = {"model_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "ffn_dim": 64, "max_seq_len": 128}


def counting_clip(start: int, frames: int) -> torch.Tensor:
    codes = torch.stack([(start + torch.arange(frames) * (1 + d)) % r for d, r in enumerate(RADICES)], -1)
    return packing.pack(codes, RADICES, 3)


def write_shards(folder: Path, metadata: ShardMetadata = METADATA, clips: int = 40) -> Path:
    with TokenShardWriter(folder, metadata, rows_per_shard=16) as writer:
        for i in range(clips):
            frames = 3 + i % 6
            tokens = Tokens(counting_clip(i, frames), frames * 9600, metadata.radices, 3, 24_000, metadata.hash)
            writer.add(f"u{i}", tokens, split="dev" if i % 8 == 7 else "train")
    return folder


def lm_config(shards: Path, steps: int = 12, **model) -> LMRecipeConfig:
    return LMRecipeConfig(
        model=ModelSection(family=LM_FAMILY, arch="tiny", config_overrides=TINY | model),
        dataset=LMDatasetSection(
            batch_frames=64, config_overrides={"shards": [str(shards)], "valid_split": "dev"}, max_frames=16
        ),
        trainer=TrainerSection(mixed_precision=MixedPrecisionConfig(mode="off"), max_grad_norm=1.0),
        optimizer=OptimizerSection(config=AdamWConfig(lr=1e-2)),
        lr_scheduler=LRSchedulerSection(name="passthrough", config=None),
        regime=RegimeSection(
            num_steps=steps, validate_every_n_steps=4, checkpoint_every_n_steps=4, publish_metrics_every_n_steps=1
        ),
        common=quiet(),
    )


def quiet(checkpoints: Path | None = None) -> CommonSection:
    recorders = MetricRecordersConfig(tensorboard=TensorBoardConfig(enabled=False))
    return CommonSection(
        no_sweep_dir=True, metric_recorders=recorders, assets=AssetsConfig(prev_checkpoint_dir=checkpoints)
    )


def read_losses(out: Path, name: str = "train") -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "metrics" / f"{name}.jsonl").read_text().splitlines()]
    return {line["Step"]: line["Bits/s"] for line in lines}  # a resumed run repeats steps: the last line counts


# Baselines ------------------------------------------------------------------------------------------------------------


def rows(codes: list[np.ndarray]) -> list[TokenRow]:
    return [TokenRow(str(i), packing.pack(c, RADICES, 3), len(c) * 9600) for i, c in enumerate(codes)]


def test_baselines_find_what_there_is_to_count():
    rng = np.random.default_rng(0)
    noise = rows([np.stack([rng.integers(r, size=400) for r in RADICES], -1) for _ in range(20)])
    found = fit_baselines(noise, noise, METADATA)
    entropy = sum(math.log2(r) for r in RADICES) * 2.5
    assert found["uniform"]["bits_per_second"] == pytest.approx(entropy)
    for name in ("unigram", "bigram_time", "bigram_digit"):
        assert found[name]["bits_per_second"] == pytest.approx(entropy, rel=0.02)
        slots = found[name]["nats_per_slot"]
        assert len(slots) == 2
        assert sum(slots) / 2 == pytest.approx(found[name]["nats_per_token"])

    counting = rows([packing.unpack(counting_clip(i, 300), RADICES, 3).numpy() for i in range(12)])
    found = fit_baselines(counting, counting, METADATA)
    assert found["unigram"]["bits_per_second"] == pytest.approx(entropy, rel=0.02)
    assert found["bigram_time"]["bits_per_second"] < 0.1 * entropy


def test_a_digit_never_seen_costs_add_one():
    zeros, ones = (rows([np.full((3, 5), v)]) for v in (0, 1))
    found = fit_baselines(zeros, ones, METADATA)
    nats = [sum(math.log(3 + RADICES[d]) for d in group) for group in ((0, 1, 2), (3, 4))]
    assert found["unigram"]["nats_per_slot"] == pytest.approx(nats)
    # ends: 1 clip of 3 frames was seen, so p = 2 / 5
    assert found["end_nats_per_frame"] == pytest.approx(-(2 * math.log(3 / 5) + math.log(2 / 5)) / 3)


# Sampling -------------------------------------------------------------------------------------------------------------


def random_lm(**changes) -> SpeechLM:
    torch.manual_seed(0)
    model = SpeechLM(SpeechLMConfig(**(TINY | {"radices": list(RADICES), "group_size": 3} | changes)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_((0.02 if "head" in name else 0.1) * torch.randn_like(p))
    return model.eval()


def noise_for(seed: int, names: list[str], frames: int = 6) -> torch.Tensor:
    return torch.stack([draw_noise(seed, n, 0, (frames, 1 + 2 * 3)) for n in names])


def test_a_continuation_depends_on_neither_batch_nor_neighbours():
    model = random_lm()
    prompts = torch.stack([counting_clip(i, 3) for i in range(4)])
    names = list("abcd")
    together = continue_prompts(model, prompts, noise_for(5, names), LogitFilter())
    for i, name in enumerate(names):
        alone = continue_prompts(model, prompts[i : i + 1], noise_for(5, [name]), LogitFilter())
        n = int(alone.lengths[0])
        assert n == together.lengths[i]
        assert torch.equal(alone.ids[0, :n], together.ids[i, :n])
        assert torch.allclose(alone.nats[0], together.nats[i], atol=1e-3)
    assert not torch.equal(together.ids, continue_prompts(model, prompts, noise_for(6, names), LogitFilter()).ids)


def test_the_bits_of_a_continuation_are_those_of_the_full_pass():
    model = random_lm()
    prompts = torch.stack([counting_clip(i, 3) for i in range(8)])
    made = continue_prompts(model, prompts, noise_for(1, list("abcdefgh")), LogitFilter(), min_frames=1)
    no = torch.tensor([False])
    assert made.ended.any()
    for i in range(8):
        n = int(made.lengths[i])
        whole = torch.cat([prompts[i], made.ids[i, :n]]).unsqueeze(0)
        with torch.inference_mode():
            out = model(whole, torch.tensor([3 + n]), no, ~made.ended[i : i + 1])
            asked = model.end_logits(model.hidden(whole, no)[:, 6:7])[0, 0]  # the one boundary where no end was allowed
        total = out.token_nll.sum() + out.end_nll - torch.nn.functional.softplus(asked)
        assert torch.allclose(made.prompt_nats[i] + made.nats[i], total, atol=1e-3)


def test_temperature_zero_takes_the_likeliest_and_min_frames_holds():
    model = random_lm()
    prompts = counting_clip(0, 3).unsqueeze(0)
    with torch.no_grad():
        model.end.bias.fill_(100.0)  # always wants to end
    greedy = [continue_prompts(model, prompts, noise_for(s, ["a"]), LogitFilter(temperature=0.0), 4) for s in (1, 2)]
    assert greedy[0].lengths == 4 and greedy[0].ended[0]
    assert torch.equal(greedy[0].ids, greedy[1].ids)


def test_at_temperature_zero_the_end_is_not_drawn():
    model = random_lm()
    prompts = torch.stack([counting_clip(i, 3) for i in range(4)])

    def lengths(bias: float, seed: int) -> list[int]:
        model.end.bias.data.fill_(bias)
        noise = noise_for(seed, list("abcd"), frames=30)
        return continue_prompts(model, prompts, noise, LogitFilter(temperature=0.0), 1).lengths.tolist()

    with torch.no_grad():
        model.end.weight.zero_()
    assert [lengths(-0.1, seed) for seed in range(6)] == [[30] * 4] * 6
    assert [lengths(0.1, seed) for seed in range(6)] == [[1] * 4] * 6


def test_processes_wait_while_baselines_are_counted():
    assert LMRecipeConfig().gang.timeout == 120


# Recipe, in this process ----------------------------------------------------------------------------------------------


def test_training_reports_bits_beside_baselines_and_remembers_the_tokenizer(tmp_path):
    shards = write_shards(tmp_path / "tokens")
    out = tmp_path / "out"
    run(LMRecipe(), lm_config(shards, steps=40), out, no_rich=True, no_progress=True)

    losses = read_losses(out)
    assert sorted(losses) == list(range(1, 41))
    assert losses[40] < 0.6 * losses[1]
    valid = [json.loads(line) for line in (out / "metrics" / "valid.jsonl").read_text().splitlines()]
    baselines = json.loads((out / "baselines.json").read_text())
    assert valid[-1]["Unigram Bits/s"] == baselines["unigram"]["bits_per_second"]
    assert valid[-1]["Bits/s"] < baselines["unigram"]["bits_per_second"]
    slots = [valid[-1][f"Nats Slot {i:02d}"] for i in range(2)]
    assert sum(slots) / 2 == pytest.approx(valid[-1]["Nats/Token"], rel=1e-4)
    bits = (sum(slots) + valid[-1]["End Nats/Frame"]) / math.log(2) * 2.5
    assert valid[-1]["Bits/s"] == pytest.approx(bits, rel=1e-4)
    assert METADATA.hash in (out / "checkpoints" / "model.yaml").read_text()

    other = write_shards(tmp_path / "other", ShardMetadata("b" * 16, RADICES, 3, (24, 6), 2.5, 24_000))
    before = (out / "checkpoints" / "model.yaml").read_bytes()
    with pytest.raises(RecipeError, match="started on tokens of tokenizer"):
        run(LMRecipe(), lm_config(other, steps=60), out, no_rich=True, no_progress=True)
    assert (out / "checkpoints" / "model.yaml").read_bytes() == before


def test_checkpointing_and_half_precision_change_nothing_that_matters(tmp_path):
    shards = write_shards(tmp_path / "tokens")
    losses = {}
    for name in ("plain", "layerwise", "bf16"):
        config = lm_config(shards, steps=4)
        if name == "layerwise":
            config.trainer.activation_checkpointing = ActivationCheckpointingConfig(mode="layerwise")
        if name == "bf16":
            config.trainer.mixed_precision = MixedPrecisionConfig(mode="auto")
        run(LMRecipe(), config, tmp_path / name, no_rich=True, no_progress=True)
        losses[name] = read_losses(tmp_path / name)
    assert losses["layerwise"] == losses["plain"]
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=1e-2)
    assert losses["bf16"] != losses["plain"]


def test_what_cannot_work_is_refused_before_training(tmp_path):
    shards = write_shards(tmp_path / "tokens")
    cases = []
    config = lm_config(shards)
    config.dataset.max_frames = 500
    cases.append((config, "what the model can see"))
    config = lm_config(shards)
    config.dataset.batch_frames = 8
    cases.append((config, "batch_frames"))
    config = lm_config(shards)
    config.lr_scheduler.name, config.lr_scheduler.config = "cosine_annealing", CosineAnnealingLRConfig(num_warmup_steps=12)  # fmt: skip
    cases.append((config, "num_warmup_steps"))
    cases.append((lm_config(shards, radices=[2] * 5), "radices"))
    for i, (config, words) in enumerate(cases):
        with pytest.raises(RecipeError, match=words) as caught:
            run(LMRecipe(), config, tmp_path / f"out{i}", no_rich=True, no_progress=True)
        assert "\n" not in str(caught.value)


def test_a_prompt_becomes_wavs_of_the_right_length(tmp_path):
    from jepa_tok.audio import load_audio, save_audio
    from jepa_tok.tokenizer import SpeechTokenizer

    tokenizer = SpeechTokenizer.from_config("tiny")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    shards = tmp_path / "tokens"
    with TokenShardWriter(shards, tokenizer) as writer:
        rng = torch.Generator().manual_seed(0)
        for i in range(8):
            wave = 0.3 * torch.randn(24_000 + 5_000 * i, generator=rng)
            writer.add(f"noise/{i}", tokenizer.encode(wave, sample_rate=24_000), split="dev" if i > 5 else "train")
    save_audio(tmp_path / "prompt.wav", 0.3 * torch.randn(40_000, generator=rng))

    lm = lm_config(shards, steps=2, max_seq_len=512)
    run(LMRecipe(), lm, tmp_path / "lm", no_rich=True, no_progress=True)

    def generate(out: str, **prompts) -> list[dict]:
        config = LMGenerateConfig(
            tokenizer=str(tmp_path / "tokenizer"),
            prompts=PromptSection(seconds=0.9, **prompts),
            sampling=SamplingSection(max_seconds=1.6, min_seconds=0.8, num_samples=2),
            common=quiet(tmp_path / "lm" / "checkpoints"),
        )
        run(LMGenerateRecipe(), config, tmp_path / out, no_rich=True, no_progress=True)
        return json.loads((tmp_path / out / "generations.json").read_text())

    made = generate("audio", audio=[str(tmp_path / "prompt.wav")])
    assert [(m["prompt"], m["sample"]) for m in made] == [("prompt", 0), ("prompt", 1)]
    assert made[0]["ids"] != made[1]["ids"]
    for m in made:
        assert m["prompt_seconds"] == 0.8 and len(m["prompt_ids"]) == 2  # whole frames
        assert 2 <= len(m["ids"]) <= 4
        wave = load_audio(tmp_path / "audio" / m["wav"])
        rest = load_audio(tmp_path / "audio" / m["continuation_wav"])
        assert len(wave) == 9600 * (2 + len(m["ids"]))
        assert len(rest) == 9600 * len(m["ids"])
        assert torch.equal(wave[2 * 9600 :], rest)
        assert m["bits_per_second"] > 0
    assert made == generate("audio", audio=[str(tmp_path / "prompt.wav")])  # again, with the same seed

    made = generate("rows", tokens=[str(shards)], split="dev")
    assert {m["prompt"] for m in made} == {"noise/6", "noise/7"}

    SpeechTokenizer.from_config("tiny", seed=1).save_pretrained(tmp_path / "tokenizer2")
    (tmp_path / "tokenizer").rename(tmp_path / "tokenizer1")
    (tmp_path / "tokenizer2").rename(tmp_path / "tokenizer")
    with pytest.raises(RecipeError, match="trained on"):
        generate("wrong", audio=[str(tmp_path / "prompt.wav")])


# Recipe, in processes of its own --------------------------------------------------------------------------------------


def command(shards: Path, out: Path, *changes: str) -> list[str]:
    model = [f"model.config_overrides.{name}={value}" for name, value in TINY.items()]
    return [
        "recipes.lm", str(out), "--no-rich", "--config-file", f"{ROOT}/recipes/lm/configs/tiny_cpu.yaml", "--config",
        *model, f"dataset.config_overrides.shards=[{shards}]", "dataset.config_overrides.valid_split=dev",
        "dataset.batch_frames=64", "dataset.max_frames=16", "regime.publish_metrics_every_n_steps=1",
        "regime.checkpoint_every_n_steps=10", "regime.validate_every_n_steps=10",
        "common.metric_recorders.tensorboard.enabled=false", *changes,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_losses_of_a_whole_one(runs, tmp_path):
    shards = write_shards(tmp_path / "tokens")
    steps = ["regime.num_steps=40", "lr_scheduler.config.num_warmup_steps=5"]
    runs.run(command(shards, tmp_path / "whole", *steps))
    args = command(shards, tmp_path / "killed", *steps)
    metrics = tmp_path / "killed" / "metrics" / "train.jsonl"

    def beyond_a_checkpoint() -> bool:
        saved = (tmp_path / "killed/checkpoints/step_10/data_reader").exists()
        return saved and len(metrics.read_text().splitlines()) > 12

    runs.kill(args, beyond_a_checkpoint)
    assert "Restoring training from the last checkpoint" in runs.run(args)
    for name in ("train", "valid"):
        assert read_losses(tmp_path / "killed", name) == read_losses(tmp_path / "whole", name)
    assert sorted(read_losses(tmp_path / "whole")) == list(range(1, 41))


@pytest.mark.slow
def test_two_processes_train_alike_with_ddp_and_fsdp2(runs, tmp_path):
    shards = write_shards(tmp_path / "tokens")
    losses = {}
    for kind in ("ddp", "fsdp"):
        out = tmp_path / kind
        steps = ("regime.num_steps=5", "regime.validate_every_n_steps=5", "regime.checkpoint_every_n_steps=5")
        options = (f"trainer.data_parallelism={kind}", "lr_scheduler.config.num_warmup_steps=2")
        args = command(shards, out, *steps, *options)
        runs.run(args, ranks=2)
        losses[kind] = read_losses(out) | {f"valid {k}": v for k, v in read_losses(out, "valid").items()}  # type: ignore[dict-item]
    assert len(losses["ddp"]) == 6
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=1e-4)
    # A run that is complete is left as it is, by two processes as by one, also in its sharded checkpoint.
    assert "Resuming from step 5" in runs.run(args, ranks=2)
