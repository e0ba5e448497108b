"""Shards made by Ray Data: on the cluster at hand (RAY_ADDRESS, or one started on this machine), else on all of this machine.

A shard is an item of work: its utterances, which the driver puts into Ray's object store, SHARDS_AHEAD shards for each worker at
a time, so that memory there does not grow with the corpus. A pool of actors, each with a tokenizer of its own, makes them and
writes each to OUT as it is done; OUT and the audio must be in reach of all machines.
Ray schedules, restarts actors that are lost and gives their shards to others. A shard is written whole or not at all and
named by its content, so that one which is made twice is there once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jepa_tok.corpus.maker import ShardMaker
from jepa_tok.corpus.run import CorpusRun
from jepa_tok.corpus.utterance import Utterance, manifest_seconds
from jepa_tok.errors import CorpusError, JepaTokError

if TYPE_CHECKING:
    from jepa_tok.corpus.tokenize import Progress


SHARDS_AHEAD = 200
"""Shards for each worker whose utterances are in the object store: some 300 bytes an utterance, 30 MB at 500 a shard. Workers
wait for the slowest and load the tokenizer again in between, so the number is large."""


def make_shards(run: CorpusRun, workers: int | None, progress: Progress) -> None:
    """Makes the pending shards of `run`, which is started, in `workers` actors; None is one for each GPU or CPU.

    Raises CorpusError where Ray is not installed, cannot be reached, has no GPU for a tokenizer that is on one, or gives
    up; and what `ShardMaker.make` raises.
    """
    if not run.pending():
        return
    with cluster() as ray:
        on_gpu = run.maker.tokenizer.device.type == "cuda"
        units = int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 0))
        if not units:
            raise CorpusError(
                f"ray: the cluster must have a {'GPU' if on_gpu else 'CPU'} for the tokenizer, but has none."
            )
        # Kept here, or a restarted actor could not have it again.
        maker = ray.put(_on_cpu(run.maker))
        pending, workers = run.pending(), min(workers or units, len(run.pending()))
        try:
            for first in range(0, len(pending), SHARDS_AHEAD * workers):
                window = pending[first : first + SHARDS_AHEAD * workers]
                results = ray.data.from_arrow_refs([ray.put(_item(index, run)) for index in window]).map_batches(
                    ShardActor,
                    fn_constructor_args=([maker], on_gpu),
                    batch_size=1,
                    batch_format="pyarrow",
                    concurrency=min(workers, len(window)),
                    num_gpus=1 if on_gpu else 0,
                    num_cpus=1,
                )
                for result in results.iter_rows():
                    if result["error"]:
                        raise CorpusError(result["error"])
                    progress.add(result["utterances"], result["expected"], result["seconds"], result["skipped"])
        except ray.exceptions.RayError as e:
            raise CorpusError(
                f"ray: {_last_line(e)}; the shards that are done are kept: run the same command again, it goes on."
            ) from None


class ShardActor:
    """Makes one shard a call; lives in a Ray actor."""

    def __init__(self, maker: list[Any], on_gpu: bool) -> None:
        import ray

        self.maker: ShardMaker = ray.get(maker[0])
        if on_gpu:
            self.maker.tokenizer.to("cuda")

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """From the table of one item to a row of counts; what the user can mend comes back as `error`."""
        (item,) = batch.to_pylist()
        members: list[Utterance] = pickle.loads(item["members"])  # the driver's own, see _item
        seconds: list[float] = []
        error = ""
        try:
            self.maker.make(item["index"], members, heard=lambda _, heard: seconds.append(heard))
        except JepaTokError as e:
            error = str(e)
        return {
            "index": [item["index"]],
            "utterances": [len(members)],
            "expected": [sum(manifest_seconds(u) or 0.0 for u in members)],
            "seconds": [sum(seconds)],
            "skipped": [seconds.count(0.0)],
            "error": [error],
        }


@contextlib.contextmanager
def cluster() -> Iterator[Any]:
    """The module `ray`, connected, quiet, and sending no statistics; what was started here is ended."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as e:
        raise CorpusError(
            f"the engine `ray` needs Ray Data, which is not installed ({e}); install jepa-tok[ray], or take the engine `local`."
        ) from None
    started = not ray.is_initialized()
    if started:
        try:
            with _no_stderr():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as e:
            raise CorpusError(f"ray: no cluster can be reached or started: {_last_line(e)}.") from None
    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    settings = {"enable_progress_bars": False, "print_on_execution_start": False}
    before = {name: getattr(context, name) for name in settings if hasattr(context, name)}
    level = logger.level
    logger.setLevel(logging.ERROR)
    for name in before:
        setattr(context, name, settings[name])
    try:
        yield ray
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    # Ray's C++ side remarks there on the setting that silences it; what goes wrong is raised.
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _item(index: int, run: CorpusRun) -> Any:
    import pyarrow as pa

    return pa.table({"index": [index], "members": [pickle.dumps(list(run.members(index)))]})


def _on_cpu(maker: ShardMaker) -> ShardMaker:
    import copy

    if maker.tokenizer.device.type == "cpu":
        return maker
    return dataclasses.replace(maker, tokenizer=copy.deepcopy(maker.tokenizer).cpu())


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
