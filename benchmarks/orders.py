"""Worker processes of a benchmark: they take orders over a pipe, one JSON line each, and are blocked between them.

Imports only the standard library: the Python that has PyTorch may have none of this project's packages.
"""

from __future__ import annotations  # the Python that has MindSpore Lite may be old

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class WorkerEnded(Exception):
    """A worker ended before it answered. The message has the last lines of its log."""


class Worker:
    """A process that answers orders, one at a time.

    Args:
        command: program and arguments; the program calls `serve`.
        log: file for what the process prints.
        environment: variables set on top of this process's.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str] | None = None):
        self.log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **(environment or {})},
            )

    def ask(self, action: str, **arguments):
        """What the worker's `action` returns for these arguments.

        Raises:
            WorkerEnded: the process has ended.
        """
        try:
            self.process.stdin.write(json.dumps([action, arguments]) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code, lines = self.process.wait(), self.log.read_text(errors="replace").splitlines()
            raise WorkerEnded(f"{self.log.stem} ended with exit code {code}: {' / '.join(lines[-3:])}")
        return json.loads(answer)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()  # it holds nothing worth saving
        self.process.wait()


def serve(actions: dict[str, Callable]) -> None:
    """Answer the orders on stdin until it is closed. Other output of the process goes to stderr."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in iter(sys.stdin.readline, ""):
            action, arguments = json.loads(line)
            print(json.dumps(actions[action](**arguments)), file=answers, flush=True)


def use_cores(count: int) -> None:
    """Bind this process to the first `count` cores, with a thread for each. 0: leave the defaults.

    Call it before a framework is imported.
    """
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        os.environ["OMP_NUM_THREADS"] = str(count)


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of `times` calls, after one that is not timed: threads and caches are cold after a pause."""
    call()
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return seconds


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
