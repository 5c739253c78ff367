"""Properties of every sign with a surrogate gradient, and the gradient of each."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import create_estimator, fourier
from src.binary.estimators import ESTIMATORS
from tests.helpers import oracles
from tests.helpers.kernels import modes_and_backends
from tests.helpers.networks import Weighted

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
DERIVATIVES = {  # of t and the scheduled value
    "fda": oracles.fda,
    "ste": lambda t, state: np.ones_like(t, np.float64),
    "clipped_ste": lambda t, state: (np.abs(t) <= 1).astype(np.float64),
    "approx_sign": oracles.approx_sign,
    "swish_sign": oracles.swish_sign,
    "dsq": oracles.dsq,
    "ede": oracles.ede,
    "rbnn": oracles.rbnn,
    "reste": oracles.reste,
}
# The scheduled value at the start and the end of training, by its source, and some on the way.
STATES = {"fda": (9, 13, 18), "ede": (0.1, 1, 10), "rbnn": (0.01, 0.5, 1, 10), "reste": (1, 1.7, 3)}
ALL_STATES = [(name, state) for name in sorted(ESTIMATORS) for state in STATES.get(name, (0,))]
SURROGATES = {name: lambda t, name=name: DERIVATIVES[name](t, STATES.get(name, (0,))[0]) for name in ESTIMATORS}
every_state = pytest.mark.parametrize(("name", "state"), ALL_STATES)
every_estimator = pytest.mark.parametrize("name", sorted(ESTIMATORS))
every_dtype = pytest.mark.parametrize("dtype", [ms.float16, ms.bfloat16], ids=["float16", "bfloat16"])


class AtState(nn.Cell):
    """An estimator at a given scheduled value."""

    def __init__(self, name: str):
        super().__init__()
        self.surrogate = create_estimator(name).surrogate

    def construct(self, t, state):
        return self.surrogate(t, state)


def points() -> np.ndarray:
    """Zeros, the bounds and their neighbours, subnormals, and both lobes of the Fourier gradient."""
    bounds = np.array([1.0, -1.0, 0.1, -0.1, 1.5, -1.5], np.float32)
    edges = [bounds, np.nextafter(bounds, 0), np.nextafter(bounds, bounds * 2), EVERY_KIND[:12]]
    return np.concatenate([*edges, np.linspace(-40, 40, 801)]).astype(np.float32)


def gradient(estimator: nn.Cell, t: np.ndarray) -> np.ndarray:
    return ms.grad(estimator)(Tensor(t)).asnumpy()


def number_of_bits(dtype) -> int:
    """Bits of the significand, including the leading one."""
    return {ms.float16: 11, ms.bfloat16: 8}[dtype]


@every_estimator
def test_forward_is_plus_or_minus_one_everywhere(backend, any_mode, name):
    got = create_estimator(name)(Tensor(EVERY_KIND)).asnumpy()
    assert got.dtype == np.float32
    assert (np.abs(got) == 1).all()
    # Threads of MindSpore's CPU kernels take positive subnormals for 0.
    normal = (np.abs(EVERY_KIND) >= np.finfo(np.float32).tiny) | ~(EVERY_KIND > 0)
    np.testing.assert_array_equal(got[normal], oracles.sign(EVERY_KIND)[normal])


@every_dtype
@every_estimator
def test_forward_in_half_precision(backend, any_mode, name, dtype):
    t = np.array([0.0, -0.0, 0.5, -0.5, np.inf, -np.inf, np.nan], np.float32)
    got = create_estimator(name)(Tensor(t).astype(dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(ms.float32).asnumpy(), oracles.sign(t))


@every_estimator
def test_gradient_against_numpy(backend, mode, name):
    t = points()
    factor = np.random.default_rng(0).normal(size=t.shape).astype(np.float32)
    got = ms.grad(Weighted(create_estimator(name)))(Tensor(t), Tensor(factor)).asnumpy()
    np.testing.assert_allclose(got, SURROGATES[name](t) * factor, atol=1e-5)


@every_state
def test_gradient_at_each_moment_of_training(backend, any_mode, name, state):
    t = points()
    got = ms.grad(AtState(name))(Tensor(t), Tensor(state, ms.float32)).asnumpy()
    np.testing.assert_allclose(got, DERIVATIVES[name](t, state), rtol=1e-5, atol=1e-5)


def test_a_changed_state_compiles_nothing_anew(graph_mode):
    """The value is an input: as a Python number each change would compile another graph."""
    cell = AtState("ede")
    for state in (0.1, 1, 10):
        cell(Tensor(points()), Tensor(state, ms.float32))
    assert len(cell.compile_cache) == 1


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16], ids=str)
@every_state
@modes_and_backends
def test_finite_inputs_give_finite_gradients(mode, backend, name, state, dtype):
    t = np.array([0, 1e-7, 0.1, 1, 1.5, 100, 3e4, 65504], np.float32)
    got = ms.grad(AtState(name))(Tensor(np.concatenate([t, -t])).astype(dtype), Tensor(state, ms.float32))
    assert got.dtype == dtype
    assert np.isfinite(got.astype(ms.float32).asnumpy()).all()


def test_every_estimator_has_an_oracle():
    assert DERIVATIVES.keys() == ESTIMATORS.keys()


@every_estimator
def test_every_estimator_explains_itself(name):
    """The docstring has its name, its gradient, and the source."""
    text = ESTIMATORS[name].__doc__
    assert text.startswith(f"`{name}`: ")
    assert "Source: " in text


@pytest.mark.parametrize(
    ("name", "progress", "state"),
    [
        ("ede", 0, 0.1),
        ("ede", 0.5, 1),
        ("ede", 1, 10),
        ("rbnn", 0, 0.01),
        ("rbnn", 1 / 3, 0.1),
        ("rbnn", 1, 10),
        ("reste", 0, 1),
        ("reste", 0.5, 1 + 2 * (1 - np.sqrt(0.5))),
        ("reste", 1, 3),
    ],
)
def test_schedules_that_estimators_bring(name, progress, state):
    estimator = create_estimator(name)
    assert estimator.state.schedule(progress) == pytest.approx(state)
    if progress == 0:
        np.testing.assert_allclose(estimator.state().asnumpy(), state)


def test_options_of_schedules_and_shapes(any_mode):
    t = points()
    for name, options, expected in (
        ("ede", {"t_min": 0.5, "t_max": 5}, oracles.ede(t, 0.5)),
        ("rbnn", {"t_min": 2.0}, oracles.rbnn(t, 2.0)),
        ("dsq", {"alpha": 0.4}, oracles.dsq(t, alpha=0.4)),
        ("swish_sign", {"beta": 10}, oracles.swish_sign(t, beta=10)),
    ):
        np.testing.assert_allclose(gradient(create_estimator(name, **options), t), expected, rtol=1e-5, atol=1e-5)
    assert create_estimator("reste", o_end=5).state.schedule(1) == pytest.approx(5)


@every_estimator
def test_value_and_grad(backend, any_mode, name):
    t = points()
    value, got = ms.value_and_grad(create_estimator(name))(Tensor(t))
    assert (np.abs(value.asnumpy()) == 1).all()
    np.testing.assert_allclose(got.asnumpy(), SURROGATES[name](t), atol=1e-5)


@every_dtype
@every_estimator
def test_gradient_in_half_precision_is_the_rounded_float32_one(backend, any_mode, name, dtype):
    t = Tensor(np.linspace(-40, 40, 801).astype(np.float32)).astype(dtype)
    got = ms.grad(create_estimator(name))(t)
    assert got.dtype == dtype
    expected = SURROGATES[name](t.astype(ms.float32).asnumpy())
    half_an_ulp = 2.0 ** -number_of_bits(dtype)
    np.testing.assert_allclose(got.astype(ms.float32).asnumpy(), expected, rtol=1.01 * half_an_ulp, atol=1e-5)


@every_estimator
def test_keeps_any_shape(backend, any_mode, name):
    for shape in ((), (3,), (2, 3, 4, 5)):
        assert create_estimator(name)(Tensor(np.ones(shape, np.float32))).shape == shape


def test_fda_follows_omega_and_n(backend, mode):
    t = points()
    for omega, n in ((0.5, 4), (0.1, 0)):
        got = gradient(create_estimator("fda", omega=omega, n=n), t)
        np.testing.assert_allclose(got, oracles.fourier(t, n, omega), atol=1e-5 * oracles.peak(n, omega))


def test_fda_has_no_bound_unless_asked(backend, mode):
    assert gradient(create_estimator("fda"), np.array([10 * np.pi], np.float32)) < -0.99 * oracles.peak(9)


def test_fda_clip_zeroes_the_gradient_beyond_the_bound(backend, mode):
    bound = np.float32(1.5)
    inside = np.array([0, bound, -bound, np.nextafter(bound, np.float32(0))], np.float32)
    outside = np.array([np.nextafter(bound, np.float32(2)), -2, 31.4, 1e30, np.inf, -np.inf], np.float32)
    estimator = create_estimator("fda", clip=1.5)
    got = gradient(estimator, np.concatenate([inside, outside]))
    np.testing.assert_allclose(got[:4], oracles.fourier(inside, 9), atol=1e-5)
    assert (got[:4] != 0).all()
    np.testing.assert_array_equal(got[4:], 0)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_nan_gives_a_nan_gradient(backend, mode, clip):
    assert np.isnan(gradient(create_estimator("fda", clip=clip), np.array([np.nan], np.float32))).all()


def test_infinity_gives_no_finite_gradient_without_clip(backend, mode):
    assert not np.isfinite(gradient(create_estimator("fda"), np.array([np.inf, -np.inf], np.float32))).any()


def test_fda_on_other_devices_takes_the_sine_operator(mode, monkeypatch):
    monkeypatch.setenv("BNN_NATIVE", "0")
    with monkeypatch.context() as patch:
        patch.setattr(ms, "get_context", lambda name: "Ascend")
        estimator = create_estimator("fda", n=18)
    assert estimator.surrogate.sine is fourier.sine_by_operator
    assert create_estimator("fda").surrogate.sine is fourier.sine_of_half_turns
    t = np.linspace(-100, 100, 4001).astype(np.float32)
    np.testing.assert_allclose(gradient(estimator, t), oracles.fourier(t, 18), atol=1e-6 * oracles.peak(18))


def test_an_estimator_or_none_goes_through():
    estimator = create_estimator("ste")
    assert create_estimator(estimator) is estimator
    assert create_estimator(None) is None
