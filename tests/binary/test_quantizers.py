"""Activations by sign, weights by sign and scale: values, gradients, and what noise adds in training."""

import itertools

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, nn, ops

from src.binary import AnnealedNoise, DoReFaWeight, LibraWeight, NoiseAdaptation, SignActivation, create_estimator
from src.binary.estimators import ESTIMATORS
from src.binary.layers import BinaryProduct
from src.binary.quantizers import WEIGHT_QUANTIZERS
from tests.helpers import oracles
from tests.helpers.networks import Weighted

pytestmark = pytest.mark.usefixtures("backend")

SHAPE = (3, 4, 2, 2)
scale_in_gradient_or_not = pytest.mark.parametrize("scale_in_gradient", [False, True])


class WeightedWeight(nn.Cell):
    """factor * Q(w) of a weight quantizer Q: a linear layer whose inputs pick one value of each filter."""

    def __init__(self, quantizer: nn.Cell):
        super().__init__()
        self.quantizer = quantizer
        self.product = BinaryProduct(ops.MatMul(transpose_b=True), True, quantizer.scale_in_gradient)

    def construct(self, w, factor):
        z, scale = self.quantizer(w)
        z = z.reshape(z.shape[0], -1)
        picked = self.product(ops.eye(z.shape[1], z.shape[1], z.dtype), z, scale)
        return ops.transpose(picked, (1, 0)).reshape(w.shape) * factor


def quantized(quantizer: nn.Cell, w: np.ndarray) -> np.ndarray:
    """The weight that a quantizer stands for, signs times scale."""
    z, scale = (value.asnumpy() for value in quantizer(Tensor(w)))
    assert scale.dtype == np.float32 and scale.shape in ((), w.shape[:1])
    return z * scale.reshape(scale.shape + (1,) * (w.ndim - 1) if scale.ndim else ())


def random(shape, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def linear_noise(dimension: int, alpha: float) -> AnnealedNoise:
    """alpha e(t) = alpha (relu(t W1) W2 + 0.1 t) with weights that count."""
    noise = AnnealedNoise(NoiseAdaptation(dimension, eta="linear"), alpha)
    noise.adaptation.w1.set_data(Tensor(random(noise.adaptation.w1.shape, 1)))
    noise.adaptation.w2.set_data(Tensor(random(noise.adaptation.w2.shape, 2)))
    return noise


def standardized(w: np.ndarray) -> np.ndarray:
    """Each filter less its mean, over its unbiased standard deviation."""
    filters = w.reshape(len(w), -1).astype(np.float64)
    return ((filters - filters.mean(1, keepdims=True)) / filters.std(1, ddof=1, keepdims=True)).reshape(w.shape)


def per_filter(function, w: np.ndarray) -> np.ndarray:
    """function of each filter's values, in a shape that multiplies w."""
    return np.array([function(row) for row in w.astype(np.float64)]).reshape(-1, *[1] * (w.ndim - 1))


# What each weight quantizer takes the sign of, its scale, and whether that scale multiplies the gradient.
DEFINITIONS = {
    "sign": (np.float64, lambda t: np.ones((1,) * t.ndim), False),
    "dorefa": (np.float64, lambda t: np.abs(t).mean(), False),
    "xnor": (np.float64, lambda t: per_filter(lambda row: np.abs(row).mean(), t), True),
    "libra": (
        standardized,
        lambda t: per_filter(lambda row: 2.0 ** np.round(np.log2(np.abs(row).mean())), t),
        True,
    ),
}
SHAPES = pytest.mark.parametrize("shape", [(3, 4, 2, 2), (5, 7)], ids=["convolution", "linear"])
GRADIENT_CASES = list(itertools.product([SHAPE, (5, 7)], [None, False, True]))
every_quantizer = pytest.mark.parametrize("name", sorted(WEIGHT_QUANTIZERS))


def quantize(name: str, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight quantizer in float64: the input of its sign, its scale, and the quantized weight."""
    standardize, scale, _ = DEFINITIONS[name]
    t = standardize(w)
    return t, scale(t), oracles.sign(t) * scale(t)


def through_standardization(w: np.ndarray, by_t: np.ndarray) -> np.ndarray:
    """The gradient of w from that of t = (w - mean) / std, by the Jacobian of each filter."""
    gradients = []
    for row, by_row, t in zip(w, by_t, standardized(w), strict=True):
        n, t = row.size, t.ravel()
        deviation = row.astype(np.float64).std(ddof=1)
        jacobian = (np.eye(n) - 1 / n - np.outer(t, t) / (n - 1)) / deviation  # of t_i by w_j
        gradients.append((by_row.ravel() @ jacobian).reshape(row.shape))
    return np.array(gradients)


def with_zeros(shape) -> np.ndarray:
    values = random(shape)
    values.flat[:3] = [0.0, -0.0, 0.0]
    return values


def test_precision_is_1_bit():
    assert SignActivation(create_estimator("ste")).precision == 1
    assert DoReFaWeight(create_estimator("ste")).precision == 1


def test_activation_is_its_sign(any_mode):
    x = with_zeros(SHAPE)
    got = SignActivation(create_estimator("fda"))(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(got, oracles.sign(x))


def test_dorefa_weight_is_sign_times_mean(any_mode):
    w = with_zeros(SHAPE)
    got = quantized(DoReFaWeight(create_estimator("fda")), w)
    np.testing.assert_array_equal(np.sign(got), oracles.sign(w))
    np.testing.assert_allclose(np.abs(got), np.abs(w.astype(np.float64)).mean(), rtol=1e-6)
    assert np.unique(np.abs(got)).size == 1


def test_every_quantizer_has_an_oracle():
    assert DEFINITIONS.keys() == WEIGHT_QUANTIZERS.keys()


@SHAPES
@every_quantizer
def test_weights_are_sign_times_scale(any_mode, name, shape):
    w = with_zeros(shape)
    quantizer = WEIGHT_QUANTIZERS[name](create_estimator("fda"))
    _, _, expected = quantize(name, w)
    np.testing.assert_allclose(quantized(quantizer, w), expected, rtol=1e-5)
    z, _ = quantizer(Tensor(w))
    assert z.dtype == ms.float32 and (np.abs(z.asnumpy()) == 1).all()


@pytest.mark.parametrize(
    ("mode", "shape", "forced"),
    [
        ("graph", SHAPE, None),
        *(pytest.param("graph", *case, marks=pytest.mark.slow) for case in GRADIENT_CASES[1:]),
        *(("pynative", *case) for case in GRADIENT_CASES),
    ],
    indirect=["mode"],
)
@every_quantizer
def test_gradient_of_the_latent_weight(mode, name, shape, forced):
    """The estimator's at what the sign was taken of; the scale multiplies it as the source does, unless told."""
    w, factor = random(shape), random(shape, 3)
    quantizer = WEIGHT_QUANTIZERS[name](create_estimator("fda"), scale_in_gradient=forced)
    got = ms.grad(WeightedWeight(quantizer))(Tensor(w), Tensor(factor)).asnumpy()
    t, scale, _ = quantize(name, w)
    scaled = DEFINITIONS[name][2] if forced is None else forced
    by_t = oracles.fourier(t, 9) * factor * (scale if scaled else 1.0)
    expected = through_standardization(w, by_t) if name == "libra" else by_t
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


@every_quantizer
def test_half_precision_weights_stay_finite(any_mode, name):
    for w in (with_zeros(SHAPE), np.full(SHAPE, 65504.0), np.zeros(SHAPE)):
        quantizer = WEIGHT_QUANTIZERS[name](create_estimator("clipped_ste"))
        half = Tensor(w.astype(np.float16))
        value, gradient = ms.value_and_grad(WeightedWeight(quantizer))(half, ops.ones_like(half))
        assert value.dtype == ms.float16
        assert np.isfinite(value.asnumpy()).all() and np.isfinite(gradient.asnumpy()).all()


@pytest.mark.parametrize("level", ["O2", "O3"])
@pytest.mark.parametrize("deviation", [0.03, 7e-4], ids=["fresh weights", "small weights"])
def test_libra_under_mixed_precision(any_mode, level, deviation):
    """The variance of small weights would vanish in float16. `ste` has no jump where t is rounded."""
    w, factor = random((3, 64, 3, 3)) * np.float32(deviation / 0.3), random((3, 64, 3, 3), 3)
    cell = WeightedWeight(LibraWeight(create_estimator("ste")))
    amp.auto_mixed_precision(cell, level)
    got = ms.grad(cell)(Tensor(w), Tensor(factor)).asnumpy()
    expected = through_standardization(w, factor * DEFINITIONS["libra"][1](standardized(w)))
    np.testing.assert_allclose(got, expected, atol=5e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_noise_works_with_every_estimator(any_mode, name):
    """The gradient of Eq. 14: the estimator's, plus alpha times the noise module's own."""
    x, factor, alpha = random((6, 16)), random((6, 16), 3), 0.5
    noise = linear_noise(16, alpha)
    w1, w2 = (weight.asnumpy().astype(np.float64) for weight in (noise.adaptation.w1, noise.adaptation.w2))
    pure = ms.grad(Weighted(SignActivation(create_estimator(name))))(Tensor(x), Tensor(factor)).asnumpy()
    noisy = Weighted(SignActivation(create_estimator(name), noise)).set_train(True)
    value, gradient = ms.value_and_grad(noisy)(Tensor(x), Tensor(factor))
    before = x.astype(np.float64) @ w1
    e = np.maximum(before, 0) @ w2 + 0.1 * x
    own = ((factor @ w2.T) * (before > 0)) @ w1.T + 0.1 * factor
    np.testing.assert_allclose(value.asnumpy(), (oracles.sign(x) + alpha * e) * factor, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient.asnumpy() - pure, alpha * own, rtol=1e-3, atol=1e-5)


def test_libra_of_a_constant_filter_has_finite_gradients(any_mode):
    w = np.full(SHAPE, 0.3, np.float32)
    cell = WeightedWeight(LibraWeight(create_estimator("fda")))
    value, gradient = ms.value_and_grad(cell)(Tensor(w), ops.ones(SHAPE))
    assert np.isfinite(value.asnumpy()).all() and np.isfinite(gradient.asnumpy()).all()


@scale_in_gradient_or_not
def test_dorefa_gradient_has_the_scale_only_on_demand(any_mode, scale_in_gradient):
    w, factor = random(SHAPE), random(SHAPE, 3)
    quantizer = DoReFaWeight(create_estimator("fda"), scale_in_gradient=scale_in_gradient)
    got = ms.grad(WeightedWeight(quantizer))(Tensor(w), Tensor(factor)).asnumpy()
    scale = np.abs(w).mean() if scale_in_gradient else 1.0
    np.testing.assert_allclose(got, oracles.fourier(w, 9) * factor * scale, rtol=1e-4, atol=1e-6)


@scale_in_gradient_or_not
def test_dorefa_with_noise(mode, scale_in_gradient):
    """Forward (sign + alpha e) * scale; one rule for the gradients of the latent weight and of the noise module."""
    w, factor, alpha = random(SHAPE), random(SHAPE, 3), 0.5
    noise = linear_noise(16, alpha)
    w1, w2 = noise.adaptation.w1, noise.adaptation.w2
    cell = WeightedWeight(DoReFaWeight(create_estimator("fda"), noise, scale_in_gradient)).set_train(True)
    value, (by_w, (by_w1, by_w2)) = ms.value_and_grad(cell, 0, [w1, w2])(Tensor(w), Tensor(factor))

    filters, incoming = w.reshape(3, 16).astype(np.float64), factor.reshape(3, 16).astype(np.float64)
    w1, w2 = w1.asnumpy().astype(np.float64), w2.asnumpy().astype(np.float64)
    hidden, scale = np.maximum(filters @ w1, 0), np.abs(w).mean()
    z = oracles.sign(filters) + alpha * (hidden @ w2 + 0.1 * filters)
    np.testing.assert_allclose(value.asnumpy().reshape(3, 16), z * scale * incoming, rtol=1e-4, atol=1e-6)
    if scale_in_gradient:
        incoming = incoming * scale
    to_hidden = (incoming @ w2.T) * (filters @ w1 > 0)
    expected = oracles.fourier(filters, 9) * incoming + alpha * (to_hidden @ w1.T + 0.1 * incoming)
    np.testing.assert_allclose(by_w.asnumpy().reshape(3, 16), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_w1.asnumpy(), alpha * filters.T @ to_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_w2.asnumpy(), alpha * hidden.T @ incoming, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "dimension"),
    [(SignActivation, 4), *((WEIGHT_QUANTIZERS[name], 16) for name in sorted(WEIGHT_QUANTIZERS))],
)
def test_noise_is_there_only_in_training(mode, quantizer, dimension):
    x = Tensor(random(SHAPE))
    noisy = quantizer(create_estimator("fda"), linear_noise(dimension, 0.5))
    pure = quantizer(create_estimator("fda"))

    def output(cell: nn.Cell) -> np.ndarray:
        found = cell(x)
        return (found if quantizer is SignActivation else found[0]).asnumpy()

    assert np.abs(output(noisy.set_train(True)) - output(pure)).max() > 1e-3
    np.testing.assert_array_equal(output(noisy.set_train(False)), output(pure))
