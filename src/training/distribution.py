"""What workers of one training run agree on beside the gradients.

Every call is collective: all workers must make it, in the same order. Sums of float32 are all that the CPU's
communication offers (no maximum, no integers, no barrier), so everything here is made of them, on every device.
"""

import signal

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Workers:
    """Collective operations over `size` workers; with one worker they do nothing."""

    def __init__(self, size: int):
        self.size = size

    def agree_on_signal(self, number: int) -> int:
        """The largest of the workers' signal numbers, each in 0 .. signal.NSIG - 1; 0 stands for none."""
        if self.size == 1:
            return number
        votes = np.zeros(signal.NSIG, np.float32)
        votes[number] = 1
        return int(np.flatnonzero(self._sum(votes))[-1])

    def average_statistics(self, network: nn.Cell) -> None:
        """Replaces every moving mean and variance by the workers' mean: each worker saw other images."""
        if self.size == 1:
            return
        statistics = [parameter for parameter in network.get_parameters() if is_statistic(parameter)]
        if not statistics:
            return
        flat = np.concatenate([parameter.asnumpy().ravel() for parameter in statistics])
        mean = self._sum(flat.astype(np.float32)) / self.size
        position = 0
        for parameter in statistics:
            values = mean[position : position + parameter.size].reshape(parameter.shape)
            parameter.set_data(Tensor(values, parameter.dtype))
            position += parameter.size

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.agree_on_signal(0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over the workers, float32, the same to the bit on each of them."""
        return ops.AllReduce(ops.ReduceOp.SUM)(Tensor(values, ms.float32)).asnumpy()


def is_statistic(parameter: Parameter) -> bool:
    """Whether it is a moving mean or variance of batch norm."""
    return parameter.name.endswith(("moving_mean", "moving_variance"))
