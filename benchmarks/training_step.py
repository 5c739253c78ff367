"""Images per second of training and evaluation of a network with several gradients of sign, and in full precision.

    python benchmarks/training_step.py [--network resnet20] [--batch_size 128] [--repeats 15]

All variants are built first and take turns, so that a slow moment of the machine affects all of them. The table gives
medians and each variant's ratio to the clipped straight-through estimator.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli, runtime  # noqa: E402
from src.errors import UserError  # noqa: E402

VARIANTS = {
    "full precision": {"estimator": None},
    "clipped_ste": {"estimator": "clipped_ste", "noise_adaptation": False},
    "fda": {"noise_adaptation": False},
    "fda, clip 1": {"estimator_options": {"clip": 1.0}, "noise_adaptation": False},
    "fda + noise, Eq. 14": {},
    "fda + noise, Algorithm 1": {"noise_in_forward": False},
}
BASELINE = "clipped_ste"


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/training_step.py", description=__doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device_target", default="CPU")
    arguments = parser.parse_args(argv)
    if min(arguments.batch_size, arguments.repeats) < 1:
        raise UserError("--batch_size and --repeats must be at least 1")
    runtime.prepare_environment()
    runtime.start(arguments.device_target)

    import mindspore as ms
    import numpy as np
    from mindspore import nn

    from src.binary import Binarization, schedules
    from src.binary.validation import lookup
    from src.models import NETWORKS, create_model
    from src.training.step import TrainStep

    try:
        size = lookup("network", NETWORKS, arguments.network).image_size
    except ValueError as error:
        raise UserError(str(error)) from error
    generator = np.random.default_rng(0)
    images = ms.Tensor(generator.normal(size=(arguments.batch_size, 3, size, size)).astype(np.float32))
    labels = ms.Tensor(generator.integers(0, 10, arguments.batch_size).astype(np.int32))
    steps, networks = {}, {}
    for name, options in VARIANTS.items():
        network = create_model(arguments.network, 10, binarization=Binarization(**options))
        optimizer = nn.Momentum(network.trainable_params(), 0.01, 0.9, weight_decay=1e-4)
        tables = {"n": np.full(1, 9, np.float32), "alpha": np.full(1, 0.1, np.float32)}
        schedules.attach(network, tables, optimizer.global_step)
        steps[name], networks[name] = TrainStep(network, nn.CrossEntropyLoss(), optimizer), network
    times: dict[tuple[str, str], list[float]] = {(name, what): [] for name in VARIANTS for what in ("train", "eval")}
    for turn in range(arguments.repeats + 1):  # the first turn compiles
        for name in VARIANTS:
            for what, call in (("train", steps[name].set_train()), ("eval", networks[name])):
                if what == "eval":
                    networks[name].set_train(False)
                begun = time.perf_counter()
                result = call(images, labels) if what == "train" else call(images)
                (result[0] if what == "train" else result).asnumpy()
                if turn:
                    times[name, what].append(time.perf_counter() - begun)
    median = {key: statistics.median(values) for key, values in times.items()}
    heading = f"{arguments.network}, batch {arguments.batch_size}, median of {arguments.repeats}"
    print(f"{heading}, images/s (ratio to {BASELINE})")
    for name in VARIANTS:
        cells = [
            f"{arguments.batch_size / median[name, what]:7.0f} ({median[BASELINE, what] / median[name, what]:.2f})"
            for what in ("train", "eval")
        ]
        print(f"{name:<26} train {cells[0]}   eval {cells[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
