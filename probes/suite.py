"""What is measured on: a suite is one corpus with its tasks, or several such; each is one short file in `suites/`.

    about: spoken digits                  # one line
    manifest: fsdd.jsonl                  # under the data root; a list where there are several; or
    layout: emodb                         # the corpus as its makers laid it out (`layouts.py`), in
    folder: emodb                         # this folder of the data root, where the manifest is not there
    more: [an4.jsonl]                     # manifests whose training rows are trained on besides, where they are there
    tasks:
      keyword: {probe: classify, column: label, split_column: split_utt}

or `about` and `suites: [librispeech, emodb]`. A task's `probe` is the module that measures it, by default its own name; `classes`
picks classes of `column` (a list), or maps them (`{excitement: happiness}`; classes not named are left out); all else are
parameters of the probe's `prepare` and `run`.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from jepa_tok.corpus.utterance import Utterance
from probes.data import ProbeData, ProbeError
from probes.layouts import LAYOUTS
from probes.recordings import file_key, recording
from probes.splits import part_of

FOLDER = Path(__file__).parent / "suites"
PROBES = ("asr", "speaker", "classify")
GIVEN = ("data", "inputs", "seeds", "task", "device")
"""Parameters of `prepare` and `run` that are no task's to set."""

_KEYS = {"about", "manifest", "layout", "folder", "more", "tasks", "suites"}


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
        """The probe's module: `prepare` and `run`."""
        return importlib.import_module(f"probes.{self.probe}")

    def prepare(self, data: ProbeData) -> ProbeData:
        """The rows that the probe can use, of the classes that are asked for."""
        if self.classes is not None:
            column = str(self.options["column"])
            labels = data.values(column)
            info = [{**row, column: self.classes.get(label or "")} for row, label in zip(data.info, labels)]
            data = replace(data, info=info)
        return self.module.prepare(data, **self._arguments("prepare"))

    def run(self, data: ProbeData, source: Any, seed: int, device: str) -> Any:
        """The `Outcome` of the probe; `data` comes from `prepare`."""
        known = inspect.signature(self.module.run).parameters
        also = {name: value for name, value in (("device", device), ("task", self.name)) if name in known}
        return self.module.run(data, [source], [seed], **self._arguments("run"), **also)

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

    @property
    def digest(self) -> str:
        """Of its utterances."""
        return digest(self.utterances)

    def labels(self) -> ProbeData:
        """The table of a probe's `prepare`, without any frames."""
        size, none = len(self.utterances), cast("Any", None)
        ids, info = [u.id for u in self.utterances], [u.info for u in self.utterances]
        return ProbeData(ids, [none] * size, [0] * size, info, none)

    def check_labels(self) -> None:
        """Raises ProbeError where the labels do not allow a task: found out before hours of tokenizing."""
        for task in self.tasks:
            try:
                task.prepare(self.labels())
            except ProbeError as error:
                raise ProbeError(f"{self.name}, task `{task.name}`: {error}") from None

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


def names() -> list[str]:
    """Names of the suites that come with the probes."""
    return sorted(p.stem for p in FOLDER.glob("*.yaml"))


def load_suite(name: str, root: str | os.PathLike[str]) -> Suite:
    """The suite of that name, or of that .yaml file, with the utterances of its corpora under `root`.

    Raises ProbeError where there is no such suite, its file breaks the format, a corpus or an audio file is missing, CorpusError
    where a manifest breaks its own.
    """
    path = _find(name)
    if not Path(root).is_dir():
        raise ProbeError(f"`--data` must be a folder that holds the corpora, but '{root}' is not.")
    corpora = [read_corpus_of(file, Path(root)) for file in _flatten(path, ())]
    if len({c.name for c in corpora}) < len(corpora):
        raise ProbeError(f"'{path}' must name each suite once, but has {', '.join(c.name for c in corpora)}.")
    return Suite(path.stem, corpora)


def _find(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ProbeError(f"`--suite` must be a suite's name or its .yaml file, but there is no file '{name}'.")
        return path
    if name not in names():
        raise ProbeError(f"`--suite` must be one of {', '.join(names())}, or a .yaml file, but is '{name}'.")
    return FOLDER / f"{name}.yaml"


def _flatten(path: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """The files of single corpora that `path` is or names."""
    found = _read(path)
    if "suites" not in found:
        yield path
        return
    for name in found["suites"]:
        inner = path.parent / name if str(name).endswith((".yaml", ".yml")) else _find(str(name))
        if inner in (*above, path):
            raise ProbeError(f"'{path}' must not name a suite that names it, but names `{name}`.")
        yield from _flatten(inner, (*above, path))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ProbeError(
            f"'{path}' must be a suite in YAML, but cannot be read: {' '.join(str(error).split())}."
        ) from None
    if not isinstance(found, dict) or not (found.get("tasks") or found.get("suites")):
        raise ProbeError(f"'{path}' must have `tasks` or `suites`, but has neither.")
    unknown = sorted(map(str, set(found) - _KEYS))
    if unknown:
        raise ProbeError(f"'{path}' may have {', '.join(sorted(_KEYS))}, but has `{unknown[0]}`.")
    return found


def read_corpus_of(path: Path, root: Path) -> Corpus:
    """The corpus and tasks of one file, with its utterances; raises as `load_suite` does."""
    found = _read(path)
    tasks = found["tasks"]
    if not isinstance(tasks, dict):
        raise ProbeError(f"'{path}': `tasks` must map names to parameters, but does not.")
    corpus = Corpus(path.stem, str(found.get("about", "")), [_task(path, n, given) for n, given in tasks.items()])
    corpus.utterances = _utterances(path, found, root)
    for name in _list(found.get("more")):
        _add_training(corpus, path, root / name)
    for u in corpus.utterances:
        if u.part is None and file_key(u.path)[0] is None:
            raise ProbeError(
                f"Audio of every utterance must be there, but '{u.path}' of '{u.id}' ({corpus.name}) is missing."
            )
    return corpus


def _task(path: Path, name: Any, given: Any) -> Task:
    options = dict(given) if isinstance(given, dict) else {}
    place = f"'{path}', task `{name}`"
    if not str(name).replace("_", "").replace("-", "").isalnum():
        raise ProbeError(f"{place}: a task's name must be of letters, digits, - and _.")
    probe = str(options.pop("probe", name))
    if probe not in PROBES:
        raise ProbeError(f"{place}: `probe` must be one of {', '.join(PROBES)}, but is `{probe}`.")
    classes = options.pop("classes", None)
    if isinstance(classes, list):
        classes = {c: c for c in classes}
    if classes is not None and not (
        isinstance(classes, dict) and len(set(classes.values())) > 1 and "column" in options
    ):
        raise ProbeError(
            f"{place}: `classes` must be a list of classes of `column`, or map them to two or more, but does not."
        )
    task = Task(str(name), probe, options, classes and {str(k): str(v) for k, v in classes.items()})
    known = _parameters(task.module, "prepare") | _parameters(task.module, "run")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ProbeError(f"{place}: `{probe}` takes {', '.join(sorted(known))}, but `{unknown[0]}` is given.")
    lacking = sorted(k for k, default in known.items() if default is inspect.Parameter.empty and k not in options)
    if lacking:
        raise ProbeError(f"{place}: `{probe}` needs `{lacking[0]}`, which is not given.")
    return task


def _parameters(module: Any, function: str) -> dict[str, Any]:
    """Name -> default of what a task may set of `prepare` or `run`."""
    found = inspect.signature(getattr(module, function)).parameters
    return {name: p.default for name, p in found.items() if name not in GIVEN}


def _utterances(path: Path, found: dict[str, Any], root: Path) -> list[Utterance]:
    manifests = _list(found.get("manifest"))
    layout = found.get("layout")
    if layout is not None and layout not in LAYOUTS:
        raise ProbeError(f"'{path}': `layout` must be one of {', '.join(LAYOUTS)}, but is `{layout}`.")
    absent = [str(root / m) for m in manifests if not (root / m).exists()]
    if manifests and not absent:
        return _joined(path.stem, [root / m for m in manifests])
    folder = root / str(found.get("folder", ""))
    if layout is not None and folder.is_dir():
        rows = _rows(path.stem, LAYOUTS[layout](folder))
        if rows:
            return rows
    places = [f"'{p}'" for p in absent] + ([f"'{folder}' in the layout of {layout}"] if layout is not None else [])
    raise ProbeError(
        f"The suite `{path.stem}` must have {' or '.join(places) or 'a `manifest`'}, but it is not there; see `--data`."
    )


def _list(given: Any) -> list[str]:
    """One name, several, or none."""
    return [given] if isinstance(given, str) else list(given or [])


def _add_training(corpus: Corpus, path: Path, manifest: Path) -> None:
    """Adds the rows of a manifest that every task trains on and has a label for; `about` tells of them, or that there is none.

    Raises ProbeError where a task has no column that says what is trained on, or the manifest has files of the corpus itself.
    """
    if not all(task.split_columns for task in corpus.tasks):
        raise ProbeError(f"'{path}': `more` must go with tasks that have a `split_column`, but one has none.")
    if not manifest.exists():
        corpus.about += f"; {manifest.name} is not there"
        return
    labels = {str(task.options["column"]) for task in corpus.tasks}
    added = Corpus(corpus.name, "", corpus.tasks, _joined(corpus.name, [manifest])).training()
    added = [u for u in added if all(u.info.get(column) for column in labels)]
    own = {recording(u).audio for u in corpus.utterances}
    both = [u for u in added if recording(u).audio in own]
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
