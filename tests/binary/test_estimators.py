"""What every sign with a surrogate gradient must do, and the gradient of each."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import create_estimator
from src.binary.estimators import ESTIMATORS
from tests import oracles

SMALLEST = np.finfo(np.float32).smallest_subnormal
EVERY_KIND = np.array(
    [
        0.0,
        -0.0,
        1.5,
        -1.5,
        1.0,
        -1.0,
        1e-38,
        -1e-38,
        SMALLEST,
        -SMALLEST,
        1e-40,
        -1e-40,
        3e38,
        -3e38,
        np.inf,
        -np.inf,
        np.nan,
        -np.nan,
    ],
    np.float32,
)
SURROGATES = {
    "fda": lambda t: oracles.fourier(t, 9, 0.1),
    "ste": np.ones_like,
    "clipped_ste": lambda t: (np.abs(t) <= 1).astype(np.float64),
}
every_estimator = pytest.mark.parametrize("name", sorted(ESTIMATORS))
every_dtype = pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=["float16", "bfloat16"])


class Weighted(nn.Cell):
    """Its gradient is the estimator's times `factor`: a gradient that arrives with values of its own."""

    def __init__(self, estimator: nn.Cell):
        super().__init__()
        self.estimator = estimator

    def construct(self, t, factor):
        return self.estimator(t) * factor


def points() -> np.ndarray:
    """Zeros, the bounds and their neighbours, subnormals, and both lobes of the Fourier gradient."""
    bounds = np.array([1.0, -1.0], np.float32)
    edges = [bounds, np.nextafter(bounds, 0), np.nextafter(bounds, bounds * 2), EVERY_KIND[:12]]
    return np.concatenate([*edges, np.linspace(-40, 40, 801)]).astype(np.float32)


def gradient(estimator: nn.Cell, t: np.ndarray) -> np.ndarray:
    return ms.grad(estimator)(Tensor(t)).asnumpy()


def number_of_bits(dtype) -> int:
    """Of the significand, the leading one included."""
    return {ms.float16: 11, ms.bfloat16: 8}[dtype]


@every_estimator
def test_forward_is_plus_or_minus_one_everywhere(mode, name):
    got = create_estimator(name)(Tensor(EVERY_KIND)).asnumpy()
    assert got.dtype == np.float32
    assert (np.abs(got) == 1).all()
    # Graph mode on CPU takes positive subnormals for 0.
    normal = (np.abs(EVERY_KIND) >= np.finfo(np.float32).tiny) | ~(EVERY_KIND > 0) | (mode == "pynative")
    np.testing.assert_array_equal(got[normal], oracles.sign(EVERY_KIND)[normal])


@every_dtype
@every_estimator
def test_forward_in_half_precision(mode, name, dtype):
    t = np.array([0.0, -0.0, 0.5, -0.5, np.inf, -np.inf, np.nan], np.float32)
    got = create_estimator(name)(Tensor(t).astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(ms.float32).asnumpy(), oracles.sign(t))


@every_estimator
def test_gradient_against_numpy(mode, name):
    t = points()
    factor = np.random.default_rng(0).normal(size=t.shape).astype(np.float32)
    got = ms.grad(Weighted(create_estimator(name)))(Tensor(t), Tensor(factor)).asnumpy()
    np.testing.assert_allclose(got, SURROGATES[name](t) * factor, atol=1e-5)


@every_estimator
def test_value_and_grad(mode, name):
    t = points()
    value, got = ms.value_and_grad(create_estimator(name))(Tensor(t))
    assert (np.abs(value.asnumpy()) == 1).all()
    np.testing.assert_allclose(got.asnumpy(), SURROGATES[name](t), atol=1e-5)


@every_dtype
@every_estimator
def test_gradient_in_half_precision_is_the_rounded_float32_one(mode, name, dtype):
    t = Tensor(np.linspace(-40, 40, 801).astype(np.float32)).astype(dtype)
    got = ms.grad(create_estimator(name))(t)
    assert got.dtype == dtype
    expected = SURROGATES[name](t.astype(ms.float32).asnumpy())
    half_an_ulp = 2.0 ** -number_of_bits(dtype)
    np.testing.assert_allclose(got.astype(ms.float32).asnumpy(), expected, rtol=1.01 * half_an_ulp, atol=1e-5)


@every_estimator
def test_keeps_any_shape(name):
    for shape in ((), (3,), (2, 3, 4, 5)):
        assert create_estimator(name)(Tensor(np.ones(shape, np.float32))).shape == shape


def test_fda_follows_omega_and_n(mode):
    t = points()
    for omega, n in ((0.5, 4), (0.1, 0)):
        got = gradient(create_estimator("fda", omega=omega, n=n), t)
        np.testing.assert_allclose(got, oracles.fourier(t, n, omega), atol=1e-5 * oracles.peak(n, omega))


def test_fda_has_no_bound_unless_asked(mode):
    assert gradient(create_estimator("fda"), np.array([10 * np.pi], np.float32)) < -0.99 * oracles.peak(9)


def test_fda_clip_zeroes_the_gradient_beyond_the_bound(mode):
    bound = np.float32(1.5)
    inside = np.array([0, bound, -bound, np.nextafter(bound, np.float32(0))], np.float32)
    outside = np.array([np.nextafter(bound, np.float32(2)), -2, 31.4, 1e30, np.inf, -np.inf], np.float32)
    estimator = create_estimator("fda", clip=1.5)
    got = gradient(estimator, np.concatenate([inside, outside]))
    np.testing.assert_allclose(got[:4], oracles.fourier(inside, 9), atol=1e-5)
    assert (got[:4] != 0).all()
    np.testing.assert_array_equal(got[4:], 0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_gives_a_nan_gradient(mode, clip):
    assert np.isnan(gradient(create_estimator("fda", clip=clip), np.array([np.nan], np.float32))).all()


def test_infinity_gives_no_finite_gradient_without_clip(mode):
    assert not np.isfinite(gradient(create_estimator("fda"), np.array([np.inf, -np.inf], np.float32))).any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fad", {}, "did you mean 'fda'.*allowed are clipped_ste, fda, ste"),
        ("", {}, "allowed are clipped_ste, fda, ste"),
        (3, {}, "allowed are clipped_ste, fda, ste"),
        ("fda", {"omga": 0.1}, "unknown option 'omga'.*did you mean 'omega'.*omega, n, clip"),
        ("ste", {"omega": 0.1}, "unknown option 'omega' of estimator 'ste'.*allowed: none"),
        ("fda", {"omega": 0}, "omega is 0.*greater than 0"),
        ("fda", {"omega": -0.1}, "omega is -0.1.*greater than 0"),
        ("fda", {"omega": float("nan")}, "omega is nan.*finite"),
        ("fda", {"omega": float("inf")}, "omega is inf.*finite"),
        ("fda", {"n": -1}, "n is -1.*integer of at least 0"),
        ("fda", {"n": 9.0}, "n is 9.0.*integer of at least 0"),
        ("fda", {"n": 1.5}, "n is 1.5.*integer of at least 0"),
        ("fda", {"n": True}, "n is True.*integer of at least 0"),
        ("fda", {"clip": 0}, "clip is 0.*greater than 0"),
        ("fda", {"clip": -1.0}, "clip is -1.0.*greater than 0"),
        ("fda", {"clip": float("nan")}, "clip is nan.*finite"),
        ("fda", {"omega": "wide"}, "omega is 'wide'.*finite number"),
        ("fda", {"clip": True}, "clip is True.*finite number"),
        (None, {"omega": 0.1}, "options"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_estimator(name, **options)


def test_an_estimator_or_none_goes_through():
    estimator = create_estimator("ste")
    assert create_estimator(estimator) is estimator
    assert create_estimator(None) is None
