"""The inference network: the same logits, weights of two values, nothing of the training left."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.binary import Binarization, BinaryLayer
from src.deploy.freeze import FrozenLayer, freeze
from src.models import create_model
from tests.helpers.networks import lively_network


def test_frozen_logits_are_the_networks_own():
    network = lively_network()
    images = ms.Tensor(np.random.default_rng(1).normal(size=(4, 3, 32, 32)).astype(np.float32))
    expected = network(images).asnumpy()
    np.testing.assert_array_equal(freeze(network)(images).asnumpy(), expected)


def test_binary_weights_are_exactly_plus_and_minus_the_scale():
    network = create_model("resnet20")
    frozen = freeze(network)
    latent = {name: cell.weight.asnumpy() for name, cell in network.cells_and_names() if isinstance(cell, BinaryLayer)}
    constants = {
        name: cell.weight.asnumpy() for name, cell in frozen.cells_and_names() if isinstance(cell, FrozenLayer)
    }
    assert latent.keys() == constants.keys() and len(latent) == 18
    for name, weight in constants.items():
        assert len(np.unique(np.abs(weight))) == 1
        np.testing.assert_array_equal(weight > 0, latent[name] > 0)
        np.testing.assert_allclose(np.abs(weight).max(), np.abs(latent[name]).mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["sign", "xnor", "libra"])
def test_each_filter_is_exactly_plus_and_minus_its_scale(name):
    network = lively_network(weight_quantizer=name, noise_adaptation=False)
    images = ms.Tensor(np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32))
    frozen = freeze(network)
    np.testing.assert_array_equal(frozen(images).asnumpy(), network(images).asnumpy())
    for _, cell in frozen.cells_and_names():
        if isinstance(cell, FrozenLayer):
            assert all(len(np.unique(np.abs(row))) == 1 and (row != 0).all() for row in cell.weight.asnumpy())


def test_a_linear_layer_and_groups_freeze_too():
    class Both(nn.Cell):
        def __init__(self):
            super().__init__()
            binarization = Binarization()
            self.conv = binarization.conv(4, 6, 3, groups=2)
            self.dense = nn.SequentialCell(nn.Flatten(), binarization.dense(24, 5))

        def construct(self, x):
            return self.dense(self.conv(x))

    network = Both().set_train(False)
    images = ms.Tensor(np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype(np.float32))
    frozen = freeze(network)
    np.testing.assert_array_equal(frozen(images).asnumpy(), network(images).asnumpy())
    kinds = [type(cell) for _, cell in frozen.cells_and_names()]
    assert kinds.count(FrozenLayer) == 2 and not frozen.trainable_params()


def test_nothing_of_the_training_is_left_and_the_original_is_untouched():
    network = create_model("resnet20")
    names = [parameter.name for parameter in network.get_parameters()]
    trainable = len(network.trainable_params())
    frozen = freeze(network)
    assert [parameter.name for parameter in frozen.get_parameters()] == [
        name for name in names if ".noise." not in name
    ]
    assert not frozen.trainable_params()
    assert not any(isinstance(cell, BinaryLayer) for _, cell in frozen.cells_and_names())
    assert [parameter.name for parameter in network.get_parameters()] == names
    assert len(network.trainable_params()) == trainable > 100


def test_the_full_precision_twin_freezes_to_itself():
    network = create_model("resnet20", binarization=Binarization.full_precision())
    images = ms.Tensor(np.ones((1, 3, 32, 32), np.float32))
    np.testing.assert_array_equal(freeze(network)(images).asnumpy(), network(images).asnumpy())
