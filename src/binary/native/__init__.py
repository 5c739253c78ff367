"""C++ kernels for CPU, and the lines that choose them. Everything works without this folder, by plain operations.

A layer asks for a kernel when it is created and gets None if plain operations are to be used: on another device than
the CPU, with BNN_NATIVE=0, or where the kernels cannot be compiled. `chosen_path` says which and why.
"""

import os
from collections.abc import Callable
from pathlib import Path

import mindspore as ms
from mindspore import ops

from ... import native_build
from ..amp import NoAutoCast

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.cpp")))
SWITCH = "BNN_NATIVE"  # the environment variable; 0: plain operations
# Of a noise module. With more, as for the weights of wide layers, the framework's matrix products are twice as fast.
MAX_HIDDEN = 48


class Kernel(ops.Custom):
    """A function of a library as a primitive. A copy of a network shares it, since MindSpore cannot copy it."""

    def __init__(self, function: str, shape: Callable, outputs: int = 1):
        def dtype(first, *others):
            return first if outputs == 1 else (first,) * outputs

        super().__init__(f"{_library()}:{function}", shape, dtype, func_type="aot")

    def __deepcopy__(self, memo):
        return self


class Convolution(NoAutoCast):
    """y = scale * conv(x, z), 3x3 with a padding of 1, and its gradients, by convolution.cpp. float32.

    Args:
        stride (int): 1 or 2.

    Inputs: x (N, C, H, W), z (O, C, 3, 3), scale with 1 or O values. Outputs: y (N, O, H', W').
    """

    def __init__(self, stride: int):
        super().__init__()

        def output(x, z, scale):
            return [x[0], z[0], (x[2] - 1) // stride + 1, (x[3] - 1) // stride + 1]

        self.forward = Kernel("conv3x3" if stride == 1 else "conv3x3_stride2", output)
        self.data_gradient = Kernel("conv3x3_data_gradient", lambda x, z, scale, dout: x)
        self.weight_gradient = Kernel("conv3x3_weight_gradient", lambda x, z, scale, dout: z)

    def construct(self, x, z, scale):
        return self.forward(x, z, scale)

    def by_x(self, x, z, scale, dout):
        """The gradient of x."""
        return self.data_gradient(x, z, scale, dout)

    def by_z(self, x, z, scale, dout):
        """The gradient of z, with the scale in it."""
        return self.weight_gradient(x, z, scale, dout)


class Noise(NoAutoCast):
    """binary + alpha e(t) of Eq. 13 and 14 with binary = sign(t), and its gradients, by noise.cpp. float32.

    The kernel computes the sign itself. So in a graph `binary` only takes its gradient, and is not computed.

    Args:
        eta (str): "none", "linear" or "sine".
        amplitude (float): a.
        in_forward (bool): False: the result is only `binary`; the gradients are the same.

    Inputs: binary and t (N, C, H, W) or (rows, C), w1 (C, hidden), w2 (hidden, C), alpha with one value.
    Outputs: the shape of t.
    """

    def __init__(self, eta: str, amplitude: float, in_forward: bool):
        super().__init__()
        self.in_forward = in_forward
        self.options = ms.Tensor([amplitude, ("none", "linear", "sine").index(eta)], ms.float32)
        self.forward = Kernel("noise", lambda t, *others: t)
        self.gradients = Kernel("noise_gradient", lambda t, w1, w2, *others: (t, w1, w2), outputs=3)

    def construct(self, binary, t, w1, w2, alpha):
        return self.forward(t, w1, w2, alpha, self.options) if self.in_forward else binary

    def bprop(self, binary, t, w1, w2, alpha, out, dout):
        by_t, by_w1, by_w2 = self.gradients(t, w1, w2, alpha, self.options, dout)
        return dout, by_t, by_w1, by_w2, ops.zeros_like(alpha)


class SlopeNorm(NoAutoCast):
    """Batch norm with the batch's statistics of x > 0 ? x : a x, and its gradients, by norm.cpp. float32.

    Args:
        eps (float): is added to the variance.

    Inputs: x (N, C, H, W), a with one value, gamma and beta (C,). Outputs: y, in the shape of x; mean and variance
    (biased) of the batch (C,), which get no gradient.
    """

    def __init__(self, eps: float):
        super().__init__()
        self.eps = ms.Tensor([eps], ms.float32)
        self.forward = Kernel("slope_norm", lambda x, a, gamma, *others: (x, gamma, gamma), outputs=3)
        self.gradients = Kernel("slope_norm_gradient", lambda x, a, gamma, *others: (x, a, gamma, gamma), outputs=4)
        self.evaluate = SlopeNormEvaluation(eps)

    def construct(self, x, a, gamma, beta):
        return self.forward(x, a, gamma, beta, self.eps)

    def bprop(self, x, a, gamma, beta, out, dout):
        return self.gradients(x, a, gamma, out[1], out[2], self.eps, dout[0])


class SlopeNormEvaluation(NoAutoCast):
    """The same with given mean and variance (C,), which get no gradient: y only."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = ms.Tensor([eps], ms.float32)
        self.forward = Kernel("slope_norm_evaluation", lambda x, *others: x)

    def construct(self, x, a, gamma, beta, mean, variance):
        return self.forward(x, a, gamma, beta, mean, variance, self.eps)

    def bprop(self, x, a, gamma, beta, mean, variance, out, dout):  # rare: plain operations
        def by_channel(values):
            return ops.reshape(values, (1, -1, 1, 1))

        positive = ops.cast(x > 0, ms.float32)
        derivative = positive + (1 - positive) * a
        inverse = 1 / ops.sqrt(variance + self.eps)
        by_r = dout * by_channel(gamma * inverse)
        normalized = (x * derivative - by_channel(mean)) * by_channel(inverse)
        by_a = ops.reshape((by_r * x * (1 - positive)).sum(), (1,))
        by_gamma, by_beta = (dout * normalized).sum((0, 2, 3)), dout.sum((0, 2, 3))
        return by_r * derivative, by_a, by_gamma, by_beta, ops.zeros_like(mean), ops.zeros_like(variance)


def slope_norm(eps: float) -> SlopeNorm | None:
    """The kernels of a slope and the batch norm after it, or None."""
    return SlopeNorm(eps) if _why_not() is None else None


def noise(eta: str, amplitude: float, in_forward: bool, hidden: int) -> Noise | None:
    """The kernels of a noise module of that hidden width, or None."""
    fits = hidden <= MAX_HIDDEN
    return Noise(eta, amplitude, in_forward) if fits and _why_not() is None else None


def convolution(kernel_size: int, stride: int, padding: int, groups: int) -> Convolution | None:
    """The kernels of such a convolution, or None."""
    fits = (kernel_size, padding, groups) == (3, 1, 1) and stride in (1, 2)
    return Convolution(stride) if fits and _why_not() is None else None


def sign() -> Kernel | None:
    """The kernel `(t) -> +1 where t > 0, else -1` of fourier.cpp, or None. float32."""
    return None if _why_not() is not None else Kernel("sign", lambda t: t)


def fourier_gradient() -> Kernel | None:
    """The kernel `(t, dout, n, constants) -> dout * s_n'(t)` of fourier.cpp, or None."""
    return None if _why_not() is not None else Kernel("fourier_gradient", lambda t, *others: t)


def chosen_path() -> str:
    """Which path layers take that are created now, in a phrase for the log."""
    reason = _why_not()
    return "native kernels" if reason is None else f"plain operations ({reason})"


def _why_not() -> str | None:
    """Why plain operations are used; None if kernels are."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    device = ms.get_context("device_target")
    if device != "CPU":
        return f"kernels are for CPU, and the device is {device}"
    try:
        _library()
    except native_build.Unavailable as error:
        return str(error)
    return None


def _library() -> Path:
    return native_build.library(*SOURCES, flags=("-fopenmp",))
