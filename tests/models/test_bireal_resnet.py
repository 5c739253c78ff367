"""The Bi-Real ResNets against their layout and arithmetic, written again in numpy."""

import mindspore as ms
import numpy as np
import pytest

from src.binary import Binarization
from src.models import create_model
from src.models.bireal_resnet import BiRealResNet
from tests.helpers import network_checks as checks
from tests.helpers import oracles

CHANNELS = (64, 128, 256, 512)
DEPTHS = {"resnet18": (4, 4, 4, 4), "resnet34": (6, 8, 12, 6), "resnet18_cifar": (4, 4, 4, 4)}
STRIDED = {"layer2.0", "layer3.0", "layer4.0"}  # the blocks with a down-sampling shortcut
SHORTCUTS = {f"{block}.shortcut.1" for block in STRIDED}
every_network = pytest.mark.parametrize("name", DEPTHS)


def blocks(name: str) -> list[str]:
    return [f"layer{stage}.{block}" for stage, depth in enumerate(DEPTHS[name], start=1) for block in range(depth)]


def binary_names(name: str) -> set[str]:
    return {f"{block}.conv" for block in blocks(name)}


def layout(name: str, num_classes: int = 10, prelu: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters, without noise modules."""
    kernel = 3 if name == "resnet18_cifar" else 7
    shapes = {"conv1.weight": (64, 3, kernel, kernel), **checks.batch_norm_shapes("bn1", 64)}
    before = 64
    for block in blocks(name):
        channels = CHANNELS[int(block[5]) - 1]
        shapes[f"{block}.conv.weight"] = (channels, before, 3, 3)
        if prelu:
            shapes[f"{block}.activation.a"] = (1,)
        shapes.update(checks.batch_norm_shapes(f"{block}.bn", channels))
        if block in STRIDED:
            shapes[f"{block}.shortcut.1.weight"] = (channels, before, 1, 1)
            shapes.update(checks.batch_norm_shapes(f"{block}.shortcut.2", channels))
        before = channels
    return {**shapes, "linear.weight": (num_classes, 512), "linear.bias": (num_classes,)}


class Oracle(checks.NumpyNetwork):
    def __init__(self, name: str, weights: dict[str, np.ndarray], binary: bool, prelu: bool):
        super().__init__(weights, binary)
        self.name = name
        self.prelu = prelu

    def logits(self, x: np.ndarray) -> np.ndarray:
        if self.name == "resnet18_cifar":
            x = self.batch_norm("bn1", oracles.conv2d(x, self.weights["conv1.weight"], 1, 1))
        else:
            x = self.batch_norm("bn1", oracles.conv2d(x, self.weights["conv1.weight"], 2, 3))
            x = checks.max_pool(x, 3, 2, same=True)
        for block in blocks(self.name):
            x = self.block(block, x) + self.shortcut(block, x)
        return self.linear(x.mean((2, 3)))

    def block(self, prefix: str, x: np.ndarray) -> np.ndarray:
        x = self.binary_conv(f"{prefix}.conv.weight", x, 2 if prefix in STRIDED else 1)
        if self.prelu:
            x = np.where(x > 0, x, self.weights[f"{prefix}.activation.a"] * x)
        elif not self.binary:
            x = np.maximum(x, 0)
        return self.batch_norm(f"{prefix}.bn", x)

    def shortcut(self, prefix: str, x: np.ndarray) -> np.ndarray:
        if prefix not in STRIDED:
            return x
        images, channels, height, width = x.shape
        x = x.reshape(images, channels, height // 2, 2, width // 2, 2).mean((3, 5))
        return self.batch_norm(f"{prefix}.shortcut.2", oracles.conv2d(x, self.weights[f"{prefix}.shortcut.1.weight"]))


@pytest.mark.parametrize(
    ("name", "size", "binary", "prelu", "execution"),
    [
        pytest.param("resnet18_cifar", 32, True, True, ms.GRAPH_MODE, id="cifar binary-graph", marks=pytest.mark.slow),
        pytest.param("resnet18_cifar", 32, True, True, ms.PYNATIVE_MODE, id="cifar binary-pynative"),
        pytest.param("resnet18_cifar", 32, True, False, ms.PYNATIVE_MODE, id="cifar binary, no slopes"),
        pytest.param("resnet18_cifar", 32, False, True, ms.PYNATIVE_MODE, id="cifar twin", marks=pytest.mark.slow),
        pytest.param("resnet18_cifar", 32, False, False, ms.PYNATIVE_MODE, id="cifar twin, ReLU"),
        pytest.param("resnet18", 64, True, True, ms.PYNATIVE_MODE, id="18 binary-pynative"),
        pytest.param("resnet18", 96, False, True, ms.PYNATIVE_MODE, id="18 twin", marks=pytest.mark.slow),
        pytest.param("resnet34", 64, True, True, ms.PYNATIVE_MODE, id="34 binary-pynative", marks=pytest.mark.slow),
    ],
)
def test_logits_against_numpy(name, size, binary, prelu, execution):
    generator = np.random.default_rng(0)
    weights = checks.random_weights(layout(name, prelu=prelu), generator)
    x = generator.normal(size=(2, 3, size, size)).astype(np.float32)
    network = create_model(
        name,
        10,
        options={"prelu": prelu},
        binarization=Binarization(noise_adaptation=False) if binary else Binarization.full_precision(),
    )
    checks.assert_logits(network, Oracle(name, weights, binary, prelu), x, execution)


@every_network
def test_names_and_shapes_are_those_of_the_layout(name):
    assert checks.shapes(create_model(name, 10, binarization=Binarization(noise_adaptation=False))) == layout(name)


@every_network
def test_the_twin_has_the_same_parameters(name):
    assert checks.shapes(create_model(name, 10, binarization=Binarization.full_precision())) == layout(name)


@pytest.mark.parametrize("binary", [True, False])
def test_without_prelu_there_are_no_slopes(binary):
    network = create_model(
        "resnet18_cifar",
        10,
        options={"prelu": False},
        binarization=Binarization(noise_adaptation=False) if binary else Binarization.full_precision(),
    )
    assert checks.shapes(network) == layout("resnet18_cifar", prelu=False)


@pytest.mark.parametrize("value", ["false", 0, 1, None])
@every_network
def test_prelu_is_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"prelu is {value!r}, but must be true or false"):
        create_model(name, 10, options={"prelu": value})


def test_resnet18_has_this_many_parameters():
    """Those of the usual ResNet-18, 11,689,512, and the slopes."""
    binary = 4 * 64 * 64 * 9 + (64 * 128 + 3 * 128 * 128) * 9
    binary += (128 * 256 + 3 * 256 * 256) * 9 + (256 * 512 + 3 * 512 * 512) * 9
    stem = 3 * 64 * 49 + 2 * 64
    batch_norms = 2 * 4 * (64 + 128 + 256 + 512)
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)
    linear = 512 * 1000 + 1000
    network = create_model("resnet18", num_classes=1000, binarization=Binarization(noise_adaptation=False))
    assert checks.trainable_size(network) == binary + stem + batch_norms + shortcuts + linear + 16 == 11_689_528


def test_resnet34_has_this_many_parameters():
    """Those of the usual ResNet-34, 21,797,672, and the slopes."""
    binary = 6 * 64 * 64 * 9 + (64 * 128 + 7 * 128 * 128) * 9
    binary += (128 * 256 + 11 * 256 * 256) * 9 + (256 * 512 + 5 * 512 * 512) * 9
    stem = 3 * 64 * 49 + 2 * 64
    batch_norms = 2 * (6 * 64 + 8 * 128 + 12 * 256 + 6 * 512)
    shortcuts = 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)
    linear = 512 * 1000 + 1000
    network = create_model("resnet34", num_classes=1000, binarization=Binarization(noise_adaptation=False))
    assert checks.trainable_size(network) == binary + stem + batch_norms + shortcuts + linear + 32 == 21_797_704


def test_the_cifar_network_differs_in_its_stem_alone():
    expected = {**layout("resnet18"), "conv1.weight": (64, 3, 3, 3)}
    assert (
        checks.shapes(create_model("resnet18_cifar", 10, binarization=Binarization(noise_adaptation=False))) == expected
    )


@every_network
def test_the_3x3_convolutions_of_the_blocks_are_binary(name):
    network = create_model(name, 10)
    assert checks.binary_layers(network) == binary_names(name)
    assert len(checks.binary_layers(network)) == {"resnet18": 16, "resnet34": 32, "resnet18_cifar": 16}[name]
    assert checks.full_precision_layers(network) == {"conv1", "linear", *SHORTCUTS}
    assert checks.shapes(network).keys() - layout(name).keys() == checks.noise_names(binary_names(name))


def test_no_layer_of_the_twin_is_binary():
    assert checks.binary_layers(create_model("resnet18", 10, binarization=Binarization.full_precision())) == set()


@pytest.mark.parametrize("binary", [True, False])
def test_a_block_whose_batch_norm_gives_zero_is_its_shortcut(binary):
    name, generator = "resnet18_cifar", np.random.default_rng(0)
    weights = checks.random_weights(layout(name), generator)
    for block in blocks(name):
        weights[f"{block}.bn.gamma"][:] = 0
        weights[f"{block}.bn.beta"][:] = 0
    network, oracle = (
        create_model(
            name, 10, binarization=Binarization(noise_adaptation=False) if binary else Binarization.full_precision()
        ),
        Oracle(name, weights, binary, True),
    )
    checks.put(network, weights)
    cells = dict(network.cells_and_names())
    for block in blocks(name):
        x = generator.normal(size=(2, weights[f"{block}.conv.weight"].shape[1], 4, 6)).astype(np.float32)
        got = checks.run(cells[block], x)
        if block in STRIDED:
            np.testing.assert_allclose(got, oracle.shortcut(block, x), rtol=1e-4, atol=1e-4, err_msg=block)
        else:
            np.testing.assert_array_equal(got, x, err_msg=block)


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet18_cifar", 32)])
def test_num_classes_and_in_channels(name, size):
    network = create_model(name, num_classes=7, in_channels=1, binarization=Binarization(noise_adaptation=False))
    logits = checks.run(network, np.zeros((3, 1, size, size), np.float32))
    assert logits.shape == (3, 7)
    assert checks.shapes(network)["conv1.weight"][1] == 1


@pytest.mark.parametrize(("weight_init", "variance"), [("uniform", 1 / 3), ("he_normal", 2)])
@pytest.mark.parametrize("name", ["resnet18", "resnet18_cifar"])
def test_initial_values(name, weight_init, variance):
    checks.assert_initial_values(
        create_model(name, 10, binarization=Binarization(noise_adaptation=False, weight_init=weight_init)), variance
    )


def test_every_parameter_of_a_shallow_network_learns():
    """One block a stage holds all kinds of layers there are, and compiles in half the time."""
    checks.assert_every_parameter_learns(BiRealResNet(10, 3, Binarization(), (1, 1, 1, 1), True, True), 32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("resnet18_cifar", 32), ("resnet18", 64), ("resnet34", 64)])
def test_every_parameter_learns(name, size):
    checks.assert_every_parameter_learns(create_model(name, 10), size)
