"""Read the logs of msrun, its scheduler and the workers: why a run ended, in one sentence."""

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..files import locked
from ..run_dir import LOCK
from .cluster import Cluster

HUNG = 124  # the exit code of timeout(1)
FAILURE = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # in msrun's log
LOST = re.compile(r"The node: (\d+) is timed out")  # in the scheduler's log
NOT_CONNECTED = re.compile(r"Building networking for MS_\w+ failed")  # in the scheduler's or a worker's log
CUT_OFF = re.compile(r"AllReduce\w*\] .*failed")  # in a worker's log: the others ended while it averaged with them
UNREACHABLE = "Failed to initialize the node"  # in a worker's log: the scheduler did not answer


class Logs:
    """The logs of this machine's msrun.

    Args:
        folder: folder of the logs.
        cluster: the run's workers.
    """

    def __init__(self, folder: Path, cluster: Cluster):
        self.folder = folder
        self.cluster = cluster

    def lost(self) -> str | None:
        """A sentence about a worker that msrun's scheduler, on machine 0, lost contact with. None if all answer."""
        scheduler = self.text("scheduler.log")
        if lost := LOST.search(scheduler):
            rank = int(lost.group(1))
            machine = self.cluster.machine_of(rank)
            who, log = f"worker {rank}", str(self.of(rank))
            if machine != self.cluster.node_rank:
                who, log = f"{who} of machine {machine}", f"{self.of(rank).name} there"
            return f"{who} no longer answers: killed, stopped or cut off; see {log}"
        if NOT_CONNECTED.search(scheduler):
            absent = self.cluster.others() if self.cluster.nodes > 1 else "a worker"
            return self.not_connected(f"{absent} did not connect", self.folder)
        return None

    def cut_off(self, rank: int) -> str:
        """A sentence about a worker that could not average with the others."""
        others = f"the workers of {self.cluster.others()}" if self.cluster.nodes > 1 else "another worker"
        return f"worker {rank} lost {others}; see the logs there, and {self.of(rank)}"

    def not_connected(self, reason: str, log: Path) -> str:
        """A sentence about workers that did not connect in time."""
        cluster = self.cluster
        return (
            f"the {cluster.workers} workers did not connect at {cluster.master_addr}:{cluster.master_port} within "
            f"{cluster.timeout} s (--timeout): {reason}; see {log}"
        )

    def of(self, rank: int) -> Path:
        return self.folder / f"worker_{rank}.log"

    def text(self, log: str) -> str:
        """The content of a log so far; empty if there is no such file yet."""
        try:
            return (self.folder / log).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def failure(self) -> tuple[int, int] | None:
        """Process id and exit code of the worker that failed first, from msrun's log. -n: killed by signal n."""
        found = FAILURE.search(self.text("msrun.log"))
        return found and (int(found.group(1)), int(found.group(2)))

    def explain(self, rank: int, status: int) -> tuple[int, str]:
        """The exit code and the sentence for a worker of this machine that failed."""
        log = self.text(self.of(rank).name)
        if NOT_CONNECTED.search(log):
            others = self.cluster.others() if self.cluster.nodes > 1 else "some workers"
            reason = "the master did not answer" if UNREACHABLE in log else f"{others} did not connect"
            return HUNG, self.not_connected(reason, self.of(rank))
        if CUT_OFF.search(log):
            return HUNG, self.cut_off(rank)
        said = ""
        if rank != self.cluster.first_rank:  # the first worker's output was shown
            said = "".join([line.removeprefix("error") for line in log.splitlines() if line.startswith("error: ")][-1:])
            if not said and status > 0:
                print(*log.splitlines()[-20:], sep="\n", file=sys.stderr)
        return shell_code(status), f"worker {rank} {end_of(status)}{said}; see {self.of(rank)}"


def end_of(status: int) -> str:
    """How a process ended, in words. -n: by signal n."""
    if status >= 0:
        return f"ended with exit code {status}"
    hint = ", as the kernel does when memory runs out" if -status == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-status).name} (exit code {shell_code(status)}){hint}"


def shell_code(status: int) -> int:
    """A process's exit code as a shell gives it: 128 + n if signal n ended it."""
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def open_log_dir(folder: Path) -> Iterator[None]:
    """Make the folder, keep other launchers out of it, and delete the logs of an earlier run in it.

    Raises:
        UserError: another run writes there, or it cannot be made or locked.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / LOCK))
        except BlockingIOError as error:
            raise UserError(f"--log_dir is {folder}, where another run is writing; give this one its own") from error
        except OSError as error:
            raise UserError(f"--log_dir is {folder}, but nothing can be written there ({error.strerror})") from error
        for log in (*folder.glob("worker_*.log"), folder / "scheduler.log"):
            log.unlink(missing_ok=True)
        yield
