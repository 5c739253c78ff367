"""Layers with injected quantizers, and the activation that follows them.

`BinaryConv2d` takes an activation quantizer and a weight quantizer; None in either place means full precision, so the
fp32 twin of a network and every ablation are the same layer. `Binarization` makes such layers from names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, HeUniform, Initializer, initializer

from src.binary.estimators import create_estimator
from src.binary.noise_adaptation import AnnealedNoise, NoiseAdaptation
from src.binary.quantizers import WEIGHT_QUANTIZERS, ActivationSign
from src.binary.registry import build, lookup

# How weights start, latent ones included. Only the sign of a latent weight acts, so its size sets how many steps a flip
# takes: at the start's larger values a binary network learns more slowly (README, Results).
WEIGHT_INITS = {
    "uniform": lambda: HeUniform(negative_slope=math.sqrt(5)),  # within +-1/sqrt(fan in), PyTorch's default
    "he_normal": HeNormal,  # standard deviation sqrt(2 / fan in), 2.4 times as wide
}


def create_weight_init(name: str) -> Initializer:
    """A fresh initializer by its name in `WEIGHT_INITS`; ValueError for another name."""
    return lookup("weight init", WEIGHT_INITS, name)()


class BinaryConv2d(nn.Cell):
    """2-D convolution of quantized input and quantized weight, without bias: y = conv(Q_a(x), Q_w(w)).

    Args:
        in_channels, out_channels (int): C_in and C_out.
        kernel_size (int): k, of a k x k kernel.
        stride (int): the same in both directions.
        padding (int): zeros on each side. They are zeros, not -1, also when the input is binary.
        activation_quantizer (Cell, optional): Q_a; None: full precision.
        weight_quantizer (Cell, optional): Q_w; None: full precision.
        weight_init (str): how the latent weight starts: a name in `WEIGHT_INITS`; fan in is C_in k^2.

    Inputs: x (N, C_in, H, W). Outputs: (N, C_out, H', W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        activation_quantizer: nn.Cell | None = None,
        weight_quantizer: nn.Cell | None = None,
        weight_init: str = "uniform",
    ):
        super().__init__()
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        # Tuples: the ONNX exporter fails on plain numbers.
        self.kernel_size = (kernel_size, kernel_size)
        self.stride = (stride, stride)
        self.padding = (padding,) * 4
        self.activation_quantizer = activation_quantizer
        self.weight_quantizer = weight_quantizer
        self.weight = Parameter(initializer(create_weight_init(weight_init), shape, ms.float32))
        self.convolution = ops.Conv2D(
            out_channels, self.kernel_size, pad_mode="pad", pad=self.padding, stride=self.stride
        )

    def quantized_weight(self):
        """The weight that the convolution uses; the one place where the latent weight is read."""
        if self.weight_quantizer is None:
            return self.weight
        return self.weight_quantizer(self.weight)

    def construct(self, x):
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        return self.convolution(x, self.quantized_weight())


class SharedSlopePReLU(nn.Cell):
    """max(x, 0) + a min(x, 0) with one trainable slope for all channels, which starts at 0.25; any shape.

    The slope's parameter is named `a`, as in the released checkpoint.
    """

    def __init__(self):
        super().__init__()
        self.a = Parameter(ms.Tensor([0.25], ms.float32))

    def construct(self, x):
        # As two elementwise products: several times faster on CPU than the PReLU operator.
        positive = ops.relu(x)
        return positive + (x - positive) * self.a


@dataclass(frozen=True)
class Binarization:
    """Which estimator, weight quantizer and noise the binary layers of a network have; makes those layers.

    `estimator=None` makes full-precision layers.
    """

    estimator: str | None = "fda"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    weight_quantizer: str = "dorefa"
    weight_init: str = "uniform"
    scale_in_gradient: bool = False
    noise_adaptation: bool = True
    noise_options: Mapping[str, Any] = field(default_factory=dict)
    noise_in_forward: bool = True

    def conv(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
    ) -> BinaryConv2d:
        """A convolution with quantizers, and noise modules, of its own."""
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        if self.estimator is None:
            return BinaryConv2d(*shape, weight_init=self.weight_init)
        weight = build(
            "weight quantizer",
            WEIGHT_QUANTIZERS,
            self.weight_quantizer,
            {
                "estimator": self._estimator(),
                "noise": self._noise(in_channels * kernel_size**2),
                "scale_in_gradient": self.scale_in_gradient,
            },
        )
        activation = ActivationSign(self._estimator(), self._noise(in_channels))
        return BinaryConv2d(*shape, activation, weight, self.weight_init)

    def _estimator(self):
        return create_estimator(self.estimator, **self.estimator_options)

    def _noise(self, dimension: int):
        if not self.noise_adaptation:
            return None
        return AnnealedNoise(NoiseAdaptation(dimension, **self.noise_options), in_forward=self.noise_in_forward)
