"""The worker of training_step.py for MindSpore: builds and runs the networks of a source tree on command.

python training_step_worker.py TREE DEVICE THREADS      TREE: folder with src; 0 threads: as train.py has them

TREE may be an earlier commit, so only what both have is used.
"""

import os
import sys
from pathlib import Path

from orders import peak_memory, serve, timed, use_cores

use_cores(int(sys.argv[3]))
sys.path.insert(0, sys.argv[1])

from src import runtime  # noqa: E402

runtime.prepare_environment()
runtime.start(sys.argv[2])

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from mindcv.loss import create_loss  # noqa: E402
from mindspore import nn, ops  # noqa: E402

from src.binary import Binarization, fourier, schedules  # noqa: E402
from src.models import NETWORKS, create_model  # noqa: E402
from src.optimizers import parameter_groups  # noqa: E402
from src.training.step import TrainStep  # noqa: E402

IMPORTED = peak_memory()
ROWS = 10_000  # of the tables of n and alpha, for each constant n; a turn starts at the first of them
CONSTANT_N = (18, 1, 64)
N = np.concatenate([np.repeat(CONSTANT_N, ROWS), np.arange(ROWS) % 64]).astype(np.float32)  # then n changes every step
ALPHA = np.concatenate([np.full(len(N) - ROWS, 0.1), np.linspace(0.1, 0, ROWS)]).astype(np.float32)

steps: dict[str, TrainStep] = {}
networks: dict[str, nn.Cell] = {}
batches: dict[str, tuple[ms.Tensor, ms.Tensor]] = {}


def random_batch(batch_size: int, size: int) -> tuple[ms.Tensor, ms.Tensor]:
    generator = np.random.default_rng(0)
    images = generator.normal(size=(batch_size, 3, size, size)).astype(np.float32)
    return ms.Tensor(images), ms.Tensor(generator.integers(0, 10, batch_size).astype(np.int32))


def make_step(network: nn.Cell) -> TrainStep:
    """The step that train.py takes by its default config; the learning rate is so small that weights stay."""
    groups = parameter_groups(network, weight_decay=1e-4, decay_all=True)
    optimizer = nn.Momentum(groups, [1e-6] * len(N), 0.9)
    schedules.attach(network, {"n": N, "alpha": ALPHA}, optimizer.global_step)
    return TrainStep(network, create_loss("CE", label_smoothing=0.0), optimizer).set_train()


def build(name: str, network: str, batch_size: int, options: dict) -> None:
    """Prepare a training step and an evaluation network, of the same options, called `name`."""
    ms.set_seed(0)
    batches[name] = random_batch(batch_size, NETWORKS[network].image_size)
    steps[name] = make_step(create_model(network, 10, binarization=Binarization(**options)))
    networks[name] = create_model(network, 10, binarization=Binarization(**options))


def train(name: str, count: int, n: int | None = 18) -> list[float]:
    """Seconds of each step, with its results read as train.py does.

    n: a constant of CONSTANT_N; None: n and alpha change every step.
    """
    row = ROWS * (CONSTANT_N.index(n) if n is not None else len(CONSTANT_N))
    steps[name].optimizer.global_step.set_data(ms.Tensor([row], ms.int32))
    return timed(lambda: [value.asnumpy() for value in steps[name](*batches[name])], count)


def evaluate(name: str, count: int) -> list[float]:
    """Seconds of the logits of each batch."""
    return timed(lambda: networks[name](batches[name][0]).asnumpy(), count)


def compilations(name: str) -> int:
    """The number of graphs that the training step was compiled to."""
    return len(steps[name].compile_cache)


def memory() -> tuple[int, int]:
    """Bytes after the imports, and at the peak so far."""
    return IMPORTED, peak_memory()


def gradients(options: dict, seed: int) -> dict:
    """Loss, logits and gradients of random weights and two images, and these themselves; n is 18, alpha 0.1.

    The scales of the binary weights are powers of two, so that sums of signs are exact with the scale inside or
    outside. Otherwise a sum of 0 comes out as +-1e-9, and the slope after it is that of either side by chance.
    """
    ms.set_context(mode=ms.PYNATIVE_MODE)
    generator = np.random.default_rng(seed)
    network = create_model("resnet20", 10, binarization=Binarization(**options))
    weights = network.trainable_params()
    for weight in weights:
        values = weight.asnumpy().copy()
        if ".conv" in weight.name and weight.name.endswith(".weight"):
            half = values.size // 2
            magnitudes = generator.permutation(np.repeat([1 / 32, 3 / 32], [half, values.size - half]))  # mean 1/16
            values = generator.choice([-1, 1], values.shape) * magnitudes.reshape(values.shape)
        else:
            values += generator.normal(size=values.shape) * 0.1
        weight.set_data(ms.Tensor(values.astype(np.float32)))
    step = make_step(network)
    images, labels = random_batch(2, 32)
    loss, found, _ = step.backward(images, labels)
    answer = {
        "weights": {weight.name: weight.asnumpy().tolist() for weight in weights},
        "batch": {"images": images.asnumpy().tolist(), "labels": labels.asnumpy().tolist()},
        "loss": loss.asnumpy().item(),
        "logits": network(images).asnumpy().tolist(),
        # The optimizer's parameters are in order of its groups.
        "gradients": {
            weight.name: gradient.asnumpy().tolist()
            for weight, gradient in zip(step.optimizer.parameters, found, strict=True)
        },
    }
    ms.set_context(mode=ms.GRAPH_MODE)
    return answer


class LayerGradients(nn.Cell):
    """A layer's output, summed with weights, and all gradients of that."""

    def __init__(self, layer: nn.Cell):
        super().__init__()
        self.layer = layer
        self.value_and_grad = ops.value_and_grad(self.product, 0, layer.trainable_params())

    def product(self, x, weights):
        return (self.layer(x) * weights).sum()

    def construct(self, x, weights):
        return self.value_and_grad(x, weights)


def compiled_layer(options: dict) -> str:
    """The graph of a 3x3 binary convolution and its gradients, as MindSpore prints it before it maps it to the device.

    It is that of other devices than CPUs.

    MindSpore must have been started with MS_DEV_SAVE_GRAPHS=1 and a folder in MS_DEV_SAVE_GRAPHS_PATH.
    """
    fourier.sine_of_half_turns = fourier.sine_by_operator  # those devices take the sine operator
    layer = Binarization(**options).conv(16, 16, 3, padding=1).set_train()
    schedules.attach(layer, {"n": N, "alpha": ALPHA}, ms.Parameter(ms.Tensor([0], ms.int32)))
    x = ms.Tensor(np.ones((2, 16, 8, 8), np.float32))
    LayerGradients(layer)(x, x)
    graphs = Path(os.environ["MS_DEV_SAVE_GRAPHS_PATH"]).glob("*_validate_*.ir")
    return max(graphs, key=lambda path: int(path.stem.rpartition("_")[2])).read_text()


if __name__ == "__main__":
    actions = (build, train, evaluate, compilations, memory, gradients, compiled_layer)
    serve({action.__name__: action for action in actions})
