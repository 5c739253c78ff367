"""Sign functions whose backward pass is a named surrogate gradient.

An estimator is only its derivative: a subclass of `Surrogate` with `derivative(t, state)`. The sign, the `bprop` and
the way in which scheduled values arrive are written once, here. Three ways to get one:

    create_estimator("fda", omega=0.1, n=9)      by name, with options
    create_estimator(estimator)                  an Estimator goes through as it is
    create_estimator(None)                       None: no binarization

Forward, for every estimator: +1 where t > 0, else -1. It is never 0: a packed bit cannot hold one.
"""

import math

import mindspore as ms
from mindspore import ops

from . import fourier
from .amp import NoAutoCast
from .schedules import Schedule, ScheduledValue, accelerate, log_spaced
from .validation import MAX_NUMBER, build, is_number, name_of, require, require_integer

MAX_TERMS = 1000  # of the Fourier sum; in float32 a far larger n is not even exact


def sign(t):
    """+1 where t > 0, else -1 (also at 0, -0 and NaN), in the dtype of `t`; any shape. No gradient of its own.

    MindSpore's CPU threads may take subnormal numbers for 0 (in graph mode they do): their sign is -1 then.
    """
    # Compare and cast: MindSpore's Sign is 0 at 0, has no ONNX mapping, and select takes three times as long on CPU.
    # In float32, since the CPU has no comparison of bfloat16; for a float32 input these casts cost nothing.
    positive = ops.cast(t, ms.float32) > 0
    return ops.cast(ops.cast(positive, ms.float32) * 2 - 1, t.dtype)


class Surrogate(NoAutoCast):
    """sign(t) forward, derivative(t, state) times the incoming gradient backward.

    `state` is a float32 Tensor of shape () that may change from step to step, an input so that nothing recompiles;
    estimators without scheduled values ignore it. `scheduled` names the value ("n"), or is None; `schedule` is the
    course that it takes over training unless the experiment gives it another, `initial` what it is outside training.
    """

    scheduled: str | None = None
    schedule: Schedule | None = None
    initial = 0.0

    def __init__(self):  # without nn.Cell's own arguments, which are no options of an estimator
        super().__init__()

    def derivative(self, t, state):
        """The surrogate of d sign/dt at float32 `t`, the same shape."""
        raise NotImplementedError

    def construct(self, t, state):
        return sign(t)

    def bprop(self, t, state, out, dout):
        gradient = self.derivative(ops.cast(t, ms.float32), state) * ops.cast(dout, ms.float32)
        return ops.cast(gradient, t.dtype), ops.zeros_like(state)


class StraightThrough(Surrogate):
    """`ste`: the gradient passes unchanged, 1 for every t.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """

    def derivative(self, t, state):
        return ops.ones_like(t)


class ClippedStraightThrough(Surrogate):
    """`clipped_ste`: 1 where |t| <= 1, else 0.

    Source: Hubara et al., "Binarized Neural Networks", NeurIPS 2016, Eq. 4.
    """

    def derivative(self, t, state):
        return ops.cast(ops.abs(t) <= 1.0, ms.float32)


class FourierApproximation(Surrogate):
    """`fda`: the derivative of sign's Fourier partial sum, 4 omega/pi * sum_{i=0..n} cos((2i+1) omega t).

    Source: Xu et al., NeurIPS 2021 (FDA-BNN), Eq. 10; computed in closed form, see `fourier.derivative`.

    Args:
        omega (float): angular frequency > 0, radians per unit of t. The paper gives none; 0.1 is the value of the
            public re-implementation. The peak of the gradient is 4 omega (n+1)/pi.
        n (int): number of cosines less one, 0 to 1000; constant until a schedule is attached.
        clip (float, optional): a bound > 0 on |t| beyond which the gradient is 0. None, as in the paper's Eq. 15: no
            bound.

    Raises:
        ValueError: for values outside these ranges.
    """

    scheduled = "n"

    def __init__(self, omega: float = 0.1, n: int = 9, clip: float | None = None):
        super().__init__()
        require(_positive(omega), "omega", omega, "a finite number greater than 0")
        require_integer("n", n, 0, MAX_TERMS)
        require(clip is None or _positive(clip), "clip", clip, "None or a finite number greater than 0")
        self.initial = float(n)
        self.clip = clip
        self.constants = fourier.closed_form_constants(omega)

    def derivative(self, t, state):
        gradient = fourier.derivative(t, state, self.constants)
        if self.clip is None:
            return gradient
        return ops.select(ops.abs(t) > self.clip, 0.0, gradient)  # not a product: infinity is out of bounds, NaN stays


class ApproxSign(Surrogate):
    """`approx_sign`: 2 - 2|t| where |t| <= 1, else 0.

    The derivative of a sign made of two parabolas. Source: Liu et al., "Bi-Real Net", ECCV 2018, which uses it for
    activations only, with `clipped_ste` for weights (`weight_estimator`), as its public code (PyTorch) does.
    """

    def derivative(self, t, state):
        return 2.0 * ops.relu(1.0 - ops.abs(t))


class SwishSign(Surrogate):
    """`swish_sign`: beta (2 - beta t tanh(beta t / 2)) / (1 + cosh(beta t)) for every t.

    The derivative of SignSwish: beta at 0, negative from |t| = 2.40 / beta on. Source: Darabi et al., "Regularized
    Binary Network Training" (BNN+), 2018; no code by its authors is public. Only the estimator: BNN+ also has a
    regularizer that pulls weights to plus or minus a trained scale.

    Args:
        beta (float): above 0, inverse units of t; the paper's choice is 5.

    Raises:
        ValueError: another beta.
    """

    def __init__(self, beta: float = 5.0):
        super().__init__()
        require(_positive(beta), "beta", beta, "a finite number greater than 0")
        self.beta = beta

    def derivative(self, t, state):
        # cosh overflows; with e = exp(-|u|), tanh(|u|/2) is (1 - e) / (1 + e), and 1 / (1 + cosh u) half of
        # sech^2(u/2).
        u = ops.minimum(ops.abs(t) * self.beta, 80.0)
        e = ops.exp(-u)
        return self.beta * (2.0 - u * (1.0 - e) / (1.0 + e)) * (0.5 * _square_of_sech(0.5 * u))


class SoftQuantization(Surrogate):
    """`dsq`: k (1 - tanh^2(k t)) / tanh(k) where |t| <= 1, else 0; k = ln(2/alpha - 1) / 2, hence tanh(k) = 1 - alpha.

    The derivative of tanh(k t) / tanh(k), which lies alpha below 1 before it is stretched. Source: Gong et al.,
    "Differentiable Soft Quantization" (DSQ), ICCV 2019, for one bit on the interval [-1, 1]. Only the estimator: the
    method also learns alpha and the interval for each layer.

    Args:
        alpha (float): between 0 and 1. Public code differs: 0.2 as the start of a learned one, 0.4 fixed.

    Raises:
        ValueError: another alpha.
    """

    def __init__(self, alpha: float = 0.2):
        super().__init__()
        require(_positive(alpha) and alpha < 1, "alpha", alpha, "a number between 0 and 1")
        self.k = math.log(2 / alpha - 1) / 2
        self.peak = self.k / (1 - alpha)

    def derivative(self, t, state):
        inside = ops.cast(ops.abs(t) <= 1.0, ms.float32)
        return inside * (self.peak * _square_of_sech(self.k * t))


class _TemperatureSurrogate(Surrogate):
    """An estimator that sharpens with T, log-spaced over training from t_min to exactly t_max; k T is its height.

    k = max(1/T, 1) keeps the height from falling below that of T = 1. Public code sets T once an epoch, from the epochs
    that are over, and so ends one epoch short of t_max.
    """

    scheduled = "T"

    def __init__(self, t_min: float, t_max: float):
        require(_positive(t_min), "t_min", t_min, "a finite number greater than 0")
        require(_positive(t_max) and t_max >= t_min, "t_max", t_max, f"a finite number of at least t_min, {t_min}")
        super().__init__()
        self.schedule = log_spaced(t_min, t_max)
        self.initial = t_min


class ErrorDecay(_TemperatureSurrogate):
    """`ede`: k T (1 - tanh^2(T t)) for every t; T grows from t_min to t_max, k = max(1/T, 1).

    The derivative of k tanh(T t), the error decay estimator: nearly 1 everywhere at first, nearly sign's at the end.
    Source: Qin et al., "Forward and Backward Information Retention for Accurate Binary Neural Networks" (IR-Net), CVPR
    2020. Its public code has T from 0.1 to 10 for VGG-Small, and from 0.001 for ResNet-20 with binary activations; none
    is published for ImageNet. Only the estimator: IR-Net's weights are the quantizer `libra`.

    Args:
        t_min, t_max (float): T at the start and the end of training, above 0, inverse units of t.

    Raises:
        ValueError: other values.
    """

    def __init__(self, t_min: float = 0.1, t_max: float = 10.0):
        super().__init__(t_min, t_max)

    def derivative(self, t, state):
        height = ops.maximum(state, 1.0)  # k T
        return height * _square_of_sech(state * t)


class RotatedApproximation(_TemperatureSurrogate):
    """`rbnn`: k max(sqrt2 T - T^2 |t|, 0); T grows from t_min to t_max, k = max(1/T, 1).

    A triangle of height k sqrt2 T that ends at |t| = sqrt2 / T. Source: Lin et al., "Rotated Binary Neural Network",
    NeurIPS 2020. In its public code this is the rule for weights; activations have k = 1 and max(T, 1) for T. Only
    the estimator: RBNN also rotates and standardizes weights, standardizes activations, and learns the scales.

    Args:
        t_min, t_max (float): T at the start and the end of training, above 0, inverse units of t.

    Raises:
        ValueError: other values.
    """

    def __init__(self, t_min: float = 0.01, t_max: float = 10.0):
        super().__init__(t_min, t_max)

    def derivative(self, t, state):
        height = ops.maximum(state, 1.0)  # k T
        return height * ops.relu(math.sqrt(2) - state * ops.abs(t))


class RectifiedStraightThrough(Surrogate):
    """`reste`: (1/o) |t|^((1-o)/o) where 0.1 < |t| <= 1.5; 0.1^(1/o) / 0.1 where |t| <= 0.1; else 0. o grows from 1.

    The derivative of sign(t) |t|^(1/o), and near 0, where that has a pole, the secant's slope. o follows
    1 + (o_end - 1) (1 - cos(pi p / 2)) over training. Source: Wu et al., "Estimator Meets Equilibrium Perspective: A
    Rectified Straight Through Estimator for Binary Neural Networks Training" (ReSTE), ICCV 2023, with the bounds of its
    public code, at which it jumps. There the weights' scale, mean|w| of the layer, multiplies the gradient
    (`scale_in_gradient`) and has one of its own, which is left out here.

    Args:
        o_end (float): o at the end of training, at least 1.

    Raises:
        ValueError: another o_end.
    """

    scheduled = "o"
    initial = 1.0

    def __init__(self, o_end: float = 3.0):
        require(_positive(o_end) and o_end >= 1, "o_end", o_end, "a finite number of at least 1")
        super().__init__()
        self.schedule = accelerate(1.0, o_end)

    def derivative(self, t, state):
        distance = ops.abs(t)
        near = ops.cast(distance <= 0.1, ms.float32)
        power = ops.pow(ops.clamp(distance, 0.1, 1.5), (1.0 - state) / state)  # 0.1^(1/o) / 0.1 near 0
        return ops.cast(distance <= 1.5, ms.float32) * power * (near + (1.0 - near) / state)


def _square_of_sech(u):
    """1 - tanh^2(u) = 1 / cosh^2(u), float32 of any shape, within 1e-6; 0 far out.

    By exp, since MindSpore's CPU tanh is 1 from 5 on, which is off by 2e-4 here.
    """
    e = ops.exp(-2.0 * ops.minimum(ops.abs(u), 40.0))
    return 4.0 * e / ops.square(1.0 + e)


def _positive(value) -> bool:
    """Whether it is a finite number greater than 0, as float32 too; True is none."""
    return is_number(value) and value > 1 / MAX_NUMBER


class Estimator(NoAutoCast):
    """sign(t) with a surrogate gradient: Tensor of any shape and float dtype to Tensor of the same.

    The gradient is computed in float32 and returned in the dtype of the input.
    """

    precision = 1

    def __init__(self, surrogate: Surrogate):
        super().__init__()
        self.surrogate = surrogate
        self.state = ScheduledValue(surrogate.scheduled, surrogate.initial, surrogate.schedule)

    @property
    def name(self) -> str:
        """The name of its surrogate gradient in `ESTIMATORS`, or the class's own."""
        return name_of(ESTIMATORS, self.surrogate)

    def extend_repr(self):
        return self.name

    def construct(self, t):
        return self.surrogate(t, self.state())


ESTIMATORS = {
    "ste": StraightThrough,
    "clipped_ste": ClippedStraightThrough,
    "fda": FourierApproximation,
    "approx_sign": ApproxSign,
    "swish_sign": SwishSign,
    "dsq": SoftQuantization,
    "ede": ErrorDecay,
    "rbnn": RotatedApproximation,
    "reste": RectifiedStraightThrough,
}


def create_estimator(name: str | Estimator | None, **options) -> Estimator | None:
    """The estimator called `name` with its options, an Estimator as it is, or None for None.

    Raises:
        ValueError: an unknown name, an unknown option, or a value outside its range.
    """
    if name is None or isinstance(name, Estimator):
        if options:
            raise ValueError(f"options {sorted(options)} go with an estimator's name, not with {name!r}")
        return name
    return Estimator(build("estimator", ESTIMATORS, name, options))
