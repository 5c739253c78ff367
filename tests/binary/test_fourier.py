"""The closed form of the sine module's derivative against its sum of cosines."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import fourier
from tests.helpers import oracles


class Derivative(nn.Cell):
    def __init__(self, omega: float, sine=fourier.sine_of_half_turns):
        super().__init__()
        self.constants = fourier.closed_form_constants(omega)
        self.sine = sine

    def construct(self, t, n):
        return fourier.derivative(t, n, self.constants, self.sine)


sines = pytest.mark.parametrize("sine", [fourier.sine_of_half_turns, fourier.sine_by_operator])


def number(n: int) -> Tensor:
    return Tensor(n, ms.float32)


def hard_points(omega: float) -> np.ndarray:
    """float32 in [-100, 100]: a grid, random ones, 0 and subnormals, and close to every pole of the closed form."""
    multiples = np.pi / omega * np.arange(-int(100 * omega / np.pi), int(100 * omega / np.pi) + 1)
    below = above = multiples.astype(np.float32)
    points = [below]
    for _ in range(8):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        points += [below, above]
    for offset in np.logspace(-7, -1, 13):
        points += [multiples - offset, multiples + offset]
    points += [np.linspace(-100, 100, 4001), np.random.default_rng(0).uniform(-100, 100, 4000)]
    smallest = np.finfo(np.float32).smallest_subnormal
    points.append(np.array([0.0, -0.0, smallest, -smallest, 1e-40, -1e-40, 1e-30, 1e-20, -1e-10]))
    points = np.concatenate(points).astype(np.float32)
    return points[np.abs(points) <= 100]


@pytest.mark.parametrize("every_n", [(0, 1, 9, 18, 64), pytest.param(range(65), marks=pytest.mark.slow)], ids=len)
@pytest.mark.parametrize("omega", [0.1, 0.5])
@sines
def test_closed_form_is_the_sum_of_cosines(mode, omega, every_n, sine):
    cell, t = Derivative(omega, sine), hard_points(omega)
    for n in every_n:
        error = np.abs(cell(Tensor(t), number(n)).asnumpy() - oracles.fourier(t, n, omega)).max()
        assert error <= 1e-6 * oracles.peak(n, omega), n


def test_one_graph_serves_every_n(graph_mode):
    """n is an input of the graph, not a constant in it: so neither the number of operations depends on it."""
    cell = Derivative(0.1)
    t = Tensor(np.linspace(-3, 3, 7).astype(np.float32))
    for n in (0, 1, 9, 64):
        cell(t, number(n))
    assert len(cell.compile_cache) == 1


@sines
def test_limits_at_multiples_of_half_the_period(mode, sine):
    """(n + 1) (-1)^k cosines' worth at t = k pi/omega."""
    k = np.arange(-3, 4)
    t = (k * np.pi / 0.1).astype(np.float32)
    got = Derivative(0.1, sine)(Tensor(t), number(9)).asnumpy()
    np.testing.assert_allclose(got, oracles.peak(9) * (-1.0) ** k, rtol=1e-5)


@sines
def test_infinity_and_nan_give_no_finite_value(mode, sine):
    t = np.array([np.inf, -np.inf, np.nan], np.float32)
    assert not np.isfinite(Derivative(0.1, sine)(Tensor(t), number(9)).asnumpy()).any()


@sines
def test_far_out_stays_within_the_peak(mode, sine):
    t = np.array([1e6, -3.3e9, 1e20, 3e38], np.float32)
    got = Derivative(0.1, sine)(Tensor(t), number(9)).asnumpy()
    assert (np.abs(got) <= oracles.peak(9) * (1 + 1e-5)).all()


@pytest.mark.parametrize("n", [0, 9])
def test_partial_sum_is_the_integral_of_its_derivative(n):
    t = np.linspace(-20, 20, 4001)
    np.testing.assert_allclose(fourier.partial_sum_derivative(t, n, 0.1), oracles.fourier(t, n, 0.1), atol=1e-12)
    slope = np.gradient(fourier.partial_sum(t, n, 0.1), t)
    np.testing.assert_allclose(slope[1:-1], oracles.fourier(t, n, 0.1)[1:-1], atol=1e-4)


def test_partial_sum_tends_to_the_square_wave():
    t = np.array([-25.0, -10.0, 10.0, 25.0])
    np.testing.assert_allclose(fourier.partial_sum(t, 2000, 0.1), oracles.sign(t), atol=1e-2)
