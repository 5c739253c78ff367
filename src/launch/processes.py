"""The processes of one run on this machine: starts msrun, shows the first worker, hands signals on, ends what hangs."""

# msrun alone does less: SIGTERM ends it and leaves the workers behind, Ctrl-C makes it kill them before they can save
# and exit with 0. So it gets a session of its own, out of a terminal's reach, and the workers get their signals from
# here. They are known by a mark in their environment, since msrun gives each of them a session of its own, too.

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .. import heartbeat
from ..errors import UserError
from .cluster import Cluster
from .logs import CUT_OFF, HUNG, Logs, end_of, shell_code
from .watchdog import Watch, failed, parent, state

MARK = heartbeat.LAUNCH
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # a worker's exit codes when it was asked to end and has saved
TICK_SECONDS = 0.5
HANG_SECONDS = int(heartbeat.MIN_SECONDS)
SAVING_SECONDS = 60  # what workers get to save and end when msrun has gone without them
CUT_OFF_SECONDS = 10  # what a worker gets to end when the others have gone; MindSpore can take more than half a minute
KILLING_SECONDS = 10  # what a killed process gets to go
LONGEST_LINE = 1000  # bytes of a log's end that the next look at it sees again
ECHO_SECONDS = 1  # timeout(1) sends its signal twice in a row: to the process, then to its group


class Launch:
    """One run of msrun, its workers on this machine, and the signals that are to reach them.

    Args:
        cluster: how many workers, where they meet, and this machine's share.
        log_dir: an existing folder.
        command: the Python file that each worker runs, and its arguments.
        hang_timeout: seconds that a worker has at least for anything it does; 0: no limits.
    """

    def __init__(self, cluster: Cluster, log_dir: Path, command: Sequence[str], hang_timeout: int = HANG_SECONDS):
        self.cluster = cluster
        self.logs = Logs(log_dir, cluster)
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.changes = changes_to_environment(cluster) | {
            MARK: self.mark,
            heartbeat.MIN_SECONDS_VARIABLE: str(hang_timeout),
        }
        self.command = msrun_command(cluster, log_dir, command)
        self.stop = 0
        self.stopped_at = 0.0
        self.signalled: set[int] = set()
        self.ranks: dict[int, int] = {}
        self.schedulers: set[int] = set()
        self.given_up: set[int] = set()
        self.verdict: int | None = None
        self.cut_off_at: float | None = None
        self.logs.of(cluster.first_rank).write_bytes(b"")
        self.shown = self.logs.of(cluster.first_rank).open("rb")
        self.last_shown = b""

    def catch_signals(self) -> None:
        """From now on this process's signals go to the workers."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self.on_signal)

    def run(self) -> int:
        """Starts msrun; returns the exit code when it and all that it started have ended."""
        with tempfile.TemporaryDirectory(prefix="fda_bnn_", ignore_cleanup_errors=True) as heartbeats:
            self.watch = Watch(Path(heartbeats), alone=self.cluster.nodes == 1)
            with (self.logs.folder / "msrun.log").open("wb") as log:
                self.msrun = subprocess.Popen(
                    self.command,
                    env={**os.environ, **self.changes, heartbeat.FOLDER: heartbeats},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                while self.msrun.poll() is None and self.msrun.pid not in self.given_up:
                    self.tend()
                    time.sleep(TICK_SECONDS)
            finally:
                self.end_leftovers()
        self.show()
        return self.exit_code()

    def tend(self) -> None:
        """What is due now: output to show, a signal to hand on, workers that hang or a scheduler to end."""
        self.show()
        known = len(self.ranks) == self.cluster.local_workers
        workers = self.ranks if known and not self.stop else self.processes("MS_WORKER")
        self.ranks.update(workers)
        if not known:
            self.schedulers.update(self.processes("MS_SCHED"))
        if self.stop:
            self.send(self.asked_by, workers)
        if self.logs.failure():
            # After a failure msrun waits half a minute for the scheduler, which has nothing to save.
            if not self.processes("MS_WORKER"):
                self.kill(self.processes("MS_SCHED"))
        elif trouble := self.trouble():
            self.verdict = HUNG
            self.show()
            print(f"error: {trouble}; all workers are ended", file=sys.stderr, flush=True)
            self.kill_all()

    def trouble(self) -> str | None:
        """Why the workers cannot go on although none here has failed; None: for all that is known they can."""
        if hung := self.watch.hung({rank: process for process, rank in self.ranks.items()}):
            logs = [str(self.logs.of(rank)) for ranks in hung for rank in ranks]
            return f"{', '.join(hung.values())}; see {', '.join(logs)}"
        if self.cut_off_at is not None and time.monotonic() - self.cut_off_at > CUT_OFF_SECONDS:
            return self.logs.cut_off(self.cluster.first_rank)
        if lost := self.logs.lost():
            return lost
        if any(map(failed, self.schedulers)):  # msrun looks at the workers alone
            return f"msrun's scheduler has failed, which the workers need; see {self.logs.folder}/scheduler.log"
        return None

    def show(self) -> None:
        """Copies what the first worker here has written since the last time."""
        output = self.shown.read()
        recent = self.last_shown + output
        if self.cut_off_at is None and CUT_OFF.search(recent.decode(errors="replace")):
            self.cut_off_at = time.monotonic()
        self.last_shown = recent[-LONGEST_LINE:]
        try:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()
        except OSError:  # a full disk, a closed terminal, a reader that has gone: the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def processes(self, role: str | None = None) -> dict[int, int]:
        """The processes of this run, msrun included: id -> rank, -1 for none.

        Args:
            role: only those that msrun started in this role of MindSpore's, and none that these have started.
        """
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                content = (folder / "environ").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            variables = dict(entry.partition("=")[::2] for entry in content.decode(errors="replace").split("\0"))
            process = int(folder.name)
            if variables.get(MARK) != self.mark or process in self.given_up:
                continue
            if role is None or (variables.get("MS_ROLE") == role and self.is_in_role(process, role)):
                found[process] = int(variables.get("MS_NODE_ID", -1))
        return found

    def is_in_role(self, process: int, role: str) -> bool:
        """Whether it is the worker or the scheduler itself: what these start has all their variables."""
        if role == "MS_SCHED":
            return parent(process) == self.msrun.pid
        try:
            return os.getsid(process) == process  # msrun gives each worker a session
        except ProcessLookupError:
            return False

    def send(self, number: int, workers: Sequence[int]) -> None:
        """A signal to each worker that had none: a second one would end it before it has saved."""
        for worker in set(workers) - self.signalled:
            self.signalled.add(worker)
            self.kill([worker], number)

    def kill(self, processes: Sequence[int], number: int = signal.SIGKILL) -> None:
        for process in processes:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def kill_all(self) -> None:
        deadline = time.monotonic() + KILLING_SECONDS
        while left := self.processes():
            if time.monotonic() > deadline:
                self.given_up.update(left)
                who = ", ".join(f"{process} (state {state(process)})" for process in sorted(left))
                print(f"error: SIGKILL does not end process {who}, which is left behind", file=sys.stderr, flush=True)
                return
            self.kill(left)
            self.msrun.poll()  # else it would stay behind as a zombie
            time.sleep(0.1)

    def end_leftovers(self) -> None:
        """Lets workers that msrun left behind save and end; then kills what is still there."""
        deadline = time.monotonic() + SAVING_SECONDS
        while (workers := self.processes("MS_WORKER")) and time.monotonic() < deadline:
            self.send(signal.SIGTERM, workers)
            self.show()
            time.sleep(TICK_SECONDS)
        self.kill_all()

    @property
    def asked_by(self) -> int:
        """The signal that workers get when this process has had one."""
        return signal.SIGINT if self.stop == signal.SIGINT else signal.SIGTERM

    def on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.stop:
            self.stop, self.stopped_at = number, now
        elif now - self.stopped_at > ECHO_SECONDS:
            print(f"{signal.Signals(number).name} again: ending the workers at once", file=sys.stderr)
            self.kill_all()
            sys.exit(128 + number)

    def exit_code(self) -> int:
        """The failed worker's, or msrun's; says where to look unless all went well or as a signal asked."""
        if self.verdict is not None:
            return self.verdict
        if (failure := self.logs.failure()) is None:
            code = shell_code(self.msrun.returncode)
            sentence = f"the run ended with exit code {code}; see {self.logs.folder}/*.log"
            silent = code == 0 or (self.stop and code in STOPPED)
        else:
            process, status = failure
            code = shell_code(status)
            # STOPPED may come of a signal to another machine's launcher; the signal itself ends a worker that starts.
            silent = status in STOPPED or (self.stop and status == -self.asked_by)
            sentence = f"a worker {end_of(status)}; see {self.logs.folder}/worker_*.log"
            if silent:
                pass
            elif lost := self.logs.lost():  # then that worker failed because of it
                code, sentence = HUNG, lost
            elif (rank := self.rank_of(process)) is not None:
                code, sentence = self.logs.explain(rank, status)
        if not silent:
            print(f"error: {sentence}", file=sys.stderr)
        return code

    def rank_of(self, process: int) -> int | None:
        """A worker's; None if it ended before it was seen here, unless all the others were."""
        first = self.cluster.first_rank
        unseen = set(range(first, first + self.cluster.local_workers)) - set(self.ranks.values())
        return self.ranks.get(process, unseen.pop() if len(unseen) == 1 else None)


def changes_to_environment(cluster: Cluster) -> dict[str, str]:
    """What msrun and the workers get beside this process's environment."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONUNBUFFERED": "1",
        # The launcher reads msrun's and MindSpore's errors: less than those, or elsewhere, they must not log.
        "GLOG_v": level if (level := os.environ.get("GLOG_v")) in ("0", "1", "2") else "3",
        "GLOG_logtostderr": "1",
        # The user's own go before.
        **{name: os.environ.get(name, value) for name, value in cluster.environment().items()},
    }


def msrun_command(cluster: Cluster, log_dir: Path, command: Sequence[str]) -> list[str]:
    """The complete command; UserError without msrun."""
    binaries = Path(sys.executable).parent
    msrun = shutil.which("msrun", path=changes_to_environment(cluster)["PATH"])
    if msrun is None:
        raise UserError(f"msrun, which comes with MindSpore, is not installed beside {sys.executable}")
    # msrun looks Python up in the PATH, by one of two names.
    python = "python3" if (binaries / "python3").exists() else "python"
    return [msrun, *cluster.msrun_arguments(log_dir), python, *command]
