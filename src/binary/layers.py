"""Layers with injected quantizers, and the activation that follows them.

A `BinaryConv2d` or `BinaryDense` takes an activation quantizer and a weight quantizer; None in either place means full
precision, so the full-precision baseline of a network and every ablation are the same layer. `Binarization` makes such
layers from names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import HeNormal, HeUniform, Initializer, initializer

from .amp import NoAutoCast
from .estimators import ESTIMATORS, Estimator, create_estimator
from .kernels import native
from .noise_adaptation import ETAS, NOISE_INITS, AnnealedNoise, NoiseAdaptation
from .quantizers import WEIGHT_QUANTIZERS, SignActivation
from .validation import build, lookup, name_of, require, require_integer, require_options

# Initial weights, latent ones included. Only the sign of a latent weight is used, so its magnitude sets how many steps
# a flip takes.
WEIGHT_INITS = {
    "uniform": lambda: HeUniform(negative_slope=math.sqrt(5)),  # within +-1/sqrt(fan in), the default of PyTorch
    "he_normal": HeNormal,  # standard deviation sqrt(2 / fan in), 2.4 times as wide
}


def create_weight_init(name: str) -> Initializer:
    """Create the initializer of that name in `WEIGHT_INITS`; ValueError for another name."""
    return lookup("weight init", WEIGHT_INITS, name)()


_gradient_of_first = ops.GradOperation(sens_param=True)  # not a cell's own: it cannot be copied, as `freeze` copies


class BinaryProduct(NoAutoCast):
    """scale * operation(x, z), with the scale applied to the sums.

    If x and z are +1 and -1, the sums are integers: exact in any order of summation, in any runtime. In float16 they
    are exact up to 2,048. The product with the scale is computed in float32.

    Backward, with g the incoming gradient:

        x gets the operation's gradient for scale * g,
        z gets the operation's gradient for scale * g, or for g if the scale is not in the gradient,

    so nothing is ever divided by the scale, which may be 0. The scale gets no gradient.

    Args:
        operation (Primitive): a product of x and z with the output channels of z on axis 1.
        has_scale (bool): False: the scale is 1 and is not multiplied.
        scale_in_gradient (bool): whether the scale multiplies the gradient of z.
        kernels (Cell, optional): computes the same in float32; see `native.Convolution`.

    Inputs: x and z of one dtype; scale, float32, of a shape that broadcasts to the output.
    """

    def __init__(
        self, operation: ops.Primitive, has_scale: bool, scale_in_gradient: bool, kernels: nn.Cell | None = None
    ):
        super().__init__()
        self.operation = Operation(operation)
        self.swapped = Swapped(operation)
        self.has_scale = has_scale
        self.scale_in_gradient = scale_in_gradient
        self.kernels = kernels

    def construct(self, x, z, scale):
        if self.kernels is not None and x.dtype == ms.float32:
            return self.kernels(x, z, scale)
        return self.scaled(self.operation(x, z), scale)

    def bprop(self, x, z, scale, out, dout):
        if self.kernels is not None and x.dtype == ms.float32:
            by_x = self.kernels.by_x(x, z, scale, dout)
            by_z = self.kernels.by_z(x, z, scale if self.scale_in_gradient else ops.ones((1,), ms.float32), dout)
            return by_x, by_z, ops.zeros_like(scale)
        scaled_dout = self.scaled(dout, scale)
        by_x = _gradient_of_first(self.operation)(x, z, scaled_dout)
        by_z = _gradient_of_first(self.swapped)(z, x, scaled_dout if self.scale_in_gradient else dout)
        return by_x, by_z, ops.zeros_like(scale)

    def scaled(self, values, scale):
        """values * scale, computed in float32, in the dtype of `values`."""
        return ops.cast(ops.cast(values, ms.float32) * scale, values.dtype) if self.has_scale else values


class Operation(nn.Cell):
    """A primitive as a Cell: PyNative mode cannot differentiate a bare one."""

    def __init__(self, operation: ops.Primitive):
        super().__init__()
        self.operation = operation

    def construct(self, x, z):
        return self.operation(x, z)


class Swapped(Operation):
    """The same with the inputs in the other order."""

    def construct(self, z, x):
        return self.operation(x, z)


class BinaryLayer(NoAutoCast):
    """y = scale * operation(Q_a(x), z) with z and scale from Q_w(w): base class of binary layers.

    Args:
        shape: shape of the weight, (C_out, ...).
        operation (Primitive): the product of the input and a weight of that shape.
        activation_quantizer (Cell, optional): Q_a; None: full precision.
        weight_quantizer (Cell, optional): Q_w; None: full precision.
        weight_init (str): how the latent weight starts: a name in `WEIGHT_INITS`.
        kernels (Cell, optional): computes the product, see `BinaryProduct`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        operation: ops.Primitive,
        activation_quantizer: nn.Cell | None = None,
        weight_quantizer: nn.Cell | None = None,
        weight_init: str = "uniform",
        kernels: nn.Cell | None = None,
    ):
        super().__init__()
        self.operation = operation
        self.activation_quantizer = activation_quantizer
        self.weight_quantizer = weight_quantizer
        self.product = None  # the operation itself
        if weight_quantizer is not None:
            scale = weight_quantizer.has_scale, weight_quantizer.scale_in_gradient
            self.product = BinaryProduct(operation, *scale, kernels)
        elif kernels is not None:
            self.product = BinaryProduct(operation, False, False, kernels)
        self.weight = Parameter(initializer(create_weight_init(weight_init), shape, ms.float32))

    def signs_and_scale(self):
        """What the weight quantizer makes of the latent weight. The scale's shape broadcasts to the layer's output."""
        signs, scale = self.weight_quantizer(self.weight)
        if scale.ndim:
            scale = scale.reshape((-1,) + (1,) * (self.weight.ndim - 2))
        return signs, scale

    def describe_quantizers(self) -> str:
        """`input: sign by fda, weight: dorefa by fda`, for `repr`."""
        texts = []
        for what, quantizer, names in (
            ("input", self.activation_quantizer, {"sign": SignActivation}),
            ("weight", self.weight_quantizer, WEIGHT_QUANTIZERS),
        ):
            if quantizer is None:
                texts.append(f"{what}: full precision")
                continue
            estimator = getattr(quantizer, "estimator", None)
            by = f" by {estimator.name}" if isinstance(estimator, Estimator) else ""
            noise = " with noise" if getattr(quantizer, "noise", None) is not None else ""
            texts.append(f"{what}: {name_of(names, quantizer)}{by}{noise}")
        return ", ".join(texts)

    def construct(self, x):
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        if self.weight_quantizer is None:
            weight = ops.cast(self.weight, x.dtype)
            return self.operation(x, weight) if self.product is None else self.product(x, weight, ops.ones((1,)))
        signs, scale = self.signs_and_scale()
        return self.product(x, ops.cast(signs, x.dtype), scale)


class BinaryConv2d(BinaryLayer):
    """2-D convolution of quantized input and quantized weight, without bias: y = scale * conv(Q_a(x), z).

    Args:
        in_channels, out_channels (int): C_in and C_out.
        kernel_size (int): k, of a k x k kernel.
        stride (int): the same in both directions.
        padding (int): zeros on each side. They are zeros, not -1, also when the input is binary.
        activation_quantizer, weight_quantizer, weight_init: as in `BinaryLayer`; fan in is C_in / groups * k^2.
        groups (int): number of channel groups that are convolved separately; divides C_in and C_out.

    Inputs: x (N, C_in, H, W). Outputs: (N, C_out, H', W').

    Raises:
        ValueError: a size is not an integer in its range, groups does not divide the channels, or weight_init is
            unknown.
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
        groups: int = 1,
    ):
        require_integer("in_channels", in_channels, 1)
        require_integer("out_channels", out_channels, 1)
        require_integer("kernel_size", kernel_size, 1)
        require_integer("stride", stride, 1)
        require_integer("padding", padding, 0)
        divides = isinstance(groups, int) and groups >= 1 and in_channels % groups == 0 and out_channels % groups == 0
        require(divides, "groups", groups, f"a divisor of the channels {in_channels} and {out_channels}")
        shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        # Tuples: the ONNX exporter fails on plain numbers.
        geometry = {"pad_mode": "pad", "pad": (padding,) * 4, "stride": (stride, stride), "group": groups}
        operation = ops.Conv2D(out_channels, (kernel_size, kernel_size), **geometry)
        kernels = native and native.convolution(kernel_size, stride, padding, groups)
        super().__init__(shape, operation, activation_quantizer, weight_quantizer, weight_init, kernels)
        self.kernel_size = (kernel_size, kernel_size)
        self.stride = (stride, stride)
        self.padding = (padding,) * 4
        self.groups = groups

    def extend_repr(self):
        out_channels, group_channels = self.weight.shape[:2]
        return (
            f"{group_channels * self.groups}, {out_channels}, kernel_size={self.kernel_size[0]}, "
            f"stride={self.stride[0]}, padding={self.padding[0]}, groups={self.groups}, {self.describe_quantizers()}"
        )


class BinaryDense(BinaryLayer):
    """Linear map of quantized input and quantized weight, without bias: y = scale * Q_a(x) z^T.

    Args:
        in_channels, out_channels (int): length of a row of x and of y.
        activation_quantizer, weight_quantizer, weight_init: as in `BinaryLayer`; fan in is in_channels.

    Inputs: x (N, in_channels). Outputs: (N, out_channels).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        activation_quantizer: nn.Cell | None = None,
        weight_quantizer: nn.Cell | None = None,
        weight_init: str = "uniform",
    ):
        require_integer("in_channels", in_channels, 1)
        require_integer("out_channels", out_channels, 1)
        operation = ops.MatMul(transpose_b=True)
        super().__init__((out_channels, in_channels), operation, activation_quantizer, weight_quantizer, weight_init)

    def extend_repr(self):
        out_channels, in_channels = self.weight.shape
        return f"{in_channels}, {out_channels}, {self.describe_quantizers()}"


class SharedSlopePReLU(nn.Cell):
    """max(x, 0) + a min(x, 0) with one trainable slope for all channels, which starts at 0.25; any shape.

    The slope's parameter is named `a`, as in the released checkpoint.
    """

    def __init__(self):
        super().__init__()
        self.a = Parameter(ms.Tensor([0.25], ms.float32))

    def construct(self, x):
        # Elementwise operations are several times faster on CPU than the PReLU operator.
        positive = ops.relu(x)
        return positive + (x - positive) * self.a


class SlopeThenNorm(NoAutoCast):
    """norm(slope(x)) for the slope and the batch norm of a block, which owns them and hands them over.

    On CPU a kernel computes both in one, in training and in evaluation, if x is float32, the slope is a
    `SharedSlopePReLU`, and the norm is an `nn.BatchNorm2d` with this eps, the format NCHW and no
    `use_batch_statistics`. Everything else is computed by the two cells, as is everything in PyNative mode, where their
    hooks are called.

    Args:
        eps (float): that of the norm.

    Inputs: x (N, C, H, W), the slope, the norm. Outputs: the shape of x.
    """

    def __init__(self, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.kernels = native and native.slope_norm(eps)

    def __call__(self, x, slope, norm):
        return norm(slope(x))  # in PyNative mode: a graph is made from `construct`

    def construct(self, x, slope, norm):
        if self.kernels is None or not self.fits(x, slope, norm):
            return norm(slope(x))
        if not norm.training:
            return self.kernels.evaluate(x, slope.a, norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        y, mean, variance = self.kernels(x, slope.a, norm.gamma, norm.beta)
        count = x.size // x.shape[1]
        unbiased = ops.stop_gradient(variance) * (count / max(count - 1, 1))
        # nn.BatchNorm2d keeps 1 - momentum in `momentum`.
        for moving, value in ((norm.moving_mean, ops.stop_gradient(mean)), (norm.moving_variance, unbiased)):
            ops.assign(moving, moving + norm.momentum * (value - moving))
        return y

    def fits(self, x, slope, norm):
        """Whether the kernel computes what these two cells compute."""
        if not (isinstance(slope, SharedSlopePReLU) and isinstance(norm, nn.BatchNorm2d)):
            return False  # other norms may lack the attributes below
        options_fit = norm.eps == self.eps and norm.use_batch_statistics is None and norm.format == "NCHW"
        return options_fit and x.dtype == ms.float32


@dataclass(frozen=True)
class Binarization:
    """All options of binarization: estimators, weight quantizer, noise. Creates layers with these options.

    `experiment.binarization_of` creates one from the config, `create_model` takes it, and a network creates its layers
    with it. `Binarization.full_precision()` creates full-precision layers.

    Args:
        estimator: name of the surrogate gradient of sign, for activations and weights; None: full precision.
        estimator_options: options of the estimator, for example {"omega": 0.1, "clip": 1.0}.
        weight_estimator: name of a different estimator for weights; None: `estimator` with its options.
        weight_estimator_options: options of `weight_estimator`.
        weight_quantizer: name of the weight quantizer: "sign", "dorefa", "xnor" or "libra".
        weight_init: initial weights of convolutions and binary linear layers: "uniform" or "he_normal". Also used in
            full precision.
        scale_in_gradient: whether the weight's scale multiplies its gradient; None: as the quantizer's source does.
        noise_adaptation: whether binary layers get noise modules.
        noise_options: options of `NoiseAdaptation`, for example {"eta": "sine"}.
        noise_in_forward: True: Eq. 14; False: Algorithm 1.

    Raises:
        ValueError: a name or an option of an estimator is unknown, or a value is outside its range.
    """

    estimator: str | None = "fda"
    estimator_options: Mapping[str, Any] = field(default_factory=dict)
    weight_estimator: str | None = None
    weight_estimator_options: Mapping[str, Any] = field(default_factory=dict)
    weight_quantizer: str = "dorefa"
    weight_init: str = "uniform"
    scale_in_gradient: bool | None = None
    noise_adaptation: bool = True
    noise_options: Mapping[str, Any] = field(default_factory=dict)
    noise_in_forward: bool = True

    def __post_init__(self):
        for name in ("estimator_options", "weight_estimator_options", "noise_options"):
            require_options(name, getattr(self, name))
        for name in ("noise_adaptation", "noise_in_forward"):
            require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        lookup("weight quantizer", WEIGHT_QUANTIZERS, self.weight_quantizer)
        lookup("weight init", WEIGHT_INITS, self.weight_init)
        lookup("eta", ETAS, self.noise_options.get("eta", "sine"))
        lookup("noise init", NOISE_INITS, self.noise_options.get("init", "normal"))
        if self.weight_estimator_options and self.weight_estimator is None:
            raise ValueError(
                f"weight_estimator_options {dict(self.weight_estimator_options)} go with a weight_estimator, and there "
                "is none: weights use the estimator of the activations with the same options"
            )
        for estimator, options in (
            (self.estimator, self.estimator_options),
            (self.weight_estimator, self.weight_estimator_options),
        ):
            if estimator is not None:
                build("estimator", ESTIMATORS, estimator, options)

    @classmethod
    def full_precision(cls, weight_init: str = "uniform") -> "Binarization":
        """The options of a full-precision baseline: no estimator, no quantizers, no noise."""
        return cls(estimator=None, noise_adaptation=False, weight_init=weight_init)

    @property
    def binary(self) -> bool:
        """Whether the layers are binary. False for a full-precision baseline."""
        return self.estimator is not None

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
    ) -> BinaryConv2d:
        """Create a convolution with new quantizers and noise modules."""
        quantizers = self._quantizers(in_channels, in_channels // max(groups, 1) * kernel_size**2)
        return BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, *quantizers, groups=groups)

    def dense(self, in_channels: int, out_channels: int) -> BinaryDense:
        """Create a linear layer with new quantizers and noise modules."""
        return BinaryDense(in_channels, out_channels, *self._quantizers(in_channels, in_channels))

    def _quantizers(self, positions: int, filters: int) -> tuple[nn.Cell | None, nn.Cell | None, str]:
        """Activation quantizer, weight quantizer and weight init of a layer; `positions` and `filters` are the lengths
        of the vectors that the noise modules act on."""
        if not self.binary:
            return None, None, self.weight_init
        own = self.weight_estimator is not None
        weight = build(
            "weight quantizer",
            WEIGHT_QUANTIZERS,
            self.weight_quantizer,
            {
                "estimator": create_estimator(
                    self.weight_estimator if own else self.estimator,
                    **(self.weight_estimator_options if own else self.estimator_options),
                ),
                "noise": self._noise(filters),
                "scale_in_gradient": self.scale_in_gradient,
            },
        )
        activation = SignActivation(create_estimator(self.estimator, **self.estimator_options), self._noise(positions))
        return activation, weight, self.weight_init

    def _noise(self, dimension: int):
        if not self.noise_adaptation:
            return None
        modules, arguments = {"noise adaptation": NoiseAdaptation}, {"dimension": dimension}
        adaptation = build("module", modules, "noise adaptation", self.noise_options, arguments)
        return AnnealedNoise(adaptation, in_forward=self.noise_in_forward)
