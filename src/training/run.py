"""A training run from a Config to its folder: what train.py does once its arguments are known."""

import contextlib
import hashlib
import shlex
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from mindspore import nn

from .. import checkpoints, runtime
from .. import experiment as experiments
from ..binary import chosen_path
from ..checkpoints import Checkpoint
from ..config import Config
from ..data import Dataset
from ..errors import UserError
from ..experiment import Experiment
from ..files import make_folder, write_text
from ..heartbeat import Heartbeat
from ..optimizers import base_learning_rate
from ..run_dir import (
    CONFIG,
    CONTINUED,
    DATA,
    EPOCH,
    LAST,
    LOG,
    START_WEIGHTS,
    VERSIONS,
    link_latest,
    lock_run_dir,
    make_run_dir,
    read_versions,
    remove_partial_files,
)
from ..runtime import Worker
from . import callbacks
from .arguments import require_no_run
from .log import RunLog, echo
from .trainer import Callback, Stopped, Trainer


def train(config: Config, arguments: Namespace, worker: Worker) -> int:
    """Build the experiment, train it, and return the exit code: 0, or 128 + n after signal n.

    Raises:
        UserError: bad input, a run that diverged, or a file that cannot be written.
    """
    run_dir = Path(config.output_dir or "")
    heartbeat = Heartbeat(worker.rank)
    heartbeat.note("starting")
    with contextlib.ExitStack() as held, RunLog() as log:
        held.callback(heartbeat.end)  # however this worker ends
        if worker.rank == 0 and arguments.resume:
            held.enter_context(lock_run_dir(run_dir))
        checkpoint = find_checkpoint(run_dir, arguments, worker)
        experiment = build_experiment(config, checkpoint, worker)
        if checkpoint is not None and worker.rank == 0:
            require_same_images(experiment.data, run_dir)
        check_images(experiment, arguments, checkpoint)
        if worker.rank == 0:  # only worker 0 writes in the folder, so no other worker needs to know its name
            if checkpoint is None:
                run_dir = open_run_dir(config, held)
                experiment = replace(experiment, config=config.model_copy(update={"output_dir": str(run_dir)}))
            log.open(run_dir / LOG)
        trainer = Trainer(experiment, create_callbacks(run_dir, checkpoint, worker), heartbeat)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        if worker.rank == 0:
            describe_run(trainer, run_dir, checkpoint)
        return fit(trainer, run_dir)


def find_checkpoint(run_dir: Path, arguments: Namespace, worker: Worker) -> Checkpoint | None:
    """The checkpoint with which a run is resumed; None for a new run."""
    if arguments.from_epoch is not None:
        return checkpoints.read_resumable(run_dir / EPOCH.format(arguments.from_epoch))
    if not arguments.resume:
        return None
    checkpoint, problems = checkpoints.newest(run_dir)
    if problems and worker.rank == 0:
        echo(f"warning: {'; '.join(problems)}; continuing from {checkpoint.path}", sys.stderr)
    return checkpoint


def build_experiment(config: Config, checkpoint: Checkpoint | None, worker: Worker) -> Experiment:
    """The experiment, with the weights of `init_checkpoint` in a new run. Files are read before anything is built."""
    if checkpoint is not None:
        experiment = experiments.build(experiments.keep_global_batch(config, checkpoint, worker.size), worker)
        data = experiment.data
        experiments.require_same_classes(
            checkpoint.preprocessing, data.preprocessing, f"the data set in {data.root}", checkpoint.path
        )
        if worker.rank == 0:
            warn_of_other_draws(config, checkpoint)
        return experiment
    initial = checkpoints.read(config.init_checkpoint) if config.init_checkpoint else None
    experiment = experiments.build(config, worker)
    if initial is not None:
        for note in checkpoints.load_network(experiment.network, initial, new_classes=True):
            if worker.rank == 0:
                echo(f"note: {note}", sys.stderr)
        if worker.rank == 0:
            warn_of_other_options(config, initial)
    return experiment


def warn_of_other_draws(config: Config, checkpoint: Checkpoint) -> None:
    """Warn on stderr that a run of format 0 drew its images differently; CIFAR's flips depended on the crops."""
    if checkpoint.format != 0:
        return
    augmented = config.data.augment and config.data.name != "digits"
    echo(
        f"warning: {checkpoint.path} was written by an earlier version; from now on the order of images"
        + (", their crops and flips are" if augmented else " is")
        + " drawn differently than at the start of this run"
        + (", so the run no longer has the augmentation that it began with" if augmented else "")
        + ("; the rest of this epoch may repeat images" if checkpoint.state["step"] else ""),
        sys.stderr,
    )


def warn_of_other_options(config: Config, initial: Checkpoint) -> None:
    """Tell on stderr if the network has other options than the one whose weights training starts from."""
    if initial.config is None or initial.config["network"]["name"] != config.network.name:
        return
    theirs, own = initial.config["network"]["options"], config.network.options
    if theirs != own:
        echo(
            f"warning: the network of {initial.path} has network.options {theirs}, but this run's has {own}: the same "
            "weights may give other results",
            sys.stderr,
        )


def require_same_images(data: Dataset, run_dir: Path) -> None:
    """UserError unless the images are those that the run began with, in the same order, as far as that is known."""
    recorded = next((block[DATA] for block in read_versions(run_dir) if DATA in block), None)
    found = data.checksum
    if recorded is None or found is None or found == recorded:
        return
    where = f" in {data.root}" if data.root else ""
    raise UserError(
        f"the images of {data.name}{where} are not those that {run_dir} was begun with, or are in another order"
        + (", so held-out images would be trained on" if len(data.held_out) else "")
        + (": give --data_path the folder of those" if data.root else ": install the package that they come with again")
    )


def check_images(experiment: Experiment, arguments: Namespace, checkpoint: Checkpoint | None) -> None:
    """Decode all images with --check_data, else the test images of a new run: one that is damaged would end the run
    after its first epoch."""
    if arguments.check_data:
        experiment.data.check()
    elif checkpoint is None:
        experiment.data.check(("test",))


def create_callbacks(run_dir: Path, checkpoint: Checkpoint | None, worker: Worker) -> list[Callback]:
    """All workers measure; worker 0 prints and writes."""
    measuring = [
        callbacks.StopOnSignal(),
        callbacks.Throughput(),
        callbacks.FlipRatio(),
        callbacks.UndecodableImages(),
        callbacks.Evaluate(),
    ]
    if worker.rank:
        return measuring
    went_back = checkpoint is not None and Path(checkpoint.path) != run_dir / LAST
    return [
        callbacks.ProgressBar(),  # first: it is closed before the evaluation begins
        *measuring,
        callbacks.EpochLog(),
        callbacks.SaveCheckpoints(run_dir, went_back),
        callbacks.WriteMetrics(run_dir),
    ]


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


def describe_run(trainer: Trainer, run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Write config and versions into the run folder, and print what is trained."""
    remove_partial_files(run_dir)
    write_text(run_dir / CONFIG, trainer.experiment.config.to_yaml())
    write_versions(trainer, run_dir, checkpoint)
    echo(opening_words(trainer.experiment, run_dir))
    echo(f"binary layers are computed by {chosen_path()}")
    if checkpoint is not None:
        echo(f"continuing after epoch {trainer.progress.epoch}, step {trainer.progress.step}")


def write_versions(trainer: Trainer, run_dir: Path, checkpoint: Checkpoint | None) -> None:
    """Write what made the run, and the checksum of its start; a resumed run adds what differs from then on."""
    path = run_dir / VERSIONS
    made_by = {DATA: trainer.experiment.data.checksum, **runtime.versions(), "binary layers": chosen_path()}
    text = "".join(f"{name}: {value}\n" for name, value in made_by.items() if value)
    if checkpoint is None:
        write_text(path, f"{START_WEIGHTS}: {weights_digest(trainer.experiment.network)}\n{text}")
        return
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not before.endswith(text):
        progress = trainer.progress
        write_text(path, f"{before}\n{CONTINUED} epoch {progress.epoch}, step {progress.step}:\n{text}")


def weights_digest(network: nn.Cell) -> str:
    """The first 16 digits of the SHA-256 of all trainable parameters, noise modules left out: methods that start from
    the same weights have the same."""
    digest = hashlib.sha256()
    for parameter in sorted(network.trainable_params(), key=lambda parameter: parameter.name):
        if ".noise." not in parameter.name:
            digest.update(parameter.name.encode())
            digest.update(parameter.asnumpy().tobytes())
    return digest.hexdigest()[:16]


def opening_words(experiment: Experiment, run_dir: Path) -> str:
    """What is trained, what of it depends on the number of workers, and which images choose the best checkpoint."""
    config, workers = experiment.config, experiment.worker.size
    batch = config.data.batch_size * workers
    rate, meant_for = f"{base_learning_rate(config, workers):g}", config.optimizer.lr_for_batch
    chosen = (
        f"{config.data.holdout} held-out training images"
        if config.data.holdout
        else "the test images, as in the paper (data.holdout N takes N training images instead)"
    )
    return (
        f"{config.network.name} on {config.data.name}, {config.train.epochs} epochs of {experiment.steps_per_epoch} "
        f"steps, {workers} worker(s) on {config.runtime.device_target}, seed {config.seed}, in {run_dir}\n"
        f"a step takes {workers} x {config.data.batch_size} = {batch} images, an epoch "
        f"{experiment.steps_per_epoch * batch} of {experiment.data.train_images()}, none twice; learning rate {rate}"
        + (f" ({config.optimizer.lr:g} for {meant_for} images)" if meant_for else "")
        + f"\nbest.ckpt is chosen on {chosen}"
    )


def fit(trainer: Trainer, run_dir: Path) -> int:
    """Train to the end or to a signal; the exit code."""
    worker, code = trainer.experiment.worker, 0
    try:
        trainer.fit()
    except Stopped as stopped:
        code = 128 + stopped.signal
        launcher = "python train.py" if worker.size == 1 else f"scripts/run_distribute_train.sh --workers {worker.size}"
        if worker.rank == 0:
            echo(f"stopped and saved; continue with: {launcher} --resume {shlex.quote(str(run_dir))}")
    trainer.collectives.wait()  # msrun kills the others as soon as one has ended
    return code
