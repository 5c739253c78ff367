"""The files of a run folder, and reading them again. Imports no MindSpore."""

import contextlib
import csv
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .config import read_yaml
from .errors import UserError
from .files import PARTIAL, locked, make_folder
from .migration import migrate_config, require_known_format

RUNS = Path("runs")  # where runs without an output_dir go
LATEST = RUNS / "latest"  # a link to the newest run in RUNS
LAST = "last.ckpt"
LOCK = ".lock"  # exists and is locked while a run uses the folder; a killed run may leave it, unlocked
EPOCH = "epoch_{:04d}.ckpt"  # of the latest train.keep epochs
BEST = "best.ckpt"
CONFIG = "config.yaml"  # resolved
METRICS = "metrics.csv"  # a row for each epoch
CURVES = "curves.png"
VERSIONS = "versions.txt"
START_WEIGHTS = "start weights"  # in VERSIONS: their checksum
DATA = "data"  # in VERSIONS: the checksum of the images in their order, if they are in memory
CONTINUED = "continued after"  # in VERSIONS: begins a block of a resumed run
LOG = "log.txt"  # what was printed
CHOSEN_ON = "chosen_on"  # column of METRICS: which images choose BEST, "test" or "holdout"; the others hold numbers
# Columns that METRICS always has. Empty: the loss if every step overflowed, the others if the epoch was not evaluated.
COLUMNS = ("epoch", "train_loss", "test_top1", "test_top5")


def dated_name(network: str, dataset: str) -> str:
    """NETWORK-DATASET-YYYYMMDD-HHMMSS."""
    return f"{network}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"


def make_run_dir(network: str, dataset: str) -> Path:
    """Make a new folder of the `dated_name` in RUNS, with -2, -3 and so on if that exists.

    Raises:
        UserError: it cannot be made.
    """
    make_folder(RUNS)
    name = dated_name(network, dataset)
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the folder {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("unreachable")


def link_latest(folder: Path) -> None:
    """Make LATEST a link to `folder`, if that is in RUNS. A file or folder called LATEST stays, with a warning."""
    if folder.absolute().parent != RUNS.absolute() or folder.name == LATEST.name:
        return
    partial = RUNS / f".{LATEST.name}-{os.getpid()}{PARTIAL}"
    try:
        if LATEST.exists() and not LATEST.is_symlink():
            raise FileExistsError(None, "there is something else of that name")
        partial.unlink(missing_ok=True)
        partial.symlink_to(folder.name)
        partial.replace(LATEST)
    except OSError as error:
        print(f"warning: {LATEST} cannot link to {folder.name}: {error.strerror}", file=sys.stderr)


def resolve_link(folder: Path) -> Path:
    """The folder that a link such as LATEST means now: a later run may change the link."""
    return Path(os.path.normpath(folder.parent / folder.readlink())) if folder.is_symlink() else folder


def read_config(folder: Path) -> dict[str, Any]:
    """The keys of the run's config.yaml under today's names, for `load_config`.

    Raises:
        UserError: it cannot be read, is not YAML, or has a newer format.
    """
    content = read_yaml(folder / CONFIG)
    number = content.pop("format", 0)
    return migrate_config(content, number and require_known_format(number, str(folder / CONFIG)))


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, an epoch each; none if there is no such file. An empty cell is NaN; `CHOSEN_ON` is left
    out.

    Raises:
        UserError: a cell is missing or not a number, an epoch has no number, or one of `COLUMNS` is missing.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [
                {name: float("nan" if text == "" else text) for name, text in row.items() if name != CHOSEN_ON}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError, TypeError) as error:  # TypeError: a cell too few or too many
        raise UserError(f"{path} is damaged: a cell is not a number") from error
    for row in rows:
        if not row.keys() >= set(COLUMNS) or not math.isfinite(row["epoch"]):
            raise UserError(f"{path} is damaged: a row lacks one of {', '.join(COLUMNS)}")
    return rows


def read_versions(folder: Path) -> list[dict[str, str]]:
    """What made the run, by name: a dictionary for its start, and one for each continuation that something differed
    in. One empty dictionary if there is no versions.txt."""
    try:
        text = (folder / VERSIONS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return [dict(line.split(": ", 1) for line in block.splitlines() if ": " in line) for block in text.split("\n\n")]


def epoch_checkpoints(folder: Path) -> dict[int, Path]:
    """The kept checkpoints by the epoch at whose end they were written, in order."""
    found = {}
    for path in folder.glob("epoch_*.ckpt"):
        number = path.stem.removeprefix("epoch_")
        if number.isdecimal() and path.name == EPOCH.format(int(number)):
            found[int(number)] = path
    return dict(sorted(found.items()))


def holds_run(folder: Path) -> bool:
    """Whether there is a checkpoint to continue from."""
    return (folder / LAST).is_file() or bool(epoch_checkpoints(folder))


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Keep other runs out of the folder. A process that was killed leaves no lock behind.

    Raises:
        UserError: another run holds the lock, or the folder cannot be locked.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / LOCK))
        except BlockingIOError as error:
            raise UserError(
                f"another run uses {folder}: wait for its end, or give this one another --output_dir"
            ) from error
        except OSError as error:
            raise UserError(f"cannot lock {folder}: {error.strerror}; put the run folder elsewhere") from error
        yield


def remove_partial_files(folder: Path) -> None:
    """Delete half-written files left by a killed run. Call it only while holding the folder's lock."""
    for path in folder.glob(f".*{PARTIAL}*"):
        with contextlib.suppress(OSError):
            path.unlink()
