"""Networks by name: here, in mindcv's registry, and at MindSpore Hub's door."""

import mindcv
import pytest
from mindspore import nn

import mindspore_hub_conf
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
    network = create(num_classes=7, in_channels=1, noise_adaptation=False)
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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet2", {}, "unknown network 'resnet2'.*did you mean 'resnet20'.*allowed are"),
        ("resnet20", {"num_classes": 0}, "num_classes is 0.*at least 1"),
        ("resnet20", {"num_classes": 10.0}, "num_classes is 10.0.*integer"),
        ("resnet20", {"in_channels": -3}, "in_channels is -3.*at least 1"),
        ("resnet20", {"estimator": "fad"}, "unknown estimator 'fad'.*did you mean 'fda'"),
        ("resnet20", {"estimator_options": {"omga": 1}}, "unknown option 'omga'.*did you mean 'omega'"),
        ("resnet20", {"weight_quantizer": "xnr"}, "unknown weight quantizer 'xnr'.*did you mean 'xnor'.*dorefa, libra"),
        ("resnet20", {"weight_init": "normal"}, "unknown weight init 'normal'.*did you mean 'he_normal'.*uniform"),
        ("resnet20", {"options": {"prelu": False}}, "unknown option 'prelu' of network 'resnet20'; allowed: none"),
        ("resnet20", {"weight_estimator": "sted"}, "unknown estimator 'sted'.*did you mean 'ste'"),
        ("resnet20", {"noise_options": {"eta": "sin"}}, "unknown eta 'sin'.*did you mean 'sine'"),
        ("resnet20", {"noise_options": {"eta": "sin"}, "noise_adaptation": False}, "unknown eta 'sin'"),
        (
            "resnet20",
            {"weight_estimator_options": {"omega": 1}},
            "weight_estimator_options .* go with a weight_estimator",
        ),
        ("resnet20", {"weight_quantizer": "xnr", "binary": False}, "unknown weight quantizer 'xnr'"),
        ("resnet20", {"weight_estimator": "sted", "binary": False}, "unknown estimator 'sted'"),
    ],
)
def test_wrong_names_and_values_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_the_hub_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        mindspore_hub_conf.create_network("resnet")
