"""A suite from audio to tables: fit, tokenize, then one cell for each corpus, task, row and seed, then results.

    OUT/suite.json      which suite this folder is of
    OUT/cache/          codes, latents, log-mels and what tokenizers learned (`cache.py`); `--cache` puts it elsewhere
    OUT/cells/          a file a cell: what one probe found with one tokenizer and one seed
    OUT/results.json, results.md, results.html

Each file appears whole, and is made again only where its key has changed: the audio, the labels, the task, the tokenizer or
PROTOCOL. So an interrupted run goes on where it stopped, and a run with one more tokenizer only adds that.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jepa_tok.corpus.audio_source import load_utterance
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.corpus.utterance import Utterance
from jepa_tok.errors import JepaTokError
from jepa_tok.files import lock_folder, unlock, write_text
from jepa_tok.provenance import commit
from probes import cache, page, tables
from probes.cells import PROTOCOL, Cell, Group, execute, finished
from probes.data import ProbeError
from probes.entries import LATENT, Entry, Tokenizer, make_entries
from probes.places import StorageError, check_given, check_writable, writing
from probes.progress import Meter, say
from probes.recordings import Recordings, file_key, of_utterances
from probes.suite import Corpus, Suite, digest, load_suite

FORMAT = "jepa-tok-probe-suite/1"


def run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measures a suite; returns 0, or 1 where a cell failed. Raises JepaTokError where the input does not allow a start."""
    if len(set(args.seeds)) != len(args.seeds) or min(args.seeds) < 0:
        raise ProbeError(f"`--seeds` must be different numbers from 0 up, but are {' '.join(map(str, args.seeds))}.")
    folder = check_given(args, argv)
    whole = load_suite(args.suite, args.data)
    suite = whole.only(args.tasks)
    entries = make_entries(args.tokenizers, args.tokens, args.device)
    for corpus in suite.corpora:
        for entry in entries:
            entry.check(corpus.name, corpus.utterances)
        corpus.check_labels(args.seeds)
    audio = fit_audio(whole, args.fit)  # the same, whichever tasks are asked for
    out = Path(args.out)
    lock = take_out(out, suite.name)
    try:
        check_writable(folder, "--cache")
        fit(entries, audio, suite.name, folder)
        groups, failed = tokenize(suite, entries, args.seeds, folder)
        with writing(out):
            records = measure(groups, out / "cells", args.jobs, args.device) + failed
            results = tables.build(suite, entries, args.seeds, records, argv)
            page.write(out, results)
    finally:
        unlock(lock)
    print(tables.console(results))
    print(f"written: {', '.join(str(out / f'results.{kind}') for kind in ('json', 'md', 'html'))}")
    for (where, task, error), times in _failures(records).items():
        say(f"failed: {where}, {task}, {times} cells: {error}")
    return int(results["failed"] > 0)


def _failures(records: Sequence[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
    return Counter((r["corpus"], r["task"], r["error"]) for r in records if r["status"] == "failed")


def take_out(out: Path, suite: str) -> int | None:
    """Checks the folder (`check_out`) and locks it until `unlock`; raises ProbeError, or CorpusError where another run has it."""
    check_out(out, suite)
    check_writable(out, "--out")
    if (out / "cells").exists():
        check_writable(out / "cells", "--out")
    with writing(out):
        return lock_folder(out, f"'{out}' is in use by another run; wait for it, or give another `--out`.")


def check_out(out: Path, suite: str) -> None:
    """Makes the folder, or sees that it is one of this suite; raises ProbeError where it is not, and leaves it as it is."""
    mark = out / "suite.json"
    try:
        if mark.exists():
            found = json.loads(mark.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("suite") != suite:
                other = found.get("suite") if isinstance(found, dict) else "something else"
                raise ProbeError(
                    f"`--out` must be a folder of its own for each suite, but '{out}' is of `{other}`, not `{suite}`."
                )
            return
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ProbeError(
                f"`--out` must be a new or empty folder, or one of an earlier run of the suite, but '{out}' is neither."
            )
        out.mkdir(parents=True, exist_ok=True)
        write_text(mark, json.dumps({"format": FORMAT, "suite": suite}) + "\n")
    except OSError as error:
        raise ProbeError(
            f"`--out` must be a folder that can be written, but '{out}' is not: {error.strerror}."
        ) from None
    except ValueError:
        raise ProbeError(f"'{mark}' must be of an earlier run, but is broken; give another `--out`.") from None


def fit_audio(suite: Suite, manifest: str | None) -> list[Utterance]:
    """What tokenizers may learn from: the manifest, else the rows of the suite that no task tunes or tests on.

    In an order drawn by seed 0: adapters stop reading once they have enough, and should hear many voices until then.
    Raises ProbeError where the manifest holds audio that is not only trained on.
    """
    trained = {corpus.name: corpus.training() for corpus in suite.corpora}
    given = read_corpus(manifest) if manifest is not None else []
    # The same clip may be in two corpora, and trained on in one of them alone.
    once = list({(u.path, u.start, u.end): u for own in trained.values() for u in own}.values())
    held, wanted = of_utterances([u for c in suite.corpora for u in c.untrained()], given or once)
    tested = Recordings(held)
    if manifest is not None:
        rows = given
        both = [u for u, own in zip(rows, wanted) if tested.sharing(own)]
        if both:
            raise ProbeError(
                f"`--fit` must hold no audio that the suite tests or tunes on, but {len(both)} of {len(rows)} rows of "
                f"'{manifest}' are such (the first is '{both[0].id}')."
            )
    else:
        rows = [u for u, own in zip(once, wanted) if not tested.sharing(own)]
    random.Random(0).shuffle(rows)
    return rows


def fit(entries: Sequence[Entry], audio: Sequence[Utterance], suite: str, folder: Path) -> None:
    """Lets each tokenizer learn from `audio`, those that do; raises ProbeError where one does and there is none."""

    def waves(rate: int) -> Iterator[Any]:
        if not audio:
            raise ProbeError(
                f"`{name}` learns from training audio, but the suite `{suite}` has none that it does not test on (it has no fixed "
                "training part); name a manifest of other audio with `--fit`."
            )
        say(f"fitting {name} to training audio")
        for u in audio:
            yield load_utterance(u, rate)

    heard = digest(audio)
    for entry in entries:
        name = entry.name
        with writing(folder / "fit"):
            entry.fit(waves, lambda fingerprint: folder / "fit" / f"{fingerprint}-{heard}.safetensors")


def tokenize(
    suite: Suite, entries: Sequence[Entry], seeds: Sequence[int], folder: Path
) -> tuple[list[Group], list[dict[str, Any]]]:
    """Fills the cache; gives the cells to measure by corpus and row, and the failed records of those that cannot be.

    A file that cannot be read fails the cells of its corpus alone.
    """
    groups, failed = [], []
    for corpus in suite.corpora:
        audio = corpus.digest
        # Latents by the tokenizer's name: codes follow from them without hearing a clip twice.
        heard: dict[str, cache.Frames] = {}
        for entry in sorted(entries, key=lambda e: not e.name.startswith(LATENT)):
            view = entry.view
            place = folder / f"{corpus.name}-{audio}" / f"{slug(entry.name)}-{view.kind}-{view.meta.hash}"
            cells = _cells(corpus, entry, seeds, audio)
            width = len(view.meta.radices) if view.kind == "codes" else None
            latents = heard.get(entry.name)
            make = (entry.made_of(latents) if latents and isinstance(entry, Tokenizer) else None) or entry.make
            try:
                with Meter(f"{corpus.name}: {entry.name}", len(corpus.utterances), "clips") as meter:
                    frames = cache.fill(place, corpus.utterances, make, entry.dtype, meter, width)
                cache.pooled(place, PROTOCOL, partial(entry.pool, frames))
            except StorageError:  # a full disk: the others would fail, too
                raise
            except JepaTokError as error:
                failed += [cell.failed(str(error)) for cell in cells]
            else:
                groups.append(Group(corpus, view, place, cells))
                heard[entry.name.removeprefix(LATENT)] = frames
    return groups, failed


def _cells(corpus: Corpus, entry: Entry, seeds: Sequence[int], audio: str) -> list[Cell]:
    """The cells of one corpus, whose `digest` is `audio`, and row; a cell's key names all that its result depends on."""
    out = []
    for task in corpus.tasks:
        given = task.parameters()
        # Columns that are looked for where a task names none: intervals are drawn over `speaker`, parts may be those of the splits.
        columns = ["speaker", "split", "split_utt", *(v for v in given.values() if isinstance(v, str))]
        labels = hashlib.sha256(
            repr([[u.info.get(c) for c in columns] for u in corpus.utterances]).encode()
        ).hexdigest()
        files = [file_key(str(given[name])) for name in task.files if given[name] is not None]
        what = (PROTOCOL, audio, labels, task.probe, sorted(given.items(), key=lambda kv: kv[0]), files, task.classes)
        for seed in seeds:
            key = hashlib.sha256(repr((*what, entry.view, seed)).encode()).hexdigest()[:16]
            file = f"{corpus.name}.{task.name}.{slug(entry.name)}.{seed}.json"
            out.append(Cell(corpus.name, task, entry.name, seed, key, file))
    return out


def measure(groups: Sequence[Group], folder: Path, jobs: int, device: str) -> list[dict[str, Any]]:
    """The records of all cells, those that `folder` lacks measured now."""
    folder.mkdir(exist_ok=True)
    records, missing = [], []
    for group in groups:
        known = [finished(folder / cell.file, cell.key) for cell in group.cells]
        records += [record for record in known if record]
        left = [cell for cell, record in zip(group.cells, known) if record is None]
        if left:
            missing.append(Group(group.corpus, group.view, group.frames, left))
    count = sum(len(g.cells) for g in missing)
    if records:
        say(f"{len(records)} of {len(records) + count} cells are there already")
    with Meter("cells", count, "cells", each=True) as meter:
        for record in execute(missing, folder, jobs, device, commit()):
            records.append(record)
            meter.step(_line(record))
    return records


def _line(record: dict[str, Any]) -> str:
    head = f"{record['corpus']}, {record['task']}, {record['tokenizer']}, seed {record['seed']}"
    if record["status"] == "failed":
        return f"{head}: FAILED"
    metric = next(iter(record["better"]))
    value = next(row for row in record["rows"] if row["input"] == "tokens")["metrics"].get(metric, {}).get("mean")
    return f"{head}: {metric} {value:.3f}" if value is not None else head


def slug(name: str) -> str:
    """A file's name for a row: as it is where it can be, else with a digest, so that no two are alike."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
