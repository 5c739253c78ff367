"""Activations by sign, weights by sign and scale: values, gradients, and what noise adds in training alone."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import ActivationSign, AnnealedNoise, DoReFaWeight, NoiseAdaptation, create_estimator
from tests import oracles

SHAPE = (3, 4, 2, 2)
scale_in_gradient_or_not = pytest.mark.parametrize("scale_in_gradient", [False, True])


class Weighted(nn.Cell):
    def __init__(self, quantizer: nn.Cell):
        super().__init__()
        self.quantizer = quantizer

    def construct(self, w, factor):
        return self.quantizer(w) * factor


def random(shape, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def linear_noise(dimension: int, alpha: float) -> AnnealedNoise:
    """alpha e(t) = alpha (relu(t W1) W2 + 0.1 t) with weights that count."""
    noise = AnnealedNoise(NoiseAdaptation(dimension, eta="linear"), alpha)
    noise.adaptation.w1.set_data(Tensor(random(noise.adaptation.w1.shape, 1)))
    noise.adaptation.w2.set_data(Tensor(random(noise.adaptation.w2.shape, 2)))
    return noise


def with_zeros(shape) -> np.ndarray:
    values = random(shape)
    values.flat[:3] = [0.0, -0.0, 0.0]
    return values


def test_precision_is_1_bit():
    assert ActivationSign(create_estimator("ste")).precision == 1
    assert DoReFaWeight(create_estimator("ste")).precision == 1


def test_activation_is_its_sign(mode):
    x = with_zeros(SHAPE)
    got = ActivationSign(create_estimator("fda"))(Tensor(x)).asnumpy()
    np.testing.assert_array_equal(got, oracles.sign(x))


def test_dorefa_weight_is_sign_times_mean(mode):
    w = with_zeros(SHAPE)
    got = DoReFaWeight(create_estimator("fda"))(Tensor(w)).asnumpy()
    np.testing.assert_array_equal(np.sign(got), oracles.sign(w))
    np.testing.assert_allclose(np.abs(got), np.abs(w.astype(np.float64)).mean(), rtol=1e-6)
    assert np.unique(np.abs(got)).size == 1


@scale_in_gradient_or_not
def test_dorefa_gradient_has_the_scale_only_on_demand(mode, scale_in_gradient):
    w, factor = random(SHAPE), random(SHAPE, 3)
    quantizer = DoReFaWeight(create_estimator("fda"), scale_in_gradient=scale_in_gradient)
    got = ms.grad(Weighted(quantizer))(Tensor(w), Tensor(factor)).asnumpy()
    scale = np.abs(w).mean() if scale_in_gradient else 1.0
    np.testing.assert_allclose(got, oracles.fourier(w, 9) * factor * scale, rtol=1e-4, atol=1e-6)


@scale_in_gradient_or_not
def test_dorefa_with_noise(mode, scale_in_gradient):
    """Forward (sign + alpha e) * scale; one rule for the gradients of the latent weight and of the noise module."""
    w, factor, alpha = random(SHAPE), random(SHAPE, 3), 0.5
    noise = linear_noise(16, alpha)
    w1, w2 = noise.adaptation.w1, noise.adaptation.w2
    cell = Weighted(DoReFaWeight(create_estimator("fda"), noise, scale_in_gradient)).set_train(True)
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


@pytest.mark.parametrize(("quantizer", "dimension"), [(ActivationSign, 4), (DoReFaWeight, 16)])
def test_noise_is_there_in_training_alone(mode, quantizer, dimension):
    x = Tensor(random(SHAPE))
    noisy = quantizer(create_estimator("fda"), linear_noise(dimension, 0.5))
    pure = quantizer(create_estimator("fda"))
    assert np.abs(noisy.set_train(True)(x).asnumpy() - pure(x).asnumpy()).max() > 1e-3
    np.testing.assert_array_equal(noisy.set_train(False)(x).asnumpy(), pure(x).asnumpy())
