"""Time of a training step of ResNet-20 against n: the closed form, and the sum of n + 1 cosines as Eq. 10 has it.

    python benchmarks/step_against_n.py --output docs/paper/figure3_time.png

The time axis of the paper's Figure 3, on this machine: FDA without noise, random images, all variants in turns. The sum
of cosines is plain operations; so is the closed form in a third curve, next to that of this project's kernel.
"""

import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.orders import timed  # noqa: E402
from benchmarks.scaling_model import milliseconds, table  # noqa: E402
from src import cli, runtime  # noqa: E402

N = (1, 3, 5, 7, 9, 12, 15, 18)
KERNEL, PLAIN, COSINES = "closed form, kernel", "closed form, plain operations", "sum of cosines"
STEPS = 3  # of a turn
ROWS = 10  # of the table of n, for each n


def create_steps(batch_size: int) -> dict[tuple[str, int], Callable[[], object]]:
    """A training step for each curve and n. Imports MindSpore."""
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops

    from src.binary import Binarization, fourier, schedules
    from src.binary.estimators import ESTIMATORS, Surrogate
    from src.models import create_model
    from src.training.step import TrainStep

    class SumOfCosines(Surrogate):
        """4 omega / pi * sum of cos((2i + 1) omega t) for i from 0 to n."""

        def __init__(self, n: int, omega: float = 0.1):
            super().__init__()
            self.n = n
            self.omega = omega

        def derivative(self, t, state):
            total = ops.cos(self.omega * t)
            for i in range(1, self.n + 1):
                total = total + ops.cos((2 * i + 1) * self.omega * t)
            return total * (4 * self.omega / math.pi)

    class PlainClosedForm(Surrogate):
        """The closed form without the kernel."""

        scheduled = "n"

        def __init__(self, omega: float = 0.1):
            super().__init__()
            self.constants = fourier.closed_form_constants(omega)

        def derivative(self, t, state):
            return fourier.derivative(t, state, self.constants)

    ESTIMATORS["sum_of_cosines"], ESTIMATORS["plain_closed_form"] = SumOfCosines, PlainClosedForm
    generator = np.random.default_rng(0)
    images = ms.Tensor(generator.normal(size=(batch_size, 3, 32, 32)).astype(np.float32))
    labels = ms.Tensor(generator.integers(0, 10, batch_size).astype(np.int32))

    def create(estimator: str, options: dict) -> tuple[TrainStep, nn.Optimizer]:
        ms.set_seed(0)
        binarization = Binarization(estimator=estimator, estimator_options=options, noise_adaptation=False)
        network = create_model("resnet20", binarization=binarization)
        optimizer = nn.Momentum(network.trainable_params(), 1e-6, 0.9)
        if not options:  # n is followed: ROWS steps with each
            schedules.attach(network, {"n": np.repeat(N, ROWS).astype(np.float32)}, optimizer.global_step)
        return TrainStep(network, nn.CrossEntropyLoss(), optimizer).set_train(), optimizer

    def at(step: TrainStep, optimizer: nn.Optimizer, n: int) -> Callable[[], object]:
        def run():
            optimizer.global_step.set_data(ms.Tensor([N.index(n) * ROWS], ms.int32))
            return [value.asnumpy() for value in step(images, labels)]

        return run

    steps = {}
    for curve, estimator in ((KERNEL, "fda"), (PLAIN, "plain_closed_form")):
        step = create(estimator, {})
        steps |= {(curve, n): at(*step, n) for n in N}
    return steps | {(COSINES, n): at(*create("sum_of_cosines", {"n": n}), n) for n in N}


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/step_against_n.py", description=__doc__)
    parser.add_argument("--rounds", type=cli.integer, default=3, help="default: 3")
    parser.add_argument("--batch_size", type=cli.integer, default=128, help="default: 128")
    parser.add_argument("--output", metavar="PNG", type=cli.path, help="figure; default: none")
    arguments = parser.parse_args(argv)
    os.environ["MPLBACKEND"] = "agg"
    runtime.prepare_environment()
    runtime.start()
    seconds: dict[tuple[str, int], list[float]] = {}
    steps = create_steps(arguments.batch_size)
    for step in steps.values():
        step()  # compiles
    for _ in range(arguments.rounds):
        for key, step in steps.items():
            seconds.setdefault(key, []).append(statistics.median(timed(step, STEPS)))
    print(f"{runtime.code_and_machine()}, batch {arguments.batch_size}\n")
    curves = (COSINES, PLAIN, KERNEL)
    rows = [[str(n), *(milliseconds(statistics.median(seconds[curve, n])) for curve in curves)] for n in N]
    print(table(("n", *(f"{curve}, ms" for curve in curves)), rows))
    for curve in curves:
        ratio = statistics.median(a / b for a, b in zip(seconds[curve, N[-1]], seconds[curve, N[0]], strict=True))
        print(f"{curve}: n = {N[-1]} takes {ratio:.2f} times as long as n = {N[0]}")
    if arguments.output:
        draw(seconds, curves, Path(arguments.output))
    return 0


def draw(seconds: dict[tuple[str, int], list[float]], curves: Sequence[str], path: Path) -> None:
    """Write the figure: medians with the least and the largest round."""
    from src.paper.plots import new_figure, save

    figure = new_figure(6, 4)
    panel = figure.subplots()
    for curve in curves:
        values = [[1000 * value for value in seconds[curve, n]] for n in N]
        middle = [statistics.median(rounds) for rounds in values]
        (line,) = panel.plot(N, middle, marker="o", label=curve)
        panel.fill_between(N, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.2)
    panel.set_xticks(N)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("n (n + 1 cosines)")
    panel.set_ylabel("milliseconds a training step")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    sys.exit(cli.run(main))
