"""Fixtures shared by all tests: quiet, single-threaded, made-up audio."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# One thread: fairseq2's CPU runs are several times faster so, and results do not depend on the machine's core count.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # tasks, recipes, probes and egs are used from the checkout, not from the wheel
    sys.path.insert(0, str(ROOT))

settings.register_profile("untimed", deadline=None)  # no test asserts on time
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers():
    """How many processes `-n auto` runs tests in: one a core, and not more than 16 GiB are enough for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


@pytest.fixture(scope="module")
def tiny():
    """An untrained `tiny` tokenizer."""
    from jepa_tok import SpeechTokenizer

    return SpeechTokenizer.from_config("tiny")


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """Five clips, one of them broken (`m.jsonl`), and their `tokens`: to be left as they are."""
    from tests.corpora import make_tokens

    return make_tokens(tmp_path_factory.mktemp("made"), tiny)


@pytest.fixture
def corpus(made, tmp_path):
    """A copy of its tokens, to be damaged or exported."""
    shutil.copytree(made / "tokens", tmp_path / "tokens")
    return tmp_path / "tokens"


@pytest.fixture(scope="module")
def thin():
    """An untrained tokenizer in the published layout: see `paper_layout`."""
    from jepa_tok import SpeechTokenizer
    from tests.tokenizers import paper_layout

    return SpeechTokenizer.from_config(paper_layout())


@pytest.fixture
def jepa_tok(capsys):
    """Runs a command line in this process: exit status, stdout, stderr. A traceback would fail the test."""
    from jepa_tok.cli import main

    def run(*arguments):
        capsys.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as e:  # argparse
            status = e.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A saved tokenizer; untrained, but that is nobody's business."""
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    """The one in `folder`."""
    from jepa_tok import SpeechTokenizer

    return SpeechTokenizer.from_pretrained(folder)


@pytest.fixture
def clips(tmp_path):
    """Two files of noise of half a second, a.wav at 16 kHz and b.flac at 24 kHz."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    for name, size, rate in (("a.wav", 7000, 16_000), ("b.flac", 12_345, 24_000)):
        soundfile.write(tmp_path / name, rng.normal(0, 0.1, size), rate)
    return tmp_path / "a.wav", tmp_path / "b.flac"


@pytest.fixture
def threads_as_they_were():
    """For tests that set the number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
