"""AlexNet against DoReFa-Net's public layout and arithmetic, written again in numpy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import Binarization
from src.models import create_model
from tests.helpers import network_checks as checks
from tests.helpers import oracles

# Written down once from the public layout, tensorpack's examples/DoReFa-Net/alexnet-dorefa.py (conv0 with
# use_bias=True), by TensorFlow's rules: VALID gives (size - kernel) // stride + 1, SAME size / stride rounded up.
PUBLIC_STAGES = {
    "conv1": (96, 54, 54),  # conv0
    "convolutions.0": (256, 27, 27),  # conv1, pool1
    "convolutions.1": (384, 14, 14),  # conv2, pool2
    "convolutions.2": (384, 14, 14),  # conv3
    "convolutions.3": (256, 6, 6),  # conv4, pool4
    "linears.0": (4096,),  # fc0
    "linears.1": (4096,),  # fc1
    "linear": (1000,),  # fct
}
PUBLIC_PARAMETERS = {  # weights and biases by layer; fc0's bias, which batch norm takes out again, is not counted
    "conv0": 41_472 + 96,
    "conv1": 307_200,
    "conv2": 884_736,
    "conv3": 663_552,
    "conv4": 442_368,
    "fc0": 37_748_736,
    "fc1": 16_777_216,
    "fct": 4_096_000 + 1000,
    "batch norms": 18_944,
}
CONVOLUTIONS = {  # shape of the weight, groups, pool
    "convolutions.0": ((256, 96 // 2, 5, 5), 2, "same"),
    "convolutions.1": ((384, 256, 3, 3), 1, "same"),
    "convolutions.2": ((384, 384 // 2, 3, 3), 2, None),
    "convolutions.3": ((256, 384 // 2, 3, 3), 2, "valid"),
}
LINEAR = {"linears.0": (4096, 256 * 6 * 6), "linears.1": (4096, 4096)}
BINARY = {f"{layer}.operation" for layer in (*CONVOLUTIONS, *LINEAR)}


def layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, without noise modules."""
    shapes = {"conv1.weight": (96, 3, 12, 12), "conv1.bias": (96,)}
    for layer, shape in {**{name: shape for name, (shape, _, _) in CONVOLUTIONS.items()}, **LINEAR}.items():
        shapes[f"{layer}.operation.weight"] = shape
        shapes.update(checks.batch_norm_shapes(f"{layer}.bn", shape[0]))
    return {**shapes, "linear.weight": (10, 4096), "linear.bias": (10,)}


class Oracle(checks.NumpyNetwork):
    def logits(self, x: np.ndarray) -> np.ndarray:
        bias = self.weights["conv1.bias"].reshape(-1, 1, 1)
        x = self.activation(oracles.conv2d(x, self.weights["conv1.weight"], 4) + bias)
        for layer, (shape, groups, pool) in CONVOLUTIONS.items():
            x = self.binary_conv(f"{layer}.operation.weight", x, padding=shape[-1] // 2, groups=groups)
            x = self.batch_norm(f"{layer}.bn", x, 1e-4)
            if pool:
                x = checks.max_pool(x, 3, 2, same=pool == "same")
            x = self.activation(x)
        x = x.reshape(len(x), -1)
        for layer in LINEAR:
            x = self.batch_norm(f"{layer}.bn", self.binary_dense(f"{layer}.operation.weight", x), 1e-4)
            x = self.activation(x) if layer == "linears.0" else np.maximum(x, 0)
        return self.linear(x)

    def activation(self, x: np.ndarray) -> np.ndarray:
        return x if self.binary else np.maximum(x, 0)


@pytest.fixture(scope="module")
def network() -> nn.Cell:
    return create_model("alexnet", 10, binarization=Binarization(noise_adaptation=False))


@pytest.fixture(scope="module")
def baseline() -> nn.Cell:
    return create_model("alexnet", 10, binarization=Binarization.full_precision())


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return checks.random_weights(layout(), np.random.default_rng(0))


def test_parameters_and_epsilon_are_those_of_the_layout(network, baseline):
    assert checks.shapes(network) == layout()
    assert checks.shapes(baseline) == layout()
    batch_norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert [cell.eps for cell in batch_norms] == [1e-4] * 6


@pytest.mark.slow
@pytest.mark.parametrize("execution", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_binary_logits_against_numpy(network, weights, execution):
    x = np.random.default_rng(3).normal(size=(1, 3, 224, 224)).astype(np.float32)
    checks.assert_logits(network, Oracle(weights, binary=True), x, execution)


@pytest.mark.slow
def test_logits_of_the_full_precision_baseline_against_numpy(baseline, weights):
    x = np.random.default_rng(3).normal(size=(1, 3, 224, 224)).astype(np.float32)
    checks.assert_logits(baseline, Oracle(weights, binary=False), x, ms.PYNATIVE_MODE)


def test_it_has_this_many_parameters(network):
    convolutions = 48 * 256 * 25 + 256 * 384 * 9 + 192 * 384 * 9 + 192 * 256 * 9
    linear = 256 * 36 * 4096 + 4096 * 4096
    full = 3 * 96 * 144 + 96 + 2 * (256 + 384 + 384 + 256 + 4096 + 4096) + 4096 * 10 + 10
    assert checks.trainable_size(network) == convolutions + linear + full == 56_925_290


def test_parameters_and_shapes_are_those_of_the_public_layout():
    network = create_model("alexnet", binarization=Binarization.full_precision())
    assert checks.trainable_size(network) == sum(PUBLIC_PARAMETERS.values())
    shapes, cells = {}, dict(network.cells_and_names())
    for stage in PUBLIC_STAGES:
        cells[stage].register_forward_hook(lambda cell, x, y, stage=stage: shapes.update({stage: tuple(y.shape[1:])}))
    checks.run(network, np.zeros((1, 3, 224, 224), np.float32))
    assert shapes == PUBLIC_STAGES


def test_all_but_the_first_and_the_last_layer_are_binary(baseline):
    network = create_model("alexnet", 10)
    assert checks.binary_layers(network) == BINARY
    assert checks.full_precision_layers(network) == {"conv1", "linear"}
    assert checks.shapes(network).keys() - layout().keys() == checks.noise_names(BINARY)
    assert checks.binary_layers(baseline) == set()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (227, 227), (224, 256)])
def test_another_size_is_refused_naming_both(network, height, width):
    """For 227x227 images the convolutions would also leave 6x6 positions."""
    with pytest.raises(ValueError, match=f"the images are {height}x{width}, but this network takes only 224x224"):
        network(Tensor(np.zeros((1, 3, height, width), np.float32)))


def test_negative_values_reach_every_sign_but_none_the_last_layer(network, baseline):
    """The logits cannot tell: a sign after ReLU is the same, its gradient is not."""
    x = np.array([-2.0, 3.0], np.float32)
    for cell, kept in ((network, x), (baseline, [0, 3])):
        layers = [*cell.convolutions, *cell.linears]
        *before_signs, last = [cell.activation1, *(layer.activation for layer in layers)]
        for activation in before_signs:
            np.testing.assert_array_equal(checks.run(activation, x), kept)
        np.testing.assert_array_equal(checks.run(last, x), [0, 3])


def test_classes_channels_and_initial_values():
    network = create_model(
        "alexnet",
        num_classes=7,
        in_channels=1,
        binarization=Binarization(noise_adaptation=False, weight_init="he_normal"),
    )
    assert checks.shapes(network)["conv1.weight"] == (96, 1, 12, 12)
    assert checks.shapes(network)["linear.weight"] == (7, 4096)
    checks.assert_initial_values(network, variance=2)
    assert checks.run(network, np.zeros((2, 1, 224, 224), np.float32)).shape == (2, 7)


@pytest.mark.slow
def test_every_parameter_learns():
    checks.assert_every_parameter_learns(create_model("alexnet", 10), 224)
