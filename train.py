"""Trains a network. Every key of default_config.yaml is a flag: --optimizer.lr 0.05.

    python train.py --config configs/digits.yaml                 embedded data, minutes on a CPU
    python train.py --data_path DIR                              the paper's CIFAR-10 ResNet-20, 400 epochs
    python train.py --resume runs/cifar10                        goes on from the run's last checkpoint

Exit code: 0 trained to the end; 2 bad input or a diverged run; 128 + n stopped by signal n, saved (143: SIGTERM, 130:
Ctrl-C).
"""

import contextlib
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src import doors, runtime
from src.config import RESUMABLE, Config, load_config
from src.errors import UserError
from src.files import make_folder, require_writable, write_text
from src.run_folder import (
    CONFIG,
    EPOCH,
    LAST,
    VERSIONS,
    epoch_checkpoints,
    hold,
    holds_run,
    remove_partial_files,
)

if TYPE_CHECKING:
    from src.experiment import Experiment

SHORTHANDS = {
    "--dataset": "data.name",
    "--data_path": "data.path",
    "--download": "data.download",
    "--output_dir": "output_dir",
    "--epochs": "train.epochs",
    "--steps_per_epoch": "train.steps_per_epoch",
    "--seed": "seed",
    "--device_target": "runtime.device_target",
    "--mode": "runtime.mode",
    "--init_checkpoint": "init_checkpoint",
    "--amp_level": "amp.level",
    "--keep": "train.keep",
}


def main(argv: Sequence[str]) -> int:
    config, arguments = parse(argv)
    run_folder = Path(config.output_dir)
    runtime.prepare_environment()
    worker = runtime.start(config.runtime.device_target, config.runtime.mode, config.seed, config.runtime.distribute)
    with contextlib.ExitStack() as held:
        if worker.rank == 0 and arguments.resume:
            held.enter_context(hold(run_folder))
        return train(config, arguments, run_folder, worker, held)


def train(
    config: Config, arguments: Namespace, run_folder: Path, worker: runtime.Worker, held: contextlib.ExitStack
) -> int:
    """Builds the experiment, trains it, and returns the exit code; `held` takes the lock of a new run's folder."""
    from src import experiment as experiments
    from src.checkpoints import load_network, newest, read, read_resumable
    from src.training import callbacks
    from src.training.heartbeat import Heartbeat
    from src.training.trainer import Stopped, Trainer

    heartbeat = Heartbeat(worker.rank)
    heartbeat.note("starting")
    leader = worker.rank == 0
    # Read before anything is built, so that a bad file is known at once.
    checkpoint = initial = None
    if arguments.from_epoch is not None:
        checkpoint = read_resumable(run_folder / EPOCH.format(arguments.from_epoch))
    elif arguments.resume:
        checkpoint, problems = newest(run_folder)
        if problems and leader:
            print(f"warning: {'; '.join(problems)}; going on from {checkpoint.path}", file=sys.stderr)
    elif config.init_checkpoint:
        initial = read(config.init_checkpoint)
    if checkpoint is not None:
        config = experiments.shared_among(config, checkpoint, worker.size)
    experiment = experiments.build(config, worker)
    if initial is not None:
        load_network(experiment.network, initial)
    if checkpoint is not None:
        experiments.require_same_classes(checkpoint.preprocessing, experiment.data, checkpoint.path)
    if arguments.check_data:
        experiment.data.check()
    elif checkpoint is None:
        experiment.data.check(("test",))  # a broken picture there would end the run after its first epoch
    went_back = checkpoint is not None and Path(checkpoint.path) != run_folder / LAST
    trainer = Trainer(
        experiment,
        [
            callbacks.StopOnSignal(),
            *([callbacks.ProgressBar()] if leader else []),
            callbacks.Speed(),
            callbacks.FlipRatio(),
            callbacks.ReplacedImages(),
            callbacks.Evaluate(),
            callbacks.History(doors.say if leader else lambda line: None),
            *([callbacks.SaveCheckpoints(run_folder, went_back), callbacks.WriteMetrics(run_folder)] if leader else []),
        ],
        heartbeat,
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if leader:
        make_folder(run_folder)
        if checkpoint is None:
            held.enter_context(hold(run_folder))
            require_no_run(run_folder)  # another may have begun since the arguments were read
        remove_partial_files(run_folder)
        write_text(run_folder / CONFIG, config.to_yaml())
        versions = "".join(f"{name}: {value}\n" for name, value in runtime.versions().items())
        write_text(run_folder / VERSIONS, versions)
        print(opening_words(experiment, run_folder))
        if checkpoint is not None:
            print(f"going on after epoch {trainer.progress.epoch}, step {trainer.progress.step}")
    try:
        trainer.fit()
    except Stopped as stopped:
        if leader:
            program = (
                "python train.py" if worker.size == 1 else f"scripts/run_distribute_train.sh --workers {worker.size}"
            )
            doors.say(f"stopped and saved; go on with: {program} --resume {shlex.quote(str(run_folder))}")
        trainer.workers.wait()  # msrun kills the others as soon as one has ended
        return 128 + stopped.signal
    trainer.workers.wait()
    return 0


def opening_words(experiment: "Experiment", run_folder: Path) -> str:
    """What is trained, and what of it depends on the number of workers."""
    from src.optimizers import base_learning_rate

    config, workers = experiment.config, experiment.worker.size
    batch = config.data.batch_size * workers
    rate, meant_for = f"{base_learning_rate(config, workers):g}", config.optimizer.lr_for_batch
    return (
        f"{config.network.name} on {config.data.name}, {config.train.epochs} epochs of {experiment.steps_per_epoch} "
        f"steps, {workers} worker(s) on {config.runtime.device_target}, seed {config.seed}, in {run_folder}\n"
        f"a step takes {workers} x {config.data.batch_size} = {batch} images, an epoch "
        f"{experiment.steps_per_epoch * batch} of {experiment.data.train_images()}, none twice; learning rate {rate}"
        + (f" ({config.optimizer.lr:g} for {meant_for} images)" if meant_for else "")
    )


def parse(argv: Sequence[str]) -> tuple[Config, Namespace]:
    """The config, in which `output_dir` is the run's folder, and the arguments beside it."""
    parser = doors.Parser(prog="train.py", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="a YAML file that names what differs from default_config.yaml")
    parser.add_argument("--resume", metavar="DIR", help="go on in this run folder, with its config")
    parser.add_argument(
        "--from_epoch", metavar="N", type=int, help="with --resume: go back to the end of epoch N, if it was kept"
    )
    parser.add_argument("--distribute", action="store_true", help="this is one of several workers that msrun started")
    parser.add_argument(
        "--check_data", action="store_true", help="decode all pictures first, not those for testing alone"
    )
    doors.add_config_flags(parser, SHORTHANDS)
    arguments, overrides = doors.parse_config_flags(parser, argv)
    if arguments.distribute:
        overrides["runtime.distribute"] = True
    if arguments.resume:
        return resumed(Path(arguments.resume), arguments, overrides), arguments
    if arguments.from_epoch is not None:
        raise UserError(f"--from_epoch is {arguments.from_epoch}, but goes with --resume DIR alone")
    config = load_config(arguments.config, overrides)
    config.require_device_can()
    require_no_run(Path(config.output_dir))
    require_writable(Path(config.output_dir))
    return config, arguments


def require_no_run(folder: Path) -> None:
    if holds_run(folder):
        raise UserError(f"{folder} already holds a run: go on with --resume {folder}, or choose another --output_dir")


def resumed(folder: Path, arguments: Namespace, overrides: dict[str, Any]) -> Config:
    """The config of a run that goes on: its own, but for the keys that may change and the folder, which may have
    moved."""
    if not holds_run(folder) or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run to resume: {LAST} and {CONFIG} are expected in it")
    changed = sorted(set(overrides) - RESUMABLE)
    if arguments.config or changed:
        what = "--config" if arguments.config else ", ".join(changed)
        raise UserError(f"{what} cannot change when a run is resumed; only {', '.join(sorted(RESUMABLE))} can")
    kept = epoch_checkpoints(folder)
    if arguments.from_epoch is not None and arguments.from_epoch not in kept:
        listed = ", ".join(map(str, kept)) or "none"
        raise UserError(
            f"--from_epoch is {arguments.from_epoch}, but {folder} keeps the checkpoints of epochs: {listed}"
        )
    require_writable(folder)
    one_worker = {} if arguments.distribute else {"runtime.distribute": False}
    config = load_config(folder / CONFIG, {**one_worker, **overrides, "output_dir": str(folder)})
    config.require_device_can()
    return config


if __name__ == "__main__":
    runtime.deliver_interrupts()
    sys.exit(doors.run(main))
