"""Initial values that depend only on the seed and the parameter's name.

MindSpore draws initial values in order of construction, so a network with noise modules would start from other weights
than the same network without them. `create_model` builds every network with `draw_by_name`.
"""

import zlib
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.common.initializer import Initializer
from mindspore.nn.utils import no_init_parameters


class _SeededByName(Initializer):
    """An initializer with its own random state, seeded with (seed, CRC-32 of the parameter's name)."""

    def __init__(self, initializer: Initializer, seed: int, name: str):
        super().__init__()
        self.initializer = initializer
        self.state = [seed, zlib.crc32(name.encode())]

    def _initialize(self, arr):
        np.random.seed(self.state)  # all of MindSpore's initializers draw from numpy's global state
        self.initializer(arr)


def draw_by_name(make: Callable[[], nn.Cell]) -> nn.Cell:
    """Call `make`, and draw every parameter that has an initializer from (seed, name), with the same distribution.

    The seed is `ms.get_seed()`. If it is not set, a random seed is taken from numpy's global state, so every call
    differs. If it is set, numpy's state does not change.
    """
    seed = ms.get_seed()
    if seed is None:
        seed = int(np.random.randint(2**31))
    state = np.random.get_state()
    try:
        with no_init_parameters():
            network = make()
        for parameter in network.get_parameters():
            if parameter.has_init:
                parameter.init_mode.init = _SeededByName(parameter.init_mode.init, seed, parameter.name)
        network.init_parameters_data()
    finally:
        np.random.set_state(state)
    return network
