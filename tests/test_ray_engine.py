"""`tokenize_corpus(engine="ray")` on a local cluster: the bytes of a local run, also when a worker dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from jepa_tok.cli import main
from jepa_tok.corpus import ray_engine, tokenize_corpus, verify_tokens
from jepa_tok.corpus.tokenize import Progress
from jepa_tok.errors import CorpusError
from jepa_tok.tokenizer import SpeechTokenizer
from tests.corpora import contents, make_corpus


@pytest.fixture(scope="module")
def ray():
    """A cluster of two CPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="needs jepa-tok[ray]")
    pytest.importorskip("ray.data")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    # This module is not importable where the workers run: its classes travel whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray
    ray.shutdown()


class Mortal:
    """A tokenizer that once, at its third clip, takes the process with it."""

    def __init__(self, tokenizer, grave):
        self.tokenizer, self.grave, self.clips = tokenizer, grave, 0
        for name in ("config", "hash", "sample_rate", "frame_rate", "device"):
            setattr(self, name, getattr(tokenizer, name))

    def encode(self, waves, **options):
        self.clips += len(waves)
        if self.clips >= 3:
            try:
                self.grave.open("x").write(str(os.getpid()))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.tokenizer.encode(waves, **options)


def test_a_worker_dies_and_nothing_is_lost_or_there_twice(ray, tmp_path):
    manifest = make_corpus(tmp_path / "in", 17, bad=(5,))
    tokenizer = SpeechTokenizer.from_config("tiny")
    expected = tokenize_corpus(manifest, tmp_path / "local", tokenizer, rows_per_shard=2)
    grave = tmp_path / "grave"
    mortal = Mortal(tokenizer, grave)
    summary = tokenize_corpus(manifest, tmp_path / "ray", mortal, rows_per_shard=2, engine="ray", workers=2)
    assert grave.read_text() != str(os.getpid()), "it was a worker that died"
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert (summary.written, summary.skipped, summary.tokens) == (16, 1, expected.tokens) and summary.seconds > 0

    with pytest.raises(CorpusError, match=r"utterance 'u5': .*u5\.wav"):  # a worker's error is the driver's
        tokenize_corpus(manifest, tmp_path / "ray", tokenizer, rows_per_shard=2, engine="ray", workers=1, strict=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


def test_utterances_go_out_a_few_shards_at_a_time(ray, tmp_path, monkeypatch):
    manifest = make_corpus(tmp_path / "in", 10)
    tokenizer = SpeechTokenizer.from_config("tiny")
    tokenize_corpus(manifest, tmp_path / "local", tokenizer, rows_per_shard=2)
    put, events = ray_engine._item, []
    monkeypatch.setattr(ray_engine, "SHARDS_AHEAD", 3)
    monkeypatch.setattr(ray_engine, "_item", lambda index, run: events.append("put") or put(index, run))
    monkeypatch.setattr(Progress, "add", lambda *_: events.append("done"))
    tokenize_corpus(manifest, tmp_path / "ray", tokenizer, rows_per_shard=2, engine="ray", workers=1)
    assert events == ["put"] * 3 + ["done"] * 3 + ["put"] * 2 + ["done"] * 2
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")


@pytest.mark.slow
def test_the_command_line_starts_a_cluster_and_gives_the_rows_of_a_local_run(tmp_path):
    pytest.importorskip("ray.data", reason="needs jepa-tok[ray]")
    manifest = make_corpus(tmp_path / "in", 5, bad=(3,))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    options = ["--tokenizer", "tiny", "--random-init", "--rows-per-shard", "2", "--engine", "ray", "--workers", "1"]
    command = [sys.executable, "-m", "jepa_tok", "tokenize", manifest, tmp_path / "ray", *options]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr  # for the file that was skipped
    assert "4 of 5 clips in 3 shards" in result.stdout and result.stdout.count("\n") == 1
    assert all(line.startswith("jepa-tok: ") for line in result.stderr.splitlines()), result.stderr
    tokenizer = SpeechTokenizer.from_config("tiny")
    tokenize_corpus(manifest, tmp_path / "local", tokenizer, rows_per_shard=2)
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert verify_tokens(tmp_path / "ray").sound


def test_without_ray(tmp_path, monkeypatch, capsys):
    manifest = make_corpus(tmp_path / "in", 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = ["tokenize", manifest, tmp_path / "out", "--tokenizer", "tiny", "--random-init", "--engine", "ray"]
    assert main([str(a) for a in argv]) == 2
    (_, message) = capsys.readouterr().err.splitlines()
    assert "jepa-tok[ray]" in message and "local" in message


def test_unknown_engines_are_refused(tmp_path):
    with pytest.raises(CorpusError, match="`engine` must be one of local, ray, but is 'spark'"):
        tokenize_corpus(tmp_path, tmp_path / "out", None, engine="spark")
