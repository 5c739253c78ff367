"""Networks by name: here, in mindcv's registry, and through MindSpore Hub."""

import mindcv
import pytest
from mindspore import nn

import mindspore_hub_conf
from src.binary import Binarization
from src.models import NETWORKS, create_model, registry
from src.models.registry import sizes_taken, takes_size

ENTRY_POINTS = {
    "src": lambda **options: create_model("resnet20", **options),
    "mindcv": lambda **options: mindcv.create_model("fda_resnet20", **options),
    "hub": lambda **options: mindspore_hub_conf.create_network("resnet20", **options),
}
every_entry_point = pytest.mark.parametrize("create", ENTRY_POINTS.values(), ids=ENTRY_POINTS)


def shapes(network: nn.Cell) -> dict[str, tuple[int, ...]]:
    return {parameter.name: tuple(parameter.shape) for parameter in network.get_parameters()}


@every_entry_point
def test_classes_channels_and_options_arrive(create):
    network = create(num_classes=7, in_channels=1, binarization=Binarization(noise_adaptation=False))
    assert shapes(network)["linear.weight"] == (7, 64)
    assert shapes(network)["conv1.weight"] == (16, 1, 3, 3)
    assert not any(".noise." in name for name in shapes(network))


@every_entry_point
def test_weights_are_loaded_by_name_and_true_needs_a_default(create):
    """tests/test_pretrained.py has the details."""
    assert create(pretrained="resnet20_digits").linear.weight.shape == (10, 64)
    with pytest.raises(ValueError, match="no weights are the default of resnet20: give a name, resnet20_digits"):
        create(num_classes=10, pretrained=True)


def test_every_network_is_in_mindcvs_registry():
    assert {f"fda_{name}" for name in NETWORKS} <= set(mindcv.list_models("fda_*"))


def test_without_a_number_a_network_has_the_classes_of_its_recipe():
    baseline = Binarization.full_precision()
    for create in (
        create_model,
        mindspore_hub_conf.create_network,
        lambda n, **o: mindcv.create_model(f"fda_{n}", **o),
    ):
        for name, classes in (("resnet20", 10), ("resnet18", 1000)):
            assert shapes(create(name, binarization=baseline))["linear.bias"] == (classes,)


def test_sizes_are_known_without_building_a_network(monkeypatch):
    monkeypatch.setattr(nn.Cell, "__init__", lambda self: pytest.fail("a network was built"))
    assert takes_size("resnet20", 33)
    assert takes_size("resnet18_cifar", 40) and not takes_size("resnet18_cifar", 36)
    assert takes_size("resnet18", 256) and not takes_size("resnet18", 40)
    assert takes_size("alexnet", 224) and not takes_size("alexnet", 227)
    sizes = [sizes_taken(name) for name in ("resnet20", "resnet18_cifar", "alexnet")]
    assert sizes == ["any size", "multiples of 8", "only 224x224"]


def test_a_new_network_is_in_evaluation_mode():
    assert not any(cell.training for _, cell in create_model("resnet20").cells_and_names())


@pytest.fixture
def networks(monkeypatch):
    """A registry that forgets what a test adds to it."""
    monkeypatch.setattr(registry, "NETWORKS", dict(NETWORKS))
    return registry.NETWORKS


def test_a_network_is_registered_with_and_without_facts(networks):
    def tiny(num_classes, in_channels, binarization):
        return nn.Dense(in_channels, num_classes)

    def tinier(num_classes, in_channels, binarization):
        return nn.Dense(in_channels, num_classes)

    registry.register(tiny)
    registry.register(image_size=64, size_multiple=16, num_classes=3)(tinier)
    assert (networks["tiny"].image_size, networks["tiny"].size_multiple, networks["tiny"].num_classes) == (32, None, 10)
    assert takes_size("tinier", 48) and not takes_size("tiny", 48)
    assert create_model("tiny").weight.shape == (10, 3)
    assert mindcv.create_model("fda_tinier").weight.shape == (3, 3)


def test_an_option_that_is_no_binarization_is_refused():
    with pytest.raises(TypeError, match="estimator"):
        mindcv.create_model("fda_resnet20", estimator="ste")
