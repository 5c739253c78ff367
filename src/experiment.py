"""Build data, network, optimizer and schedules of a run from its config."""

import sys
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from mindcv.loss import create_loss
from mindspore import amp, nn

from . import cli
from .binary import Binarization, schedules
from .binary.validation import lookup, require_known_options
from .checkpoints import Checkpoint, load_network
from .config import MAX_BATCH, Config
from .data import Dataset, open_dataset
from .errors import UserError
from .models import NETWORKS, create_model
from .models.registry import NETWORK_ARGUMENTS, sizes_taken, takes_size
from .optimizers import create_optimizer, learning_rates
from .preprocessing import Preprocessing, find_preprocessing
from .runtime import Worker

MAX_STEPS = 10_000_000


@dataclass(frozen=True)
class Experiment:
    """All that a trainer needs. `tables` holds the values that change over training, one per step: the learning rate,
    and those of n, alpha, T and o that this network has."""

    config: Config
    worker: Worker
    data: Dataset
    network: nn.Cell
    loss: nn.Cell
    optimizer: nn.Optimizer
    scaler: amp.LossScaler | None
    steps_per_epoch: int
    tables: dict[str, np.ndarray]


def keep_global_batch(config: Config, checkpoint: Checkpoint, workers: int) -> Config:
    """The config of a run resumed with `workers` workers: `data.batch_size` is set to keep the checkpoint's global
    batch.

    The batch size in the run folder's config is not used: a run resumed with another number of workers may have been
    killed before it saved.

    Raises:
        UserError: the workers cannot share that batch, or the checkpoint is inside an epoch, which another number of
            workers would divide differently.
    """
    before, step, epoch = (checkpoint.state.get(key, workers) for key in ("workers", "step", "epoch"))
    if step and before != workers:
        kept = f", or add --from_epoch {epoch} if its checkpoint was kept" if epoch else ""
        raise UserError(
            f"{checkpoint.path} is at step {step} of epoch {epoch + 1} of a run with {before} worker(s), and "
            f"{workers} can continue only from the end of an epoch: resume with {before}{kept}"
        )
    batch = checkpoint.config["data"]["batch_size"] * before
    if batch % workers or batch // workers > MAX_BATCH:
        counts = range(1, 2 * max(before, workers) + 1)
        fitting = ", ".join(str(n) for n in counts if batch % n == 0 and batch // n <= MAX_BATCH)
        raise UserError(
            f"{checkpoint.path} is from a run with {batch} images per step, which {workers} worker(s) cannot share "
            f"equally: resume with one of these numbers: {fitting}"
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"batch_size": batch // workers})})


def binarization_of(config: Config) -> Binarization:
    """The options of binarization in the config.

    Raises:
        UserError: an unknown name or option of an estimator, also if network.binary is false.
    """
    network = config.network.model_dump(exclude={"name", "options", "binary"})
    for key in ("estimator_options", "weight_estimator_options"):
        if "n" in network[key]:  # in training n is a schedule
            raise UserError("n is not an option of an estimator here: set schedules.n.setting, schedules.n.n_p or .n_s")
    try:
        binarization = Binarization(
            **network,
            noise_adaptation=config.has_noise,
            noise_options=config.noise.model_dump(exclude={"enabled", "in_forward"}),
            noise_in_forward=config.noise.in_forward,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return binarization if config.network.binary else Binarization.full_precision(binarization.weight_init)


def check_network(config: Config) -> None:
    """Check the names in the config, and that the network takes images of the config's size, without building it.

    Raises:
        UserError: a name or option is unknown, or the network does not take images of this size.
    """
    name = config.network.name
    try:
        network = lookup("network", NETWORKS, name)
        require_known_options("network", name, network.make, config.network.options, NETWORK_ARGUMENTS)
        binarization_of(config)
        schedules_of(config)
    except ValueError as error:
        raise UserError(str(error)) from error
    size = find_preprocessing(config.data.name, config.data.image_size).size
    if not takes_size(name, size):
        raise UserError(
            f"{name} takes {sizes_taken(name)}, but images of {config.data.name} are {size}x{size}: choose another "
            "network.name, data.name or data.image_size"
        )


def build_network(config: Config, num_classes: int) -> nn.Cell:
    """Build the network of the config.

    Raises:
        UserError: as `check_network`, or an option of the network has a wrong value.
    """
    check_network(config)
    try:
        return create_model(
            config.network.name,
            num_classes=num_classes,
            binarization=binarization_of(config),
            options=config.network.options,
        )
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def preprocessing_of(config: Config, checkpoint: Checkpoint) -> Preprocessing:
    """The preprocessing in the checkpoint if it has one, else that of the config's data set; with `data.image_size` if
    that is set."""
    size = config.data.image_size
    if checkpoint.preprocessing is None:
        return find_preprocessing(config.data.name, size)
    return checkpoint.preprocessing.with_size(size) if size else checkpoint.preprocessing


def require_same_classes(trained: Preprocessing | None, found: Preprocessing, data: str, checkpoint: str) -> None:
    """UserError unless the data have the classes that a network was trained on, in the same order, and the same
    normalisation.

    Args:
        trained: preprocessing in the network's training; None: unknown, as for files from other programs.
        found: preprocessing of the data; without classes if they are unknown.
        data: name of the data in the error.
        checkpoint: path of the network's file.
    """
    if trained is None:
        return
    if trained.classes and found.classes and trained.classes != found.classes:
        pairs = zip_longest(trained.classes, found.classes, fillvalue="none")
        label, (wanted, other) = next((label, pair) for label, pair in enumerate(pairs) if pair[0] != pair[1])
        raise UserError(
            f"{checkpoint} was trained on {len(trained.classes)} classes, and {data} has {len(found.classes)}; the "
            f"classes differ: class {label} is {wanted} in the checkpoint and {other} in the data; to train on other "
            "classes, start from its weights with train.py --init_checkpoint"
        )
    for name in ("mean", "std"):
        if getattr(trained, name) != getattr(found, name):
            raise UserError(
                f"{checkpoint} was trained on images with the {name} {getattr(trained, name)}, but {data} has "
                f"{getattr(found, name)}: use the data set that it was trained on"
            )


def trained_network(config: Config, checkpoint: Checkpoint, num_classes: int | None = None) -> nn.Cell:
    """Build the network of the config with a checkpoint's weights. `num_classes` None: those of its data set.

    Raises:
        UserError: the checkpoint does not fit, a name is unknown, or the number of classes is unknown.
    """
    num_classes = num_classes or len(preprocessing_of(config, checkpoint).classes)
    if not num_classes:
        raise UserError(f"{checkpoint.path} does not hold its number of classes: give --num_classes")
    network = build_network(config, num_classes)
    for note in load_network(network, checkpoint):
        cli.echo(f"note: {note}", sys.stderr)
    return network


def build_data(
    config: Config,
    worker: Worker = Worker(),
    splits: tuple[str, ...] = ("train", "test"),
) -> Dataset:
    """Open the data set of the config, with this worker's part of it for training."""
    return open_dataset(
        config.data.name,
        path=config.data.path,
        batch_size=config.data.batch_size,
        num_parallel_workers=config.data.num_parallel_workers,
        augment=config.data.augment,
        seed=config.seed,
        rank=worker.rank,
        size=worker.size,
        download=config.data.download,
        splits=splits,
        image_size=config.data.image_size,
        holdout=config.data.holdout,
    )


def synchronize_batch_norm(network: nn.Cell) -> None:
    """Replace every batch norm by nn.SyncBatchNorm, which MindSpore supports only on Ascend. Parameters keep their
    names."""
    for name, cell in network.name_cells().items():
        if not isinstance(cell, (nn.BatchNorm1d, nn.BatchNorm2d)):
            synchronize_batch_norm(cell)
            continue
        synchronized = nn.SyncBatchNorm(cell.num_features, cell.eps, 1.0 - cell.momentum)  # it keeps 1 - momentum
        for parameter in ("gamma", "beta", "moving_mean", "moving_variance"):
            setattr(synchronized, parameter, getattr(cell, parameter))
        network._cells[name] = synchronized  # as MindSpore's own mixed precision does; setattr would rename parameters
    if isinstance(network, nn.SequentialCell):
        network.cell_list = list(network.cells())


def schedules_of(config: Config) -> dict[str, schedules.Schedule]:
    """The schedules of n and alpha in the config; ValueError for an unknown one. Other scheduled values have their
    own."""
    n, alpha = config.schedules.n, config.schedules.alpha
    return {
        "n": schedules.number_of_terms(n.setting, n.n_p, n.n_s),
        "alpha": lookup("schedule of alpha", schedules.ALPHA_SCHEDULES, alpha.name)(alpha.start),
    }


def build_tables(config: Config, steps: int) -> dict[str, np.ndarray]:
    """n and alpha at every training step, float32 (steps,)."""
    return {name: schedules.tabulate(schedule, steps) for name, schedule in schedules_of(config).items()}


def build(config: Config, worker: Worker) -> Experiment:
    """Build a training run. Wrong names and missing files are reported before anything compiles."""
    check_network(config)  # before looking for data
    data = build_data(config, worker)
    network = build_network(config, data.num_classes)
    if config.runtime.sync_batch_norm and worker.size > 1:
        synchronize_batch_norm(network)
    steps_per_epoch = config.train.steps(data.train_steps())
    steps = config.train.epochs * steps_per_epoch
    if steps > MAX_STEPS:  # the tables have a row for each
        raise UserError(
            f"train.epochs is {config.train.epochs}, which is {steps:,} steps, but a run has at most {MAX_STEPS:,}: "
            "lower train.epochs or train.steps_per_epoch"
        )
    optimizer = create_optimizer(config, network, steps_per_epoch, worker.size)
    followed = schedules.attach(network, build_tables(config, steps), optimizer.global_step, steps)
    amp.auto_mixed_precision(network, config.amp.level)
    scaler = {"none": lambda: None, "dynamic": lambda: amp.DynamicLossScaler(2**15, 2, 1000)}.get(
        config.amp.loss_scale, lambda: amp.StaticLossScaler(config.amp.loss_scale)
    )()
    loss = create_loss("CE", label_smoothing=config.loss.label_smoothing)
    tables = {"lr": np.array(learning_rates(config, steps_per_epoch, worker.size)), **followed}
    return Experiment(config, worker, data, network, loss, optimizer, scaler, steps_per_epoch, tables)
