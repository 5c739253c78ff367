"""Groups of parameters, learning rates, and the optimizers made of them."""

import numpy as np
import pytest
from mindspore import nn

from src.binary import Binarization
from src.config import load_config
from src.errors import UserError
from src.models import create_model
from src.models.resnet20 import Block
from src.optimizers import create_optimizer, learning_rates, parameter_groups


def config(**overrides):
    return load_config(None, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    "binarization",
    [Binarization(), Binarization(noise_adaptation=False), Binarization.full_precision()],
    ids=["noise", "no noise", "full precision"],
)
@pytest.mark.parametrize("decay_all", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_group(binarization, decay_all):
    network = create_model("resnet20", binarization=binarization)
    groups = parameter_groups(network, 1e-4, decay_all)
    names = [parameter.name for group in groups for parameter in group["params"]]
    assert sorted(names) == sorted(parameter.name for parameter in network.trainable_params())
    assert len(names) == len(set(names))


def test_groups_by_kind():
    block = Block(4, 8, 2, Binarization())
    weights, noise, rest = parameter_groups(block, 1e-4, False)
    assert {parameter.name for parameter in weights["params"]} == {"conv1.weight", "conv2.weight"}
    assert len(noise["params"]) == 8
    assert all(".noise." in parameter.name for parameter in noise["params"])
    assert {parameter.name for parameter in rest["params"]} == {
        f"{layer}.{name}"
        for layer, names in (("relu1", ["a"]), ("relu2", ["a"]), ("bn1", ["gamma", "beta"]), ("bn2", ["gamma", "beta"]))
        for name in names
    }
    assert [group["weight_decay"] for group in (weights, noise, rest)] == [1e-4, 1e-4, 0.0]
    assert [group["weight_decay"] for group in parameter_groups(block, 1e-4, True)] == [1e-4] * 3


def test_cosine_learning_rates():
    rates = learning_rates(config(train__epochs=10, optimizer__lr=0.1), 20)
    assert len(rates) == 200
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.05, rel=0.05)
    assert 0 <= rates[-1] < 0.1 * (np.pi / 200) ** 2
    assert (np.diff(rates) < 0).all()


@pytest.mark.parametrize(("name", "half_way"), [("cosine_decay", 0.055), ("polynomial_decay", 0.055)])
@pytest.mark.parametrize("warmup", [0, 2])
def test_learning_rates_fall_to_min_lr(name, half_way, warmup):
    options = {"scheduler__name": name, "scheduler__min_lr": 0.01, "scheduler__warmup_epochs": warmup}
    rates = learning_rates(config(train__epochs=10 + warmup, **options), 20)[20 * warmup :]
    assert len(rates) == 200
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(half_way, rel=1e-6)
    assert rates[-1] == pytest.approx(0.01, rel=0.05)
    assert min(rates) >= 0.01 and (np.diff(rates) < 0).all()


def test_warmup_starts_at_0_with_min_lr_too():
    options = {"scheduler__name": "polynomial_decay", "scheduler__min_lr": 0.01, "scheduler__warmup_epochs": 2}
    rates = learning_rates(config(train__epochs=10, **options), 20)
    assert rates[0] < 0.01
    assert (np.diff(rates[:40]) > 0).all()


def test_min_lr_holds_for_the_scaled_learning_rate():
    options = {"scheduler__name": "polynomial_decay", "scheduler__min_lr": 0.01, "optimizer__lr_for_batch": 64}
    rates = learning_rates(config(train__epochs=10, **options), 20, workers=2)
    assert rates[0] == pytest.approx(0.1 * 128 * 2 / 64)
    assert rates[-1] == pytest.approx(0.01, rel=0.3) and min(rates) >= 0.01


def test_a_min_lr_that_no_rate_would_reach_is_refused():
    with pytest.raises(UserError, match="scheduler.min_lr is 0.01, but a constant learning rate has no end"):
        config(scheduler__name="constant", scheduler__min_lr=0.01)
    with pytest.raises(UserError, match="scheduler.min_lr is 0.2, but must be at most optimizer.lr, which is 0.1"):
        config(scheduler__min_lr=0.2)


@pytest.mark.parametrize("name", ["cosine_decay", "polynomial_decay"])
def test_a_min_lr_above_the_scaled_learning_rate_is_refused(name):
    options = {"scheduler__name": name, "scheduler__min_lr": 0.01, "optimizer__lr_for_batch": 128}
    small = config(train__epochs=2, data__batch_size=8, **options)
    message = r"min_lr is 0.01, but must be at most the learning rate, which is 0.00625: optimizer.lr, 0.1, is for 128"
    with pytest.raises(UserError, match=message):
        learning_rates(small, 5)
    assert learning_rates(small, 5, workers=2)[0] == pytest.approx(0.0125)


def test_warmup_rises_to_the_first_rate():
    rates = learning_rates(config(train__epochs=10, scheduler__warmup_epochs=2), 20)
    assert len(rates) == 200
    assert rates[0] < 0.01
    assert (np.diff(rates[:40]) > 0).all()
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (39, 40)


@pytest.mark.parametrize(("name", "half_way", "last"), [("constant", 0.1, 0.1), ("polynomial_decay", 0.05, 0.0)])
def test_other_curves(name, half_way, last):
    rates = learning_rates(config(train__epochs=10, scheduler__name=name), 20)
    assert len(rates) == 200
    assert rates[0] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(half_way, rel=0.02)
    assert rates[-1] == pytest.approx(last, abs=1e-3)


def test_the_optimizers_hold_every_parameter_and_rate():
    for name, kind in (("momentum", nn.Momentum), ("adam", nn.Adam)):
        network = Block(4, 8, 2, Binarization())
        optimizer = create_optimizer(config(optimizer__name=name, train__epochs=2), network, 5)
        assert isinstance(optimizer, kind)
        assert {parameter.name for parameter in optimizer.parameters} == {
            parameter.name for parameter in network.trainable_params()
        }
        rates = optimizer.learning_rate.learning_rate.asnumpy()
        np.testing.assert_allclose(rates, learning_rates(config(train__epochs=2), 5), rtol=1e-6)
