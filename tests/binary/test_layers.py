"""Binary layers against the plain ones, and their making from names."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import (
    ActivationSign,
    Binarization,
    BinaryConv2d,
    DoReFaWeight,
    NoiseAdaptation,
    SharedSlopePReLU,
    create_estimator,
)
from src.binary.estimators import FourierApproximation
from tests import oracles

GEOMETRIES = pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 0)])


def random(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(weight: np.ndarray, stride: int, padding: int) -> nn.Conv2d:
    out_channels, in_channels, kernel_size, _ = weight.shape
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=padding, weight_init=Tensor(weight)
    )


def binary(*shape) -> BinaryConv2d:
    return BinaryConv2d(
        *shape,
        activation_quantizer=ActivationSign(create_estimator("fda")),
        weight_quantizer=DoReFaWeight(create_estimator("fda")),
    )


@GEOMETRIES
def test_binary_conv_is_the_plain_one_of_signs(mode, kernel_size, stride, padding):
    layer = binary(4, 6, kernel_size, stride, padding)
    x, w = random((2, 4, 7, 7)), layer.weight.asnumpy()
    signed, scaled = oracles.sign(x).astype(np.float32), (oracles.sign(w) * np.abs(w).mean()).astype(np.float32)
    got = layer(Tensor(x)).asnumpy()
    np.testing.assert_allclose(got, plain(scaled, stride, padding)(Tensor(signed)).asnumpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got, oracles.conv2d(signed, scaled, stride, padding), rtol=1e-5, atol=1e-5)


@GEOMETRIES
def test_without_quantizers_it_is_the_plain_conv(mode, kernel_size, stride, padding):
    layer = BinaryConv2d(4, 6, kernel_size, stride, padding)
    x = Tensor(random((2, 4, 7, 7)))
    expected = plain(layer.weight.asnumpy(), stride, padding)(x).asnumpy()
    np.testing.assert_array_equal(layer(x).asnumpy(), expected)


def test_each_quantizer_alone(mode):
    estimator = create_estimator("ste")
    x, w = random((2, 4, 5, 5)), random((6, 4, 3, 3), 1)
    for quantizers, x_used, w_used in (
        ((ActivationSign(estimator), None), oracles.sign(x), w),
        ((None, DoReFaWeight(estimator)), x, oracles.sign(w) * np.abs(w).mean()),
    ):
        layer = BinaryConv2d(4, 6, 3, 1, 1, *quantizers)
        layer.weight.set_data(Tensor(w))
        got = layer(Tensor(x)).asnumpy()
        np.testing.assert_allclose(got, oracles.conv2d(x_used, w_used, 1, 1), rtol=1e-4, atol=1e-4)


def test_gradients_of_a_binary_conv(mode):
    """A kernel as large as the image: every output is one product, so both gradients can be read off."""
    layer = binary(2, 3, 3)
    x, w = random((1, 2, 3, 3)), layer.weight.asnumpy()
    by_x, (by_w,) = ms.grad(layer, 0, [layer.weight])(Tensor(x))
    np.testing.assert_allclose(by_w.asnumpy(), oracles.fourier(w, 9) * oracles.sign(x), rtol=1e-4, atol=1e-5)
    incoming = (oracles.sign(w) * np.abs(w).mean()).sum(0, keepdims=True)
    np.testing.assert_allclose(by_x.asnumpy(), oracles.fourier(x, 9) * incoming, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: BinaryConv2d(64, 64, 3, weight_init=name),
        lambda name: Binarization(weight_init=name).conv(64, 64, 3),
    ],
    ids=["layer", "binarization"],
)
@pytest.mark.parametrize(
    ("name", "deviation", "largest"),
    [("uniform", 1 / np.sqrt(3 * 64 * 9), 1 / np.sqrt(64 * 9)), ("he_normal", np.sqrt(2 / (64 * 9)), np.inf)],
)
def test_latent_weights_start_as_named(make, name, deviation, largest):
    weight = make(name).weight.asnumpy()
    np.testing.assert_allclose(weight.std(), deviation, rtol=0.02)
    assert abs(weight.mean()) < 1e-3
    assert np.abs(weight).max() <= largest * (1 + 1e-6)


def test_latent_weights_start_uniform_unless_told():
    np.testing.assert_allclose(BinaryConv2d(64, 64, 3).weight.asnumpy().std(), 1 / np.sqrt(3 * 64 * 9), rtol=0.02)


def test_an_unknown_weight_init_is_refused():
    with pytest.raises(ValueError, match="unknown weight init 'he'.*allowed are he_normal, uniform"):
        BinaryConv2d(4, 6, 3, weight_init="he")


def test_shared_slope(mode):
    layer = SharedSlopePReLU()
    x, factor = random((2, 3, 4, 4)), 0.25
    assert layer.a.shape == (1,)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), np.where(x > 0, x, factor * x), rtol=1e-6)
    by_x, (by_a,) = ms.grad(layer, 0, [layer.a])(Tensor(x))
    np.testing.assert_allclose(by_x.asnumpy(), np.where(x > 0, 1, factor), rtol=1e-6)
    np.testing.assert_allclose(by_a.asnumpy(), [np.minimum(x, 0).sum()], rtol=1e-5)


def test_binarization_makes_quantizers_with_modules_of_their_own():
    options = {"omega": 0.5, "n": 4}
    layer = Binarization(estimator_options=options, noise_options={"eta": "none"}).conv(128, 16, 3)
    quantizers = (layer.activation_quantizer, layer.weight_quantizer)
    assert [type(quantizer) for quantizer in quantizers] == [ActivationSign, DoReFaWeight]
    assert all(isinstance(quantizer.estimator.surrogate, FourierApproximation) for quantizer in quantizers)
    assert quantizers[0].estimator is not quantizers[1].estimator
    noises = [quantizer.noise.adaptation for quantizer in quantizers]
    assert all(isinstance(noise, NoiseAdaptation) and noise.eta == "none" for noise in noises)
    assert [noise.w1.shape for noise in noises] == [(128, 2), (128 * 9, 18)]


def test_binarization_of_nothing_is_full_precision():
    layer = Binarization(estimator=None).conv(4, 6, 3)
    assert layer.activation_quantizer is None
    assert layer.weight_quantizer is None


def test_an_unknown_weight_quantizer_is_refused():
    with pytest.raises(ValueError, match="unknown weight quantizer 'dorfa'.*did you mean 'dorefa'.*allowed are dorefa"):
        Binarization(weight_quantizer="dorfa").conv(4, 6, 3)
