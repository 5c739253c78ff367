"""Checks for every network: its arithmetic in numpy, its layers by name, its gradients in a first step."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.binary import schedules
from src.binary.layers import BinaryLayer
from src.training.step import TrainStep
from tests.helpers import oracles

STATISTICS = ("moving_mean", "moving_variance", "gamma", "beta")
MARGIN = 3e-6  # nearer to 0 a float32 rounding may decide a sign


def batch_norm_shapes(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{name}": (channels,) for name in STATISTICS}


def shapes(network: nn.Cell) -> dict[str, tuple[int, ...]]:
    return {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}


def trainable_size(network: nn.Cell) -> int:
    return sum(parameter.size for parameter in network.trainable_params())


def random_weights(layout: dict[str, tuple[int, ...]], generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Every parameter away from its initial value: gammas of both signs, slopes, moving statistics."""
    weights = {}
    for name, shape in layout.items():
        if name.endswith("moving_variance"):
            values = generator.uniform(0.5, 2, shape)
        elif name.endswith("gamma"):
            values = generator.uniform(0.3, 1, shape) * generator.choice([-1, 1], shape)
        elif name.endswith((".a", "beta", "bias", "moving_mean")):
            values = generator.normal(0, 0.3, shape)
        else:
            values = generator.standard_normal(shape, np.float32) / np.sqrt(np.prod(shape[1:]))
        weights[name] = values.astype(np.float32)
    return weights


def put(network: nn.Cell, weights: dict[str, np.ndarray]) -> None:
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))


class NumpyNetwork:
    """A network in float64; a subclass says `logits(x)`. After a call, `margin` (N,) is the smallest magnitude before a
    sign, for each image."""

    def __init__(self, weights: dict[str, np.ndarray], binary: bool):
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}
        self.binary = binary

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.margin = np.full(len(x), np.inf)
        return self.logits(x.astype(np.float64))

    def quantized(self, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Input and weight of a binary layer as they are multiplied; in full precision as they are."""
        weight = self.weights[name]
        if not self.binary:
            return x, weight
        self.margin = np.minimum(self.margin, np.abs(x).min(tuple(range(1, x.ndim))))
        return oracles.sign(x), oracles.sign(weight) * np.abs(weight).mean()

    def binary_conv(self, name: str, x: np.ndarray, stride: int = 1, padding: int = 1, groups: int = 1) -> np.ndarray:
        x, weight = self.quantized(name, x)
        parts = zip(np.split(x, groups, axis=1), np.split(weight, groups), strict=True)
        return np.concatenate([oracles.conv2d(*part, stride, padding) for part in parts], axis=1)

    def binary_dense(self, name: str, x: np.ndarray) -> np.ndarray:
        x, weight = self.quantized(name, x)
        return x @ weight.T

    def batch_norm(self, prefix: str, x: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
        shape = (-1,) + (1,) * (x.ndim - 2)
        mean, variance, gamma, beta = (self.weights[f"{prefix}.{name}"].reshape(shape) for name in STATISTICS)
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta

    def linear(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights["linear.weight"].T + self.weights["linear.bias"]


def max_pool(x: np.ndarray, kernel: int, stride: int, same: bool = False) -> np.ndarray:
    """`same`: as many outputs as strides fit in the input, what is missing added equally, the odd one at the end."""
    if same:
        missing = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        widths = [(count // 2, count - count // 2) for count in missing]
        x = np.pad(x, ((0, 0), (0, 0), *widths), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return windows.max((4, 5))


def run(cell: nn.Cell, x: np.ndarray, execution: int = ms.PYNATIVE_MODE) -> np.ndarray:
    """The cell's output in that execution mode, which stays until the test ends."""
    ms.set_context(mode=execution)
    return cell(Tensor(x)).asnumpy()


def assert_logits(network: nn.Cell, oracle: NumpyNetwork, x: np.ndarray, execution: int) -> None:
    """With the oracle's weights the network's logits are the oracle's, wherever no sign is in doubt."""
    expected = oracle(x)
    put(network, {name: values.astype(np.float32) for name, values in oracle.weights.items()})
    got = run(network, x, execution)
    assert got.shape == expected.shape
    clear = oracle.margin > MARGIN
    assert clear.any()
    np.testing.assert_allclose(got[clear], expected[clear], atol=1e-4 * np.abs(expected).max())


def binary_layers(network: nn.Cell) -> set[str]:
    """Names of the layers with 1-bit input and weight."""
    return {
        name
        for name, cell in network.cells_and_names()
        if isinstance(cell, BinaryLayer)
        and getattr(cell.activation_quantizer, "precision", 32) == 1
        and getattr(cell.weight_quantizer, "precision", 32) == 1
    }


def full_precision_layers(network: nn.Cell) -> set[str]:
    """Names of the other convolutions and linear layers."""
    every = {name for name, cell in network.cells_and_names() if isinstance(cell, (nn.Conv2d, nn.Dense, BinaryLayer))}
    return every - binary_layers(network)


def noise_names(layers: set[str]) -> set[str]:
    """Names of the noise modules' matrices in those binary layers."""
    return {
        f"{layer}.{quantizer}_quantizer.noise.adaptation.{matrix}"
        for layer in layers
        for quantizer in ("activation", "weight")
        for matrix in ("w1", "w2")
    }


def assert_every_parameter_learns(network: nn.Cell, size: int, seed: int = 0) -> None:
    """One training step, two images, graph mode: all gradients are finite, none is 0 throughout.

    A noise module of 64 channels has one hidden unit, which can be dead at the start; with these seeds none is.
    """
    generator = np.random.default_rng(seed)
    images = Tensor(generator.normal(size=(2, 3, size, size)).astype(np.float32))
    optimizer = nn.Momentum(network.trainable_params(), 0.01, 0.9)
    tables = {"n": np.array([9], np.float32), "alpha": np.array([0.1], np.float32)}
    schedules.attach(network, tables, optimizer.global_step)
    step = TrainStep(network, nn.CrossEntropyLoss(), optimizer).set_train()
    loss, norm, finite = step(images, Tensor(np.array([0, 1], np.int32)))
    assert finite.asnumpy()
    assert np.isfinite(loss.asnumpy())
    # Momentum's velocity starts at 0: after one step it is the gradient.
    gradients = {
        parameter.name: moment.asnumpy()
        for parameter, moment in zip(optimizer.parameters, optimizer.moments, strict=True)
    }
    assert gradients.keys() == {parameter.name for parameter in network.trainable_params()}
    assert noise_names(binary_layers(network)) <= gradients.keys()
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    squares = sum(np.square(gradient, dtype=np.float64).sum() for gradient in gradients.values())
    np.testing.assert_allclose(norm.asnumpy(), np.sqrt(squares), rtol=1e-3)


def assert_initial_values(network: nn.Cell, variance: float) -> None:
    """`variance` times the fan in, of every weight but the last linear layer's; batch norm and slopes as they start."""
    for parameter in network.get_parameters():
        name, array = parameter.name, parameter.asnumpy()
        if name.endswith(".a"):
            assert array == 0.25, name
        elif name.endswith(("gamma", "moving_variance")):
            assert (array == 1).all(), name
        elif name.endswith(("beta", "moving_mean", "conv1.bias")):
            assert (array == 0).all(), name
        elif not name.startswith("linear."):
            np.testing.assert_allclose(
                array.std(), np.sqrt(variance / np.prod(array.shape[1:])), rtol=0.1, err_msg=name
            )
