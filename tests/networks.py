"""Networks for tests."""

import mindspore as ms
import numpy as np
from mindspore import nn

from src.models import create_model


def lively_network(**options) -> nn.Cell:
    """A ResNet-20 whose statistics and signs of gamma are not those of a fresh one."""
    ms.set_seed(0)
    network = create_model("resnet20", **options)
    generator = np.random.default_rng(0)
    for parameter in network.get_parameters():
        kind = parameter.name.rsplit(".", 1)[-1]
        if kind in ("gamma", "beta", "moving_mean"):
            parameter.set_data(ms.Tensor(generator.normal(0.2, 1, parameter.shape), ms.float32))
        elif kind == "moving_variance":
            parameter.set_data(ms.Tensor(generator.uniform(0.5, 2, parameter.shape) * 20, ms.float32))
    return network
