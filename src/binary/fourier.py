"""The square wave that equals sign(t) near 0, its Fourier partial sum, and that sum's derivative.

Xu et al., "Learning Frequency Domain Approximation for Binary Neural Networks", NeurIPS 2021, Eq. 6-10:

    s_n(t)  = 4/pi * sum_{i=0..n} sin((2i+1) omega t) / (2i+1)
    s_n'(t) = 4 omega/pi * sum_{i=0..n} cos((2i+1) omega t)

Both sums have n + 1 terms: n counts from 0, as in the paper. omega is an angular frequency in radians per unit
of t; the wave has the period 2 pi/omega and equals sign(t) for |t| < pi/omega.

The derivative is a Dirichlet kernel, so its cost does not depend on n:

    sum_{i=0..n} cos((2i+1) x) = sin(2(n+1) x) / (2 sin x),   with the limit (n+1) (-1)^k at x = k pi.
"""

import math

import numpy as np
from mindspore import ops

# sin(pi f) = f * S(f^2) for |f| <= 0.51. S is the polynomial with the smallest relative error, 6.5e-9, less than
# float32's own. Products and sums are several times faster on CPU than the sine operator (benchmarks/operations.py).
_SINE_COEFFICIENTS = (
    3.1415926330851685,
    -5.1677091378265345,
    2.550057595860456,
    -0.5981570228903997,
    0.07737569145773054,
)
_HALF_TURN_BOUND = 0.51


def partial_sum(t: np.ndarray, n: int, omega: float = 0.1) -> np.ndarray:
    """s_n(t) of Eq. 9 in float64 as the sum of n + 1 sines; any shape of `t`. For figures and as a reference."""
    t = np.asarray(t, np.float64)
    odd = np.arange(1, 2 * n + 2, 2)
    return 4 / math.pi * (np.sin(omega * t[..., None] * odd) / odd).sum(-1)


def partial_sum_derivative(t: np.ndarray, n: int, omega: float = 0.1) -> np.ndarray:
    """s_n'(t) of Eq. 10 in float64 as the sum of n + 1 cosines; any shape of `t`. For figures and as a reference."""
    t = np.asarray(t, np.float64)
    odd = np.arange(1, 2 * n + 2, 2)
    return 4 * omega / math.pi * np.cos(omega * t[..., None] * odd).sum(-1)


def closed_form_constants(omega: float) -> tuple[float, float, float, float]:
    """The constants that `derivative` needs: half period pi/omega as a sum of two float32 values, its inverse, and the
    factor 2 omega/pi. Call it outside the graph: inside, MindSpore computes with Python floats in float32.

    The first value has 10 significant bits, so its product with k is exact in float32 for k < 2^14.
    """
    half_period = math.pi / omega
    mantissa, exponent = math.frexp(half_period)
    high = math.ldexp(round(mantissa * 2**10), exponent - 10)
    return high, half_period - high, 1.0 / half_period, 2.0 * omega / math.pi


def sine_of_half_turns(f):
    """sin(pi f) for |f| <= 0.51; f a float32 Tensor of any shape."""
    square = f * f
    series = _SINE_COEFFICIENTS[-1]
    for coefficient in _SINE_COEFFICIENTS[-2::-1]:
        series = series * square + coefficient
    return series * f


def sine_by_operator(f):
    """The same by the framework's operator: fewer primitives, for devices that launch them one by one."""
    return ops.sin(f * math.pi)


def derivative(t, n, constants: tuple[float, float, float, float], sine=sine_of_half_turns):
    """s_n'(t) of Eq. 10 in closed form, within 1e-6 of the peak 4 omega (n+1)/pi for |t| <= 100 and n <= 64.

    Args:
        t (Tensor): float32, any shape.
        n (Tensor): float32 with an integer value >= 0, shape (). Between integers the closed form has poles.
        constants: `closed_form_constants(omega)`.
        sine: `sine_of_half_turns` or `sine_by_operator`.

    Returns:
        Tensor, float32, the shape of t. NaN where t is NaN or infinite. Where float32 no longer resolves the period
        (|t| above about 1e5/omega), the value is arbitrary but not above the peak.
    """
    half_period_high, half_period_low, inverse_half_period, scale = constants
    # x = omega t is split into k half-turns and a rest u in [-1/2, 1/2]. The kernel is even in x, so abs is allowed.
    distance = ops.abs(t)
    k = ops.trunc(distance * inverse_half_period + 0.5)
    u = ((distance - k * half_period_high) - k * half_period_low) * inverse_half_period
    # The offset gives the limit at u = 0; the bound limits the result where float32 no longer resolves the period.
    u = ops.minimum(ops.abs(u) + 1e-12, _HALF_TURN_BOUND)
    # 2(n+1) x is split into q half-turns and a rest f.
    turns = u * (2.0 * (n + 1.0))
    q = ops.trunc(turns + 0.5)
    f = turns - q
    half = (k + q) * 0.5
    parity = half - ops.trunc(half)  # 0 where k + q is even, 1/2 where it is odd: the sign is 1 - 4 parity
    signed_scale = scale - parity * (4.0 * scale)
    return sine(f) / sine(u) * signed_scale
