"""What the demo runs: every command of every stage, with what it makes and what it reads."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STAGES = {
    1: "corpus",
    2: "JEPA pretraining (paper: stage 1)",
    3: "tokenizer and decoder (paper: stage 2)",
    4: "tokens",
    5: "language model",
    6: "continuation",
    7: "probes",
    8: "report",
}

PACKAGED = ("small", "tiny")
"""Packaged tokenizers: the report lets hear the first that is there beside the demo's own."""

SEED_CORPUS, SEED_TRAINING, SEED_SAMPLING, SEEDS_PROBES = 0, 2, 2, (0, 1, 2)


@dataclass(frozen=True)
class Step:
    """One command. It counts as done when it ended with status 0 and `makes` is there."""

    stage: int
    name: str
    module: str
    arguments: tuple[str, ...]
    makes: tuple[Path, ...]
    """Files or folders; removed before the command runs for the first time with these settings, kept to resume."""
    configs: tuple[Path, ...] = ()
    """Files, beside what earlier steps make, whose content shapes the result."""

    def argv(self, python: str) -> list[str]:
        """For subprocess."""
        return [python, "-m", self.module, *self.arguments]

    @property
    def line(self) -> str:
        """To type into a shell, with the environment's Python."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def make_steps(out: Path, configs: Path, clips: Sequence[Path] = ()) -> list[Step]:
    """The demo's commands in order.

    :param out: The run's folder.
    :param configs: Folder of stage1.yaml, stage2.yaml and lm.yaml.
    :param clips: Audio files that the report lets hear beside the corpus.
    """
    from jepa_tok.hub import list_pretrained, resolve_pretrained

    manifest = out / "corpus" / "all.jsonl"

    def recipe(stage: int, name: str, module: str, *overrides: str) -> Step:
        config = configs / f"{name}.yaml"
        arguments = (str(out / name), "--no-rich", "--config-file", str(config), "--config", *overrides)
        return Step(stage, name, module, arguments, (out / name,), (config,))

    def probe(task: str, *more: str) -> Step:
        folder = out / "probes" / task
        arguments = (
            task, "--tokens", str(out / "tokens"), "--labels", str(manifest), "--random-config", "tiny",
            "--seeds", *map(str, SEEDS_PROBES), "--out", str(folder), *more,
        )  # fmt: skip
        return Step(7, f"probe {task}", "probes", arguments, (folder,))

    def report() -> Step:
        arguments = [str(out), "--out", str(out / "report.html"), "--overwrite"]
        read = list(clips)
        shipped = next((name for name in PACKAGED if name in list_pretrained()), None)
        if shipped is not None:
            arguments += ["--compare", shipped]
            read.append(resolve_pretrained(shipped) / "config.json")  # its hash stands for the weights
        for clip in clips:
            arguments += ["--clip", str(clip)]
        return Step(8, "report", "jepa_tok", ("report", *arguments), (out / "report.html",), tuple(read))

    return [
        Step(1, "corpus", "egs.mini.corpus", (str(out / "corpus"), "--seed", str(SEED_CORPUS)), (out / "corpus",)),
        recipe(2, "stage1", "recipes.jepa", f"dataset.config_overrides.manifests=[{manifest}]"),
        recipe(
            3, "stage2", "recipes.codec", f"dataset.config_overrides.manifests=[{manifest}]", f"encoder.path={out / 'stage1'}"
        ),
        Step(3, "export", "recipes.codec.export", (str(out / "stage2"), str(out / "tokenizer"), "--name", "mini"), (out / "tokenizer",)),
        Step(4, "tokenize", "jepa_tok", ("tokenize", str(manifest), str(out / "tokens"), "--tokenizer", str(out / "tokenizer")), (out / "tokens",)),
        recipe(
            5, "lm", "recipes.lm", f"dataset.config_overrides.shards=[{out / 'tokens'}]",
            "dataset.config_overrides.train_split=train", "dataset.config_overrides.valid_split=dev",
        ),
        Step(
            6, "generate", "recipes.lm.generate",
            (
                str(out / "generate"), "--no-rich", "--config", f"common.assets.prev_checkpoint_dir={out / 'lm' / 'checkpoints'}",
                f"tokenizer={out / 'tokenizer'}", f"prompts.tokens=[{out / 'tokens'}]", "prompts.split=test", "prompts.limit=3",
                "prompts.seconds=1.2", "sampling.max_seconds=3.2", "sampling.min_seconds=1.2", f"sampling.seed={SEED_SAMPLING}",
            ),
            (out / "generate",),
        ),
        probe("asr", "--epochs", "15"),
        probe("speaker", "--split-column", "split_utt", "--verification-column", "split"),
        probe("emotion"),
        report(),
    ]  # fmt: skip
