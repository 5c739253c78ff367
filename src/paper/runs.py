"""The runs of a study: ordinary runs of train.py, each a process with a config file that can also be run separately.

All studies of a folder share its runs:

    DIR/runs/NAME/seed0.yaml      the config: the recipe and what differs from it
    DIR/runs/NAME/seed0/          the run folder
    DIR/runs/NAME/seed0.log       what train.py printed
"""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..config import RESUMABLE, Config, leaf_keys, load_config, read_yaml
from ..errors import UserError
from ..files import locked, make_folder, write_text
from ..preprocessing import find_preprocessing
from ..run_dir import CONFIG, LAST, LOCK, holds_run, read_config, read_metrics
from .studies import RunSpec, Study

ROOT = Path(__file__).resolve().parent.parent.parent
# Sections and keys in which the runs of a study differ. The others may be changed for all runs.
OWN_SECTIONS = ("network", "noise", "schedules", "seed", "output_dir", "init_checkpoint")
NEW, BEGUN, FINISHED, DAMAGED = "new", "begun", "finished", "damaged"
# The result of a run does not depend on these keys.
CIRCUMSTANCES = RESUMABLE | {"output_dir", "seed", "data.num_parallel_workers", "runtime.mode"}


@dataclass(frozen=True)
class Run:
    """A `RunSpec` with a seed, in a folder."""

    spec: RunSpec
    seed: int
    output: Path
    overrides: Mapping[str, Any]  # config values for all runs: the budget and the path of the data

    @property
    def folder(self) -> Path:
        return self.output / "runs" / self.spec.name / f"seed{self.seed}"

    @property
    def config_file(self) -> Path:
        return self.folder.with_suffix(".yaml")

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def changes(self) -> dict[str, Any]:
        """Values that differ from the recipe, by dotted key."""
        own = {"seed": self.seed, "output_dir": str(self.folder)}
        return {**self.spec.changes, **self.overrides, **own}

    @cached_property
    def config(self) -> Config:
        return load_config(recipe_file(self.spec), self.changes)

    def state(self) -> str:
        """Return NEW, BEGUN (there is a checkpoint), FINISHED, or DAMAGED (a checkpoint without its config).

        A finished run needs no checkpoint any more: its config and its metrics are enough.

        Raises:
            UserError: the folder holds a run of another config.
        """
        finished = len(self.metrics()) >= self.config.train.epochs
        if not holds_run(self.folder) and not (finished and (self.folder / CONFIG).is_file()):
            return NEW
        try:
            found = load_config(read_config(self.folder))
        except UserError:
            return DAMAGED
        for key, (wanted, other) in differences(self.config, found).items():
            if key not in RESUMABLE | {"output_dir"}:
                raise UserError(
                    f"{self.folder} holds a run with {key} {other}, but {wanted} is wanted: choose another --output_dir"
                )
        return FINISHED if finished else BEGUN

    def metrics(self) -> list[dict[str, float]]:
        """Return a row for each epoch; no rows if the file is damaged: resuming the run writes it again."""
        try:
            return read_metrics(self.folder)
        except UserError:
            return []

    def write_config(self) -> None:
        """Write the config file: the recipe's keys, then what differs."""
        content = read_yaml(recipe_file(self.spec))
        for key, value in self.changes.items():
            *sections, last = key.split(".")
            place = content
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
        heading = f"# {self.spec.name}, seed {self.seed}: configs/{self.spec.recipe}.yaml and what differs from it\n"
        make_folder(self.folder.parent)
        write_text(self.config_file, heading + yaml.safe_dump(content, sort_keys=False))

    def command(self) -> list[str]:
        """Return the command line that begins the run or resumes it."""
        train = [sys.executable, str(ROOT / "train.py")]
        if self.state() == NEW:
            return [*train, "--config", str(self.config_file)]
        moved = [word for key in sorted(RESUMABLE & self.overrides.keys()) for word in (f"--{key}", _flag(self, key))]
        return [*train, "--resume", str(self.folder), *moved]


def accuracy(row: Mapping[str, float], name: str = "top1") -> float:
    """Top-1 or "top5" of an epoch, in [0, 1]: on held-out images if the run held some out, else on the test images."""
    return row.get(f"holdout_{name}", row[f"test_{name}"])


def recipe_file(spec: RunSpec) -> Path:
    """Return the YAML file of a run's recipe."""
    return ROOT / "configs" / f"{spec.recipe}.yaml"


def plan(study: Study, seeds: range, output: Path, overrides: Mapping[str, Any]) -> list[Run]:
    """Return the runs of a study with these seeds: every run with the first one, then with the next. Their configs are
    valid.

    Raises:
        UserError: a key in which the runs differ, a value that the config refuses, an unknown data set, or one with
            images of another size.
    """
    for key in overrides:
        if key.split(".")[0] in OWN_SECTIONS or any(key in spec.changes for spec in study.specs):
            raise UserError(f"--{key} cannot be given: the runs of {study.name} differ in it")
    runs = [Run(spec, seed, output, overrides) for seed in seeds for spec in study.specs]
    for run in runs:
        name = run.config.data.name
        size = find_preprocessing(name, run.config.data.image_size).size
        wanted = find_preprocessing(study.dataset).size
        if size != wanted:
            raise UserError(
                f"the networks of {study.name} take images of {wanted}x{wanted}, but those of {name} are {size}x{size}"
            )
    return runs


@contextlib.contextmanager
def lock_output_dir(folder: Path, echo: Callable[[str], None]) -> Iterator[int]:
    """Lock a folder for one command, and give a descriptor: a process that inherits it also holds the lock, until it
    ends. If another command, or a run left by an earlier command, holds the lock, call `echo` and wait."""
    make_folder(folder)
    with contextlib.ExitStack() as held:
        try:
            try:
                descriptor = held.enter_context(locked(folder / LOCK, inherited=True))
            except BlockingIOError:
                echo("another command, or a training run that it left, works in this folder: waiting until it ends")
                descriptor = held.enter_context(locked(folder / LOCK, wait=True, inherited=True))
        except OSError as error:
            raise UserError(f"cannot lock {folder}: {error.strerror}; choose another --output_dir") from error
        yield descriptor


def finished_runs(spec: RunSpec, output: Path, overrides: Mapping[str, Any]) -> list[Run]:
    """Every finished run of a spec in the folder, by seed, whichever command made it."""
    seeds = []
    for folder in (output / "runs" / spec.name).glob("seed*/"):
        if (number := folder.name.removeprefix("seed")).isdecimal():
            seeds.append(int(number))
    return [run for seed in sorted(seeds) if (run := Run(spec, seed, output, overrides)).state() == FINISHED]


class Executor:
    """Runs processes, some at once. SIGTERM, SIGHUP and Ctrl-C go to the current ones, which save and end.

    Args:
        held: the descriptor of `lock_output_dir`.
        jobs: number of runs at once, each on its own share of the cores.

    Attributes:
        stopped (int): the signal that came; 0: none.

    Raises:
        UserError: there are fewer cores than jobs.
    """

    def __init__(self, held: int, jobs: int = 1):
        self.held = held
        self.jobs = jobs
        self.stopped = 0
        self.processes: set[subprocess.Popen] = set()
        self.shares: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        for share in core_shares(jobs):
            self.shares.put(share)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._stop)

    def execute(self, runs: Sequence[Run], begin: Callable[[Run], None]) -> Iterator[tuple[Run, str | None]]:
        """Begin or resume each run, and yield it when it has ended, with the reason if it failed.

        After a signal, no other run begins. `begin` is called before each run, in any thread.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self._execute_unless_stopped, run, begin): run for run in runs}
            for future in as_completed(futures):
                was_run, reason = future.result()
                if was_run:
                    yield futures[future], reason

    def _execute_unless_stopped(self, run: Run, begin: Callable[[Run], None]) -> tuple[bool, str | None]:
        """Whether the run was begun, and why it failed."""
        if self.stopped:
            return False, None
        begin(run)
        share = self.shares.get()
        try:
            return True, self._execute(run, share)
        except (OSError, UserError) as error:  # only this run failed: the others may succeed
            return True, str(error)
        finally:
            self.shares.put(share)

    def _execute(self, run: Run, share: list[int]) -> str | None:
        if run.state() == DAMAGED:
            return f"{run.folder} holds {LAST} without a readable {CONFIG}: delete the folder"
        run.write_config()
        command = run.command()
        # A new session: otherwise the terminal's Ctrl-C would reach it twice.
        with run.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(self.held,),
                env={**os.environ, **({"OMP_NUM_THREADS": str(len(share))} if share else {})},
            )
            if share:  # before it has started a thread
                os.sched_setaffinity(process.pid, share)
            self.processes.add(process)
            if self.stopped:  # the signal came just before
                process.send_signal(signal.SIGTERM)
            code = process.wait()
            self.processes.discard(process)
        if code == 0:
            return None
        return f"killed by signal {-code}" if code < 0 else _last_error(run.log) or f"exit code {code}"

    def _stop(self, number: int, frame) -> None:
        self.stopped = number
        for process in list(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def core_shares(jobs: int) -> list[list[int]]:
    """The cores that this process may use, dealt out to `jobs` runs; [[]] for one, which may use them all.

    Raises:
        UserError: there are fewer cores than jobs, or the system has no affinity.
    """
    if jobs == 1:
        return [[]]
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--jobs above 1 needs Linux, which can keep a process to some of the cores")
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs is {jobs}, but this process may use {len(cores)} cores")
    size = len(cores) // jobs
    return [cores[number * size : (number + 1) * size] for number in range(jobs)]


def _last_error(log: Path) -> str | None:
    """Return the error sentence that the last process wrote to the log, or None."""
    last = log.read_text(encoding="utf-8", errors="replace").rsplit("\n$ ", 1)[-1]
    errors = re.findall(r"^error: (.*)$", last, re.MULTILINE)
    return errors[-1] if errors else None


def differences(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Return both values of every dotted key in which two configs differ."""
    pairs = {key: (_value(config, key), _value(other, key)) for key in leaf_keys(Config)}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _flag(run: Run, key: str) -> str:
    """Return the value as written on a command line: YAML."""
    value = run.overrides[key]
    return value if isinstance(value, str) else json.dumps(value)
