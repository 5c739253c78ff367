"""A checkpoint as a model that predicts, without an export. MindSpore runs it."""

from pathlib import Path

import mindspore as ms

from .. import checkpoints, experiment, runtime
from ..config import load_config
from ..preprocessing import Preprocessing
from .exported_model import ExportedModel


def load(
    path: Path, device_target: str = "CPU", num_classes: int | None = None
) -> tuple[ExportedModel, Preprocessing, int]:
    """Build the network of a checkpoint, with its own config and preprocessing.

    A checkpoint without a config, such as a released one, is a ResNet-20 for CIFAR-10.

    Returns:
        The model, how its images are prepared, and its number of classes.
    """
    trained = checkpoints.read(path)
    config = load_config(checkpoints.network_config(trained))
    preprocessing = experiment.preprocessing_of(config, trained)
    runtime.start(device_target, "graph", config.seed)
    network = experiment.trained_network(config, trained, num_classes)
    classes = num_classes or len(preprocessing.classes)
    return ExportedModel(lambda images: network(ms.Tensor(images)).asnumpy()), preprocessing, classes
