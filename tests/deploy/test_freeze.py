"""The inference network: the same logits, weights of two values, nothing of the training left."""

import mindspore as ms
import numpy as np
import onnxruntime
import pytest
from mindspore import nn

from src.binary import Binarization, BinaryLayer
from src.deploy.formats import FORMATS
from src.deploy.freeze import FrozenLayer, freeze
from src.models import create_model
from src.models.bireal_resnet import PaddedMaxPool
from tests.helpers import network_checks
from tests.helpers.networks import create, lively_network

# The network and its number of binary layers. Compiling a whole ResNet-20 is slow.
NETWORKS = [("small", 2), pytest.param("resnet20", 18, marks=pytest.mark.slow)]


def images(count: int, channels: int = 3, size: int = 32) -> ms.Tensor:
    return ms.Tensor(np.random.default_rng(1).normal(size=(count, channels, size, size)).astype(np.float32))


def require_same_logits(network: nn.Cell, frozen: nn.Cell, inputs: ms.Tensor) -> None:
    """The two differ only in rounding: the frozen layers divide where the others multiply."""
    expected = network(inputs).asnumpy()
    scale = np.sqrt(np.mean(np.square(expected)))
    assert np.abs(frozen(inputs).asnumpy() - expected).max() <= 1e-5 * scale


@pytest.mark.parametrize("weight_quantizer", ["sign", "dorefa", "xnor", "libra"])
@pytest.mark.parametrize(("name", "layers"), NETWORKS)
def test_frozen_logits_are_those_of_the_network(any_mode, name, layers, weight_quantizer):
    network = lively_network(name, weight_quantizer=weight_quantizer, noise_adaptation=weight_quantizer == "dorefa")
    frozen = freeze(network)
    assert sum(isinstance(cell, FrozenLayer) for _, cell in frozen.cells_and_names()) == layers
    require_same_logits(network, frozen, images(4))


@pytest.mark.parametrize(("name", "count"), NETWORKS)
def test_weights_are_exactly_plus_and_minus_one_and_the_scale_is_applied_to_the_sums(name, count):
    network = create(name)
    frozen = freeze(network)
    latent = {name: cell.weight.asnumpy() for name, cell in network.cells_and_names() if isinstance(cell, BinaryLayer)}
    layers = {name: cell for name, cell in frozen.cells_and_names() if isinstance(cell, FrozenLayer)}
    assert latent.keys() == layers.keys() and len(latent) == count
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer.weight.asnumpy(), np.where(latent[name] > 0, 1, -1))
        np.testing.assert_allclose(1 / layer.divisor.asnumpy().item(), np.abs(latent[name]).mean(), rtol=1e-6)


@pytest.mark.parametrize(
    ("weight_quantizer", "scales"), [("sign", None), ("dorefa", (1, 1, 1)), ("xnor", (6, 1, 1)), ("libra", (6, 1, 1))]
)
def test_sums_of_0_are_0_in_mindspore_and_in_onnxruntime(weight_quantizer, scales, tmp_path):
    layer = Binarization(weight_quantizer=weight_quantizer, noise_adaptation=False).conv(4, 6, 3, padding=1)
    weight = np.random.default_rng(2).uniform(-1, 1, (6, 4, 3, 3))
    weight **= [[[[power]]] for power in (1, 3, 5, 7, 9, 11)]  # filters of other scales, libra's powers of 2 among them
    layer.weight.set_data(ms.Tensor(weight.astype(np.float32)))
    frozen = freeze(nn.SequentialCell(layer))
    (cell,) = (cell for _, cell in frozen.cells_and_names() if isinstance(cell, FrozenLayer))
    assert (cell.divisor if scales is None else cell.divisor.shape) == scales
    inputs = images(8, channels=4, size=6).asnumpy()
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(np.where(inputs > 0, 1, -1), ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
    )
    sums = np.einsum("nchwij,ocij->nohw", windows, cell.weight.asnumpy().astype(int))
    assert (sums == 0).mean() > 0.02
    FORMATS["ONNX"].export(frozen, (4, 6, 6), None, tmp_path / "layer.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
    for found in (frozen(ms.Tensor(inputs)).asnumpy(), session.run(None, {"images": inputs})[0]):
        np.testing.assert_array_equal(found == 0, sums == 0)
        scale = 1 if scales is None else 1 / cell.divisor.asnumpy()
        np.testing.assert_allclose(found, sums * scale, rtol=1e-6)


@pytest.mark.parametrize("file_format", ["ONNX", "MINDIR"])
def test_the_stem_pool_of_the_bireal_networks_exports(file_format, tmp_path):
    inputs = images(3, channels=2, size=8).asnumpy()
    expected = network_checks.max_pool(
        np.pad(inputs, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf), kernel=3, stride=2
    )
    path = tmp_path / f"pool{FORMATS[file_format].suffix}"
    FORMATS[file_format].export(freeze(nn.SequentialCell(PaddedMaxPool())), (2, 8, 8), None, path)
    np.testing.assert_array_equal(FORMATS[file_format].load(path).logits(inputs), expected)


def test_a_filter_whose_scale_is_0_gives_0():
    layer = Binarization(weight_quantizer="xnor", noise_adaptation=False).dense(4, 2)
    layer.weight.set_data(ms.Tensor([[0.5, -0.5, 1, 1], [0, 0, 0, 0]], ms.float32))
    output = freeze(nn.SequentialCell(layer))(ms.Tensor([[1, -1, 1, 1]], ms.float32))
    np.testing.assert_array_equal(output.asnumpy(), [[3, 0]])


def test_a_linear_layer_and_groups_freeze_too(any_mode):
    class Both(nn.Cell):
        def __init__(self):
            super().__init__()
            binarization = Binarization()
            self.conv = binarization.conv(4, 6, 3, groups=2)
            self.dense = nn.SequentialCell(nn.Flatten(), binarization.dense(24, 5))

        def construct(self, x):
            return self.dense(self.conv(x) + 0.1)  # no sum is 0, where the two would round to other signs

    network = Both().set_train(False)
    frozen = freeze(network)
    require_same_logits(network, frozen, images(2, channels=4, size=4))
    kinds = [type(cell) for _, cell in frozen.cells_and_names()]
    assert kinds.count(FrozenLayer) == 2 and not frozen.trainable_params()


@pytest.mark.parametrize(("name", "layers"), NETWORKS)
def test_nothing_of_the_training_is_left_and_the_original_is_untouched(name, layers):
    network = create(name)
    names = [parameter.name for parameter in network.get_parameters()]
    trainable = len(network.trainable_params())
    frozen = freeze(network)
    kept = [parameter.name for parameter in frozen.get_parameters() if not parameter.name.endswith(".divisor")]
    assert kept == [name for name in names if ".noise." not in name]
    assert not frozen.trainable_params()
    assert not any(isinstance(cell, BinaryLayer) for _, cell in frozen.cells_and_names())
    assert [parameter.name for parameter in network.get_parameters()] == names
    assert len(network.trainable_params()) == trainable > 6 * layers


def test_the_full_precision_baseline_freezes_to_itself(any_mode):
    network = create_model("resnet20", binarization=Binarization.full_precision())
    np.testing.assert_allclose(freeze(network)(images(1)).asnumpy(), network(images(1)).asnumpy(), rtol=1e-4, atol=1e-5)
