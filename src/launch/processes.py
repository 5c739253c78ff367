"""The processes of one run on this machine: start msrun, show the first worker, forward signals, end what hangs."""

# msrun by itself does less: SIGTERM ends it and leaves the workers behind; Ctrl-C makes it kill them before they can
# save, and exit with 0. So msrun gets a session of its own, which the terminal's signals do not reach, and the launcher
# sends the signals to the workers. Each worker has a session of its own too, so that the processes of a run are found
# by a variable in their environment.

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from .. import heartbeat
from ..errors import UserError
from .cluster import Cluster
from .logs import CUT_OFF, HUNG, Logs, end_of, shell_code
from .watchdog import Watch, status

STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT)  # exit codes of a worker that was asked to end and has saved
TICK_SECONDS = 0.5
HANG_SECONDS = int(heartbeat.MIN_SECONDS)
SAVING_SECONDS = 60  # for workers to save and end after msrun has ended without them
CUT_OFF_SECONDS = 10  # for a worker to end after the others have; MindSpore can take more than half a minute
KILLING_SECONDS = 10  # for a killed process to disappear
MAX_LINE = 1000  # bytes at the end of a log that are searched again together with what follows
# timeout(1) sends its signal twice in a row, to the process and then to its group: within this time it counts once.
ECHO_SECONDS = 1


class Supervisor:
    """Runs msrun and this machine's workers from start to end.

    Args:
        cluster: the run's workers, and this machine's share of them.
        log_dir: folder for the logs, which exists.
        command: the Python file that each worker runs, and its arguments.
        hang_timeout: smallest time limit for an action of a worker, in seconds; 0: no limits.
    """

    def __init__(self, cluster: Cluster, log_dir: Path, command: Sequence[str], hang_timeout: int = HANG_SECONDS):
        self.cluster = cluster
        self.logs = Logs(log_dir, cluster)
        self.heartbeats = log_dir.absolute() / "heartbeats"
        self.watch = Watch(self.heartbeats, single_machine=cluster.nodes == 1)
        self.run_id = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.changes = changes_to_environment(cluster) | {
            heartbeat.RUN_ID: self.run_id,
            heartbeat.FOLDER: str(self.heartbeats),
            heartbeat.HANG_SECONDS: str(hang_timeout),
        }
        self.command = msrun_command(cluster, log_dir, command)
        self.stop_signal = 0
        self.stopped_at = 0.0
        self.workers: dict[int, psutil.Process] = {}  # by rank; those seen so far
        self.schedulers: set[psutil.Process] = set()
        self.signalled: set[psutil.Process] = set()
        self.unkillable: set[psutil.Process] = set()
        self.exit_status: int | None = None  # set when the launcher ends the run; replaces msrun's code
        self.cut_off_at: float | None = None
        self.logs.of(cluster.first_rank).write_bytes(b"")
        self.shown = self.logs.of(cluster.first_rank).open("rb")
        self.last_shown = b""

    def forward_signals(self) -> None:
        """Send the signals that this process gets from now on to the workers."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self.on_signal)

    def run(self) -> int:
        """Start msrun. Return the exit code after msrun and all processes that it started have ended."""
        shutil.rmtree(self.heartbeats, ignore_errors=True)  # of a launcher that was killed
        self.heartbeats.mkdir()
        with (self.logs.folder / "msrun.log").open("wb") as log:
            self.msrun = subprocess.Popen(
                self.command,
                env={**os.environ, **self.changes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while self.msrun.poll() is None and self.msrun.pid not in {process.pid for process in self.unkillable}:
                self.poll()
                time.sleep(TICK_SECONDS)
        finally:
            self.end_leftovers()
            shutil.rmtree(self.heartbeats, ignore_errors=True)
        self.show()
        return self.exit_code()

    def poll(self) -> None:
        """Do what is due now: show output, forward a signal, end workers that hang, or end the scheduler."""
        self.show()
        all_seen = len(self.workers) == self.cluster.local_workers
        if not all_seen or self.stop_signal:
            self.workers.update({rank: process for process, rank in self.processes("MS_WORKER").items()})
        if not all_seen:
            self.schedulers.update(self.processes("MS_SCHED"))
        if self.stop_signal:
            self.send(self.signal_for_workers, self.workers.values())
        if self.logs.failure():
            # After a failure msrun waits half a minute for the scheduler, which has nothing to save.
            if not self.processes("MS_WORKER"):
                self.kill(self.processes("MS_SCHED"))
        elif problem := self.diagnose():
            self.exit_status = HUNG
            self.show()
            self.report(f"{problem}; all workers are ended")
            self.kill_all()

    def diagnose(self) -> str | None:
        """Why the workers cannot continue although none here has failed. None if nothing is known to be wrong."""
        if hung := self.watch.hung(self.workers):
            logs = [str(self.logs.of(rank)) for ranks in hung for rank in ranks]
            return f"{', '.join(hung.values())}; see {', '.join(logs)}"
        if self.cut_off_at is not None and time.monotonic() - self.cut_off_at > CUT_OFF_SECONDS:
            return self.logs.cut_off(self.cluster.first_rank)
        if lost := self.logs.lost():
            return lost
        # msrun does not watch its scheduler. The order matters: a worker notes its end before the scheduler ends.
        ended = [process for process in self.schedulers if heartbeat.has_ended(process.pid)]
        if ended and self.watch.scheduler_is_needed(self.workers):
            return f"msrun's scheduler has failed, which the workers need; see {self.logs.folder}/scheduler.log"
        return None

    def show(self) -> None:
        """Print what the first worker here has written since the last call."""
        output = self.shown.read()
        recent = self.last_shown + output
        if self.cut_off_at is None and CUT_OFF.search(recent.decode(errors="replace")):
            self.cut_off_at = time.monotonic()
        self.last_shown = recent[-MAX_LINE:]
        self.write(output)

    def report(self, sentence: str) -> None:
        """Print an error, on a line of its own: the worker's last output may be a progress bar."""
        if self.last_shown and not self.last_shown.endswith(b"\n"):
            self.last_shown += b"\n"
            self.write(b"\n")
        print(f"error: {sentence}", file=sys.stderr, flush=True)

    def write(self, output: bytes) -> None:
        try:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()
        except OSError:  # a full disk, a closed terminal or pipe: the run continues
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def processes(self, role: str | None = None) -> dict[psutil.Process, int]:
        """The processes of this run, msrun included, and their ranks; -1: no rank.

        Args:
            role: MS_WORKER or MS_SCHED: only processes that msrun started in this role, without their child processes.
        """
        found = {}
        for process in psutil.process_iter(["environ"]):
            variables = process.info["environ"] or {}  # None: another user's, or a zombie
            if variables.get(heartbeat.RUN_ID) != self.run_id or process in self.unkillable:
                continue
            if role is None or (variables.get("MS_ROLE") == role and self.is_in_role(process, role)):
                found[process] = int(variables.get("MS_NODE_ID", -1))
        return found

    def is_in_role(self, process: psutil.Process, role: str) -> bool:
        """Whether it is the worker or the scheduler itself: their child processes inherit the variables."""
        try:
            if role == "MS_SCHED":
                return process.ppid() == self.msrun.pid
            return os.getsid(process.pid) == process.pid  # msrun gives each worker a session
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False

    def send(self, number: int, workers: Iterable[psutil.Process]) -> None:
        """Send a signal to each worker that has not had one: a second one would end it before it has saved."""
        for worker in set(workers) - self.signalled:
            self.signalled.add(worker)
            self.kill([worker], number)

    def kill(self, processes: Iterable[psutil.Process], number: int = signal.SIGKILL) -> None:
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    def kill_all(self) -> None:
        deadline = time.monotonic() + KILLING_SECONDS
        while left := self.processes():
            if time.monotonic() > deadline:
                self.unkillable.update(left)
                who = ", ".join(f"{process.pid} ({status(process)})" for process in left)
                self.report(f"SIGKILL does not end process {who}, which is left behind")
                return
            self.kill(left)
            self.msrun.poll()  # else it would stay behind as a zombie
            time.sleep(0.1)

    def end_leftovers(self) -> None:
        """Let workers that msrun left behind save and end. Then kill what is still there."""
        deadline = time.monotonic() + SAVING_SECONDS
        while (workers := self.processes("MS_WORKER")) and time.monotonic() < deadline:
            self.send(signal.SIGTERM, workers)
            self.show()
            time.sleep(TICK_SECONDS)
        self.kill_all()

    @property
    def signal_for_workers(self) -> int:
        """The signal that workers get when this process has had one."""
        return signal.SIGINT if self.stop_signal == signal.SIGINT else signal.SIGTERM

    def on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.stop_signal:
            self.stop_signal, self.stopped_at = number, now
        elif now - self.stopped_at > ECHO_SECONDS:
            print(f"{signal.Signals(number).name} again: ending the workers at once", file=sys.stderr)
            self.kill_all()
            sys.exit(128 + number)

    def exit_code(self) -> int:
        """Return the failed worker's exit code, or msrun's. Print where to look, unless the run succeeded or a signal
        ended it."""
        if self.exit_status is not None:
            return self.exit_status
        if (failure := self.logs.failure()) is None:
            code = shell_code(self.msrun.returncode)
            sentence = f"the run ended with exit code {code}; see {self.logs.folder}/*.log"
            silent = code == 0 or (self.stop_signal and code in STOPPED)
        else:
            process, ended_with = failure
            code = shell_code(ended_with)
            # A STOPPED code may follow a signal to another machine's launcher. A worker that is still starting is
            # killed by the signal.
            silent = ended_with in STOPPED or (self.stop_signal and ended_with == -self.signal_for_workers)
            sentence = f"a worker {end_of(ended_with)}; see {self.logs.folder}/worker_*.log"
            if silent:
                pass
            elif lost := self.logs.lost():  # then that worker failed because of it
                code, sentence = HUNG, lost
            elif (rank := self.rank_of(process)) is not None:
                code, sentence = self.logs.explain(rank, ended_with)
        if not silent:
            self.report(sentence)
        return code

    def rank_of(self, process: int) -> int | None:
        """The worker's rank. None if it ended before it was seen here and other workers were not seen either."""
        first = self.cluster.first_rank
        unseen = set(range(first, first + self.cluster.local_workers)) - self.workers.keys()
        ranks = {worker.pid: rank for rank, worker in self.workers.items()}
        return ranks.get(process, unseen.pop() if len(unseen) == 1 else None)


def changes_to_environment(cluster: Cluster) -> dict[str, str]:
    """Variables that msrun and the workers get in addition to this process's environment."""
    return {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONUNBUFFERED": "1",
        # The launcher reads the errors of msrun and MindSpore, so they must be logged, and to standard error.
        "GLOG_v": level if (level := os.environ.get("GLOG_v")) in ("0", "1", "2") else "3",
        "GLOG_logtostderr": "1",
        # The user's own take precedence.
        **{name: os.environ.get(name, value) for name, value in cluster.environment().items()},
    }


def msrun_command(cluster: Cluster, log_dir: Path, command: Sequence[str]) -> list[str]:
    """Return the complete msrun command.

    Raises:
        UserError: msrun is not installed.
    """
    binaries = Path(sys.executable).parent
    msrun = shutil.which("msrun", path=changes_to_environment(cluster)["PATH"])
    if msrun is None:
        raise UserError(f"msrun, which comes with MindSpore, is not installed next to {sys.executable}")
    # msrun looks Python up in the PATH, by one of two names.
    python = "python3" if (binaries / "python3").exists() else "python"
    return [msrun, *cluster.msrun_arguments(log_dir), python, *command]
