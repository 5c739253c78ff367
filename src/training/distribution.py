"""What workers of one training run agree on beside the gradients."""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops


class Workers:
    """Collective operations over `size` workers; with one worker they do nothing."""

    def __init__(self, size: int):
        self.size = size

    def largest(self, value: int) -> int:
        """The largest of the workers' values."""
        if self.size == 1:
            return value
        from mindspore.communication.comm_func import all_reduce

        # A sum of powers would overflow with many workers; the signals in use are few, so their largest is enough.
        reduced = all_reduce(Tensor([float(value)], ms.float32), op=ops.ReduceOp.MAX)
        return int((reduced[0] if isinstance(reduced, tuple) else reduced).asnumpy()[0])

    def average_statistics(self, network: nn.Cell) -> None:
        """Replaces every moving mean and variance by the workers' mean: each worker saw other images."""
        if self.size == 1:
            return
        statistics = [parameter for parameter in network.get_parameters() if is_statistic(parameter)]
        from mindspore.communication.comm_func import all_reduce

        flat = np.concatenate([parameter.asnumpy().ravel() for parameter in statistics])
        reduced = all_reduce(Tensor(flat))
        mean = (reduced[0] if isinstance(reduced, tuple) else reduced).asnumpy() / self.size
        position = 0
        for parameter in statistics:
            values = mean[position:position + parameter.size].reshape(parameter.shape)
            parameter.set_data(Tensor(values, parameter.dtype))
            position += parameter.size

    def wait(self) -> None:
        """Returns when all workers have come here."""
        self.largest(0)


def is_statistic(parameter: Parameter) -> bool:
    """Whether it is a moving mean or variance of batch norm."""
    return parameter.name.endswith(("moving_mean", "moving_variance"))
