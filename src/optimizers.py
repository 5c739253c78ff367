"""The optimizer and its parameter groups."""

from mindcv.scheduler import create_scheduler
from mindspore import Parameter, nn

from .config import Config
from .errors import UserError


def base_learning_rate(config: Config, workers: int) -> float:
    """`optimizer.lr`; if `optimizer.lr_for_batch` is set, times the global batch divided by it.

    Source: the linear scaling rule of Goyal et al., "Accurate, Large Minibatch SGD", 2017.
    """
    meant_for = config.optimizer.lr_for_batch
    return config.optimizer.lr * (config.data.batch_size * workers / meant_for if meant_for else 1)


def learning_rates(config: Config, steps_per_epoch: int, workers: int = 1) -> list[float]:
    """The learning rate of every step, from mindcv's scheduler. All curves end at `scheduler.min_lr`.

    Raises:
        UserError: `scheduler.min_lr` is greater than the learning rate scaled for this batch, so that it would rise.
    """
    epochs, warmup = config.train.epochs, config.scheduler.warmup_epochs
    base, minimum = base_learning_rate(config, workers), config.scheduler.min_lr
    if minimum > base:
        raise UserError(
            f"scheduler.min_lr is {minimum}, but must be at most the learning rate, which is {base:g}: optimizer.lr, "
            f"{config.optimizer.lr}, is for {config.optimizer.lr_for_batch} images a step (optimizer.lr_for_batch), "
            f"and this run takes {config.data.batch_size * workers}"
        )
    rates = create_scheduler(
        steps_per_epoch,
        scheduler=config.scheduler.name,
        lr=base,
        min_lr=minimum,
        warmup_epochs=warmup,
        decay_epochs=epochs - warmup,
        decay_rate=1.0,
        num_epochs=epochs,
    )
    if config.scheduler.name == "polynomial_decay":  # mindcv lets this one end at 0
        decay = slice(warmup * steps_per_epoch, None)
        rates[decay] = [minimum + (1 - minimum / base) * rate for rate in rates[decay]]
    return [float(rate) for rate in rates]


def parameter_groups(network: nn.Cell, weight_decay: float, decay_all: bool) -> list[dict]:
    """Put every trainable parameter into one group: weights, noise modules, the rest (batch norm, biases, slopes).

    Weight decay applies to weights and noise modules, and with `decay_all` to the rest too.
    """
    groups: dict[str, list[Parameter]] = {"weights": [], "noise": [], "rest": []}
    for parameter in network.trainable_params():
        kind = "noise" if ".noise." in parameter.name else "weights" if parameter.ndim > 1 else "rest"
        groups[kind].append(parameter)
    decays = {"weights": weight_decay, "noise": weight_decay, "rest": weight_decay if decay_all else 0.0}
    return [{"params": members, "weight_decay": decays[kind]} for kind, members in groups.items() if members]


def create_optimizer(config: Config, network: nn.Cell, steps_per_epoch: int, workers: int = 1) -> nn.Optimizer:
    """Create Momentum (v = momentum v + g, w -= lr v) or Adam, with a learning rate for each step."""
    groups = parameter_groups(network, config.optimizer.weight_decay, config.optimizer.decay_all)
    rates = learning_rates(config, steps_per_epoch, workers)
    if config.optimizer.name == "adam":
        return nn.Adam(groups, rates, beta1=config.optimizer.momentum)
    return nn.Momentum(groups, rates, config.optimizer.momentum)
