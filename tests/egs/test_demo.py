"""The demo's driver: runs what is not done, resumes what was begun, starts anew what changed, tells what failed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from egs.mini import demo
from egs.mini.steps import STAGES, Step, make_steps

TOOL = '''"""Appends a line to a file each time it runs; fails if told so."""
import pathlib, sys
path, word = pathlib.Path(sys.argv[1]), sys.argv[2]
path.parent.mkdir(parents=True, exist_ok=True)
with path.open("a") as file:
    file.write(word + "\\n")
print("2026 INFO: Train Metrics (step 50) - Loss: 1.5 | A: 1 | B: 2 | C: 3 | D: 4")
if pathlib.Path(sys.argv[3]).exists():
    print("error: it was told to fail", file=sys.stderr)
    sys.exit(3)
'''


class Bench:
    """Three steps that write a line each, run in place of the real ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.out = folder, folder / "out"
        (folder / "tool_of_the_demo.py").write_text(TOOL)
        (folder / "b.yaml").write_text("steps: 1\n")
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setattr(demo, "make_steps", lambda out, configs, clips: self.steps())
        self.words = {"a": "a", "b": "b", "c": "c"}

    def steps(self) -> list[Step]:
        def step(stage: int, name: str, *configs: Path) -> Step:
            arguments = (str(self.file(name)), self.words[name], str(self.folder / f"fail_{name}"))
            return Step(stage, name, "tool_of_the_demo", arguments, (self.out / name,), configs)

        return [step(1, "a"), step(2, "b", self.folder / "b.yaml"), step(3, "c")]

    def file(self, name: str) -> Path:
        return self.out / name / "lines"

    def lines(self) -> dict[str, int]:
        return {n: len(self.file(n).read_text().splitlines()) if self.file(n).exists() else 0 for n in "abc"}

    def ran(self) -> list[tuple[str, object]]:
        text = (self.out / "commands.jsonl").read_text()
        return [(row["name"], row["status"]) for row in map(json.loads, text.splitlines())]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_second_run_does_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    demo.run_demo(bench.out)
    first = capsys.readouterr().out
    assert "$ python -m tool_of_the_demo" in first and "training   step   50  Loss: 1.5 | A: 1 | B: 2 | C: 3\n" in first
    demo.run_demo(bench.out)
    assert bench.ran() == [("a", 0), ("b", 0), ("c", 0)] and bench.lines() == {"a": 1, "b": 1, "c": 1}
    assert capsys.readouterr().out.count("done before") == 3
    row = json.loads((bench.out / "commands.jsonl").read_text().splitlines()[1])
    assert row["stage"] == 2 and row["command"].startswith("python -m tool_of_the_demo") and row["seconds"] >= 0


def test_change_runs_all_that_follows_from_nothing(bench: Bench) -> None:
    demo.run_demo(bench.out)
    (bench.folder / "b.yaml").write_text("steps: 2\n")
    demo.run_demo(bench.out)
    assert [name for name, _ in bench.ran()] == ["a", "b", "c", "b", "c"]
    assert bench.lines() == {"a": 1, "b": 1, "c": 1}  # what other settings made was removed first
    bench.words["a"] = "other"
    demo.run_demo(bench.out)
    assert [name for name, _ in bench.ran()][-3:] == ["a", "b", "c"]


def test_lost_output_is_made_again(bench: Bench) -> None:
    demo.run_demo(bench.out)
    bench.file("b").unlink()
    bench.file("b").parent.rmdir()
    demo.run_demo(bench.out)
    assert [name for name, _ in bench.ran()] == ["a", "b", "c", "b"]


def test_failed_command_is_told_and_resumed(bench: Bench) -> None:
    (bench.folder / "fail_b").touch()
    with pytest.raises(demo.StepFailed) as caught:
        demo.run_demo(bench.out)
    assert (
        "it was told to fail" in str(caught.value)
        and "status 3" in str(caught.value)
        and "logs/b.log" in str(caught.value)
    )
    assert bench.ran() == [("a", 0), ("b", 3)]
    (bench.folder / "fail_b").unlink()
    demo.run_demo(bench.out)
    assert bench.ran()[2:] == [("b", 0), ("c", 0)]
    assert bench.lines() == {"a": 1, "b": 2, "c": 1}  # what the failed command left was there to resume from


def test_terminated_demo_ends_its_command(tmp_path: Path) -> None:
    """SIGTERM to the driver: the command ends too, the record says `interrupted`, nothing counts as done."""
    (tmp_path / "sleeper_of_the_demo.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
    )
    driver = (
        "import sys, pathlib\nfrom egs.mini import demo\nfrom egs.mini.steps import Step\n"
        f"out = pathlib.Path({str(tmp_path)!r})\ndemo.ROOT = out\n"
        "demo.make_steps = lambda o, c, clips: [Step(1, 'a', 'sleeper_of_the_demo', (), (out / 'pid',))]\n"
        "sys.exit(demo.main(['--out', str(out / 'run')]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{demo.ROOT}"}
    process = subprocess.Popen([sys.executable, "-c", driver], env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130 and "goes on from here" in told
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    row = json.loads((tmp_path / "run" / "commands.jsonl").read_text())
    assert row["status"] == "interrupted"
    assert (tmp_path / "run" / ".stamps" / "a").read_text().startswith("begun")


def test_stages_are_chosen(bench: Bench) -> None:
    demo.run_demo(bench.out, 1, 2)
    assert bench.lines() == {"a": 1, "b": 1, "c": 0}
    demo.run_demo(bench.out, 3, 3)
    assert bench.lines() == {"a": 1, "b": 1, "c": 1}


def test_command_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(bench.out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"demo: report: {bench.out / 'report.html'}"
    (bench.folder / "fail_a").touch()
    bench.words["a"] = "other"
    assert demo.main(["--out", str(bench.out)]) == 1
    assert "demo: error: a ended with status 3" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        demo.main(["--stage", "9"])
    assert caught.value.code == 2


def test_steps_name_what_exists() -> None:
    steps = make_steps(Path("exp/demo"), Path("egs/mini/configs"))
    assert sorted({step.stage for step in steps}) == list(STAGES)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        assert importlib.util.find_spec(step.module), step.module
        assert all((demo.ROOT / config).is_file() for config in step.configs)
        assert step.argv("py")[:3] == ["py", "-m", step.module] and step.line.startswith(f"python -m {step.module} ")
        assert all(str(path).startswith("exp/demo/") for path in step.makes)


def test_report_compares_with_what_is_packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jepa_tok import SpeechTokenizer, hub

    monkeypatch.setattr(hub, "CHECKPOINTS", tmp_path / "checkpoints")
    last = make_steps(Path("exp/demo"), Path("egs/mini/configs"))[-1]
    assert "--compare" not in last.arguments and last.configs == ()
    folder = SpeechTokenizer.from_config("tiny").save_pretrained(tmp_path / "checkpoints" / "small")
    last = make_steps(Path("exp/demo"), Path("egs/mini/configs"), [tmp_path / "a b.wav"])[-1]
    assert last.arguments[-4:] == ("--compare", "small", "--clip", str(tmp_path / "a b.wav"))
    assert last.configs == (tmp_path / "a b.wav", folder / "config.json")  # either one changes, the page is made anew


def test_clips_are_read_before_anything_runs(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--out", str(bench.out), "--clip", str(bench.folder / "none.wav")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("demo: error: ") and "none.wav" in error and error.count("\n") == 1
    assert not bench.out.exists()


def test_run_json_tells_where_and_of_what() -> None:
    from egs.mini.machine import describe

    told = describe()
    assert {"date", "commit", "seeds", "machine", "versions"} <= set(told) and "cores" in told["machine"]
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.slow
def test_corpus_to_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real commands of stages 1 to 4, on an eighth of the corpus, with as few training steps as there can be."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng is not installed: pip install espeakng-loader==0.2.4")
    pytest.importorskip("fairseq2", reason="fairseq2 is not installed: the demo's training was not run")
    import yaml

    def fewer_sentences(*given: Any) -> list[Step]:
        first, *others = make_steps(*given)
        return [replace(first, arguments=(*first.arguments, "--sentences-per-speaker", "1")), *others]

    monkeypatch.setattr(demo, "make_steps", fewer_sentences)
    configs = tmp_path / "configs"
    configs.mkdir()
    for name in ("stage1", "stage2", "lm"):
        config = yaml.safe_load((demo.ROOT / "egs/mini/configs" / f"{name}.yaml").read_text())
        config["regime"] = {
            "num_steps": 2,
            "validate_every_n_steps": 2,
            "checkpoint_every_n_steps": 2,
            "publish_metrics_every_n_steps": 1,
        }
        if "max_valid_clips" in config["dataset"]:
            config["dataset"]["max_valid_clips"] = 4
        if name == "stage1":
            config["lr_scheduler"]["config"]["num_warmup_steps"] = 1
            config["anchor"] = {"fit_frames": 2000}
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    assert demo.main(["--out", str(out), "--stop-stage", "4", "--configs", str(configs)]) == 0
    assert (out / "tokenizer" / "model.safetensors").is_file()
    from jepa_tok.corpus.shards import read_shards

    rows = list(read_shards(out / "tokens"))
    assert len(rows) == len((out / "corpus" / "all.jsonl").read_text().splitlines())
    assert demo.main(["--out", str(out), "--stop-stage", "4", "--configs", str(configs)]) == 0
    assert len((out / "commands.jsonl").read_text().splitlines()) == 5
