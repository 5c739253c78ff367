"""A training run from a Config to its folder: what train.py does once its arguments are known."""

import contextlib
import shlex
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from .. import checkpoints, cli, runtime
from .. import experiment as experiments
from ..config import Config
from ..files import make_folder, write_text
from ..heartbeat import ENDING, SAVING_SECONDS, Heartbeat
from ..optimizers import base_learning_rate
from ..run_dir import (
    CONFIG,
    EPOCH,
    LAST,
    VERSIONS,
    link_latest,
    lock_run_dir,
    make_run_dir,
    remove_partial_files,
)
from . import callbacks
from .arguments import require_no_run
from .trainer import Stopped, Trainer


def train(config: Config, arguments: Namespace, worker: runtime.Worker, held: contextlib.ExitStack) -> int:
    """Build the experiment, train it, and return the exit code; `held` takes the lock of a new run's folder."""
    heartbeat = Heartbeat(worker.rank)
    heartbeat.note("starting")
    held.callback(heartbeat.note, ENDING, seconds=SAVING_SECONDS)  # however this worker ends
    leader = worker.rank == 0
    # Read before anything is built, so that a bad file is known at once.
    checkpoint = initial = None
    run_folder = Path(config.output_dir or "")
    if arguments.from_epoch is not None:
        checkpoint = checkpoints.read_resumable(run_folder / EPOCH.format(arguments.from_epoch))
    elif arguments.resume:
        checkpoint, problems = checkpoints.newest(run_folder)
        if problems and leader:
            print(f"warning: {'; '.join(problems)}; going on from {checkpoint.path}", file=sys.stderr)
    elif config.init_checkpoint:
        initial = checkpoints.read(config.init_checkpoint)
    if checkpoint is not None:
        config = experiments.keep_global_batch(config, checkpoint, worker.size)
    experiment = experiments.build(config, worker)
    if initial is not None:
        checkpoints.load_network(experiment.network, initial)
    if checkpoint is not None:
        experiments.require_same_classes(checkpoint.preprocessing, experiment.data, checkpoint.path)
    if arguments.check_data:
        experiment.data.check()
    elif checkpoint is None:
        experiment.data.check(("test",))  # a broken picture there would end the run after its first epoch
    if leader and checkpoint is None:
        # Only worker 0 writes in the folder, so no other worker needs to know its name.
        run_folder = open_run_dir(config, held)
        config = config.model_copy(update={"output_dir": str(run_folder)})
        experiment = replace(experiment, config=config)
    went_back = checkpoint is not None and Path(checkpoint.path) != run_folder / LAST
    trainer = Trainer(
        experiment,
        [
            callbacks.StopOnSignal(),
            *([callbacks.ProgressBar()] if leader else []),
            callbacks.Throughput(),
            callbacks.FlipRatio(),
            callbacks.UndecodableImages(),
            callbacks.Evaluate(),
            callbacks.EpochLog(cli.echo if leader else lambda line: None),
            *([callbacks.SaveCheckpoints(run_folder, went_back), callbacks.WriteMetrics(run_folder)] if leader else []),
        ],
        heartbeat,
    )
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if leader:
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
            cli.echo(f"stopped and saved; go on with: {program} --resume {shlex.quote(str(run_folder))}")
        trainer.collectives.wait()  # msrun kills the others as soon as one has ended
        return 128 + stopped.signal
    trainer.collectives.wait()
    return 0


def open_run_dir(config: Config, held: contextlib.ExitStack) -> Path:
    """The folder of a new run: `output_dir`, or a new one if that is None. It is made, and locked until `held` ends."""
    if config.output_dir is None:
        folder = make_run_dir(config.network.name, config.data.name)
    else:
        folder = Path(config.output_dir)
        make_folder(folder)
    held.enter_context(lock_run_dir(folder))
    require_no_run(folder)  # another may have begun since the arguments were read
    link_latest(folder)
    return folder


def opening_words(experiment: experiments.Experiment, run_folder: Path) -> str:
    """What is trained, and what of it depends on the number of workers."""
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
