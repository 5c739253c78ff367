"""Start values: they depend on the seed and the parameter's name only, and keep their distributions."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from src.binary import Binarization
from src.models import create_model
from src.models.initialization import draw_by_name


@pytest.fixture(autouse=True)
def seed():
    before = ms.get_seed()
    ms.set_seed(3)
    yield
    ms.set_seed(before or 0)


def values(network: nn.Cell) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}


def test_noise_modules_and_binarization_leave_the_start_as_it_is():
    noisy = values(create_model("resnet20"))
    for binarization in (Binarization(noise_adaptation=False), Binarization.full_precision()):
        for name, array in values(create_model("resnet20", binarization=binarization)).items():
            np.testing.assert_array_equal(array, noisy[name], err_msg=name)


def test_every_drawn_parameter_differs_from_the_others_and_with_the_seed():
    first = values(create_model("resnet20"))
    ms.set_seed(4)
    second = values(create_model("resnet20"))
    drawn = {name for name in first if name.endswith(("weight", "w1", "w2", "linear.bias"))}
    assert all((first[name] != second[name]).any() for name in drawn)
    heads = [tuple(first[name].ravel()[:4]) for name in sorted(drawn)]
    assert len(set(heads)) == len(drawn)


def test_what_was_drawn_before_changes_nothing():
    first = values(create_model("resnet20"))
    nn.Dense(5, 5)
    np.random.rand(7)
    for name, array in values(create_model("resnet20")).items():
        np.testing.assert_array_equal(array, first[name], err_msg=name)


def test_building_leaves_numpys_random_state_as_it_was():
    before = np.random.get_state()
    create_model("resnet20")
    after = np.random.get_state()
    np.testing.assert_array_equal(before[1], after[1])
    assert before[2:] == after[2:]


def test_any_cell_can_be_built_so():
    plain = draw_by_name(lambda: nn.SequentialCell(nn.Dense(4, 4), nn.Dense(4, 4)))
    longer = draw_by_name(lambda: nn.SequentialCell(nn.Dense(4, 4), nn.Dense(4, 4), nn.Dense(4, 4)))
    for name, array in values(plain).items():
        np.testing.assert_array_equal(array, values(longer)[name])


def test_without_a_seed_two_networks_differ(monkeypatch):
    monkeypatch.setattr(ms, "get_seed", lambda: None)
    first, second = (values(draw_by_name(lambda: nn.Dense(4, 4)))["weight"] for _ in range(2))
    assert (first != second).any()
