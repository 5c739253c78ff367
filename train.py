"""Trains a network. Every key of default_config.yaml is a flag: --optimizer.lr 0.05.

    python train.py --config configs/digits.yaml                 embedded data, minutes on a CPU
    python train.py --data_path DIR                              the paper's CIFAR-10 ResNet-20, 400 epochs
    python train.py --resume runs/cifar10                        goes on from the run's last checkpoint

Exit code: 0 trained to the end; 2 bad input or a diverged run; 128 + n stopped by signal n, saved (143: SIGTERM, 130:
Ctrl-C).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src import doors, runtime
from src.config import RESUMABLE, Config, load_config
from src.errors import UserError
from src.files import make_folder, write_text
from src.run_folder import CONFIG, LAST, VERSIONS

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
}


def main(argv: Sequence[str]) -> int:
    config, run_folder, resume, check_data = parse(argv)
    runtime.prepare_environment()
    worker = runtime.start(config.runtime.device_target, config.runtime.mode, config.seed, config.runtime.distribute)

    from src import experiment as experiments
    from src.checkpoints import load_network, read
    from src.training import callbacks
    from src.training.trainer import Stopped, Trainer

    # Read before anything is built, so that a bad file is known at once.
    checkpoint = read(run_folder / LAST) if resume else None
    initial = read(config.init_checkpoint) if config.init_checkpoint and not resume else None
    experiment = experiments.build(config, worker)
    if initial is not None:
        load_network(experiment.network, initial)
    leader = worker.rank == 0
    if checkpoint is not None:
        experiments.require_same_classes(checkpoint.preprocessing, experiment.data, checkpoint.path)
    if check_data:
        experiment.data.check()
    elif checkpoint is None:
        experiment.data.check(("test",))  # a broken picture there would end the run after its first epoch
    trainer = Trainer(
        experiment,
        [
            callbacks.StopOnSignal(),
            *([callbacks.ProgressBar()] if leader else []),
            callbacks.Speed(),
            callbacks.FlipRatio(),
            callbacks.ReplacedImages(),
            callbacks.Evaluate(),
            callbacks.History(print if leader else lambda line: None),
            *([callbacks.SaveCheckpoints(run_folder), callbacks.WriteMetrics(run_folder)] if leader else []),
        ],
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if leader:
        make_folder(run_folder)
        write_text(run_folder / CONFIG, config.to_yaml())
        versions = "".join(f"{name}: {value}\n" for name, value in runtime.versions().items())
        write_text(run_folder / VERSIONS, versions)
        print(
            f"{config.network.name} on {config.data.name}, {config.train.epochs} epochs of "
            f"{experiment.steps_per_epoch} steps, {worker.size} worker(s) on {config.runtime.device_target}, seed "
            f"{config.seed}, in {run_folder}"
        )
    try:
        trainer.fit()
    except Stopped as stopped:
        if leader:
            program = (
                "python train.py" if worker.size == 1 else (f"scripts/run_distribute_train.sh --workers {worker.size}")
            )
            print(f"stopped and saved; go on with: {program} --resume {run_folder}", flush=True)
        trainer.workers.wait()  # msrun kills the others as soon as one has ended
        return 128 + stopped.signal
    return 0


def parse(argv: Sequence[str]) -> tuple[Config, Path, bool, bool]:
    """The config, the run's folder, whether to resume in it, and whether to look at every picture first."""
    parser = doors.Parser(prog="train.py", description=__doc__)
    parser.add_argument("--config", metavar="FILE", help="a YAML file that names what differs from default_config.yaml")
    parser.add_argument("--resume", metavar="DIR", help="go on in this run folder, with its config")
    parser.add_argument("--distribute", action="store_true", help="this is one of several workers that msrun started")
    parser.add_argument(
        "--check_data", action="store_true", help="decode all pictures first, not those for testing alone"
    )
    doors.add_config_flags(parser, SHORTHANDS)
    arguments, overrides = doors.parse_config_flags(parser, argv)
    if arguments.distribute:
        overrides["runtime.distribute"] = True
    if arguments.resume:
        folder = Path(arguments.resume)
        return resumed(folder, arguments.config, overrides), folder, True, arguments.check_data
    config = load_config(arguments.config, overrides)
    config.require_sinking()
    folder = Path(config.output_dir)
    if (folder / LAST).exists():
        raise UserError(f"{folder} already holds a run: go on with --resume {folder}, or choose another --output_dir")
    return config, folder, False, arguments.check_data


def resumed(folder: Path, config_file: str | None, overrides: dict[str, Any]) -> Config:
    """The config of a run that goes on: its own, but for the keys that may change."""
    if not (folder / LAST).is_file() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no run to resume: {LAST} and {CONFIG} are expected in it")
    changed = sorted(set(overrides) - RESUMABLE)
    if config_file or changed:
        what = "--config" if config_file else ", ".join(changed)
        raise UserError(f"{what} cannot change when a run is resumed; only {', '.join(sorted(RESUMABLE))} can")
    config = load_config(folder / CONFIG, overrides)
    config.require_sinking()
    return config


if __name__ == "__main__":
    runtime.deliver_interrupts()
    sys.exit(doors.run(main))
