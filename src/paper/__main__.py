"""Reproduce the paper's tables and figures: each is a set of ordinary runs of train.py and a report of them.

    python -m src.paper figure1 --output_dir docs/paper                        no training
    python -m src.paper check --data_path DIR                                  the shipped weights against their cards
    python -m src.paper table2 --data_path DIR --dry-run                       what would run, and for how long
    python -m src.paper table2 --data_path DIR --epochs 4 --seeds 3            a shorter budget, seeds 0 to 2
    python -m src.paper table2 --data_path DIR --epochs 4 --seeds 3 --resume   continue after a stop or a kill
    python -m src.paper table2 --data_path DIR --epochs 4 --seeds 3-5 --jobs 2 three more seeds, two runs at once

Writes NAME.md, NAME.csv and NAME.png into the output folder, and the runs into its folder runs/, which all studies in
that folder share: a finished run is not repeated, and counts whichever command made it. Config keys in which the runs
do not differ can be given for all of them. Exit code: 0 all runs finished; 1 some failed (the report names them,
--resume tries them again); 2 bad input; 128 + n stopped by signal n, the current runs are saved.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import cli

with cli.explain_missing_packages():
    from .. import runtime
    from ..errors import UserError
    from ..files import make_folder, require_writable
    from ..pretrained import read_manifest
    from . import estimates, report
    from .estimates import DataSize
    from .runs import BEGUN, FINISHED, Executor, Run, accuracy, core_shares, finished_runs, lock_output_dir, plan
    from .studies import STUDIES, Study

NAMES = ("figure1", "check", *STUDIES)
DATA_NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}
FULL_SIZES = {"cifar10": (50_000, 10_000), "imagenet": (1_281_167, 50_000)}  # images for training and testing
SHORTHANDS = {
    "--dataset": "data.name",
    "--data_path": "data.path",
    "--download": "data.download",
    "--epochs": "train.epochs",
    "--steps_per_epoch": "train.steps_per_epoch",
    "--device_target": "runtime.device_target",
    "--amp_level": "amp.level",
}
FAILED = 1
MAX_SEEDS = 1000


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m src.paper", description=__doc__)
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    parser.add_argument(
        "--seeds", default="1", metavar="S", help="of each run: a number S for 0 to S-1, or a range as 3-5; default 1"
    )
    parser.add_argument(
        "--jobs",
        type=cli.integer,
        default=1,
        metavar="N",
        help="runs at once, each on its share of the cores; default 1",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and end")
    parser.add_argument("--resume", action="store_true", help="continue runs that were begun, try failed ones again")
    parser.add_argument("--data_name", metavar="TEXT", help="name of the data in titles; default: CIFAR-10, ImageNet")
    cli.add_config_flags(parser, SHORTHANDS)
    arguments, overrides = cli.parse_config_flags(parser, argv)
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend may be missing here, and then matplotlib refuses to start
    output = Path(cli.path(overrides.pop("output_dir", None) or "runs/paper"))
    if arguments.name == "figure1":
        return draw_figure1(output, arguments, overrides)
    if arguments.name == "check":
        return check_pretrained(arguments, overrides)
    seeds = parse_seeds(arguments.seeds)
    if arguments.jobs < 1:
        raise UserError(f"--jobs is {arguments.jobs}, but must be at least 1")
    core_shares(arguments.jobs)  # refuses more jobs than cores
    study = STUDIES[arguments.name]
    runs = plan(study, seeds, output, overrides)
    begun = [run for run in runs if run.state() == BEGUN]
    if begun and not arguments.resume and not arguments.dry_run:
        raise UserError(
            f"{begun[0].folder} was started but not finished: continue with --resume, or choose another --output_dir"
        )
    if not arguments.dry_run:
        require_writable(output)
    size = data_size(runs[0], study, must_exist=not arguments.dry_run)
    print_plan(study, runs, size, arguments.jobs)
    if arguments.dry_run:
        return 0
    command = shlex.join(["python", "-m", "src.paper", *(word for word in argv if word != "--resume")])
    data = runs[0].config.data.name
    name = arguments.data_name or DATA_NAMES.get(data, data)
    made_with = report.budget(runs[0], size.steps, name, command)
    with lock_output_dir(output, lambda sentence: print(sentence, file=sys.stderr, flush=True)) as held:
        return execute(study, runs, size, made_with, output, Executor(held, arguments.jobs))


def parse_seeds(text: str) -> range:
    """The seeds of `--seeds`: "3" means 0 to 2, "3-5" means 3 to 5."""
    first, dash, last = text.strip().partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or len(text) > 12:
        raise UserError(f"--seeds is {text!r}, but must be a number of seeds, or a range such as 3-5")
    seeds = range(int(first), int(last) + 1) if dash else range(int(first))
    if not 1 <= len(seeds) <= MAX_SEEDS:
        raise UserError(f"--seeds is {text!r}, which is {len(seeds)} seeds, but must be 1 to {MAX_SEEDS}")
    return seeds


def refuse_flags_of_training(arguments: argparse.Namespace, overrides: dict[str, Any], taken: str) -> None:
    """UserError if a command that trains nothing was given flags other than `taken`."""
    given = [f"--{key}" for key in overrides] + ["--seeds"] * (arguments.seeds != "1")
    if given:
        raise UserError(f"{arguments.name} trains nothing, so it does not take {given[0]}; it takes {taken}")


def draw_figure1(output: Path, arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Write the files of figure 1, which needs no training."""
    refuse_flags_of_training(arguments, overrides, "--output_dir")
    if arguments.dry_run:
        print(f"figure1: no runs, three files in {output}")
        return 0
    make_folder(output)
    runtime.prepare_environment()
    from . import figure1

    print(*figure1.write(output), sep="\n")
    return 0


def check_pretrained(arguments: argparse.Namespace, overrides: dict[str, Any]) -> int:
    """Evaluate the weights that come with the project. The exit code is 1 if any has another accuracy than stated."""
    path = overrides.pop("data.path", "data")
    refuse_flags_of_training(arguments, overrides, "--data_path")
    if arguments.dry_run:
        print(f"check: no runs, {len(read_manifest())} entries of the manifest")
        return 0
    runtime.prepare_environment()
    from .check import check

    return FAILED if check(str(path)) else 0


def data_size(run: Run, study: Study, must_exist: bool) -> DataSize:
    """Return the size of the data for the runs; if `must_exist` is false and they are missing, that of the official
    set.

    Raises:
        UserError: the data are missing or damaged.
    """
    config = run.config
    if not must_exist:
        config = config.model_copy(update={"data": config.data.model_copy(update={"download": False})})
    runtime.prepare_environment()
    from ..experiment import build_data

    try:
        data = build_data(config)
        return DataSize(data.train_steps(), data.test_images())
    except UserError as error:
        if must_exist:
            raise
        print(f"the data are missing, so this is for the official set: {error}")
        train_images, test_images = FULL_SIZES[study.dataset]
        return DataSize(train_images // config.data.batch_size, test_images)


def print_plan(study: Study, runs: list[Run], size: DataSize, jobs: int) -> None:
    """Print every run with its state and how long it will take, `jobs` at once."""
    total, guessed = 0.0, False
    print(f"{study.title}: {len(runs)} runs in {runs[0].output}")
    width = max(len(run.spec.name) for run in runs)
    for run in runs:
        state = run.state()
        rate, measured = estimates.images_per_second(run, runs)
        seconds = estimates.seconds_left(run, size, rate)
        total += seconds
        guessed |= not measured and state != FINISHED
        time = "" if state == FINISHED else f"  about {estimates.spoken(seconds)}"
        print(f"  {run.spec.name:<{width}}  seed {run.seed}  {state:<8}{time}")
    source = "of two CPU cores, measured elsewhere" if guessed else "of this study's runs so far"
    print(f"about {estimates.spoken(total / jobs)} in total, estimated from the speed {source}", flush=True)


def execute(
    study: Study, runs: list[Run], size: DataSize, made_with: report.Budget, output: Path, executor: Executor
) -> int:
    """Execute the runs that are not finished, write the report after each, and return the exit code."""
    failures: dict[Path, str] = {}
    numbers = {run.folder: f"[{number}/{len(runs)}]" for number, run in enumerate(runs, start=1)}

    def begin(run: Run) -> None:
        rate, _ = estimates.images_per_second(run, runs)
        time = estimates.spoken(estimates.seconds_left(run, size, rate))
        print(f"{numbers[run.folder]} {run.spec.name}, seed {run.seed}, about {time}; see {run.log}", flush=True)

    for run in runs:  # refuses a run of another config, with whatever seed, before hours of training
        finished_runs(run.spec, run.output, run.overrides)
    stopped = []
    for run, reason in executor.execute([run for run in runs if run.state() != FINISHED], begin):
        if executor.stopped and run.state() != FINISHED:
            stopped.append(f"{run.spec.name}, seed {run.seed}, is {run.state()}")
            continue
        if reason is None and run.state() != FINISHED:
            reason = "it ended without its last epoch"
        if reason is not None:
            failures[run.folder] = f"{reason} (see {run.log})"
            print(f"{numbers[run.folder]} failed: {reason}", flush=True)
        else:
            kind = "held-out" if run.config.data.holdout else "test"
            print(f"{numbers[run.folder]} {kind} accuracy {accuracy(run.metrics()[-1]):.2%}", flush=True)
        report.write(study, report.outcomes(study, runs, failures), made_with, output)
    if executor.stopped:
        print(f"stopped; {'; '.join(stopped)}: continue with the same command and --resume", flush=True)
        return 128 + executor.stopped
    print(*report.write(study, report.outcomes(study, runs, failures), made_with, output), sep="\n")
    if failures:
        print(f"{len(failures)} of {len(runs)} runs failed; --resume tries them again", file=sys.stderr)
    return FAILED if failures else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
