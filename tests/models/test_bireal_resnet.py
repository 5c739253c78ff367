"""The Bi-Real ResNets against their layout and arithmetic, written again in numpy."""

import mindspore as ms
import numpy as np
import pytest

from src.binary import Binarization
from src.models import create_model
from src.models.bireal_resnet import STEM_POOLS, BiRealResNet
from tests.helpers import network_checks as checks
from tests.helpers import oracles

CHANNELS = (64, 128, 256, 512)
DEPTHS = {"resnet18": (4, 4, 4, 4), "resnet34": (6, 8, 12, 6), "resnet18_cifar": (4, 4, 4, 4)}
STRIDED = {"layer2.0", "layer3.0", "layer4.0"}  # the blocks with a down-sampling shortcut
SHORTCUTS = {f"{block}.shortcut.1" for block in STRIDED}
every_network = pytest.mark.parametrize("name", DEPTHS)


# Written down once from the public code, github.com/liuzechun/Bi-Real-net, commit f58aa4d, file
# pytorch_implementation/BiReal18_34/birealnet.py, run with PyTorch 2.13 in float64.
PUBLIC_PARAMETERS = {"resnet18": 11_689_512, "resnet34": 21_797_672}  # of birealnet18() and birealnet34(): 1000 classes
PUBLIC_STAGES = {  # outputs for an image of 224x224, of both
    "conv1": (64, 112, 112),
    "pool": (64, 56, 56),
    "layer1": (64, 56, 56),
    "layer2": (128, 28, 28),
    "layer3": (256, 14, 14),
    "layer4": (512, 7, 7),
}
# birealnet18(num_classes=10) in evaluation with the weights and images of `test_logits_are_those_of_the_public_code`.
PUBLIC_LOGITS = [
    [1.03247, -1.924322, 1.547884, 0.365068, -1.942136, -2.918539, 1.816138, -0.720145, 1.239628, -0.660052],
    [0.887683, -1.88598, 1.901056, 0.843659, -2.277528, -2.705274, 1.738792, -0.340272, 1.112671, -0.938612],
]
# torch.nn.functional.max_pool2d(image, kernel_size=3, stride=2, padding=1).
POOL_IMAGE = [
    [3, -1, 4, -1, -5, 9],
    [-2, -6, -5, -3, -5, -8],
    [-9, -7, -9, -3, -2, -3],
    [-8, -4, -6, -2, -6, -4],
    [-3, -3, -8, -3, -2, -7],
    [-9, -5, -4, -2, -8, -8],
]
POOLED = [[3, 4, 9], [-2, -2, -2], [-3, -2, -2]]


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
            x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
            x = checks.max_pool(x, 3, 2)
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
        pytest.param(
            "resnet18_cifar", 32, False, True, ms.PYNATIVE_MODE, id="cifar full precision", marks=pytest.mark.slow
        ),
        pytest.param("resnet18_cifar", 32, False, False, ms.PYNATIVE_MODE, id="cifar full precision, ReLU"),
        pytest.param("resnet18", 64, True, True, ms.PYNATIVE_MODE, id="18 binary-pynative"),
        pytest.param("resnet18", 96, False, True, ms.PYNATIVE_MODE, id="18 full precision", marks=pytest.mark.slow),
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


def test_logits_are_those_of_the_public_code():
    weights = checks.random_weights(layout("resnet18", prelu=False), np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    binarization = Binarization("approx_sign", weight_quantizer="xnor", noise_adaptation=False)
    network = create_model("resnet18", 10, binarization=binarization, options={"prelu": False})
    checks.put(network, weights)
    np.testing.assert_allclose(checks.run(network, x), PUBLIC_LOGITS, atol=2e-3)  # a sign or two near 0 may differ


@pytest.mark.parametrize("name", PUBLIC_PARAMETERS)
def test_parameters_are_as_many_as_in_the_public_code(name):
    network = create_model(name, binarization=Binarization(noise_adaptation=False), options={"prelu": False})
    assert checks.trainable_size(network) == PUBLIC_PARAMETERS[name]


def test_stages_have_the_shapes_of_the_public_code():
    network = create_model("resnet18", 10, binarization=Binarization.full_precision())
    shapes = {}
    for stage in PUBLIC_STAGES:
        cell = getattr(network, stage)
        cell.register_forward_hook(lambda cell, x, y, stage=stage: shapes.update({stage: tuple(y.shape[1:])}))
    checks.run(network, np.zeros((1, 3, 224, 224), np.float32))
    assert shapes == PUBLIC_STAGES


def test_the_stem_pools_as_the_public_code(mode):
    image = ms.Tensor(POOL_IMAGE, ms.float32)[None, None]
    network = create_model("resnet18", binarization=Binarization.full_precision())
    np.testing.assert_array_equal(network.pool(image).asnumpy()[0, 0], POOLED)


def test_the_stem_pool_of_older_checkpoints_is_an_option():
    """It pads below and on the right only."""
    image = ms.Tensor(POOL_IMAGE, ms.float32)[None, None]
    network = create_model("resnet34", binarization=Binarization.full_precision(), options={"stem_pool": "same"})
    np.testing.assert_array_equal(network.pool(image).asnumpy()[0, 0], [[4, 4, 9], [-3, -2, -2], [-3, -2, -2]])


@pytest.mark.parametrize("pool", STEM_POOLS)
def test_the_gradient_of_the_stem_pool_goes_to_each_maximum(mode, pool):
    """Every window gives its gradient to one value of the image, also a window on the edge."""
    image = ms.Tensor(np.random.default_rng(0).normal(size=(2, 3, 8, 6)), ms.float32)
    gradient = ms.grad(STEM_POOLS[pool]())(image).asnumpy()  # of the sum of its outputs
    assert gradient.sum() == 2 * 3 * 4 * 3
    assert (gradient >= 0).all()


def test_an_unknown_stem_pool_is_refused():
    with pytest.raises(ValueError, match="unknown stem pool 'sane'.*did you mean 'same'.*padded"):
        create_model("resnet18", options={"stem_pool": "sane"})


@every_network
def test_names_and_shapes_are_those_of_the_layout(name):
    assert checks.shapes(create_model(name, 10, binarization=Binarization(noise_adaptation=False))) == layout(name)


@every_network
def test_the_full_precision_baseline_has_the_same_parameters(name):
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


def test_the_cifar_network_differs_only_in_its_stem():
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


def test_no_layer_of_the_full_precision_baseline_is_binary():
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
