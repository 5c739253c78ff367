"""Estimates of how long runs will take: from the speed of the study's earlier runs, else from speeds measured once."""

from dataclasses import dataclass

from ..config import Config
from .runs import FINISHED, Run

# Trained images per second on two CPU cores: full precision, binary, binary with noise modules. ResNet-20's, and the
# last ones of the others, are those of benchmarks/README.md; the rest is in proportion to ResNet-20's.
IMAGES_PER_SECOND = {
    "resnet20": (284.0, 277.0, 206.0),
    "vgg_small": (29.0, 28.0, 21.0),
    "resnet18": (4.7, 4.6, 3.4),
    "alexnet": (2.8, 2.7, 2.0),
}
EVALUATED_PER_TRAINED = 4.0  # images evaluated in the time of training on one image; 3 to 5 in the README
SECONDS_TO_START = 30.0  # imports, data, compilation


@dataclass(frozen=True)
class DataSize:
    """Full batches of a training epoch, and images of the test set."""

    steps: int
    test_images: int


def images_per_second(run: Run, others: list[Run]) -> tuple[float, bool]:
    """Return the training speed, and whether it was measured in a similar run among `others`."""
    config = run.config
    alike = [other for other in others if kind(other.config) == kind(config)]
    measured = [rate for other in alike for row in other.metrics() if (rate := row.get("images_per_second", 0.0)) > 0]
    if measured:
        return measured[-1], True
    network, column = kind(config)
    return IMAGES_PER_SECOND[network][column], False


def kind(config: Config) -> tuple[str, int]:
    """Return what the speed depends on: the network, and the column of IMAGES_PER_SECOND."""
    return config.network.name, 0 if not config.network.binary else 2 if config.has_noise else 1


def seconds_left(run: Run, size: DataSize, rate: float) -> float:
    """Return the time until the run is finished, at `rate` trained images per second."""
    if run.state() == FINISHED:
        return 0.0
    config = run.config
    images = config.train.steps(size.steps) * config.data.batch_size + size.test_images / EVALUATED_PER_TRAINED
    return (config.train.epochs - len(run.metrics())) * images / rate + SECONDS_TO_START


def spoken(seconds: float) -> str:
    """Return a duration as text: `3 h 20 min`, `12 min`, `40 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.0f} days"
