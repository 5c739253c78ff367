"""What workers of one training run agree on beside the gradients.

Every call is collective: all workers must make it, in the same order. Sums of float32 are all that the CPU's
communication offers (no maximum, no integers, no barrier), so everything here is made of them, on every device.
"""

import zlib
from collections import Counter
from collections.abc import Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ..runtime import Worker

PARTS = 3  # float32 numbers of 24 bits each that hold a float64's 53 bits


class Collectives:
    """Collective operations of one of several workers; alone, it agrees with itself."""

    def __init__(self, worker: Worker = Worker()):
        self.rank = worker.rank
        self.size = worker.size

    def gather(self, values: np.ndarray | Iterable[float]) -> np.ndarray:
        """Every worker's values by rank, float64 (size, n), on each worker the same; all must give n of them.

        Exact where a value is 0 or its magnitude lies within 1e-22 .. 1e38; what is no finite number comes as NaN or
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
        """The largest of the workers' signal numbers; 0 stands for none."""
        return int(self.gather([number]).max())

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

    def outliers(self, checksum: int) -> list[int]:
        """The ranks whose checksum, below 2**53, is not the one that most workers have; in a tie, not that of the
        lowest rank."""
        checksums = self.gather([checksum])[:, 0].tolist()
        common, _ = Counter(checksums).most_common(1)[0]
        return [rank for rank, value in enumerate(checksums) if value != common]

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.agree_on_signal(0)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over the workers, float32, the same to the bit on each of them."""
        return ops.AllReduce(ops.ReduceOp.SUM)(Tensor(values, ms.float32)).asnumpy()


def checksum(parameters: Iterable[Parameter]) -> int:
    """CRC-32 of the parameters' names and bytes, in order."""
    value = 0
    for parameter in parameters:
        value = zlib.crc32(np.ascontiguousarray(parameter.asnumpy()).data, zlib.crc32(parameter.name.encode(), value))
    return value


def is_statistic(parameter: Parameter) -> bool:
    """Whether it is a moving mean or variance of batch norm."""
    return parameter.name.endswith(("moving_mean", "moving_variance"))
