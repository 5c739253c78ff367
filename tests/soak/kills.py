"""Kills a run many times, also in its first step and while it writes a checkpoint, and resumes it each time.

    python tests/soak/kills.py --kills 20 --seed 0

After every kill all its files must be whole; when it is through, its metrics and its model must be those of a run that
nobody killed. When a run ends before all kills are done, another one takes the rest.
"""

import argparse
import csv
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.runtime import prepare_environment  # noqa: E402

prepare_environment()

import numpy as np  # noqa: E402

from src import checkpoints  # noqa: E402
from src.config import load_config  # noqa: E402
from src.files import PARTIAL  # noqa: E402
from tests.helpers import processes  # noqa: E402

RECIPE = (
    *("--config", processes.ROOT / "configs/digits.yaml"),
    *("--network.binary", "false", "--data.batch_size", 8),
    *("--epochs", 6, "--steps_per_epoch", 12, "--train.save_every_steps", 1),
)
MOMENTS = ("first step", "writing", "any", "any", "any")
TIMES = {"seconds", "images_per_second"}  # columns that differ between equal runs


def survive(folder: Path, kills: int, seed: int, echo: Callable[[str], None] = print) -> None:
    """Runs the recipe once undisturbed, and as often as `kills` kills need; AssertionError tells what was lost."""
    chance = random.Random(seed)
    started = time.monotonic()
    done = processes.run("train.py", *RECIPE, "--output_dir", folder / "whole", cwd=folder)
    latest = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    remaining, number = kills, 0
    while remaining:
        number += 1
        run = folder / f"killed{number}"
        for moment, killed in legs(run, remaining, latest, chance):
            remaining -= killed
            require_whole_files(run)
            rows = [row["epoch"] for row in metrics(run)]
            end = "killed" if killed else "ended"
            echo(f"run {number}, {moment}: {end}; metrics of epochs {', '.join(rows) or 'none'}")
        require_same(run, folder / "whole")
        echo(f"run {number} ended like the one that was not killed")


def legs(run: Path, kills: int, latest: float, chance: random.Random) -> Iterator[tuple[str, bool]]:
    """Starts or resumes the run and kills it, at most `kills` times, until it has ended; "any" moment is one in the
    time that a whole run takes, without its end. Gives each leg's moment and whether it was killed."""
    while True:
        begun = (run / "last.ckpt").exists()
        arguments = ("--resume", run) if begun else (*RECIPE, "--output_dir", run)
        process = processes.start("train.py", *arguments, cwd=run.parent)
        moment = chance.choice(MOMENTS) if kills else "to the end"
        ended = wait_for_moment(moment, run, process, latest, chance)
        if not ended:
            process.kill()
        output = process.communicate()[0]
        assert not ended or process.returncode == 0, output
        kills -= not ended
        yield moment, not ended
        if ended:
            return


def wait_for_moment(moment: str, run: Path, process, latest: float, chance: random.Random) -> bool:
    """Whether the process ended before the moment came."""
    if moment == "to the end":
        return process.wait() is not None
    delay = (
        chance.uniform(0, 0.8 * latest) if moment == "any" else chance.uniform(0, 6) if moment == "first step" else 0
    )
    before = processes.modified(run / "versions.txt")
    started = time.monotonic()
    while process.poll() is None:
        if moment == "first step" and processes.modified(run / "versions.txt") == before:
            started = time.monotonic()  # not begun yet: what follows that file is the compilation and the first step
        if moment == "writing" and run.exists():
            if any(f".ckpt{PARTIAL}" in path.name for path in run.iterdir()) and chance.random() < 0.2:
                return False
        elif moment != "writing" and time.monotonic() - started > delay:
            return False
        time.sleep(0.001)
    return True


def metrics(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what differs between equal runs; none if there is no such file."""
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def require_whole_files(run: Path) -> None:
    """Every file with its final name can be read, and each epoch has one row."""
    if not run.exists():
        return
    for path in run.iterdir():
        if path.suffix == ".ckpt" and not path.name.startswith("."):
            checkpoints.read(path)
        elif path.name == "config.yaml":
            load_config(path)
    epochs = [row["epoch"] for row in metrics(run)]
    assert epochs == [str(number + 1) for number in range(len(epochs))], epochs


def require_same(run: Path, whole: Path) -> None:
    """Equal metrics; equal weights, statistics and optimizer state to the bit; nothing half-written left."""
    assert metrics(run) == metrics(whole)
    for name in ("last.ckpt", "best.ckpt"):
        first, second = checkpoints.read(run / name), checkpoints.read(whole / name)
        for kind in ("parameters", "optimizer"):
            one, other = getattr(first, kind), getattr(second, kind)
            assert one.keys() == other.keys()
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], f"{name}: {key}")
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; default 0")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    started = time.monotonic()
    survive(folder, arguments.kills, arguments.seed, lambda line: print(line, flush=True))
    shutil.rmtree(folder)
    print(f"{arguments.kills} kills survived in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
