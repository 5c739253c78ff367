"""Collective operations of the workers of one training run, except the averaging of gradients.

Every call is collective: all workers must make it, in the same order. On CPU, communication has only sums of float32
(no maximum, no integers, no barrier), so everything here uses these sums, on every device.
"""

import zlib
from collections import Counter
from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..runtime import Worker

PARTS = 3  # float32 numbers of 24 bits that together hold the 53 bits of a float64


class Collectives:
    """The collective operations of one worker. They work with a single worker, too."""

    def __init__(self, worker: Worker = Worker()):
        self.rank = worker.rank
        self.size = worker.size

    def gather(self, values: np.ndarray | Iterable[float]) -> np.ndarray:
        """All workers' values by rank, float64 of shape (size, n), the same on each worker. Each must give n values.

        Exact if a value is 0 or its magnitude is within 1e-22 .. 1e38. A value that is not finite becomes NaN or
        infinity.
        """
        values = np.array(values, np.float64).ravel()
        if self.size == 1:
            return values[None]
        slots = np.zeros((self.size, PARTS, values.size), np.float32)
        rest = values
        for part in range(PARTS):
            slots[self.rank, part] = rest
            rest = np.subtract(rest, slots[self.rank, part], out=np.zeros_like(rest), where=np.isfinite(rest))
        return self._sum(slots).astype(np.float64).sum(1)

    def agree_on_signal(self, number: int) -> int:
        """The largest of the workers' signal numbers. 0: no signal."""
        return int(self.gather([number]).max())

    def average_statistics(self, network: nn.Cell) -> None:
        """Replace every moving mean and variance by its mean over the workers, which saw different images."""
        if self.size == 1:
            return
        own = get_statistics(network)
        if own.size:
            set_statistics(network, self._sum(own) / self.size)

    def outliers(self, checksum: int) -> list[int]:
        """The ranks with a checksum (below 2**53) that differs from the most common one. In a tie, the checksum of the
        lowest rank counts as the common one."""
        checksums = self.gather([checksum])[:, 0].tolist()
        common, _ = Counter(checksums).most_common(1)[0]
        return [rank for rank, value in enumerate(checksums) if value != common]

    def wait(self) -> None:
        """Return when all workers have called this."""
        self.agree_on_signal(0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over the workers, float32, bit for bit the same on each of them."""
        return ops.AllReduce(ops.ReduceOp.SUM)(Tensor(values, ms.float32)).asnumpy()


def checksum(parameters: Iterable[Parameter]) -> int:
    """CRC-32 of the parameters' names and bytes, in order."""
    value = 0
    for parameter in parameters:
        value = zlib.crc32(np.ascontiguousarray(parameter.asnumpy()).data, zlib.crc32(parameter.name.encode(), value))
    return value


def get_statistics(network: nn.Cell) -> np.ndarray:
    """All moving means and variances, float32 (n,)."""
    arrays = [parameter.asnumpy().ravel() for parameter in network.get_parameters() if is_statistic(parameter)]
    return np.concatenate([np.zeros(0), *arrays]).astype(np.float32)


def set_statistics(network: nn.Cell, values: np.ndarray) -> None:
    """Set all moving means and variances, from what `get_statistics` returned."""
    position = 0
    for parameter in filter(is_statistic, network.get_parameters()):
        own = values[position : position + parameter.size].reshape(parameter.shape)
        parameter.set_data(Tensor(own, parameter.dtype))
        position += parameter.size


def is_statistic(parameter: Parameter) -> bool:
    """Whether it is a moving mean or variance of batch norm."""
    return parameter.name.endswith(("moving_mean", "moving_variance"))
