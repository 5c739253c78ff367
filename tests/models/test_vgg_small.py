"""VGG-Small against IR-Net's layout and arithmetic, written again in numpy."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.binary import Binarization
from src.models import create_model
from tests.helpers import network_checks as checks
from tests.helpers import oracles

CHANNELS = (3, 128, 128, 256, 256, 512, 512)
POOLED = (1, 3, 5)  # the layers, counted from 0, with a pool
BINARY = {f"layers.{number}.conv" for number in range(1, 6)}


def layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, without noise modules."""
    shapes = {}
    for number, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:], strict=False)):
        shapes[f"layers.{number}.conv.weight"] = (after, before, 3, 3)
        shapes.update(checks.batch_norm_shapes(f"layers.{number}.bn", after))
    return {**shapes, "linear.weight": (10, 8192), "linear.bias": (10,)}


class Oracle(checks.NumpyNetwork):
    def logits(self, x: np.ndarray) -> np.ndarray:
        for number in range(6):
            name = f"layers.{number}.conv.weight"
            x = self.binary_conv(name, x) if number else oracles.conv2d(x, self.weights[name], 1, 1)
            if number in POOLED:
                x = checks.max_pool(x, 2, 2)
            x = np.clip(self.batch_norm(f"layers.{number}.bn", x), -1, 1)
        return self.linear(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("binary", "execution"),
    [(True, ms.GRAPH_MODE), (True, ms.PYNATIVE_MODE), (False, ms.PYNATIVE_MODE)],
    ids=["binary-graph", "binary-pynative", "full precision"],
)
def test_logits_against_numpy(binary, execution):
    generator = np.random.default_rng(0)
    oracle = Oracle(checks.random_weights(layout(), generator), binary)
    x = generator.normal(size=(2, 3, 32, 32)).astype(np.float32)
    checks.assert_logits(
        create_model(
            "vgg_small", binarization=Binarization(noise_adaptation=False) if binary else Binarization.full_precision()
        ),
        oracle,
        x,
        execution,
    )


def test_parameters_are_those_of_the_layout():
    network = create_model("vgg_small", binarization=Binarization(noise_adaptation=False))
    assert checks.shapes(network) == layout()
    binary = (128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512) * 9
    full = 3 * 128 * 9 + 2 * (128 + 128 + 256 + 256 + 512 + 512) + 8192 * 10 + 10
    assert checks.trainable_size(network) == binary + full == 4_660_106


def test_the_full_precision_baseline_has_the_same_parameters():
    assert checks.shapes(create_model("vgg_small", binarization=Binarization.full_precision())) == layout()


def test_noise_modules_add_their_own_parameters_only():
    assert checks.shapes(create_model("vgg_small")).keys() - layout().keys() == checks.noise_names(BINARY)


def test_all_but_the_first_and_the_last_layer_are_binary():
    network = create_model("vgg_small")
    assert checks.binary_layers(network) == BINARY
    assert checks.full_precision_layers(network) == {"layers.0.conv", "linear"}
    assert checks.binary_layers(create_model("vgg_small", binarization=Binarization.full_precision())) == set()


def test_every_sign_reads_values_within_one():
    """The logits cannot tell, but the gradient: it is stopped beyond."""
    for layer in create_model("vgg_small").layers:
        np.testing.assert_array_equal(checks.run(layer.activation, np.float32([-3, -0.5, 0.5, 3])), [-1, -0.5, 0.5, 1])


def test_num_classes_and_in_channels():
    network = create_model("vgg_small", num_classes=7, in_channels=1, binarization=Binarization(noise_adaptation=False))
    assert checks.shapes(network)["layers.0.conv.weight"] == (128, 1, 3, 3)
    assert checks.shapes(network)["linear.weight"] == (7, 8192)
    logits = checks.run(network, np.zeros((3, 1, 32, 32), np.float32))
    assert logits.shape == (3, 7)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 28)])
def test_another_size_is_refused_naming_both(any_mode, height, width):
    network = create_model("vgg_small", binarization=Binarization(noise_adaptation=False))
    with pytest.raises(ValueError, match=f"the images are {height}x{width}, but this network takes only 32x32"):
        network(Tensor(np.zeros((1, 3, height, width), np.float32)))


@pytest.mark.parametrize(("weight_init", "variance"), [("uniform", 1 / 3), ("he_normal", 2)])
def test_initial_values(weight_init, variance):
    network = create_model("vgg_small", binarization=Binarization(noise_adaptation=False, weight_init=weight_init))
    checks.assert_initial_values(network, variance)


@pytest.mark.slow
def test_every_parameter_learns():
    checks.assert_every_parameter_learns(create_model("vgg_small"), 32)
