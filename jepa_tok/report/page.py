"""Binds the sections into one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from jepa_tok.errors import CorpusError
from jepa_tok.files import write_text
from jepa_tok.report import listen, results, training
from jepa_tok.report.document import document
from jepa_tok.report.rundir import RunDir


def build_report(
    run_dir: str | os.PathLike[str],
    out_html: str | os.PathLike[str],
    compare: str | None = None,
    clips: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Writes the page of a run, at once or not at all, and returns its path.

    :param compare: Folder or name of another tokenizer, to be heard beside the run's own.
    :param clips: Audio files to be heard beside clips of the run's corpus.

    What the run lacks is named in the page. Raises CorpusError where `run_dir` is no folder or `out_html` cannot be written,
    ConfigError and AudioError where `compare` or a clip cannot be read.
    """
    if not Path(run_dir).is_dir():
        raise CorpusError(f"`run_dir` must be a folder, but '{run_dir}' is not.")
    text = render(RunDir(run_dir), listen.load_comparison(compare, clips))
    out = Path(out_html)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise CorpusError(f"'{out}' cannot be written: {error.strerror}.") from None
    return out


def render(run: RunDir, comparison: listen.Comparison | None = None) -> str:
    """The whole page as text."""
    tokenizer = listen.load_tokenizer(run)
    corpus = listen.utterances(run)
    usage = results.read_usage(run)
    bits = training.last(run, "lm", r"bits/s", r"bits per second")
    valid = next((rows for name, rows in run.metrics("lm").items() if not name.startswith("train")), [])
    sections = [
        listen.resynthesis(run, tokenizer, corpus, comparison),
        listen.continuation(run),
        training.stage1(run),
        training.stage2(run),
        training.language_model(run),
        listen.gates(run, tokenizer, corpus),
        results.codes(usage),
        results.probes(run),
        results.commands(run),
    ]
    head = results.head(run, results.tiles(run, usage, bits, valid))
    problems = "".join(f"<li>{escape(p)}</li>" for p in dict.fromkeys(run.problems))
    trouble = f'<section id="problems"><h2>Could not be read</h2><ul>{problems}</ul></section>' if problems else ""
    title = str(run.info.get("title") or "jepa-tok report")
    name = "" if tokenizer is None else f" Tokenizer {tokenizer.hash} ({escape(tokenizer.config.name)})."
    body = head + "\n".join(sections) + trouble
    footer = f"Made by jepa-tok from files of the run's folder.{name} This page needs no network and no other file."
    return document(title, body, footer)
