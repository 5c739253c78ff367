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


def peak(n: int, omega: float = 0.1) -> float:
    """The largest value of `fourier`, at t = 0."""
    return 4 * omega * (n + 1) / np.pi


def conv2d(x: np.ndarray, weight: np.ndarray, stride: int = 1, padding: int = 0) -> np.ndarray:
    """(N, C, H, W) with (O, C, k, k): patches times filters."""
    kernel = weight.shape[-1]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    patches = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("nchwij,ocij->nohw", patches, weight, optimize=True)
