"""The README's Python runs as it stands, and its shell lines name modules, files and verbs that exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run_and_their_shapes_are_as_told() -> None:
    code = blocks("python")
    assert len(code) == 1
    scope: dict = {}
    exec(compile(code[0], "README.md", "exec"), scope)
    tokenizer, tokens = scope["tokenizer"], scope["tokens"]
    assert tuple(tokens.ids.shape) == (3, 19) and tuple(tokens.codes.shape) == (3, 128)
    assert tokenizer.vocab_sizes == [16384] * 18 + [16]
    assert tuple(tokenizer.decode(tokens).shape) == (24_000,)


def test_shell_lines_name_what_exists() -> None:
    shell = "\n".join(blocks("sh"))
    modules = set(re.findall(r"python -m ([\w.]+)", shell))
    configs = set(re.findall(r"--config-file (\S+)", shell))
    verbs = set(re.findall(r"^jepa-tok (\w+)", shell, re.MULTILINE))
    targets = set(re.findall(r"^make (\w+)", shell, re.MULTILINE))
    assert modules and configs and verbs and targets
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module
    for config in configs:
        assert (ROOT / config).exists(), config
    for verb in verbs:
        assert importlib.util.find_spec(f"jepa_tok.cli.{verb}") is not None, verb
    for target in targets:
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target
