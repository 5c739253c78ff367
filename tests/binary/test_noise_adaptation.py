"""e(t), what Eq. 14 makes of it forward and backward, and its life in a network."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import AnnealedNoise, Binarization, NoiseAdaptation, create_estimator
from src.training.step import TrainStep
from tests.helpers import oracles

pytestmark = pytest.mark.usefixtures("backend")

SHAPES = {"weights": (5, 130), "activations": (2, 130, 3, 4)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_eta = pytest.mark.parametrize("eta", sorted(oracles.ETAS))


class WithNoise(nn.Cell):
    """z = sign(t) + alpha e(t), times a factor that makes the incoming gradient its own at each element."""

    def __init__(self, noise: AnnealedNoise):
        super().__init__()
        self.estimator = create_estimator("fda")
        self.noise = noise

    def construct(self, t, factor):
        return self.noise(self.estimator(t), t) * factor


class OneLayer(nn.Cell):
    def __init__(self, binarization: Binarization):
        super().__init__()
        self.conv = binarization.conv(4, 3, 3, padding=1)

    def construct(self, x):
        return self.conv(x).mean((2, 3))


def random(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def adaptation(dimension: int, eta: str = "sine") -> NoiseAdaptation:
    """A module with weights far from 0, so that both layers matter."""
    made = NoiseAdaptation(dimension, eta)
    made.w1.set_data(Tensor(random(made.w1.shape, 1)))
    made.w2.set_data(Tensor(random(made.w2.shape, 2)))
    return made


@every_eta
@every_shape
def test_forward_against_numpy(any_mode, shape, eta):
    module, t = adaptation(130, eta), random(shape)
    expected = oracles.noise(t, module.w1.asnumpy(), module.w2.asnumpy(), eta)
    np.testing.assert_allclose(module(Tensor(t)).asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dimension", "reduction", "hidden"),
    [(16, 64, 1), (63, 64, 1), (64, 64, 1), (127, 64, 1), (128, 64, 2), (576, 64, 9), (16, 4, 4), (1, 1, 1)],
)
def test_hidden_width_is_never_0(dimension, reduction, hidden):
    module = NoiseAdaptation(dimension, reduction=reduction)
    assert module.w1.shape == (dimension, hidden)
    assert module.w2.shape == (hidden, dimension)


def test_weights_start_around_0():
    module = NoiseAdaptation(6400)
    for weight in (module.w1.asnumpy(), module.w2.asnumpy()):
        assert abs(weight.mean()) < 1e-4
        assert 0.009 < weight.std() < 0.011


@pytest.mark.parametrize("in_forward", [True, False], ids=["eq14", "algorithm1"])
@every_shape
def test_gradient_of_eq_14(mode, shape, in_forward):
    alpha, t, factor = 0.3, random(shape), random(shape, 3)
    cell = WithNoise(AnnealedNoise(adaptation(130), alpha, in_forward))
    module = cell.noise.adaptation
    w1, w2 = module.w1.asnumpy().astype(np.float64), module.w2.asnumpy().astype(np.float64)
    z, (by_t, (by_w1, by_w2)) = ms.value_and_grad(cell, 0, [module.w1, module.w2])(Tensor(t), Tensor(factor))

    expected = oracles.sign(t) + alpha * oracles.noise(t, w1, w2, "sine") if in_forward else oracles.sign(t)
    np.testing.assert_allclose(z.asnumpy(), expected * factor, rtol=1e-4, atol=1e-4)
    own_t, own_w1, own_w2 = oracles.noise_gradients(t, w1, w2, "sine", factor)
    np.testing.assert_allclose(by_t.asnumpy(), oracles.fourier(t, 9) * factor + alpha * own_t, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_w1.asnumpy(), alpha * own_w1, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(by_w2.asnumpy(), alpha * own_w2, rtol=1e-4, atol=1e-3)


def test_forward_of_algorithm_1_is_exactly_the_sign(any_mode):
    t = random((2, 130, 3, 4))
    cell = WithNoise(AnnealedNoise(adaptation(130), 0.1, in_forward=False))
    np.testing.assert_array_equal(cell(Tensor(t), Tensor(np.ones_like(t))).asnumpy(), oracles.sign(t))


def test_alpha_0_leaves_exactly_the_sign(any_mode):
    t = random((5, 130))
    cell = WithNoise(AnnealedNoise(adaptation(130), 0.0))
    np.testing.assert_array_equal(cell(Tensor(t), Tensor(np.ones_like(t))).asnumpy(), oracles.sign(t))


@pytest.mark.parametrize("in_forward", [True, False], ids=["eq14", "algorithm1"])
def test_a_training_step_changes_every_noise_parameter(mode, in_forward):
    network = OneLayer(Binarization(noise_in_forward=in_forward))
    trained = {parameter.name: parameter for parameter in network.trainable_params() if ".noise." in parameter.name}
    assert len(trained) == 4
    before = {name: parameter.asnumpy().copy() for name, parameter in trained.items()}
    step = TrainStep(network, nn.CrossEntropyLoss(), nn.Momentum(network.trainable_params(), 0.1, 0.9)).set_train()
    step(Tensor(random((2, 4, 5, 5))), Tensor(np.array([0, 2], np.int32)))
    for name, parameter in trained.items():
        assert (parameter.asnumpy() != before[name]).any(), name


def test_noise_has_no_effect_in_evaluation(mode):
    network, bare = OneLayer(Binarization()), OneLayer(Binarization(noise_adaptation=False))
    bare.conv.weight.set_data(network.conv.weight)
    for parameter in network.trainable_params():
        if ".noise." in parameter.name:
            parameter.set_data(Tensor(100 * random(parameter.shape)))
    x = Tensor(random((2, 4, 5, 5)))
    network.set_train(True)
    in_training = network(x).asnumpy()
    network.set_train(False)
    np.testing.assert_array_equal(network(x).asnumpy(), bare(x).asnumpy())
    assert np.abs(in_training - bare(x).asnumpy()).max() > 1


@pytest.mark.parametrize(
    ("init", "deviations"),
    [
        ("normal", (0.01, 0.01)),
        ("uniform", (1 / np.sqrt(3 * 1024), 1 / np.sqrt(3 * 16))),  # U(-b, b) has b/sqrt(3); b = 1/sqrt(fan in)
    ],
)
def test_how_the_matrices_start(init, deviations):
    module = NoiseAdaptation(1024, init=init)
    for matrix, deviation in zip((module.w1, module.w2), deviations, strict=True):
        array = matrix.asnumpy()
        np.testing.assert_allclose(array.std(), deviation, rtol=0.03)
        assert abs(array.mean()) < 3 * deviation / np.sqrt(array.size)
        if init == "uniform":
            assert np.abs(array).max() <= deviation * np.sqrt(3)


def test_the_start_of_the_matrices_is_an_option_of_binarization():
    layer = Binarization(noise_options={"init": "uniform"}).dense(128, 4)
    assert layer.weight_quantizer.noise.adaptation.w1.asnumpy().std() > 0.03
