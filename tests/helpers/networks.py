"""Networks for tests."""

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from src.binary import Binarization, SharedSlopePReLU
from src.models import create_model
from src.models.resnet20 import Block


class Small(nn.Cell):
    """ResNet-20's first convolution with stride 4, one of its blocks, which down-samples, and its linear layer."""

    def __init__(self, num_classes: int, in_channels: int, binarization: Binarization):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 3, stride=4, pad_mode="pad", padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = Block(8, 16, 2, binarization)
        self.linear = nn.Dense(16, num_classes)

    def construct(self, x):
        x = self.layer1(self.bn1(self.conv1(x)))
        return self.linear(ops.ReduceMean()(ops.relu(x), (2, 3)))


def small(num_classes: int, in_channels: int, binarization: Binarization) -> Small:
    return Small(num_classes, in_channels, binarization)


class Varied(nn.Cell):
    """What is awkward to export: images of odd size, 1 to 130 channels, groups, strides, a binary linear layer."""

    LAYERS = (  # channels, kernel, stride, padding, groups; the first convolution leaves 15x15 of 32x32
        (1, 3, 1, 1, 1),
        (7, 3, 2, 0, 1),  # 7x7
        (130, 1, 1, 0, 1),
        (33, 3, 1, 1, 1),
        (6, 5, 1, 2, 3),
        (9, 3, 2, 1, 1),  # 4x4
        (65, 2, 1, 0, 1),  # 3x3
    )

    def __init__(self, num_classes: int, in_channels: int, binarization: Binarization):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 3, 3, stride=2, pad_mode="valid")
        layers, channels = [], 3
        for out_channels, kernel, stride, padding, groups in self.LAYERS:
            conv = binarization.conv(channels, out_channels, kernel, stride, padding, groups=groups)
            layers += [conv, SharedSlopePReLU(), nn.BatchNorm2d(out_channels)]
            channels = out_channels
        self.layers = nn.SequentialCell(*layers)
        self.dense = binarization.dense(9 * channels, 17)
        self.slope = SharedSlopePReLU()
        self.bn = nn.BatchNorm1d(17)
        self.linear = nn.Dense(17, num_classes)

    def construct(self, x):
        x = self.layers(self.conv1(x))
        x = self.bn(self.slope(self.dense(ops.flatten(x))))
        return self.linear(x)


def varied(num_classes: int, in_channels: int, binarization: Binarization) -> Varied:
    return Varied(num_classes, in_channels, binarization)


def create(name: str, **options) -> nn.Cell:
    """The network of this name with 10 classes, which may be "small", and these options of `Binarization`."""
    binarization = Binarization(**options)
    return small(10, 3, binarization) if name == "small" else create_model(name, binarization=binarization)


def lively_network(name: str = "resnet20", **options) -> nn.Cell:
    """A network with these options of `Binarization`; its statistics and signs of gamma are not a fresh one's."""
    ms.set_seed(0)
    network = create(name, **options)
    generator = np.random.default_rng(0)
    draws = {
        "gamma": lambda shape: generator.normal(0.2, 1, shape),  # negative ones among them
        "beta": lambda shape: generator.normal(0.1, 0.3, shape),
        "moving_mean": lambda shape: generator.normal(0, 0.1, shape),
        "moving_variance": lambda shape: generator.uniform(0.1, 0.4, shape),  # about what fresh convolutions give
    }
    for parameter in network.get_parameters():
        kind = parameter.name.rsplit(".", 1)[-1]
        if kind in draws:
            parameter.set_data(ms.Tensor(draws[kind](parameter.shape), ms.float32))
    return network


class Weighted(nn.Cell):
    """cell(t) * factor: its gradient is the cell's for an incoming gradient with the values of `factor`."""

    def __init__(self, cell: nn.Cell):
        super().__init__()
        self.cell = cell

    def construct(self, t, factor):
        return self.cell(t) * factor
