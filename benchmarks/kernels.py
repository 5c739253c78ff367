"""Time of each C++ kernel on CPU against the plain operations that it stands for, and its share of a training step.

    python benchmarks/kernels.py [--repeats 15]

Median milliseconds of one call at the sizes of ResNet-20's three stages, batch 128; both take turns. The last columns
are what 18 calls take, six at each size, as many as ResNet-20 has binary convolutions.
"""

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scaling_model import table  # noqa: E402
from src import cli, runtime  # noqa: E402

BATCH = 128
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, height and width
CALLS = 6  # binary convolutions of a stage
SIGNS = "convolution of signs"
PATHS = {"kernel": "1", "plain": "0"}  # the values of BNN_NATIVE


def create_cells() -> dict:
    """The operations by name, each a Cell that takes x (N, C, H, W), z (C, C, 3, 3) and a gradient dout like x."""
    import mindspore as ms
    from mindspore import nn, ops

    from src.binary import Binarization, SharedSlopePReLU, SlopeThenNorm

    class Layer(nn.Cell):
        """What they share: the parts of a binary layer, and the two layers after it."""

        def __init__(self, channels: int):
            super().__init__()
            conv = Binarization().conv(channels, channels, 3, padding=1)
            self.product = conv.product
            self.surrogate = conv.activation_quantizer.estimator.surrogate
            self.noise = conv.activation_quantizer.noise
            self.slope, self.norm = SharedSlopePReLU(), nn.BatchNorm2d(channels)
            self.slope_then_norm = SlopeThenNorm()
            self.scale, self.n = ms.Tensor([0.1], ms.float32), ms.Tensor(9, ms.float32)

    class Convolution(Layer):
        def construct(self, x, z, dout):
            return self.product(x, z, self.scale)

    class DataGradient(Layer):
        def construct(self, x, z, dout):
            return self.product.bprop(x, z, self.scale, None, dout)[0]

    class WeightGradient(Layer):
        def construct(self, x, z, dout):
            return self.product.bprop(x, z, self.scale, None, dout)[1]

    class Sign(Layer):
        def construct(self, x, z, dout):
            return self.surrogate(x, self.n)

    class FourierGradient(Layer):
        def construct(self, x, z, dout):
            return self.surrogate.gradient(x, self.n, dout)

    class Noise(Layer):
        def construct(self, x, z, dout):
            return self.noise(x, x)

    class SlopeAndNorm(Layer):
        def construct(self, x, z, dout):
            return self.slope_then_norm(x, self.slope, self.norm)

    class Gradients(nn.Cell):
        """An operation and its gradients."""

        def __init__(self, cell: nn.Cell):
            super().__init__()
            self.cell = cell
            self.gradients = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
            self.weights = ms.ParameterTuple(cell.trainable_params())

        def construct(self, x, z, dout):
            return self.gradients(self.cell, self.weights)(x, z, dout, dout)[0][0]

    return {
        SIGNS: Convolution,
        "convolution": Convolution,
        "its data gradient": DataGradient,
        "its weight gradient": WeightGradient,
        "sign": Sign,
        "Fourier gradient": FourierGradient,
        "noise, forward": Noise,
        "noise, forward and backward": lambda channels: Gradients(Noise(channels)),
        "slope and norm, forward": SlopeAndNorm,
        "slope and norm, forward and backward": lambda channels: Gradients(SlopeAndNorm(channels)),
    }


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/kernels.py", description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args(argv)
    runtime.prepare_environment()
    runtime.start()

    import mindspore as ms
    import numpy as np

    generator = np.random.default_rng(0)
    rows = []
    for name, create in create_cells().items():
        row, totals = [], dict.fromkeys(PATHS, 0.0)
        for channels, size in STAGES:
            cells = {}
            for path, value in PATHS.items():
                os.environ["BNN_NATIVE"] = value  # decides when a layer is created
                cells[path] = create(channels).set_train()
            shapes = (BATCH, channels, size, size), (channels, channels, 3, 3), (BATCH, channels, size, size)
            arrays = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
            inputs = [ms.Tensor(np.sign(array) if name == SIGNS else array) for array in arrays]
            times: dict[str, list[float]] = {path: [] for path in PATHS}
            for turn in range(max(1, arguments.repeats) + 1):  # the first turn compiles
                for path, cell in cells.items():
                    begun = time.perf_counter()
                    cell(*inputs).asnumpy()
                    if turn:
                        times[path].append(1e3 * (time.perf_counter() - begun))
            for path, values in times.items():
                totals[path] += CALLS * statistics.median(values)
                row.append(f"{statistics.median(values):.1f}")
        rows.append((name, *row, *(f"{total:.0f}" for total in totals.values())))
    columns = [f"{channels} at {size}x{size}, {path}" for channels, size in STAGES for path in PATHS]
    print(table(("", *columns, *(f"a step, {path}" for path in PATHS)), rows))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
