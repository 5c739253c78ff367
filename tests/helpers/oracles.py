"""The method's formulas in numpy, float64, written from the paper: what the tests hold the code against."""

import numpy as np


def sign(t: np.ndarray) -> np.ndarray:
    """Eq. 1 without a zero."""
    return np.where(np.asarray(t) > 0, 1.0, -1.0)


def fourier(t: np.ndarray, n: int, omega: float = 0.1) -> np.ndarray:
    """Eq. 10: 4 omega/pi times the sum of the n + 1 cosines of the odd multiples of omega t."""
    t = np.asarray(t, np.float64)
    total = np.zeros_like(t)
    for i in range(n + 1):
        total += np.cos((2 * i + 1) * omega * t)
    return 4 * omega / np.pi * total


def fda(t: np.ndarray, state: float) -> np.ndarray:
    """Eq. 10 with the default omega; the state is n."""
    return fourier(t, int(state))


def approx_sign(t: np.ndarray, state: float = 0) -> np.ndarray:
    """Bi-Real Net: the slope of 2t + t^2 and 2t - t^2, the two parabolas between -1 and 1."""
    t = np.asarray(t, np.float64)
    return np.where(np.abs(t) <= 1, np.where(t < 0, 2 + 2 * t, 2 - 2 * t), 0.0)


def swish_sign(t: np.ndarray, state: float = 0, beta: float = 5.0) -> np.ndarray:
    """BNN+: the derivative of 2 s(bt) (1 + bt (1 - s(bt))) - 1, s the logistic function."""
    u = beta * np.clip(np.asarray(t, np.float64), -100, 100)
    s = 1 / (1 + np.exp(-u))
    return 2 * beta * s * (1 - s) * (2 + u * (1 - 2 * s))


def dsq(t: np.ndarray, state: float = 0, alpha: float = 0.2) -> np.ndarray:
    """DSQ on [-1, 1]: tanh(k t) / tanh(k), stretched so that tanh(k) = 1 - alpha."""
    k = np.arctanh(1 - alpha)
    t = np.asarray(t, np.float64)
    inside = np.abs(t) <= 1
    return np.where(inside, k / np.cosh(k * np.where(inside, t, 0)) ** 2 / np.tanh(k), 0.0)


def ede(t: np.ndarray, state: float) -> np.ndarray:
    """IR-Net: the derivative of k tanh(T t), k = max(1/T, 1)."""
    u = np.clip(state * np.asarray(t, np.float64), -300, 300)
    return max(1 / state, 1) * state / np.cosh(u) ** 2


def rbnn(t: np.ndarray, state: float) -> np.ndarray:
    """RBNN: the derivative of k (-sign(t) T^2 t^2 / 2 + sqrt2 T t) as far as it rises."""
    slope = -np.sign(t) * state**2 * np.asarray(t, np.float64) + np.sqrt(2) * state
    slope = np.where(np.asarray(t) < 0, np.sqrt(2) * state + state**2 * np.asarray(t, np.float64), slope)
    return max(1 / state, 1) * np.maximum(slope, 0)


def reste(t: np.ndarray, state: float) -> np.ndarray:
    """ReSTE: the derivative of |t|^(1/o), near 0 its secant; float32 bounds, as the code has them."""
    distance = np.abs(np.asarray(t, np.float64))
    near = distance <= np.float32(0.1)
    power = np.where(near, 0.1 ** (1 / state) / 0.1, np.maximum(distance, 0.1) ** (1 / state - 1) / state)
    return np.where(distance <= 1.5, power, 0.0)


def peak(n: int, omega: float = 0.1) -> float:
    """The largest value of `fourier`, at t = 0."""
    return 4 * omega * (n + 1) / np.pi


def conv2d(x: np.ndarray, weight: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """(N, C, H, W) with (O, C, k, k): patches times filters."""
    kernel = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", patches, weight, optimize=True)


ETAS = {  # of Eq. 13, and their derivatives
    "sine": (lambda t: 0.1 * np.sin(t), lambda t: 0.1 * np.cos(t)),
    "linear": (lambda t: 0.1 * t, lambda t: np.full_like(t, 0.1)),
    "none": (np.zeros_like, np.zeros_like),
}


def rows(t: np.ndarray) -> np.ndarray:
    """The channel vectors of an activation's positions; a weight's rows as they are."""
    t = t.astype(np.float64)
    return t if t.ndim == 2 else t.transpose(0, 2, 3, 1).reshape(-1, t.shape[1])


def like(t_rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `rows`."""
    if len(shape) == 2:
        return t_rows
    return t_rows.reshape(shape[0], *shape[2:], shape[1]).transpose(0, 3, 1, 2)


def noise(t: np.ndarray, w1: np.ndarray, w2: np.ndarray, eta: str) -> np.ndarray:
    """Eq. 13."""
    return like(np.maximum(rows(t) @ w1, 0) @ w2 + ETAS[eta][0](rows(t)), t.shape)


def noise_gradients(
    t: np.ndarray, w1: np.ndarray, w2: np.ndarray, eta: str, incoming: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients of sum(incoming * e(t)) by t, W1 and W2."""
    t_rows, incoming_rows = rows(t), rows(incoming)
    before = t_rows @ w1
    to_hidden = (incoming_rows @ w2.T) * (before > 0)
    by_t = to_hidden @ w1.T + incoming_rows * ETAS[eta][1](t_rows)
    return like(by_t, t.shape), t_rows.T @ to_hidden, np.maximum(before, 0).T @ incoming_rows
