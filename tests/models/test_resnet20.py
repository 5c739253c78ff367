"""The binary ResNet-20 against the released network's layout, names and arithmetic, written again in numpy."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import Binarization, BinaryLayer
from src.models import create_model
from tests.helpers import oracles
from tests.helpers.float64_resnet20 import TrainingStep

STAGES = ((16, 1), (32, 2), (64, 2))
STATISTICS = ("moving_mean", "moving_variance", "gamma", "beta")


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint."""
    shapes = {"conv1.weight": (16, 3, 3, 3), **{f"bn1.{name}": (16,) for name in STATISTICS}}
    before = 16
    for stage, (channels, _) in enumerate(STAGES, start=1):
        for block in range(3):
            for half in (1, 2):
                prefix = f"layer{stage}.{block}"
                shapes[f"{prefix}.conv{half}.weight"] = (channels, before, 3, 3)
                shapes[f"{prefix}.relu{half}.a"] = (1,)
                shapes.update({f"{prefix}.bn{half}.{name}": (channels,) for name in STATISTICS})
                before = channels
    return {**shapes, "linear.weight": (10, 64), "linear.bias": (10,)}


def random_weights(generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Every parameter away from its initial value: gammas of both signs, slopes, moving statistics."""
    weights = {}
    for name, shape in released_shapes().items():
        if name.endswith("moving_variance"):
            values = generator.uniform(0.5, 2, shape)
        elif name.endswith("gamma"):
            values = generator.uniform(0.3, 1, shape) * generator.choice([-1, 1], shape)
        elif name.endswith((".a", "beta", "moving_mean")):
            values = generator.normal(0, 0.3, shape)
        else:
            values = generator.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]) or 1)
        weights[name] = values.astype(np.float32)
    return weights


class Oracle:
    """The released network in float64.

    Args:
        weights: by the network's names.
        binary: False: the full-precision baseline.
        signs: of the inputs of the binary convolutions, in order: used in place of its own. None: its own.

    Attributes:
        margin (N,): the smallest magnitude before a sign, for each image.
        flipped: the largest magnitude before a sign that is not the given one.
    """

    def __init__(self, weights: dict[str, np.ndarray], binary: bool, signs: Sequence[np.ndarray] | None = None):
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}
        self.binary = binary
        self.replayed = None if signs is None else iter(signs)
        self.flipped = 0.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.margin = np.full(len(x), np.inf)
        x = self.batch_norm("bn1", oracles.conv2d(x.astype(np.float64), self.weights["conv1.weight"], 1, 1))
        for stage, (channels, stride) in enumerate(STAGES, start=1):
            for block in range(3):
                x = self.block(f"layer{stage}.{block}", x, channels, stride if block == 0 else 1)
        return np.maximum(x, 0).mean((2, 3)) @ self.weights["linear.weight"].T + self.weights["linear.bias"]

    def block(self, prefix: str, x: np.ndarray, channels: int, stride: int) -> np.ndarray:
        out = x
        for half, half_stride in ((1, stride), (2, 1)):
            out = self.conv(f"{prefix}.conv{half}.weight", out, half_stride)
            out = np.where(out > 0, out, self.weights[f"{prefix}.relu{half}.a"] * out)
            out = self.batch_norm(f"{prefix}.bn{half}", out)
        if stride == 2:
            quarter = channels // 4
            x = np.pad(x[:, :, ::2, ::2], ((0, 0), (quarter, quarter), (0, 0), (0, 0)))
        return out + x

    def conv(self, name: str, x: np.ndarray, stride: int) -> np.ndarray:
        weight = self.weights[name]
        if self.binary:
            self.margin = np.minimum(self.margin, np.abs(x).min((1, 2, 3)))
            signs = oracles.sign(x) if self.replayed is None else next(self.replayed).astype(np.float64)
            self.flipped = max(self.flipped, np.abs(x[signs != oracles.sign(x)]).max(initial=0))
            x, weight = signs, oracles.sign(weight) * np.abs(weight).mean()
        return oracles.conv2d(x, weight, stride, 1)

    def batch_norm(self, prefix: str, x: np.ndarray) -> np.ndarray:
        mean, variance, gamma, beta = (self.weights[f"{prefix}.{name}"][:, None, None] for name in STATISTICS)
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def put(network: nn.Cell, weights: dict[str, np.ndarray]) -> None:
    for parameter in network.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))


class Recorder(nn.Cell):
    """Keeps what a cell gives."""

    def __init__(self, cell: nn.Cell, seen: list[np.ndarray]):
        super().__init__()
        self.cell = cell
        self.seen = seen

    def construct(self, x):
        y = self.cell(x)
        self.seen.append(y.asnumpy())
        return y


def record_signs(network: nn.Cell) -> list[np.ndarray]:
    """The list to which the network will add the signs of its binary layers' inputs, in PyNative mode."""
    seen: list[np.ndarray] = []
    for _, cell in network.cells_and_names():
        if isinstance(cell, BinaryLayer):
            cell._cells["activation_quantizer"] = Recorder(cell.activation_quantizer, seen)
    return seen


@pytest.mark.parametrize(
    ("mode", "backend", "binary"),
    [
        ("graph", "native", True),
        pytest.param("graph", "plain", True, marks=pytest.mark.slow),
        ("pynative", "native", True),
        ("pynative", "plain", True),
        ("pynative", "native", False),
        ("pynative", "plain", False),
    ],
    indirect=["mode", "backend"],
)
def test_logits_against_numpy(mode, backend, binary):
    """Within 1e-5 of their scale; found were 2e-7. A float32 rounding may decide the sign of a value within 1e-5 of 0.
    So the oracle replays the network's signs. A graph does not give them: there images with values nearest 0 are left
    out."""
    generator = np.random.default_rng(1)
    weights, x = random_weights(generator), generator.normal(size=(6, 3, 32, 32)).astype(np.float32)
    network = create_model(
        "resnet20", binarization=Binarization(noise_adaptation=False) if binary else Binarization.full_precision()
    )
    put(network, weights)
    seen = record_signs(network) if binary and mode == "pynative" else None
    got = network(Tensor(x)).asnumpy()
    oracle = Oracle(weights, binary, seen)
    expected = oracle(x)
    compared = oracle.margin > (3e-6 if mode == "graph" else 0)
    assert oracle.flipped < 1e-5 and compared.sum() >= 2
    assert np.abs(got - expected)[compared].max() < 1e-5 * np.abs(expected).max()


def test_names_and_shapes_are_those_of_the_release():
    network = create_model("resnet20", binarization=Binarization(noise_adaptation=False))
    shapes = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    assert shapes == released_shapes()
    assert len(shapes) == 115
    assert sum(parameter.size for parameter in network.trainable_params()) == 269_740


def test_noise_modules_add_their_own_parameters_only():
    network = create_model("resnet20")
    added = {parameter.name for parameter in network.get_parameters()} - set(released_shapes())
    assert all(".noise." in name for name in added)
    assert len(added) == 18 * 4  # two modules of two matrices a binary convolution


def test_the_full_precision_baseline_has_the_same_parameters():
    baseline = create_model("resnet20", binarization=Binarization.full_precision())
    assert {parameter.name: tuple(parameter.shape) for parameter in baseline.get_parameters()} == released_shapes()


def test_num_classes_and_in_channels():
    network = create_model("resnet20", num_classes=7, in_channels=1, binarization=Binarization(noise_adaptation=False))
    shapes = {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}
    assert shapes["conv1.weight"] == (16, 1, 3, 3)
    assert shapes["linear.weight"] == (7, 64)


@pytest.mark.parametrize(("weight_init", "variance"), [("uniform", 1 / 3), ("he_normal", 2)])
def test_initial_values(weight_init, variance):
    """`variance` times the fan in, of every convolution, the first one included."""
    network = create_model("resnet20", binarization=Binarization(noise_adaptation=False, weight_init=weight_init))
    values = {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}
    for name, array in values.items():
        if name.endswith(".a"):
            assert array == 0.25
        elif name.endswith(("gamma", "moving_variance")):
            assert (array == 1).all()
        elif name.endswith(("beta", "moving_mean")):
            assert (array == 0).all()
    for name in ("conv1.weight", "layer1.0.conv1.weight", "layer3.2.conv2.weight"):
        fan_in = np.prod(values[name].shape[1:])
        np.testing.assert_allclose(values[name].std(), np.sqrt(variance / fan_in), rtol=0.1)


def test_the_gradients_of_a_training_step_are_those_in_float64(backend):
    """Sums of +-1 are exact, so only rounding is left. With the scale in the weights, 5 % of the sums were 0 up to
    rounding, the slope after them was 1 or a by chance, and the gradients differed by 36 %."""
    network = create_model("resnet20", binarization=Binarization(noise_adaptation=False)).set_train()
    seen = record_signs(network)
    generator = np.random.default_rng(0)
    images = generator.normal(size=(16, 3, 32, 32)).astype(np.float32)
    labels = generator.integers(0, 10, 16).astype(np.int32)
    parameters = network.trainable_params()
    before = {parameter.name: parameter.asnumpy().copy() for parameter in network.get_parameters()}
    cross_entropy = nn.CrossEntropyLoss()
    step = ms.value_and_grad(lambda x, y: cross_entropy(network(x), y), None, parameters)
    loss, gradients = step(Tensor(images), Tensor(labels))
    reference = TrainingStep(before, n=9, signs=seen)
    assert loss.asnumpy() == pytest.approx(reference(images, labels), rel=1e-5)
    assert len(seen) == 18 and len(reference.gradients) == len(parameters)
    found = np.concatenate([gradient.asnumpy().ravel() for gradient in gradients])
    expected = np.concatenate([reference.gradients[parameter.name].ravel() for parameter in parameters])
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    for parameter, gradient in zip(parameters, gradients, strict=True):  # a slope's is a sum that nearly cancels
        expected = reference.gradients[parameter.name]
        assert np.linalg.norm(gradient.asnumpy() - expected) < 1e-3 * np.linalg.norm(expected), parameter.name
