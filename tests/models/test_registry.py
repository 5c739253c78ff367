"""Networks by name: here, in mindcv's registry, and at MindSpore Hub's door."""

import mindcv
import pytest
from mindspore import nn

import mindspore_hub_conf
from src.binary import Binarization
from src.models import NETWORKS, create_model

DOORS = {
    "src": lambda **options: create_model("resnet20", **options),
    "mindcv": lambda **options: mindcv.create_model("fda_resnet20", **options),
    "hub": lambda **options: mindspore_hub_conf.create_network("resnet20", **options),
}
every_door = pytest.mark.parametrize("create", DOORS.values(), ids=DOORS)


def shapes(network: nn.Cell) -> dict[str, tuple[int, ...]]:
    return {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}


@every_door
def test_classes_channels_and_options_arrive(create):
    network = create(num_classes=7, in_channels=1, binarization=Binarization(noise_adaptation=False))
    assert shapes(network)["linear.weight"] == (7, 64)
    assert shapes(network)["conv1.weight"] == (16, 1, 3, 3)
    assert not any(".noise." in name for name in shapes(network))


@every_door
def test_pretrained_weights_are_refused_plainly(create):
    with pytest.raises(ValueError, match="no pretrained weights for 'resnet20'.*train.py"):
        create(num_classes=10, pretrained=True)


def test_every_network_is_in_mindcvs_registry():
    assert {f"fda_{name}" for name in NETWORKS} <= set(mindcv.list_models("fda_*"))


def test_a_new_network_is_in_evaluation_mode():
    assert not any(cell.training for _, cell in create_model("resnet20").cells_and_names())
