"""Time of the operations of the Fourier gradient on CPU: polynomial sines against the framework's sine operator.

    python benchmarks/operations.py [--repeats 15]

Median milliseconds of one call on 128 x 16 x 32 x 32 float32 values, the size of the first stage of ResNet-20 at batch
128; all take turns.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli, runtime  # noqa: E402


def create_cells() -> dict:
    """The operations by name, each a Cell that takes t and n. Imports MindSpore."""
    import numpy as np
    from mindspore import nn, ops

    from src.binary import fourier, sign

    constants = fourier.closed_form_constants(0.1)

    class Sign(nn.Cell):
        def construct(self, t, n):
            return sign(t)

    class SineOperator(nn.Cell):
        def construct(self, t, n):
            return ops.sin(t)

    class ClosedForm(nn.Cell):
        def construct(self, t, n):
            return fourier.derivative(t, n, constants)

    class TwoSineOperators(nn.Cell):
        """The closed form with the sine operator, without the range reduction that makes it exact."""

        def construct(self, t, n):
            x = ops.abs(t) * 0.1 + 1e-6
            return ops.sin(x * (2.0 * (n + 1.0))) / ops.sin(x) * (0.2 / np.pi)

    class SumOfTenCosines(nn.Cell):
        """Eq. 10 as printed, n = 9."""

        def construct(self, t, n):
            total = ops.cos(0.1 * t)
            for i in range(1, 10):
                total = total + ops.cos((2 * i + 1) * 0.1 * t)
            return total * (0.4 / np.pi)

    return {cell.__name__: cell() for cell in (Sign, SineOperator, ClosedForm, TwoSineOperators, SumOfTenCosines)}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/operations.py", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args(argv)
    runtime.prepare_environment()
    runtime.start()

    import mindspore as ms
    import numpy as np

    cells = create_cells()
    t = ms.Tensor(np.random.default_rng(0).normal(size=(128, 16, 32, 32)).astype(np.float32))
    n = ms.Tensor(9, ms.float32)
    times: dict[str, list[float]] = {name: [] for name in cells}
    for turn in range(max(1, arguments.repeats) + 1):  # the first turn compiles
        for name, cell in cells.items():
            begun = time.perf_counter()
            cell(t, n).asnumpy()
            if turn:
                times[name].append(time.perf_counter() - begun)
    for name, values in times.items():
        print(f"{name:<18}{statistics.median(values) * 1e3:8.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
