"""Binary layers against the plain ones, and their making from names."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, amp, nn

from src.binary import (
    Binarization,
    BinaryConv2d,
    BinaryDense,
    DoReFaWeight,
    LibraWeight,
    NoiseAdaptation,
    SharedSlopePReLU,
    SignActivation,
    SlopeThenNorm,
    create_estimator,
)
from src.binary.estimators import ApproxSign, ClippedStraightThrough, FourierApproximation
from src.binary.quantizers import WEIGHT_QUANTIZERS
from tests.helpers import oracles
from tests.helpers.float64_resnet20 import conv2d_gradients
from tests.helpers.networks import Weighted

pytestmark = pytest.mark.usefixtures("backend")
GEOMETRIES = pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 1, 0)])


def random(shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain(weight: np.ndarray, stride: int, padding: int) -> nn.Conv2d:
    out_channels, in_channels, kernel_size, _ = weight.shape
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, pad_mode="pad", padding=padding, weight_init=Tensor(weight)
    )


def binary(*shape, **options) -> BinaryConv2d:
    return BinaryConv2d(
        *shape,
        **options,
        activation_quantizer=SignActivation(create_estimator("fda")),
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
def test_without_quantizers_it_is_the_plain_conv(any_mode, kernel_size, stride, padding):
    layer = BinaryConv2d(4, 6, kernel_size, stride, padding)
    x = Tensor(random((2, 4, 7, 7)))
    expected = plain(layer.weight.asnumpy(), stride, padding)(x).asnumpy()
    np.testing.assert_allclose(layer(x).asnumpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quantized", [False, True], ids=["full precision", "binary"])
def test_groups_are_convolutions_of_their_own(any_mode, quantized):
    layer = binary(4, 6, 3, 1, 1, groups=2) if quantized else BinaryConv2d(4, 6, 3, 1, 1, groups=2)
    assert layer.weight.shape == (6, 2, 3, 3)
    x, w = random((2, 4, 5, 5)), layer.weight.asnumpy()
    got = layer(Tensor(x)).asnumpy()
    if quantized:
        x, w = oracles.sign(x), oracles.sign(w) * np.abs(w).mean()
    halves = [oracles.conv2d(x[:, 2 * g : 2 * g + 2], w[3 * g : 3 * g + 3], 1, 1) for g in range(2)]
    np.testing.assert_allclose(got, np.concatenate(halves, axis=1), rtol=1e-4, atol=1e-4)


def test_a_binary_linear_layer_is_the_product_of_signs(mode):
    layer = Binarization(noise_adaptation=False).dense(7, 5)
    assert isinstance(layer, BinaryDense)
    x, w = random((3, 7)), layer.weight.asnumpy()
    expected = oracles.sign(x) @ (oracles.sign(w) * np.abs(w).mean()).T
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=1e-5, atol=1e-6)
    by_x, (by_w,) = ms.grad(layer, 0, [layer.weight])(Tensor(x))
    incoming = np.ones((3, 5))
    scaled = oracles.sign(w) * np.abs(w).mean()
    np.testing.assert_allclose(by_x.asnumpy(), oracles.fourier(x, 9) * (incoming @ scaled), rtol=1e-4, atol=1e-5)
    by_quantized = incoming.T @ oracles.sign(x)
    np.testing.assert_allclose(by_w.asnumpy(), oracles.fourier(w, 9) * by_quantized, rtol=1e-4, atol=1e-5)


def test_a_linear_layer_without_quantizers_is_the_plain_one(any_mode):
    layer = Binarization(estimator=None).dense(7, 5)
    x = random((3, 7))
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), x @ layer.weight.asnumpy().T, rtol=1e-5, atol=1e-6)


def test_noise_of_a_linear_layer_acts_on_rows(mode):
    """d is the length of a row of the input, and of a filter of the weight."""
    layer = Binarization().dense(128, 5)
    shapes = [quantizer.noise.adaptation.w1.shape for quantizer in (layer.activation_quantizer, layer.weight_quantizer)]
    assert shapes == [(128, 2), (128, 2)]
    x = Tensor(random((3, 128)))
    assert np.abs(layer.set_train(True)(x).asnumpy() - layer.set_train(False)(x).asnumpy()).max() > 1e-4


def test_noise_of_a_grouped_convolution_has_the_groups_filters():
    layer = Binarization().conv(128, 64, 3, groups=2)
    noises = [quantizer.noise.adaptation for quantizer in (layer.activation_quantizer, layer.weight_quantizer)]
    assert [noise.w1.shape[0] for noise in noises] == [128, 64 * 9]


def test_weights_may_have_an_estimator_of_their_own():
    shared = Binarization(estimator="approx_sign").conv(4, 6, 3)
    assert isinstance(shared.weight_quantizer.estimator.surrogate, ApproxSign)
    own = Binarization(
        estimator="approx_sign",
        weight_estimator="fda",
        weight_estimator_options={"omega": 0.5},
        weight_quantizer="libra",
    ).conv(4, 6, 3)
    assert isinstance(own.activation_quantizer.estimator.surrogate, ApproxSign)
    assert isinstance(own.weight_quantizer, LibraWeight)
    surrogate = own.weight_quantizer.estimator.surrogate
    assert isinstance(surrogate, FourierApproximation)
    assert surrogate.constants[-1] == pytest.approx(2 * 0.5 / np.pi)


def test_options_of_the_activations_estimator_are_not_the_weights():
    layer = Binarization(estimator_options={"omega": 0.5}, weight_estimator="clipped_ste").conv(4, 6, 3)
    assert isinstance(layer.weight_quantizer.estimator.surrogate, ClippedStraightThrough)


def test_each_quantizer_without_the_other(any_mode):
    estimator = create_estimator("ste")
    x, w = random((2, 4, 5, 5)), random((6, 4, 3, 3), 1)
    for quantizers, x_used, w_used in (
        ((SignActivation(estimator), None), oracles.sign(x), w),
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


def test_shared_slope(mode):
    layer = SharedSlopePReLU()
    x, factor = random((2, 3, 4, 4)), 0.25
    assert layer.a.shape == (1,)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), np.where(x > 0, x, factor * x), rtol=1e-6)
    by_x, (by_a,) = ms.grad(layer, 0, [layer.a])(Tensor(x))
    np.testing.assert_allclose(by_x.asnumpy(), np.where(x > 0, 1, factor), rtol=1e-6)
    np.testing.assert_allclose(by_a.asnumpy(), [np.minimum(x, 0).sum()], rtol=1e-5)


EPS = 1e-3


class Block(nn.Cell):
    """The end of a block: a slope, a norm and the cell that applies both."""

    def __init__(self, norm: nn.Cell):
        super().__init__()
        self.slope, self.norm, self.both = SharedSlopePReLU(), norm, SlopeThenNorm(EPS)

    def construct(self, x):
        return self.both(x, self.slope, self.norm)


def assert_same_results(one: nn.Cell, other: nn.Cell, x: np.ndarray) -> None:
    """In training and evaluation: outputs, gradients and what has become of the parameters."""
    draws = np.random.default_rng(1)
    for own, others in zip(one.get_parameters(), other.get_parameters(), strict=True):
        value = draws.uniform(0.5, 1.5, own.shape).astype(np.float32)
        own.set_data(Tensor(value))
        others.set_data(Tensor(value))  # one tensor would be one memory
    results = []
    for cell in (one, other):
        gradient = ms.grad(Weighted(cell.set_train()), 0, cell.trainable_params())
        by_x, by_parameters = gradient(Tensor(x), Tensor(random(x.shape, 2).astype(x.dtype)))
        trained = cell(Tensor(x))
        statistics = list(cell.get_parameters())
        evaluated = cell.set_train(False)(Tensor(x))
        gradient = ms.grad(Weighted(cell).set_train(False), 0, cell.trainable_params())
        by_x_then, by_parameters_then = gradient(Tensor(x), Tensor(random(x.shape, 2).astype(x.dtype)))
        results.append([trained, by_x, *by_parameters, *statistics, evaluated, by_x_then, *by_parameters_then])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        got, expected = got.asnumpy(), expected.asnumpy()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 16, 8, 8), (1, 1, 1, 2), (2, 2, 40, 40), (3, 130, 3, 5)])
def test_slope_then_norm_is_the_two_layers(any_mode, shape):
    x = 2 * random(shape) + 0.5
    x.flat[0] = 0
    norms = [nn.BatchNorm2d(shape[1], eps=EPS, momentum=0.8) for _ in range(2)]
    assert_same_results(Block(norms[0]), nn.SequentialCell(SharedSlopePReLU(), norms[1]), x)


def test_slope_then_norm_cancels_nothing(mode):
    """The mean is a thousand times the spread."""
    x = 1000 + random((4, 2, 8, 8))
    norm = nn.BatchNorm2d(2, eps=EPS, momentum=0.0)
    Block(norm).set_train()(Tensor(x))
    np.testing.assert_allclose(norm.moving_mean.asnumpy(), x.mean((0, 2, 3), np.float64), rtol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.asnumpy(), x.var((0, 2, 3), np.float64, ddof=1), rtol=1e-3)


def test_slope_then_norm_of_other_cells_and_types_calls_them(mode):
    x = random((2, 3, 4, 4))
    for make in (lambda: nn.SequentialCell(nn.BatchNorm2d(3)), lambda: nn.GroupNorm(1, 3)):
        ms.set_seed(0)
        assert_same_results(Block(make()), nn.SequentialCell(SharedSlopePReLU(), make()), x)
    half = Block(nn.BatchNorm2d(3, eps=EPS)).to_float(ms.float16)
    assert half(Tensor(x)).shape == x.shape


@pytest.mark.parametrize(
    "options",
    [{"eps": 0.1}, {"eps": EPS, "use_batch_statistics": True}, {"eps": EPS, "use_batch_statistics": False}],
    ids=["eps", "batch statistics", "moving statistics"],
)
def test_slope_then_norm_heeds_the_options_of_the_norm(any_mode, options):
    x = 2 * random((2, 3, 4, 4)) + 0.5
    norms = [nn.BatchNorm2d(3, **options) for _ in range(2)]
    assert_same_results(Block(norms[0]), nn.SequentialCell(SharedSlopePReLU(), norms[1]), x)


def test_the_kernel_of_slope_then_norm_is_for_one_kind_of_norm():
    slope, norm, both = SharedSlopePReLU(), nn.BatchNorm2d(3, eps=EPS), SlopeThenNorm(EPS)
    x = Tensor(random((2, 3, 4, 4)))
    assert both.fits(x, slope, norm)
    assert not both.fits(x.astype(ms.float16), slope, norm) and not both.fits(x, nn.PReLU(), norm)
    options = {"eps": EPS, "use_batch_statistics": True}
    for other in (nn.GroupNorm(1, 3, eps=EPS), nn.BatchNorm2d(3), nn.BatchNorm2d(3, **options)):
        assert not both.fits(x, slope, other)
    norm.format = "NHWC"  # a norm of this format can only be created on GPU
    assert not both.fits(x, slope, norm)


def test_slope_then_norm_with_a_norm_that_is_not_trained(mode):
    """The norm's own flag decides which statistics are used, as where the norms of a network are frozen."""
    block = Block(nn.BatchNorm2d(3, eps=EPS)).set_train()
    block.norm.set_train(False)
    x = random((2, 3, 4, 4))
    expected = np.where(x > 0, x, 0.25 * x) / np.sqrt(1 + EPS)
    np.testing.assert_allclose(block(Tensor(x)).asnumpy(), expected, rtol=1e-5)
    np.testing.assert_array_equal(block.norm.moving_mean.asnumpy(), 0)


def test_binarization_makes_quantizers_with_modules_of_their_own():
    options = {"omega": 0.5, "n": 4}
    layer = Binarization(estimator_options=options, noise_options={"eta": "none"}).conv(128, 16, 3)
    quantizers = (layer.activation_quantizer, layer.weight_quantizer)
    assert [type(quantizer) for quantizer in quantizers] == [SignActivation, DoReFaWeight]
    assert all(isinstance(quantizer.estimator.surrogate, FourierApproximation) for quantizer in quantizers)
    assert quantizers[0].estimator is not quantizers[1].estimator
    noises = [quantizer.noise.adaptation for quantizer in quantizers]
    assert all(isinstance(noise, NoiseAdaptation) and noise.eta == "none" for noise in noises)
    assert [noise.w1.shape for noise in noises] == [(128, 2), (128 * 9, 18)]


def test_binarization_of_nothing_is_full_precision():
    layer = Binarization(estimator=None).conv(4, 6, 3)
    assert layer.activation_quantizer is None
    assert layer.weight_quantizer is None


def test_repr_shows_sizes_estimators_and_quantizers():
    conv = Binarization(weight_estimator="ede", weight_quantizer="xnor").conv(4, 6, 3, stride=2, padding=1, groups=2)
    expected = (
        "4, 6, kernel_size=3, stride=2, padding=1, groups=2, input: sign by fda with noise, "
        "weight: xnor by ede with noise"
    )
    assert expected in repr(conv)
    assert "7, 5, input: full precision, weight: full precision" in repr(Binarization.full_precision().dense(7, 5))


ZERO_FILTER = 1
KINDS = {
    "convolution": lambda binarization: binarization.conv(4, 6, 3, 2, 1),
    "groups": lambda binarization: binarization.conv(4, 6, 3, 1, 1, groups=2),
    "linear": lambda binarization: binarization.dense(8, 6),
}


def products_and_gradients(layer, x, z, by_y) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In float64: the layer's operation of x and z, and for an incoming gradient those of x and z."""
    if isinstance(layer, BinaryDense):
        return x @ z.T, by_y @ z, by_y.T @ x
    geometry = layer.stride[0], layer.padding[0]
    x_parts, z_parts, by_parts = (
        np.split(x, layer.groups, 1),
        np.split(z, layer.groups),
        np.split(by_y, layer.groups, 1),
    )
    y = [oracles.conv2d(*part, *geometry) for part in zip(x_parts, z_parts, strict=True)]
    by_x, by_z = zip(
        *(conv2d_gradients(*part, *geometry) for part in zip(x_parts, z_parts, by_parts, strict=True)), strict=True
    )
    return np.concatenate(y, 1), np.concatenate(by_x, 1), np.concatenate(by_z)


def through_quantizer(quantizer, t: np.ndarray, by_z: np.ndarray) -> np.ndarray:
    """The gradient of t from that of z = sign(t) + alpha e(t), in float64. That of sign is passed on as it is."""
    if quantizer.noise is None:
        return by_z
    w1, w2 = (matrix.asnumpy().astype(np.float64) for matrix in quantizer.noise.adaptation.get_parameters())
    return by_z + quantizer.noise.alpha().asnumpy() * oracles.noise_gradients(t, w1, w2, "sine", by_z)[0]


@pytest.mark.parametrize(
    ("kind", "noise"),
    [
        *((kind, noise) for kind in KINDS for noise in (None, "forward")),
        ("convolution", "backward"),
        pytest.param("groups", "backward", marks=pytest.mark.slow),
        pytest.param("linear", "backward", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("scale_in_gradient", [False, True])
@pytest.mark.parametrize("quantizer", sorted(WEIGHT_QUANTIZERS))
def test_the_scale_is_applied_to_the_sums_and_to_the_gradients_by_the_rule(
    any_mode, kind, quantizer, scale_in_gradient, noise
):
    """x gets the scaled gradient; z the scaled one or, if the scale is not in the gradient, the incoming one as it is.
    One filter is all zero: its scale may be 0, by which nothing may be divided. The noise may be in forward and
    backward (Eq. 14) or only in the backward (Algorithm 1)."""
    options = {"weight_quantizer": quantizer, "scale_in_gradient": scale_in_gradient}
    options |= {"noise_adaptation": noise is not None, "noise_in_forward": noise != "backward"}
    layer = KINDS[kind](Binarization("ste", **options)).set_train()
    latent = random(layer.weight.shape, 1)
    latent[ZERO_FILTER] = 0
    layer.weight.set_data(Tensor(latent))
    x = random((2, 8) if kind == "linear" else (2, 4, 5, 5))
    z, scale = (value.asnumpy().astype(np.float64) for value in layer.signs_and_scale())
    seen = layer.activation_quantizer(Tensor(x)).asnumpy().astype(np.float64)
    y, _, _ = products_and_gradients(layer, seen, z, np.zeros(layer(Tensor(x)).shape))
    by_y = random(y.shape, 2)
    for quantized in (seen, z):
        assert (noise == "forward") == bool((np.abs(quantized) != 1).any())
    assert quantizer != "xnor" or scale[ZERO_FILTER] == 0

    _, by_x, by_z = products_and_gradients(layer, seen, z, by_y * scale)
    if not scale_in_gradient:
        _, _, by_z = products_and_gradients(layer, seen, z, by_y.astype(np.float64))
    single = [Tensor(value.astype(np.float32)) for value in (seen, z, scale)]
    incoming = Tensor(by_y)

    def of_product(x, z, scale):  # graph mode takes no lambda here
        return (layer.product(x, z, scale) * incoming).sum()

    value, gradients = ms.value_and_grad(of_product, (0, 1, 2))(*single)
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), y * scale, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(value.asnumpy(), (y * scale * by_y).sum(), rtol=1e-3, atol=1e-3)
    for gradient, expected in zip(gradients, (by_x, by_z, np.zeros(scale.shape)), strict=True):
        np.testing.assert_allclose(gradient.asnumpy(), expected, rtol=1e-4, atol=1e-4)
    if quantizer in ("sign", "dorefa", "xnor"):  # the others standardize the latent weight first

        def of_layer(t):
            return (layer(t) * incoming).sum()

        got = ms.grad(of_layer, 0, [layer.weight])(Tensor(x))
        filters = through_quantizer(layer.weight_quantizer, *(array.reshape(len(z), -1) for array in (latent, by_z)))
        np.testing.assert_allclose(got[1][0].asnumpy(), filters.reshape(z.shape), rtol=1e-4, atol=1e-4)
        expected = through_quantizer(layer.activation_quantizer, x, by_x)
        np.testing.assert_allclose(got[0].asnumpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["O0", "O2", "O3"])
def test_sums_of_signs_are_exact(any_mode, level):
    """Up to 2,048 in float16 too; the scale is applied in float32."""
    layer = Binarization(noise_adaptation=False).conv(16, 6, 3, padding=1)
    cell = nn.SequentialCell(layer)
    amp.auto_mixed_precision(cell, level)
    x, w = random((2, 16, 5, 5)), layer.weight.asnumpy()
    dtype = ms.float32 if level == "O0" else ms.float16
    got = cell(Tensor(x, dtype))
    sums = oracles.conv2d(oracles.sign(x.astype(got.asnumpy().dtype)), oracles.sign(w), 1, 1)
    assert (sums == 0).mean() > 0.01
    expected = (sums.astype(np.float32) * np.abs(w).mean()).astype(got.asnumpy().dtype)
    np.testing.assert_array_equal(got.asnumpy() == 0, sums == 0)
    np.testing.assert_allclose(got.asnumpy(), expected, rtol=1e-6 if level == "O0" else 1e-3)


@pytest.mark.parametrize("level", ["O2", "O3"])
def test_longer_sums_of_signs_are_rounded_to_float16_once(any_mode, level):
    """float16 has only every second integer between 2,048 and 4,096. Sums added up in float16 would stay at 2,048."""
    channels, negative = 4095, np.array([0, 1, 512, 1023, 1024, 2047, 4095])
    layer = Binarization(weight_quantizer="sign", noise_adaptation=False).dense(channels, len(negative))
    layer.weight.set_data(Tensor(np.where(np.arange(channels) < negative[:, None], -1, 1), ms.float32))
    cell = nn.SequentialCell(layer)
    amp.auto_mixed_precision(cell, level)
    got = cell(Tensor(np.ones((1, channels)), ms.float16))
    assert got.dtype == ms.float16 and np.isfinite(got.asnumpy()).all()
    np.testing.assert_allclose(got.asnumpy()[0].astype(np.float64), channels - 2 * negative, rtol=2**-11)
