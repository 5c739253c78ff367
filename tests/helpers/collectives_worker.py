"""One of the workers of test_collectives.py: trains a small binary network and writes its results to rank_N.npz.

python collectives_worker.py DATA_FOLDER OUTPUT_FOLDER        under msrun, or as the only worker
python collectives_worker.py resnet20 OUTPUT_FOLDER           only records the losses of that network
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from src import runtime  # noqa: E402

runtime.prepare_environment()

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindspore import nn  # noqa: E402

from src.binary import Binarization, SharedSlopePReLU, SlopeThenNorm  # noqa: E402
from src.data import Dataset  # noqa: E402
from src.models import create_model  # noqa: E402
from src.preprocessing import PREPROCESSING  # noqa: E402
from src.training.collectives import Collectives, is_statistic  # noqa: E402
from src.training.evaluation import evaluate  # noqa: E402
from src.training.step import TrainStep  # noqa: E402

BATCH = 10  # images a worker
STEPS = 3
READING_BATCH = 500  # divides the shard, of which nothing is to be left out
GLOBAL_BATCH = 12  # of the followed steps, over all workers
FOLLOWED_STEPS = 50


class SmallNetwork(nn.Cell):
    """A full-precision and a binary convolution with batch norm, as in the real networks; or both full-precision."""

    def __init__(self, binary: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=4, pad_mode="pad", padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = Binarization("fda" if binary else None, noise_adaptation=False).conv(8, 8, 3, stride=2, padding=1)
        self.slope = SharedSlopePReLU()
        self.bn2 = nn.BatchNorm2d(8)
        self.slope_then_norm = SlopeThenNorm(self.bn2.eps)
        self.linear = nn.Dense(8 * 4 * 4, 10)

    def construct(self, x):
        x = self.bn1(self.conv1(x))
        x = self.slope_then_norm(self.conv2(x), self.slope, self.bn2)
        return self.linear(x.reshape((x.shape[0], -1)))


class Gradients(nn.Cell):
    """The gradients that a TrainStep hands to its optimizer, and those of only this worker's images."""

    def __init__(self, step: TrainStep):
        super().__init__(auto_prefix=False)
        self.step = step

    def construct(self, images, labels):
        _, own = self.step.value_and_grad(images, labels)
        return (own if self.step.average is None else self.step.average(own)), own


def training_step(network: nn.Cell, workers: int, learning_rate: float = 0.1) -> TrainStep:
    optimizer = nn.Momentum(network.trainable_params(), learning_rate, 0.9, weight_decay=1e-4)
    return TrainStep(network, nn.CrossEntropyLoss(), optimizer, workers=workers)


def image_ids(images: ms.Tensor) -> np.ndarray:
    """The numbers that the test wrote into the first two red pixels of each image, to the base of 256."""
    preprocessing = PREPROCESSING["cifar10"]
    shares = images.asnumpy()[:, 0, 0, :2] * preprocessing.std[0] + preprocessing.mean[0]
    pixels = np.round(shares * 255).astype(int)
    return pixels[:, 0] * 256 + pixels[:, 1]


def flat(arrays) -> np.ndarray:
    return np.concatenate([array.asnumpy().ravel() for array in arrays])


def statistics(network: nn.Cell) -> np.ndarray:
    return flat(parameter for parameter in network.get_parameters() if is_statistic(parameter))


def followed_losses(worker: runtime.Worker, create: Callable[[], nn.Cell] = lambda: SmallNetwork(binary=False)):
    """The loss over all workers' images at each of 50 steps on digits; batch norm is in evaluation mode."""
    ms.set_seed(3)
    # Where batch norm does not normalize, 0.1 is too much.
    step = training_step(create(), worker.size, learning_rate=0.01).set_train(False)
    data = Dataset(
        "digits",
        batch_size=GLOBAL_BATCH // worker.size,
        augment=False,
        seed=3,
        rank=worker.rank,
        size=worker.size,
    )
    own = [float(step(*batch)[0].asnumpy()) for batch in data.train(epoch=0, stop=FOLLOWED_STEPS)]
    return Collectives(worker).gather(own).mean(0)


def resnet20_losses(worker: runtime.Worker) -> dict[str, np.ndarray]:
    """The same for ResNet-20: its full-precision baseline, and the binary network without noise modules."""
    return {
        "full precision": followed_losses(
            worker, lambda: create_model("resnet20", num_classes=10, binarization=Binarization.full_precision())
        ),
        "binary": followed_losses(
            worker, lambda: create_model("resnet20", num_classes=10, binarization=Binarization(noise_adaptation=False))
        ),
    }


def main(data_folder: str, output_folder: str) -> None:
    worker = runtime.start("CPU", "graph", seed=3, distribute="MS_ROLE" in os.environ)
    collectives = Collectives(worker)
    if data_folder == "resnet20":
        np.savez(Path(output_folder) / f"rank_{worker.rank}.npz", **resnet20_losses(worker))
        collectives.wait()
        return
    whole_shard, data = (
        Dataset("cifar10", data_folder, batch_size=size, augment=False, seed=3, rank=worker.rank, size=worker.size)
        for size in (READING_BATCH, BATCH)
    )
    found = {"shard": np.concatenate([image_ids(images) for images, _ in whole_shard.train(epoch=0)])}

    network = SmallNetwork()
    step = training_step(network, worker.size)
    found.update({f"initial.{parameter.name}": parameter.asnumpy().copy() for parameter in network.get_parameters()})
    step.set_train(False)  # freezes the moving statistics, so that images do not influence each other's gradients
    images, labels = next(data.train(epoch=0))
    averaged, own = Gradients(step)(images, labels)
    found.update(images=images.asnumpy(), labels=labels.asnumpy(), averaged=flat(averaged), own=flat(own))

    step.set_train(True)
    for _, (images, labels) in zip(range(STEPS), data.train(epoch=0), strict=False):
        step(images, labels)
    found["weights"] = flat(network.trainable_params())
    found["statistics"] = statistics(network)
    collectives.average_statistics(network)
    found["averaged_statistics"] = statistics(network)
    found["signals"] = np.array(
        [
            collectives.agree_on_signal(0),
            collectives.agree_on_signal(15 * worker.rank),
            collectives.agree_on_signal(15 if worker.rank == 0 else 2),
        ]
    )
    found["gathered"] = collectives.gather([np.pi * (worker.rank + 1), 2**53 - 1, 1e-20 / 3, -np.inf, 0])
    found["outliers"] = np.array(collectives.outliers(7 if worker.rank == 1 else 2**40 + 1))
    found["losses"] = followed_losses(worker)
    test_images = Dataset("cifar10", data_folder, batch_size=300, seed=3, rank=worker.rank, size=worker.size)
    evaluation = evaluate(network, test_images.test(), 10, collectives=collectives)
    found["evaluation"] = np.array([evaluation.images, evaluation.top1, evaluation.top5, evaluation.loss])
    found.update({f"final.{parameter.name}": parameter.asnumpy() for parameter in network.get_parameters()})
    np.savez(Path(output_folder) / f"rank_{worker.rank}.npz", **found)
    collectives.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
