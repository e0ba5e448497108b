"""What is measured on: a suite is one corpus with its tasks, or several such; each is one short file in `suites/`.

    about: spoken digits                  # one line
    manifest: fsdd.jsonl                  # under the data root; a list where there are several; or
    layout: emodb                         # the corpus as its makers laid it out (`layouts.py`), in
    folder: emodb                         # this folder of the data root, where the manifest is not there
    more: [an4.jsonl]                     # manifests whose training rows are trained on besides, where they are there
    tasks:
      keyword: {probe: classify, column: label, split_column: split_utt}

or `about` and `suites: [librispeech, emodb]` alone. A task's `probe` is the module that measures it, by default its own name; `classes`
picks labels of `column` (a list), or maps them (`{excitement: happiness, anger: anger}`; labels not named are left out); all else are
parameters of the probe's `prepare` and `run`, whose annotations say which values they take (`options.py`).
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from jepa_tok.corpus.utterance import Utterance
from probes.data import ProbeData, ProbeError, row_of
from probes.layouts import LAYOUTS
from probes.options import is_file, kinds, shown, wrong
from probes.recordings import file_key, of_utterances
from probes.splits import part_of
from probes.suite_file import as_list, find, flatten, read

PROBES = ("asr", "speaker", "classify")
GIVEN = ("data", "inputs", "seeds", "task", "device")
"""Parameters of `prepare` and `run` that are no task's to set."""

MOST_TOLD = 20
"""Labels that a message lists."""


@dataclass(frozen=True)
class Task:
    """A question about a corpus."""

    name: str
    probe: str
    options: dict[str, Any]
    """Parameters of the probe's `prepare` and `run`."""

    classes: dict[str, str] | None = None
    """Label -> class; labels that are not named are left out. None takes all as they are."""

    @property
    def module(self) -> Any:
        """The probe's module: `prepare`, `plan` and `run`."""
        return importlib.import_module(f"probes.{self.probe}")

    def prepare(self, data: ProbeData) -> ProbeData:
        """The rows that the probe can use, of the classes that are asked for.

        Raises ProbeError where the labels do not allow it, or one of `classes` is none of them.
        """
        if self.classes is not None:
            column = self.options["column"]
            labels = data.values(column)
            self._check_classes({label for label in labels if label})
            info = [{**row, column: self.classes.get(label or "")} for row, label in zip(data.info, labels)]
            data = replace(data, info=info)
        return self.module.prepare(data, **self._arguments("prepare"))

    def _check_classes(self, labels: set[str]) -> None:
        absent = [label for label in self.classes or {} if label not in labels]
        if labels and absent:  # where there is no label at all the probe's own error tells of the column
            there = sorted(labels)
            more = f" and {len(there) - MOST_TOLD} more" if len(there) > MOST_TOLD else ""
            quotes = "; YAML reads yes, no, on and off so: put them in quotes" if absent[0] in ("True", "False") else ""
            raise ProbeError(
                f"`classes` must name labels of `{self.options['column']}`, but `{absent[0]}` is none; labels there: "
                f"{', '.join(there[:MOST_TOLD])}{more}{quotes}."
            )

    def plan(self, data: ProbeData, seeds: Sequence[int]) -> None:
        """Raises ProbeError where the probe cannot divide `data`, which comes from `prepare`, with these seeds. It needs no frames."""
        given = {**_parameters(self.module, "run"), **self.options}
        self.module.plan(data, seeds, **{name: given[name] for name in _parameters(self.module, "plan")})

    def run(self, data: ProbeData, source: Any, seed: int, device: str) -> Any:
        """The `Outcome` of the probe; `data` comes from `prepare`."""
        known = inspect.signature(self.module.run).parameters
        also = {name: value for name, value in (("device", device), ("task", self.name)) if name in known}
        return self.module.run(data, [source], [seed], **self._arguments("run"), **also)

    def parameters(self) -> dict[str, Any]:
        """All that `prepare` and `run` go by: what the task sets, and defaults."""
        return {**_parameters(self.module, "prepare"), **_parameters(self.module, "run"), **self.options}

    @property
    def files(self) -> list[str]:
        """Parameters of `run` that name a file."""
        return [name for name, kind in kinds(self.module.run).items() if is_file(kind)]

    def _arguments(self, function: str) -> dict[str, Any]:
        return {k: v for k, v in self.options.items() if k in _parameters(self.module, function)}

    @property
    def split_columns(self) -> list[str]:
        """Columns that alone say what is trained on and tested; empty where folds or a seed do."""
        names = ["split_column", "verification_column"] if self.probe == "speaker" else ["split_column"]
        found = [self.options.get(name) for name in names]
        return [str(column) for column in found] if all(found) else []


@dataclass
class Corpus:
    """Utterances, and what is asked about them."""

    name: str
    about: str
    tasks: list[Task]
    utterances: list[Utterance] = field(default_factory=list, repr=False)
    path: Path | None = None
    """The file that asks for it."""

    @property
    def digest(self) -> str:
        """Of its utterances."""
        return digest(self.utterances)

    def labels(self) -> ProbeData:
        """The table of a probe's `prepare`, without any frames."""
        size, none = len(self.utterances), cast("Any", None)
        ids, info = [u.id for u in self.utterances], [row_of(u) for u in self.utterances]
        return ProbeData(ids, [none] * size, [0] * size, info, none)

    def check_labels(self, seeds: Sequence[int]) -> None:
        """Raises ProbeError where labels, or the splits of these seeds, do not allow a task: found out before hours of tokenizing."""
        for task in self.tasks:
            try:
                task.plan(task.prepare(self.labels()), seeds)
            except ProbeError as error:
                raise ProbeError(f"'{self.path or self.name}', task `{task.name}`: {error}") from None

    def training(self) -> list[Utterance]:
        """What tokenizers may learn from: the rows that every task trains on; none where a task has no fixed parts."""
        if not all(task.split_columns for task in self.tasks):
            return []
        columns = sorted({c for task in self.tasks for c in task.split_columns})
        return [u for u in self.utterances if all(part_of(u.info.get(c)) == "train" for c in columns)]

    def untrained(self) -> list[Utterance]:
        """The other rows: what some task tunes or tests on, or may."""
        trained = {u.id for u in self.training()}
        return [u for u in self.utterances if u.id not in trained]


def digest(utterances: Iterable[Utterance]) -> str:
    """8 hex digits of which audio there is (ids, segments, files' sizes and hashes): the key of what is made from it.

    Hashes, not only sizes: a WAV file that is edited may keep its size. Of URLs and members of archives there are ids and segments alone.
    """
    own = [(u.id, u.start, u.end, file_key(u.path)) for u in utterances]
    return hashlib.sha256(repr(own).encode()).hexdigest()[:8]


@dataclass
class Suite:
    """Corpora to measure on."""

    name: str
    corpora: list[Corpus]

    def only(self, tasks: Sequence[str]) -> Suite:
        """The suite with these tasks alone, and the corpora that have one; all of it where none is named.

        A name may be `TASK`, or `CORPUS.TASK` for that of one corpus. Raises ProbeError where the suite has no such task.
        """
        known = sorted({t.name for c in self.corpora for t in c.tasks})
        unknown = sorted(set(tasks) - set(known) - {f"{c.name}.{t.name}" for c in self.corpora for t in c.tasks})
        if unknown:
            raise ProbeError(
                f"`--tasks` must be of {', '.join(known)} in the suite `{self.name}`, but has `{unknown[0]}`."
            )
        if not tasks:
            return self
        asked = set(tasks)
        kept = [replace(c, tasks=[t for t in c.tasks if asked & {t.name, f"{c.name}.{t.name}"}]) for c in self.corpora]
        return Suite(self.name, [c for c in kept if c.tasks])


def load_suite(name: str, root: str | os.PathLike[str]) -> Suite:
    """The suite of that name, or of that .yaml file, with the utterances of its corpora under `root`.

    Raises ProbeError where there is no such suite, its file breaks the format, a corpus or an audio file is missing, CorpusError
    where a manifest breaks its own.
    """
    path = find(name)
    if not Path(root).is_dir():
        raise ProbeError(f"`--data` must be a folder that holds the corpora, but '{root}' is not.")
    corpora = [read_corpus_of(file, Path(root)) for file in flatten(path)]
    if len({c.name for c in corpora}) < len(corpora):
        raise ProbeError(f"'{path}' must name each suite once, but has {', '.join(c.name for c in corpora)}.")
    return Suite(path.stem, corpora)


def read_corpus_of(path: Path, root: Path) -> Corpus:
    """The corpus and tasks of one file, with its utterances; raises as `load_suite` does."""
    found = read(path)
    tasks = [_task(path, name, given) for name, given in found["tasks"].items()]
    corpus = Corpus(path.stem, found.get("about") or "", tasks, path=path)
    corpus.utterances = _utterances(path, found, root)
    for name in as_list(found.get("more")):
        _add_training(corpus, path, root / name)
    for u in corpus.utterances:
        if u.part is None and file_key(u.path)[0] is None:
            raise ProbeError(
                f"Audio of every utterance must be there, but '{u.path}' of '{u.id}' ({corpus.name}) is missing."
            )
    return corpus


def _task(path: Path, name: str, given: Any) -> Task:
    """The task that YAML's value asks for; raises ProbeError where a parameter is unknown, lacking or of the wrong kind."""
    place = f"'{path}', task `{name}`"
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ProbeError(f"{place}: a task's name must be of letters, digits, - and _.")
    if not isinstance(given, dict | None):
        raise ProbeError(f"{place}: a task must map parameters to values, but is {shown(given)}.")
    options = dict(given or {})
    probe = options.pop("probe", name)
    if probe not in PROBES:
        raise ProbeError(f"{place}: `probe` must be one of {', '.join(PROBES)}, but is {shown(probe)}.")
    named = "classes" in options
    classes = options.pop("classes", None)
    task = Task(name, probe, options)
    known = _parameters(task.module, "prepare") | _parameters(task.module, "run")
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ProbeError(f"{place}: `{probe}` takes {', '.join(sorted(known))}, but {shown(unknown[0])} is given.")
    lacking = sorted(k for k, default in known.items() if default is inspect.Parameter.empty and k not in options)
    if lacking:
        raise ProbeError(f"{place}: `{probe}` needs `{lacking[0]}`, which is not given.")
    kind = kinds(task.module.prepare) | kinds(task.module.run)
    for key, value in options.items():
        fault = wrong(value, kind[key])
        if fault:
            raise ProbeError(f"{place}: `{key}` {fault}.")
    return replace(task, classes=_classes(place, classes)) if named else task


def _classes(place: str, given: Any) -> dict[str, str]:
    """Label -> class, as text: labels are compared so. Raises ProbeError where it is no such map, or there are fewer than two classes."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(given, list | dict):
        pairs = list(given.items()) if isinstance(given, dict) else [(label, label) for label in given]
    plain = all(isinstance(v, str | int | float) and str(v).strip() for pair in pairs for v in pair)
    found = {str(label): str(name) for label, name in pairs}
    if not plain or len(set(found.values())) < 2:
        raise ProbeError(
            f"{place}: `classes` must be a list of two or more labels of `column`, or map labels to two or more classes, but is "
            f"{shown(given)}."
        )
    return found


def _parameters(module: Any, function: str) -> dict[str, Any]:
    """Name -> default of what a task may set of `prepare` or `run`."""
    found = inspect.signature(getattr(module, function)).parameters
    return {name: p.default for name, p in found.items() if name not in GIVEN}


def _utterances(path: Path, found: dict[str, Any], root: Path) -> list[Utterance]:
    manifests = as_list(found.get("manifest"))
    layout = found.get("layout")
    absent = [str(root / m) for m in manifests if not os.path.exists(root / m)]
    if manifests and not absent:
        return _joined(path.stem, [root / m for m in manifests])
    folder = root / (found.get("folder") or "")
    if layout is not None and folder.is_dir():
        rows = _rows(path.stem, LAYOUTS[layout](folder))
        if rows:
            return rows
    if not manifests and layout is None:
        raise ProbeError(f"'{path}' must have a `manifest` or a `layout`, but has neither.")
    places = [" and ".join(f"'{p}'" for p in absent)] * bool(absent)
    places += [f"'{folder}' in the layout of {layout}"] * (layout is not None)
    raise ProbeError(f"'{path}' must have {' or '.join(places)}, but it is not there; see `--data`.")


def _add_training(corpus: Corpus, path: Path, manifest: Path) -> None:
    """Adds the rows of a manifest that every task trains on and has a label for; `about` tells of them, or that there is none.

    Raises ProbeError where a task has no column that says what is trained on, or the manifest has files of the corpus itself.
    """
    if not all(task.split_columns for task in corpus.tasks):
        lacking = next(task.name for task in corpus.tasks if not task.split_columns)
        raise ProbeError(
            f"'{path}': `more` must go with tasks that have a `split_column` (speaker: and a `verification_column`), but `{lacking}` has none."
        )
    if not os.path.exists(manifest):
        corpus.about += f"; {manifest.name} is not there"
        return
    labels = {str(task.options["column"]) for task in corpus.tasks}
    added = Corpus(corpus.name, "", corpus.tasks, _joined(corpus.name, [manifest])).training()
    added = [u for u in added if all(u.info.get(column) for column in labels)]
    there, new = of_utterances(corpus.utterances, added)
    own = {recording.audio for recording in there}
    both = [u for u, recording in zip(added, new) if recording.audio in own]
    if both:
        raise ProbeError(
            f"'{path}': `more` must hold other audio than the corpus, but {len(both)} rows of '{manifest}' are of it (the first is "
            f"'{both[0].id}')."
        )
    corpus.utterances = _unique(corpus.name, [*corpus.utterances, *added])
    corpus.about += f"; {len(added)} utterances of {manifest.name} are trained on besides"


def _joined(name: str, manifests: list[Path]) -> list[Utterance]:
    from jepa_tok.corpus.manifest import read_corpus

    out = [u for manifest in manifests for u in read_corpus(manifest)]
    return _unique(name, out)


def _rows(name: str, rows: Iterable[dict[str, Any]]) -> list[Utterance]:
    out = []
    for row in rows:
        info = {k: v for k, v in row.items() if k not in ("id", "path")}
        out.append(Utterance(str(row["id"]), os.path.abspath(row["path"]), info=info))
    return _unique(name, out)


def _unique(name: str, utterances: list[Utterance]) -> list[Utterance]:
    seen: dict[str, str] = {}
    for u in utterances:
        if u.id in seen:
            raise ProbeError(
                f"Ids must be unique in a corpus, but '{u.id}' of {name} is both '{seen[u.id]}' and '{u.path}'."
            )
        seen[u.id] = u.path
    return utterances
