"""Programs run in forks of a process that has imported what they need: processes of their own without the seconds of their imports.

`Forks("recipes.jepa.recipe").start("recipes.jepa", ...)` is `python -m recipes.jepa ...`: a pid that can be killed, and an exit status.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]


class Forks:
    """Starts and awaits programs. They write stdout and stderr to the file `log`."""

    def __init__(self, *modules: str, log: Path) -> None:
        self.log = log
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.forks"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self._ask(modules=modules)

    def _ask(self, **question: object) -> int | None:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, f"the process that forks ended with {self.process.wait()}: {self.log.read_text()[-3000:]}"
        return json.loads(answer)

    def start(self, module: str, *argv: object, largest_file: int = 0, env: dict[str, str] | None = None) -> int:
        """Pid of a process that runs the module; `largest_file` is a limit in bytes."""
        job = {"module": module, "argv": [*map(str, argv)], "largest_file": largest_file, "env": env or {}}
        pid = self._ask(**job, log=str(self.log))
        assert pid is not None
        return pid

    def wait(self, pid: int, timeout: float = 300.0) -> int:
        """Exit status, negative for a signal. After `timeout` seconds the process is killed."""
        status = self._ask(pid=pid, timeout=timeout)
        assert status is not None, f"no end after {timeout:.0f} s: {self.log.read_text()[-3000:]}"
        return status

    def run(self, module: str, *argv: object, largest_file: int = 0) -> int:
        """Exit status of the module, run to its end; `log` is then of this run alone."""
        self.log.write_text("")
        return self.wait(self.start(module, *argv, largest_file=largest_file))

    def run_ranks(self, count: int, module: str, *argv: object) -> list[int]:
        """Exit statuses of `count` processes that find each other as those of `torchrun --nproc-per-node COUNT` do."""
        self.log.write_text("")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        size = {"WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}  # fmt: skip
        pids = [self.start(module, *argv, env={"RANK": f"{i}", "LOCAL_RANK": f"{i}", **size}) for i in range(count)]
        return [self.wait(pid) for pid in pids]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports may print is no answer
    for line in sys.stdin:
        question = json.loads(line)
        answer: int | None = 0
        if "modules" in question:
            for module in question["modules"]:
                import_module(module)
        elif "pid" in question:
            answer = await_process(**question)
        else:
            answer = os.fork()
            if not answer:
                become(**question)
        print(json.dumps(answer), file=answers, flush=True)


def await_process(pid: int, timeout: float) -> int | None:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def become(module: str, argv: list[str], largest_file: int, env: dict[str, str], log: str) -> NoReturn:
    """Makes this process `python -m MODULE ARGV`."""
    import resource

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2)
    os.environ |= env
    sys.argv = [module, *argv]
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ex:
        status = ex.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)  # at once: to take all that was imported apart takes a second


if __name__ == "__main__":
    serve()
