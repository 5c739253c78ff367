"""A training step of the binary ResNet-20 in float64: loss and gradients by the chain rule, written from the formulas.

Estimator FDA, weights by DoReFa, no noise.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tests.helpers import oracles

STAGES = ((16, 1), (32, 2), (64, 2))  # channels, stride of the first block
EPSILON = 1e-5

Backward = Callable[[np.ndarray], np.ndarray]  # from the gradient of the output to that of the input


def conv2d_gradients(
    x: np.ndarray, weight: np.ndarray, by_y: np.ndarray, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of x and weight from that of `oracles.conv2d(x, weight, stride, padding)`."""
    height, width = by_y.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    by_x, by_weight = np.zeros_like(x), np.zeros_like(weight)
    for i, j in np.ndindex(*weight.shape[2:]):
        rows, columns = slice(i, i + stride * height, stride), slice(j, j + stride * width, stride)
        seen = x[:, :, rows, columns][:, :, :height, :width]
        by_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", by_y, seen, optimize=True)
        by_x[:, :, rows, columns][:, :, :height, :width] += np.einsum("nohw,oc->nchw", by_y, weight[:, :, i, j])
    return by_x[:, :, padding : x.shape[2] - padding, padding : x.shape[3] - padding], by_weight


class TrainingStep:
    """Loss and gradients of one batch.

    Args:
        weights: by the network's names.
        n: of the Fourier gradient.
        signs: of the inputs of the binary convolutions, in order: used in place of the step's own, which may differ
            where a value is within rounding of 0. None: its own.

    Attributes:
        gradients: by the names of the weights, after a call.
    """

    def __init__(self, weights: dict[str, np.ndarray], n: int, signs: Sequence[np.ndarray] | None = None):
        self.weights = {name: values.astype(np.float64) for name, values in weights.items()}
        self.n = n
        self.replayed = None if signs is None else iter(signs)
        self.gradients: dict[str, np.ndarray] = {}

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> float:
        x, first = self.conv("conv1", images.astype(np.float64))
        x, norm = self.batch_norm("bn1", x)
        backwards = [first, norm]
        before = 16
        for stage, (channels, stride) in enumerate(STAGES, start=1):
            for block in range(3):
                x, backward = self.block(f"layer{stage}.{block}", x, before, channels, stride if block == 0 else 1)
                backwards.append(backward)
                before = channels
        positive, size = x > 0, x.shape[2] * x.shape[3]
        pooled = np.where(positive, x, 0).mean((2, 3))
        logits = pooled @ self.weights["linear.weight"].T + self.weights["linear.bias"]
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        shares = shifted / shifted.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        by_logits = shares.copy()
        by_logits[rows, labels] -= 1
        by_logits /= len(labels)
        self.gradients["linear.weight"], self.gradients["linear.bias"] = by_logits.T @ pooled, by_logits.sum(0)
        by = (by_logits @ self.weights["linear.weight"])[:, :, None, None] * positive / size
        for backward in reversed(backwards):
            by = backward(by)
        return float(-np.log(shares[rows, labels]).mean())

    def block(self, name: str, x: np.ndarray, before: int, channels: int, stride: int) -> tuple[np.ndarray, Backward]:
        backwards, y = [], x
        for half, strides in ((1, stride), (2, 1)):
            for layer in (
                lambda t, half=half, strides=strides: self.binary_conv(f"{name}.conv{half}", t, strides),
                lambda t, half=half: self.slope(f"{name}.relu{half}", t),
                lambda t, half=half: self.batch_norm(f"{name}.bn{half}", t),
            ):
                y, backward = layer(y)
                backwards.append(backward)
        added = (channels - before) // 2
        shortcut = np.pad(x[:, :, ::stride, ::stride], ((0, 0), (added, added), (0, 0), (0, 0)))

        def together(by: np.ndarray) -> np.ndarray:
            by_x = np.zeros_like(x)
            by_x[:, :, ::stride, ::stride] = by[:, added : channels - added]
            for backward in reversed(backwards):
                by = backward(by)
            return by_x + by

        return y + shortcut, together

    def conv(self, name: str, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        weight = self.weights[f"{name}.weight"]

        def backward(by: np.ndarray) -> np.ndarray:
            by_x, self.gradients[f"{name}.weight"] = conv2d_gradients(x, weight, by, 1, 1)
            return by_x

        return oracles.conv2d(x, weight, 1, 1), backward

    def binary_conv(self, name: str, x: np.ndarray, stride: int) -> tuple[np.ndarray, Backward]:
        """y = s conv(sign x, sign w), s = mean|w|; the scale is not in the gradient of the weight."""
        latent = self.weights[f"{name}.weight"]
        weight, scale = oracles.sign(latent), np.abs(latent).mean()
        signs = oracles.sign(x) if self.replayed is None else next(self.replayed).astype(np.float64)

        def backward(by: np.ndarray) -> np.ndarray:
            by_signs, by_weight = conv2d_gradients(signs, weight, by, stride, 1)
            self.gradients[f"{name}.weight"] = by_weight * oracles.fourier(latent, self.n)
            return scale * by_signs * oracles.fourier(x, self.n)

        return scale * oracles.conv2d(signs, weight, stride, 1), backward

    def slope(self, name: str, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        factor = self.weights[f"{name}.a"]

        def backward(by: np.ndarray) -> np.ndarray:
            self.gradients[f"{name}.a"] = (by * np.minimum(x, 0)).sum(keepdims=True).reshape(1)
            return by * np.where(x > 0, 1, factor)

        return np.where(x > 0, x, factor * x), backward

    def batch_norm(self, name: str, x: np.ndarray) -> tuple[np.ndarray, Backward]:
        """By the batch's own mean and biased variance."""
        gamma, beta = (self.weights[f"{name}.{kind}"][:, None, None] for kind in ("gamma", "beta"))
        axes, size = (0, 2, 3), x.size / x.shape[1]
        deviation = np.sqrt(x.var(axes, keepdims=True) + EPSILON)
        unit = (x - x.mean(axes, keepdims=True)) / deviation

        def backward(by: np.ndarray) -> np.ndarray:
            by_gamma, by_beta = (by * unit).sum(axes), by.sum(axes)
            self.gradients[f"{name}.gamma"], self.gradients[f"{name}.beta"] = by_gamma, by_beta
            mean = (by_beta[:, None, None] + unit * by_gamma[:, None, None]) / size
            return gamma / deviation * (by - mean)

        return gamma * unit + beta, backward
