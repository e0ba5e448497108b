"""`python -m probes study`: which parts of a tokenizer's frames carry what, and what its gates follow, beside an untrained encoder.

OUT/study.json, study.html; OUT/cache as `run` has it, so that OUT may be the folder of a run of the suite

{"format": "jepa-tok-probe-study/1", "names": ["exp/tok", "random:exp/tok"], "corpora": [
  {"corpus": "fsdd", "about": ..., "groups": [7, 7, ..., 2], "tasks": {"keyword": {"exp/tok": {"by_group": ..., "by_digit": ...}, ...}},
   "mels": {"exp/tok": {"all": ..., "subframes": [[...]], "offsets": [[...]]}, ...}, "gates": {"exp/tok": [...], ...}}, ...], ...}
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.files import unlock, write_text
from jepa_tok.provenance import commit, machine, versions
from probes import gates, slots, splits, study_page
from probes.cache import open_frames
from probes.data import ProbeError
from probes.entries import Clips, Entry, Tokenizer, untrained_of
from probes.inputs import subframes_of
from probes.places import check_given, check_writable, writing
from probes.progress import say
from probes.run import fit, fit_audio, take_out, tokenize
from probes.suite import Corpus, Suite, load_suite

FORMAT = "jepa-tok-probe-study/1"
MOST_CLIPS = 200
"""Of each corpus, for log-mels and gates; drawn by seed."""


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Studies one tokenizer; returns 0. Raises JepaTokError where the input does not allow it."""
    folder = check_given(args, argv)
    whole = load_suite(args.suite, args.data)
    names = args.tasks or sorted({t.name for c in whole.corpora for t in c.tasks if t.probe != "asr"})
    suite = whole.only(names)
    if not names or any(task.probe == "asr" for corpus in suite.corpora for task in corpus.tasks):
        raise ProbeError(
            "A study needs tasks of pooled tokens (speaker, classify): parts of a frame are not read over time."
        )
    entries = make_entries(args.tokenizer, args.control, args.device)
    for corpus in suite.corpora:
        corpus.check_labels([args.seed])
        check_heard(corpus, args.seed)
    audio = fit_audio(whole, args.fit)
    out = Path(args.out)
    lock = take_out(out, suite.name)
    try:
        check_writable(folder, "--cache")
        fit(entries, audio, suite.name, folder)
        found = study(suite, entries, args.seed, folder)
        result = {
            "format": FORMAT,
            "suite": suite.name,
            "names": [entry.name for entry in entries],
            "corpora": found,
            "seed": args.seed,
            "command": shlex.join(["python", "-m", "probes", *argv]),
            "commit": commit(),
            "machine": machine(),
            "versions": versions(),
        }
        with writing(out):
            write_text(out / "study.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
            write_text(out / "study.html", study_page.render(result))
    finally:
        unlock(lock)
    print(f"written: {out / 'study.json'}, {out / 'study.html'}")
    return 0


def make_entries(spec: str, control: str | None, device: str) -> list[Tokenizer]:
    """The tokenizer, and the control: where none is named and the tokenizer is ours, an untrained one of its config."""
    own = Tokenizer(spec, device)
    if control is None:
        control = untrained_of(own)
    return [own, *([Tokenizer(control, device)] if control else [])]


def study(suite: Suite, entries: Sequence[Tokenizer], seed: int, folder: Path) -> list[dict[str, Any]]:
    """What was found in each corpus."""
    groups, failed = tokenize(suite, entries, [seed], folder)
    if failed:
        raise ProbeError(f"{failed[0]['corpus']}, {failed[0]['tokenizer']}: {failed[0]['error']}")
    found = []
    for corpus in suite.corpora:
        own: dict[str, Any] = {"corpus": corpus.name, "about": corpus.about, "groups": {}, "tasks": {}}
        own |= {"mels": {}, "gates": {}}
        for group, entry in zip((g for g in groups if g.corpus is corpus), entries):
            say(f"{corpus.name}: {entry.name}")
            frames = open_frames(group.frames, [u.id for u in corpus.utterances])
            clips = Clips(frames, None, group.view)
            parts = slots.groups_of(len(entry.adapter.radices), group_size(entry))
            own["groups"][entry.name] = [len(dims) for dims in parts]
            for task in corpus.tasks:
                data = task.prepare(clips.data(corpus.utterances))
                read = slots.by_group(clips, data, task, parts, seed)
                read["by_digit"] = slots.by_digit(data, str(task.options["column"]))
                own["tasks"].setdefault(task.name, {})[entry.name] = read
            own["mels"][entry.name], own["gates"][entry.name] = _heard(corpus, entry, clips, parts, seed)
        found.append(own)
    return found


def group_size(entry: Tokenizer) -> int:
    """Digits of a token of ours; codes of other tokenizers stand alone."""
    from jepa_tok.adapters.ours import Ours

    return entry.adapter.tokenizer.config.quantizer.group_size if isinstance(entry.adapter, Ours) else 1


def check_heard(corpus: Corpus, seed: int) -> None:
    """Raises ProbeError where the clips of a corpus that are heard cannot be divided for the readout of log-mels. It needs no audio."""
    _, owners, _ = _pick(corpus, seed)
    try:
        slots.divide(owners, seed)
    except ProbeError as error:
        raise ProbeError(f"'{corpus.path or corpus.name}', log-mels: {error}") from None


def _pick(corpus: Corpus, seed: int) -> tuple[list[int], list[str], str]:
    """Rows of MOST_CLIPS clips at most, and who is drawn for each when intervals are made, as `splits.owners` has it."""
    size = len(corpus.utterances)
    rows = sorted(random.Random(seed).sample(range(size), min(MOST_CLIPS, size)))
    return rows, *splits.owners(corpus.labels().select(rows), None)


def _heard(
    corpus: Corpus, entry: Entry, clips: Clips, parts: Sequence[Any], seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The readout of log-mels and the study of gates, of MOST_CLIPS clips of the corpus."""
    from jepa_tok.adapters.ours import Ours

    rows, owners, by = _pick(corpus, seed)
    picked = [corpus.utterances[i] for i in rows]
    meta = clips.view.meta
    waves = [load_utterance(u, meta.sample_rate) for u in picked]
    mels = slots.read_mels(waves, meta.sample_rate, meta.hop, subframes_of(meta.hop, meta.sample_rate))
    few = Clips([clips.frames[i] for i in rows], None, clips.view)  # type: ignore[arg-type]
    readout = slots.mel_readout(few, mels, owners, by, parts, seed)
    if not isinstance(entry, Tokenizer) or not isinstance(entry.adapter, Ours):
        return readout, []
    return readout, gates.study(entry.adapter.tokenizer, waves, owners, by)
