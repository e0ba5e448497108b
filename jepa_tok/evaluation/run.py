"""`evaluate`: every system of the table resynthesises a corpus, every metric compares, and OUT tells what was found.

OUT/results.json        all figures, with versions, commit, machine, command and seed
OUT/results.md          the same as tables
OUT/utterances.jsonl    one line for each utterance and system
OUT/versa/SYSTEM.jsonl  the same in VERSA's names, one line an utterance
OUT/audio/SYSTEM/ID.wav what was heard, where asked for
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jepa_tok.audio import save_audio
from jepa_tok.corpus.encode import load_clip
from jepa_tok.corpus.utterance import Utterance, one_line
from jepa_tok.errors import AudioError, ConfigError, CorpusError, JepaTokError
from jepa_tok.evaluation.bounds import CALIBRATION, Output, System, choose_systems
from jepa_tok.evaluation.clip import Clip
from jepa_tok.evaluation.codecs import CodecError
from jepa_tok.evaluation.codes import code_usage
from jepa_tok.evaluation.metrics import CannotMeasure, Metric, Scores, registry
from jepa_tok.evaluation.partial import Partial
from jepa_tok.evaluation.recognition import Wer
from jepa_tok.evaluation.summary import Found, summarize
from jepa_tok.evaluation.table import markdown, versa_lines
from jepa_tok.files import write_text
from jepa_tok.provenance import commit, machine, versions

FORMAT = "jepa-tok-eval/1"
PACKAGES = ("librosa", "onnxruntime", "pesq", "pocketsphinx", "pystoi", "resemblyzer", "speechmos")


def evaluate(
    tokenizer: Any,
    utterances: Sequence[Utterance],
    out: Path,
    *,
    metrics: Sequence[str] | None = None,
    bounds: Sequence[str] | None = None,
    recognizer: str = "pocketsphinx",
    limit: int | None = None,
    audio: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool | None = None,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates `tokenizer` on `utterances`, writes OUT, and gives what `results.json` holds.

    :param metrics: Names; None for all that can be had here, others being named with what they lack.
    :param bounds: Names of `bounds.BOUNDS`; None for all. A bound that cannot be had is a row that says so.
    :param recognizer: See `jepa_tok.evaluation.recognition`.
    :param limit: At most so many utterances, evenly spaced over the list.
    :param audio: Whether to write what every system gave.
    :param seed: Of the bootstrap.
    :param about: Goes into the results as it is: source, command.
    :raises ConfigError: for an unknown name, a negative seed, and for a metric that was asked for by name but cannot be had.
    :raises CorpusError: where OUT has results already, or no utterance could be read.
    """
    if seed < 0:
        raise ConfigError(f"`seed` of the bootstrap must be at least 0, but is {seed} instead.")
    results = out / "results.json"
    if results.exists() and not overwrite:
        raise CorpusError(f"{results}: exists already; take another folder, or --overwrite it.")
    utterances = evenly_spaced(utterances, limit)
    systems = choose_systems(tokenizer, utterances, bounds)
    chosen, lacking = choose_metrics(metrics, recognizer)
    out.mkdir(parents=True, exist_ok=True)

    unavailable = {s.label: reason for s in systems if (reason := s.missing())}
    systems = [s for s in systems if s.label not in unavailable]
    settings = {
        "tokenizer": tokenizer.hash,
        "utterances": [u.id for u in utterances],
        "systems": [s.label for s in systems],
        "metrics": [m.name for m in chosen],
        "recognizer": recognizer,
        "audio": audio,
        "commit": commit(),
    }
    partial, skipped, finished = Partial(out, settings), [], False
    try:
        _calibrate(systems, utterances, tokenizer.sample_rate)
        for index, u in _progress(utterances, progress):
            if u.id in partial.done:
                continue
            try:
                partial.add(u.id, *_evaluate(u, index, systems, chosen, tokenizer.sample_rate, out if audio else None))
            except AudioError as error:
                skipped.append({"id": u.id, "reason": str(error)})
        done = [partial.done[u.id] for u in utterances if u.id in partial.done]
        if not done:
            raise CorpusError(f"none of {len(skipped)} utterances can be read; the first: {skipped[0]['reason']}")
        found = [f for one, _ in done for f in one]
        report = _report(tokenizer, found, [ids for _, ids in done if ids], systems, chosen, seed)
        report |= {
            "unavailable": {"systems": unavailable, "metrics": lacking},
            "skipped": skipped,
            "settings": {"recognizer": recognizer, "limit": limit, "seed": seed, "device": str(tokenizer.device)},
            **(about or {}),
        }
        _write(out, report, found, chosen)
        finished = True
        return report
    finally:
        partial.close(finished)


def evenly_spaced(utterances: Sequence[Utterance], limit: int | None) -> Sequence[Utterance]:
    """At most `limit` of them, evenly spaced over the list; all where it is None."""
    if limit is None or limit >= len(utterances):
        return utterances
    return [utterances[i * len(utterances) // limit] for i in range(limit)]


def choose_metrics(names: Sequence[str] | None, recognizer: str) -> tuple[list[Metric], dict[str, str]]:
    """The metrics, and why the others cannot be had: name -> reason. Raises ConfigError as `evaluate`."""
    known = registry()
    if names is not None and not names:
        raise ConfigError(f"`metrics` must name at least one of {', '.join(known)}, but is empty instead.")
    for name in names or ():
        if name not in known:
            raise ConfigError(f"`metrics` must be among {', '.join(known)}, but is '{name}' instead.")
    chosen: list[Metric] = []
    lacking: dict[str, str] = {}
    for name, kind in known.items():
        if names is not None and name not in names:
            continue
        try:
            if reason := kind.missing():
                raise ImportError(reason)
            chosen.append(Wer(recognizer) if name == Wer.name else kind())
        except ImportError as error:
            reason = one_line(error)
            lacking[name] = reason if reason.startswith("not available") else f"not available: {reason}"
    if names is not None and lacking:
        name, reason = next(iter(lacking.items()))
        raise ConfigError(f"metric '{name}' was asked for, but is {reason}.")
    return chosen, lacking


def folder_name(label: str) -> str:
    """A system's label as the name of a folder or file."""
    return "-".join("".join(c if c.isalnum() else " " for c in label.lower()).split())


def _calibrate(systems: Sequence[System], utterances: Sequence[Utterance], sample_rate: int) -> None:
    waves = []
    for u in utterances:
        try:
            wave = load_clip(u, sample_rate)
        except AudioError:  # told when its turn comes
            continue
        if wave is not None:
            waves.append(wave)
        if len(waves) == CALIBRATION:
            break
    for system in systems:
        if waves:
            system.calibrate(waves)


def _evaluate(
    u: Utterance, index: int, systems: Sequence[System], metrics: Sequence[Metric], sample_rate: int, out: Path | None
) -> tuple[list[Found], list[list[int]] | None]:
    """What is found of one utterance, and the ids of its tokens; raises AudioError where it cannot be read."""
    wave = load_clip(u, sample_rate)
    if wave is None:
        raise AudioError(f"'{u.path}' is too long to be evaluated as one utterance; cut it into segments.")
    original = Clip(wave, sample_rate, str(u.info.get("text") or "") or None)
    found, ids = [], None
    for system in systems:
        output, scores = _score(system, metrics, original, index)
        spent = output.seconds if output else {}
        found.append(Found(u.id, str(u.info.get("speaker") or ""), system.label, original.seconds, scores, spent))
        if output and output.tokens:
            ids = output.tokens.ids.tolist()
        if output and out is not None:
            path = out / "audio" / folder_name(system.label) / f"{u.id}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_audio(path, output.wave, sample_rate)
    return found, ids


def _score(system: System, metrics: Sequence[Metric], original: Clip, index: int) -> tuple[Output | None, Scores]:
    """What a system gives for an utterance, None where it fails, and all that metrics say of it."""
    scores = Scores()
    try:
        output = system(original.wave, index)
    except (CodecError, JepaTokError) as error:
        scores.failures = {key: f"no output: {one_line(error)}" for metric in metrics for key in metric.columns}
        return None, scores
    clip = Clip(output.wave, original.sample_rate)
    for metric in metrics:
        try:
            part = metric.score(original, clip)
        except CannotMeasure as error:
            part = Scores(failures=dict.fromkeys(metric.columns, str(error)))
        except Exception as error:  # third parties' code: counted by name, and the run goes on
            part = Scores(failures=dict.fromkeys(metric.columns, f"{type(error).__name__}: {one_line(error)}"))
        for key in [key for key, value in part.values.items() if value != value]:
            part.failures[key] = f"{part.values.pop(key)} instead of a number"
        scores.merge(part)
    return output, scores


def _progress(utterances: Sequence[Utterance], show: bool | None) -> Any:
    from tqdm import tqdm

    show = sys.stderr.isatty() if show is None else show
    return tqdm(enumerate(utterances), total=len(utterances), desc="eval", unit="utterances", disable=not show)


def _report(
    tokenizer: Any,
    found: Sequence[Found],
    ids: Sequence[list[list[int]]],
    systems: Sequence[System],
    metrics: Sequence[Metric],
    seed: int,
) -> dict[str, Any]:
    columns = {key: column for metric in metrics for key, column in metric.columns.items()}
    return {
        "format": FORMAT,
        "tokenizer": {"name": tokenizer.config.name, "hash": tokenizer.hash, "frame_rate": tokenizer.frame_rate},
        **summarize(found, systems, columns, seed),
        "tokens": code_usage([tokenizer.tokens(clip) for clip in ids], tokenizer.frame_rate) if ids else None,
        "commit": commit(),
        "versions": versions(*PACKAGES),
        "machine": machine(),
        "threads": torch.get_num_threads(),
    }


def _write(out: Path, report: dict[str, Any], found: Sequence[Found], metrics: Sequence[Metric]) -> None:
    lines = [json.dumps(f.as_dict(), ensure_ascii=False) + "\n" for f in found]
    write_text(out / "utterances.jsonl", "".join(lines))
    (out / "versa").mkdir(exist_ok=True)
    for row in report["rows"]:
        text = versa_lines([f for f in found if f.system == row["system"]], metrics)
        write_text(out / "versa" / f"{folder_name(row['system'])}.jsonl", text)
    write_text(out / "results.md", markdown(report))
    write_text(out / "results.json", json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
