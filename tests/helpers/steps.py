"""A small network with every kind of layer, its batches, and training steps of it."""

import numpy as np
from mindspore import Tensor, amp, nn

from src.binary import Binarization, SharedSlopePReLU, SlopeThenNorm, schedules
from src.training.step import TrainStep

LABELS = np.array([0, 2, 1, 0], np.int32)


class Small(nn.Cell):
    """A full-precision layer, a binary one with slope and batch norm, a linear one: every kind there is."""

    def __init__(self, noise: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, pad_mode="pad", padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = Binarization(noise_adaptation=noise).conv(4, 4, 3, padding=1)
        self.relu2 = SharedSlopePReLU()
        self.bn2 = nn.BatchNorm2d(4)
        self.slope_then_norm = SlopeThenNorm(self.bn2.eps)
        self.linear = nn.Dense(4, 3)

    def construct(self, x):
        x = self.bn1(self.conv1(x))
        x = x + self.slope_then_norm(self.conv2(x), self.relu2, self.bn2)
        return self.linear(x.mean((2, 3)))


def images(seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).normal(size=(4, 3, 8, 8)).astype(np.float32))


def with_infinity() -> Tensor:
    array = images().asnumpy().copy()
    array[1, 2, 3, 4] = np.inf
    return Tensor(array)


def make(network: nn.Cell, scaler=None, level: str = "O0", lr: float = 0.1) -> TrainStep:
    optimizer = nn.Momentum(network.trainable_params(), lr, 0.9)
    steps = {"n": np.arange(9, 19, dtype=np.float32), "alpha": np.linspace(0.1, 0, 10, dtype=np.float32)}
    schedules.attach(network, steps, optimizer.global_step)
    if level != "O0":
        amp.auto_mixed_precision(network, level)
    return TrainStep(network, nn.CrossEntropyLoss(), optimizer, scaler).set_train()


def weights(step: TrainStep) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy().copy() for parameter in step.optimizer.parameters}
