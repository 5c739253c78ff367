"""Trains with several workers on this machine, one a device, in the foreground: msrun starts train.py --distribute.

    bash scripts/run_distribute_train.sh --workers 8 --device_target Ascend --data_path DIR
    bash scripts/run_distribute_train.sh --workers 2 --config configs/digits.yaml

All arguments beside those below go to train.py; run_standalone_train.sh --help explains them. Each worker takes
data.batch_size images a step. Worker 0 is shown as it runs.

SIGTERM, SIGHUP and Ctrl-C reach every worker: all finish the step, worker 0 saves, all end; the exit code is 143 or
130. A second signal ends them at once. Otherwise the exit code is that of the worker that failed, or 0.
"""

# msrun alone does less: SIGTERM ends it and leaves the workers behind, Ctrl-C makes it kill them before they can save
# and exit with 0. So it gets a session of its own, out of a terminal's reach, and the workers get their signals from
# here. They are known by a mark in their environment, since msrun gives each of them a session of its own, too.

import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import doors  # noqa: E402
from src.errors import UserError  # noqa: E402

MARK = "FDA_BNN_LAUNCH"
MOST_WORKERS = 256  # of one machine
TICK_SECONDS = 0.5
SAVING_SECONDS = 60  # what workers get to save and end when msrun has gone without them
ECHO_SECONDS = 1  # timeout(1) sends its signal twice in a row: to the process, then to its group
FAILURE = re.compile(r"Worker process (\d+) exit with exception\. Error code: (-?\d+)")  # in msrun's log


class Launch:
    """One run of msrun, its workers, and the signals that are to reach them.

    Args:
        workers: how many.
        port: where they meet, on this machine.
        log_dir: an existing folder.
        command: the Python file that each worker runs, and its arguments.
    """

    def __init__(self, workers: int, port: int, log_dir: Path, command: Sequence[str]):
        self.workers = workers
        self.log_dir = log_dir
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        binaries = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONUNBUFFERED": "1",
            "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        self.environment.setdefault("GLOG_v", "3")
        msrun = shutil.which("msrun", path=self.environment["PATH"])
        if msrun is None:
            raise UserError(f"msrun, which comes with MindSpore, is not installed beside {sys.executable}")
        # msrun looks Python up in the PATH, by one of two names.
        python = "python3" if (binaries / "python3").exists() else "python"
        self.command = [
            msrun,
            f"--worker_num={workers}",
            f"--local_worker_num={workers}",
            f"--master_port={port}",
            f"--log_dir={log_dir}",
            "--join=True",
            f"--tail_worker_log={workers}",  # no such worker: none
            python,
            *command,
        ]
        self.stop = 0
        self.stopped_at = 0.0
        self.signalled: set[int] = set()
        self.ranks: dict[int, str] = {}
        (log_dir / "worker_0.log").write_bytes(b"")
        self.worker_0 = (log_dir / "worker_0.log").open("rb")

    def catch_signals(self) -> None:
        """From now on this process's signals go to the workers."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, self.on_signal)

    def run(self) -> int:
        """Starts msrun; returns the exit code when it and all that it started have ended."""
        with (self.log_dir / "msrun.log").open("wb") as log:
            self.msrun = subprocess.Popen(
                self.command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            while self.msrun.poll() is None:
                self.tend()
                time.sleep(TICK_SECONDS)
        finally:
            self.end_leftovers()
        self.show()
        return self.exit_code()

    def tend(self) -> None:
        """What is due now: output to show, a signal to hand on, a scheduler to end."""
        self.show()
        workers = self.processes("MS_WORKER") if self.stop or len(self.ranks) < self.workers else self.ranks
        self.ranks.update(workers)
        if self.stop:
            self.send(signal.SIGINT if self.stop == signal.SIGINT else signal.SIGTERM, workers)
        # After a failure msrun waits half a minute for the scheduler, which has nothing to save.
        if self.failure() and not self.processes("MS_WORKER"):
            self.kill(self.processes("MS_SCHED"))

    def show(self) -> None:
        """Copies what worker 0 has written since the last time."""
        try:
            sys.stdout.buffer.write(self.worker_0.read())
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # nobody reads any more; the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def processes(self, role: str | None = None) -> dict[int, str]:
        """The processes of this run, msrun included, or those in one of MindSpore's roles: id -> rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                content = (folder / "environ").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            variables = dict(entry.partition("=")[::2] for entry in content.decode(errors="replace").split("\0"))
            if variables.get(MARK) == self.mark and role in (None, variables.get("MS_ROLE")):
                found[int(folder.name)] = variables.get("MS_NODE_ID", "")
        return found

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
        while left := self.processes():
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

    def on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if not self.stop:
            self.stop, self.stopped_at = number, now
        elif now - self.stopped_at > ECHO_SECONDS:
            print(f"{signal.Signals(number).name} again: ending the workers at once", file=sys.stderr)
            self.kill_all()
            sys.exit(128 + number)

    def failure(self) -> tuple[int, int] | None:
        """The process and the exit code of the worker that failed first, as msrun logged them."""
        found = FAILURE.search((self.log_dir / "msrun.log").read_text(encoding="utf-8", errors="replace"))
        if found is None:
            return None
        code = int(found.group(2))
        return int(found.group(1)), 128 - code if code < 0 else code

    def exit_code(self) -> int:
        """The failed worker's, or msrun's; says where to look unless all went well or as a signal asked."""
        status = self.msrun.returncode
        process, code = self.failure() or (None, 128 - status if status < 0 else status)
        asked = 128 + (signal.SIGINT if self.stop == signal.SIGINT else signal.SIGTERM)
        if code == 0 or (self.stop and code == asked):
            return code
        rank = self.ranks.get(process)
        if rank is None:
            print(
                f"error: the run ended with exit code {code}; see {self.log_dir}/worker_*.log and "
                f"{self.log_dir}/msrun.log",
                file=sys.stderr,
            )
        else:
            log = self.log_dir / f"worker_{rank}.log"
            print(f"error: worker {rank} ended with exit code {code}; see {log}", file=sys.stderr)
            if rank != "0":  # worker 0's was shown
                print(*log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:], sep="\n", file=sys.stderr)
        return code


def main(argv: Sequence[str]) -> int:
    parser = doors.Parser(prog="run_distribute_train.sh", description=__doc__)
    parser.add_argument("--workers", type=int, metavar="N", default=2, help="processes, 1 to 256; default 2")
    parser.add_argument("--device_target", choices=("CPU", "GPU", "Ascend"), help="default: what the config says")
    parser.add_argument(
        "--master_port",
        type=int,
        metavar="PORT",
        default=0,
        help="where the workers meet, 1024 to 65535; default: a free one",
    )
    parser.add_argument(
        "--log_dir",
        metavar="DIR",
        default="runs/msrun_logs",
        help="where worker_N.log, scheduler.log and msrun.log go; default runs/msrun_logs",
    )
    options, arguments = parser.parse_known_args(argv)
    if not 1 <= options.workers <= MOST_WORKERS:
        raise UserError(f"--workers is {options.workers}, but must be 1 to {MOST_WORKERS}")
    if options.device_target:
        arguments = ["--device_target", options.device_target, *arguments]
    if options.traceback:
        arguments = ["--traceback", *arguments]
    port = open_port(options.master_port)
    log_dir = Path(options.log_dir)
    with open_log_dir(log_dir):
        launch = Launch(options.workers, port, log_dir, [str(ROOT / "train.py"), "--distribute", *arguments])
        launch.catch_signals()
        return launch.run()


def open_port(port: int) -> int:
    """`port` if nothing listens there, or for 0 some free one; UserError otherwise."""
    if port and not 1024 <= port <= 65535:
        raise UserError(f"--master_port is {port}, but must be 1024 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"--master_port is {port}, but something else listens there; choose another") from error
        return probe.getsockname()[1]


def open_log_dir(folder: Path):
    """An open file that keeps other runs out of the folder until it is closed; the last run's logs are gone then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"--log_dir is {folder}, but nothing can be written there ({error.strerror})") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise UserError(f"--log_dir is {folder}, where another run is writing; give this one its own") from error
    for log in (*folder.glob("worker_*.log"), folder / "scheduler.log"):
        log.unlink(missing_ok=True)
    return lock


if __name__ == "__main__":
    sys.exit(doors.run(main))
