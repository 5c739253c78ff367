"""Networks for tests."""

import mindspore as ms
import numpy as np
from mindspore import nn

from src.binary import Binarization
from src.models import create_model


def lively_network(**options) -> nn.Cell:
    """A ResNet-20 with these options of `Binarization`; its statistics and signs of gamma are not a fresh one's."""
    ms.set_seed(0)
    network = create_model("resnet20", binarization=Binarization(**options))
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
