"""An experiment that trains in a moment: a linear network with batch norm, on 24 vectors in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from src.config import load_config
from src.experiment import Experiment
from src.preprocessing import find_preprocessing
from src.runtime import Worker

CLASSES, BATCH, IMAGES = 3, 4, 24
FEATURES = 5


class TinyNetwork(nn.Cell):
    """`hidden` is used only through its sign, so that a NaN in it does not show in the loss."""

    def __init__(self):
        super().__init__()
        self.hidden = Parameter(Tensor(np.ones(FEATURES), ms.float32), name="hidden")
        self.linear = nn.Dense(FEATURES, CLASSES)
        self.norm = nn.BatchNorm1d(CLASSES)

    def construct(self, x):
        sign = ops.select(self.hidden > 0, ops.ones_like(self.hidden), -ops.ones_like(self.hidden))
        return self.norm(self.linear(x * sign))


class TinyData:
    """The part of a `Dataset` that the trainer and its callbacks use."""

    num_classes = CLASSES
    preprocessing = find_preprocessing("digits")
    replaced = 0
    checksum = None

    def train_images(self) -> int:
        return IMAGES

    def test_images(self) -> int:
        return IMAGES

    def test_batches(self) -> int:
        return IMAGES // BATCH

    def validation_batches(self) -> int:
        return 1

    def train(self, epoch: int, skip: int = 0, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches(epoch)[skip:stop])

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches(99))

    def validation(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches(98)[:1])


def batches(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, IMAGES).astype(np.int32)
    images = generator.normal(labels[:, None], 1, (IMAGES, FEATURES)).astype(np.float32)
    return [(Tensor(images[at : at + BATCH]), Tensor(labels[at : at + BATCH])) for at in range(0, IMAGES, BATCH)]


def tiny_experiment(run_dir: Path, **changes: Any) -> Experiment:
    """An experiment of 2 epochs of 3 steps; `changes` are keys of the config's section `train`."""
    keys = {f"train.{name}": value for name, value in {"epochs": 2, "steps_per_epoch": 3, **changes}.items()}
    config = load_config(None, {"output_dir": str(run_dir), "data.batch_size": BATCH, **keys})
    ms.set_seed(0)
    network = TinyNetwork()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    tables = {"lr": np.linspace(0.1, 0.01, 100)}
    loss = nn.CrossEntropyLoss()
    return Experiment(
        config, Worker(), TinyData(), network, loss, optimizer, None, config.train.steps_per_epoch, tables
    )
