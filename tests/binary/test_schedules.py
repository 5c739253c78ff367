"""Schedules as pure functions, and their tables inside a real training step."""

import gc
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from src.binary import Binarization, create_estimator, schedules
from src.training.step import TrainStep
from tests.helpers import oracles
from tests.helpers.kernels import modes_and_backends

INCOMING = np.array([1.0, -2.0, 0.5], np.float32)  # the gradient that each output channel receives


class OneProduct(nn.Cell):
    """A kernel as large as the image: the quantized weight's gradient is the incoming one times the image's signs."""

    def __init__(self, **options):
        super().__init__()
        self.conv = Binarization(**options).conv(2, 3, 3)

    def construct(self, x):
        return self.conv(x).reshape((x.shape[0], -1))


class Linear(nn.Cell):
    """A loss with the gradient `INCOMING`."""

    def __init__(self):
        super().__init__()
        self.incoming = Tensor(INCOMING)

    def construct(self, logits, labels):
        return (logits * self.incoming).sum()


@pytest.mark.parametrize(("setting", "start", "end"), [(1, 9, 9), (2, 1, 9), (3, 9, 18)])
def test_n_by_setting(setting, start, end):
    table = schedules.tabulate(schedules.number_of_terms(setting), 1000)
    assert (table[0], table[-1]) == (start, end)
    assert (table == np.round(table)).all()
    assert set(np.diff(table)) <= {0, 1}
    shares = np.bincount(table.astype(int))[start:]
    assert shares.min() >= shares.max() - 2, "every value holds for an equal share of training"


@pytest.mark.parametrize("steps", [2, 3, 7, 10, 391, 156000])
@pytest.mark.parametrize("n_s", [1, 9, 30])
def test_setting_3_ends_at_exactly_2_n_s(n_s, steps):
    table = schedules.tabulate(schedules.number_of_terms(3, n_s=n_s), steps)
    assert (table[0], table[-1]) == (n_s, 2 * n_s)
    assert table.max() == 2 * n_s
    assert table.shape == (steps,)
    assert table.dtype == np.float32


def test_setting_2_ends_at_n_p():
    assert schedules.tabulate(schedules.number_of_terms(2, n_p=20), 50)[-1] == 20


@pytest.mark.parametrize("name", schedules.ALPHA_SCHEDULES)
@pytest.mark.parametrize("steps", [2, 3, 391, 156000])
def test_alpha_falls_from_its_start_to_exactly_0(name, steps):
    table = schedules.tabulate(schedules.ALPHA_SCHEDULES[name](0.1), steps)
    assert table[0] == np.float32(0.1)
    assert table[-1] == 0
    assert (np.diff(table) <= 0).all()


def test_alpha_within_training():
    assert schedules.cosine(0.1)(0.25) == pytest.approx(0.1 * (2 + math.sqrt(2)) / 4)
    assert schedules.linear(0.1)(0.25) == pytest.approx(0.075)


def test_log_spaced_and_accelerate():
    np.testing.assert_allclose(schedules.tabulate(schedules.log_spaced(0.01, 10), 4), [0.01, 0.1, 1, 10], rtol=1e-6)
    curve = schedules.tabulate(schedules.accelerate(1, 3), 1001)
    assert (curve[0], curve[-1]) == (1, 3)
    assert (np.diff(curve) > 0).all() and (np.diff(curve, 2) > -1e-6).all()
    assert schedules.accelerate(1, 3)(2 / 3) == pytest.approx(2)


def test_a_single_step_is_the_end():
    assert schedules.tabulate(schedules.cosine(0.1), 1) == [0]
    assert schedules.tabulate(schedules.number_of_terms(), 1) == [18]


@pytest.mark.parametrize(("tables", "missing"), [({}, "n"), ({"alpha": [0.1]}, "n"), ({"n": [9]}, "alpha")])
def test_a_schedule_without_a_table_is_refused(tables, missing):
    network = OneProduct()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.0)
    tables = {name: np.array(values, np.float32) for name, values in tables.items()}
    with pytest.raises(ValueError, match=f"no schedule for '{missing}'"):
        schedules.attach(network, tables, optimizer.global_step)


def test_layers_without_scheduled_values_need_no_table():
    network = OneProduct(estimator="ste", noise_adaptation=False)
    assert schedules.attach(network, {}, nn.Momentum(network.trainable_params(), 0.1, 0.0).global_step) == {}


def test_attached_schedules_add_no_parameters():
    """Else the optimizer's step counter would be saved and loaded as the network's."""
    network = OneProduct()
    names = [parameter.name for parameter in network.get_parameters()]
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.0)
    schedules.attach(network, {"n": np.ones(1, np.float32), "alpha": np.ones(1, np.float32)}, optimizer.global_step)
    assert [parameter.name for parameter in network.get_parameters()] == names


@modes_and_backends
def test_the_gradient_of_a_training_step_follows_n(mode, backend):
    """Through the optimizer's own counter; beyond the table its last row holds; all steps share one compilation."""
    network = OneProduct(noise_adaptation=False, estimator_options={"omega": 0.3})
    optimizer = nn.Momentum(network.trainable_params(), 0.05, 0.0)
    table = schedules.tabulate(schedules.number_of_terms(3), 12)
    assert table[0] == 9
    assert table[-1] == 18
    schedules.attach(network, {"n": table}, optimizer.global_step)
    step = TrainStep(network, Linear(), optimizer).set_train()
    generator = np.random.default_rng(0)
    for number in range(15):
        x = generator.normal(size=(2, 2, 3, 3)).astype(np.float32)
        weight = network.conv.weight.asnumpy().copy()
        step(Tensor(x), Tensor(np.zeros(2, np.int32)))
        n = int(table[min(number, 11)])
        incoming = INCOMING[:, None, None, None] * oracles.sign(x).sum(0)
        expected = oracles.fourier(weight, n, 0.3) * incoming
        applied = optimizer.moments[0].asnumpy()  # with momentum 0 it is the step's gradient
        np.testing.assert_allclose(applied, expected, atol=1e-4 * oracles.peak(n, 0.3))
        np.testing.assert_allclose(network.conv.weight.asnumpy(), weight - 0.05 * applied, atol=1e-5)
    if mode == "graph":
        assert len(step.compile_cache) == 1


@pytest.mark.parametrize(
    ("estimator", "name", "value"),
    [
        ("ede", "T", lambda progress: 0.1 * 100**progress),
        ("rbnn", "T", lambda progress: 0.01 * 1000**progress),
        ("reste", "o", lambda progress: 3 - 2 * np.cos(np.pi / 2 * progress)),
    ],
)
@modes_and_backends
def test_the_gradient_of_a_training_step_follows_the_estimators_own_schedule(mode, backend, estimator, name, value):
    gc.collect()  # a network of an earlier test that is collected meanwhile makes MindSpore compile once more
    network = OneProduct(noise_adaptation=False, estimator=estimator)
    optimizer = nn.Momentum(network.trainable_params(), 0.05, 0.0)
    followed = schedules.attach(network, {}, optimizer.global_step, steps=6)
    assert list(followed) == [name]
    np.testing.assert_allclose(followed[name], [value(step / 5) for step in range(6)], rtol=1e-6)
    step = TrainStep(network, Linear(), optimizer).set_train()
    generator = np.random.default_rng(0)
    for number in range(8):
        x = generator.normal(size=(2, 2, 3, 3)).astype(np.float32)
        weight = network.conv.weight.asnumpy().copy()
        step(Tensor(x), Tensor(np.zeros(2, np.int32)))
        incoming = INCOMING[:, None, None, None] * oracles.sign(x).sum(0)
        expected = getattr(oracles, estimator)(weight, value(min(number, 5) / 5)) * incoming
        np.testing.assert_allclose(optimizer.moments[0].asnumpy(), expected, rtol=1e-4, atol=1e-4)
    if mode == "graph":
        assert len(step.compile_cache) == 1


def test_estimators_of_activations_and_weights_follow_schedules_of_their_own():
    network = OneProduct(noise_adaptation=False, estimator="ede", weight_estimator="rbnn")
    step = nn.Momentum(network.trainable_params(), 0.05, 0.0).global_step
    followed = schedules.attach(network, {}, step, steps=3)
    np.testing.assert_allclose(followed["T"], [0.1, 1, 10], rtol=1e-6)
    np.testing.assert_allclose(followed["T_2"], [0.01, np.sqrt(0.1), 10], rtol=1e-6)
    states = [q.estimator.state for q in (network.conv.activation_quantizer, network.conv.weight_quantizer)]
    np.testing.assert_allclose([state.table.asnumpy()[0] for state in states], [0.1, 0.01], rtol=1e-6)


def test_a_table_that_is_given_comes_before_the_estimators_own():
    network = OneProduct(noise_adaptation=False, estimator="ede")
    step = nn.Momentum(network.trainable_params(), 0.05, 0.0).global_step
    followed = schedules.attach(network, {"T": np.array([5, 6], np.float32)}, step, steps=2)
    np.testing.assert_array_equal(followed["T"], [5, 6])


def test_layers_share_one_table():
    """Tables are constants of the graph: one for each of 36 quantizers would be too many for a long training."""
    network = nn.CellList([OneProduct(noise_adaptation=False), OneProduct(noise_adaptation=False)])
    step = nn.Momentum(network.trainable_params(), 0.05, 0.0).global_step
    schedules.attach(network, {"n": np.array([9, 10], np.float32)}, step)
    tables = {id(cell.conv.weight_quantizer.estimator.state.table) for cell in network}
    assert len(tables) == 1


@modes_and_backends
def test_the_noise_of_a_training_step_follows_alpha(mode, backend):
    """The gradient of W2 is alpha relu(t W1)^T incoming: proportional to alpha, and exactly 0 in the last step."""
    network = OneProduct(estimator="ste", noise_in_forward=False)
    optimizer = nn.Momentum(network.trainable_params(), 0.0, 0.0)
    table = schedules.tabulate(schedules.cosine(0.1), 4)
    schedules.attach(network, {"alpha": table}, optimizer.global_step)
    step = TrainStep(network, Linear(), optimizer).set_train()
    position = [parameter.name for parameter in optimizer.parameters].index("conv.weight_quantizer.noise.adaptation.w2")
    x = Tensor(np.ones((1, 2, 3, 3), np.float32))
    gradients = []
    for _ in range(5):
        step(x, Tensor(np.zeros(1, np.int32)))
        gradients.append(optimizer.moments[position].asnumpy().copy())
    assert np.abs(gradients[0]).max() > 0
    w1 = network.conv.weight_quantizer.noise.adaptation.w1.asnumpy()
    hidden = np.maximum(network.conv.weight.asnumpy().reshape(3, 18) @ w1, 0)
    for alpha, gradient in zip([*table, 0.0], gradients, strict=True):
        np.testing.assert_allclose(gradient, alpha * hidden.T @ np.repeat(INCOMING[:, None], 18, 1), rtol=1e-4)
    np.testing.assert_array_equal(gradients[3], 0)
    np.testing.assert_array_equal(gradients[4], 0)


def test_without_a_table_the_options_value_holds(mode):
    estimator = create_estimator("fda", n=4)
    np.testing.assert_allclose(estimator.state().asnumpy(), 4)


def test_training_without_schedules_warns_once(recwarn):
    schedules._warn_of_constants.cache_clear()
    network = OneProduct(noise_adaptation=False)
    network.set_train(False)
    assert not [warning for warning in recwarn if "without schedules" in str(warning.message)]
    network.set_train(True)
    network.set_train(True)
    OneProduct().set_train(True)
    messages = [str(warning.message) for warning in recwarn if "without schedules" in str(warning.message)]
    assert len(messages) == 1
    assert f"{schedules.__name__}.attach" in messages[0]


def test_training_with_schedules_or_without_scheduled_values_does_not_warn(recwarn):
    schedules._warn_of_constants.cache_clear()
    OneProduct(estimator="ste", noise_adaptation=False).set_train(True)
    network = OneProduct(noise_adaptation=False)
    schedules.attach(network, {"n": np.array([9], np.float32)}, Parameter(Tensor([0], ms.int32)))
    network.set_train(True)
    assert not [warning for warning in recwarn if "without schedules" in str(warning.message)]
