"""Sign functions whose backward pass is a named surrogate gradient.

An estimator defines only its derivative: it is a subclass of `Surrogate` with `derivative(t, state)`. The sign, the
`bprop` and the handling of scheduled values are written once, here. Three ways to get an estimator:

    create_estimator("fda", omega=0.1, n=9)      by name, with options
    create_estimator(estimator)                  an Estimator is returned unchanged
    create_estimator(None)                       returns None: no binarization

Forward, for every estimator: +1 where t > 0, else -1. The sign is never 0: a packed bit cannot hold a 0.
"""

import math

import mindspore as ms
from mindspore import ops

from . import fourier
from .amp import NoAutoCast
from .kernels import native
from .schedules import Schedule, ScheduledValue, accelerate, log_spaced
from .validation import MAX_NUMBER, build, is_number, name_of, require, require_integer

MAX_TERMS = 1000  # largest n of the Fourier sum; a far larger n is not exact in float32


def sign(t):
    """+1 where t > 0, else -1 (also at 0, -0 and NaN), in the dtype of `t`; any shape. Defines no gradient.

    On CPU, MindSpore may treat subnormal numbers as 0 (it does in graph mode): their sign is then -1.
    """
    # Compare and cast: MindSpore's Sign is 0 at 0 and has no ONNX mapping; select takes three times as long on CPU.
    # Use float32 because the CPU cannot compare bfloat16; for a float32 input these casts cost nothing.
    positive = ops.cast(t, ms.float32) > 0
    return ops.cast(ops.cast(positive, ms.float32) * 2 - 1, t.dtype)


class Surrogate(NoAutoCast):
    """sign(t) forward, derivative(t, state) times the incoming gradient backward.

    `state` is a float32 Tensor of shape () that may change at every step. It is an input, so nothing recompiles.
    Estimators without a scheduled value ignore it. `scheduled` is the name of the value ("n"), or None; `schedule` is
    its default schedule, which the experiment may replace; `initial` is its value outside training.
    """

    scheduled: str | None = None
    schedule: Schedule | None = None
    initial = 0.0

    def __init__(self):  # without nn.Cell's own arguments, which are not options of an estimator
        super().__init__()
        self.sign_kernel = native and native.sign()

    def derivative(self, t, state):
        """The surrogate of d sign/dt at float32 `t`, the same shape."""
        raise NotImplementedError

    def gradient(self, t, state, dout):
        """derivative(t, state) * dout at float32 `t` and `dout`. A subclass may compute both in one kernel."""
        return self.derivative(t, state) * dout

    def construct(self, t, state):
        return self.sign_kernel(t) if self.sign_kernel is not None and t.dtype == ms.float32 else sign(t)

    def bprop(self, t, state, out, dout):
        gradient = self.gradient(ops.cast(t, ms.float32), state, ops.cast(dout, ms.float32))
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
        omega (float): angular frequency > 0, radians per unit of t. The paper gives no value; 0.1 is that of the
            public re-implementation. The peak of the gradient is 4 omega (n+1)/pi.
        n (int): number of cosines minus one, 0 to 1000; constant until a schedule is attached.
        clip (float, optional): the gradient is 0 where |t| > clip; clip > 0. None: no bound, as in the paper's Eq. 15.

    Raises:
        ValueError: a value is outside these ranges.
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
        on_cpu = ms.get_context("device_target") == "CPU"
        self.sine = fourier.sine_of_half_turns if on_cpu else fourier.sine_by_operator
        self.kernel = native and native.fourier_gradient()
        self.kernel_constants = ms.Tensor([*self.constants, math.inf if clip is None else clip], ms.float32)

    def derivative(self, t, state):
        gradient = fourier.derivative(t, state, self.constants, self.sine)
        if self.clip is None:
            return gradient
        return ops.select(ops.abs(t) > self.clip, 0.0, gradient)  # unlike a product: 0 at infinity, and NaN stays NaN

    def gradient(self, t, state, dout):
        if self.kernel is None:
            return self.derivative(t, state) * dout
        return self.kernel(t, dout, state, self.kernel_constants)


class ApproxSign(Surrogate):
    """`approx_sign`: 2 - 2|t| where |t| <= 1, else 0.

    The derivative of a sign made of two parabolas. Source: Liu et al., "Bi-Real Net", ECCV 2018. The paper and its
    public code (PyTorch) use it for activations only, with `clipped_ste` for weights (`weight_estimator`).
    """

    def derivative(self, t, state):
        return 2.0 * ops.relu(1.0 - ops.abs(t))


class SwishSign(Surrogate):
    """`swish_sign`: beta (2 - beta t tanh(beta t / 2)) / (1 + cosh(beta t)) for every t.

    The derivative of SignSwish: beta at 0, negative for |t| > 2.40 / beta. Source: Darabi et al., "Regularized Binary
    Network Training" (BNN+), 2018; its authors published no code. Only the estimator is implemented: BNN+ also has a
    regularizer that pulls weights to plus or minus a trained scale.

    Args:
        beta (float): above 0, inverse units of t; the paper uses 5.

    Raises:
        ValueError: beta is not a finite number above 0.
    """

    def __init__(self, beta: float = 5.0):
        super().__init__()
        require(_positive(beta), "beta", beta, "a finite number greater than 0")
        self.beta = beta

    def derivative(self, t, state):
        # cosh overflows. With e = exp(-|u|): tanh(|u|/2) = (1 - e) / (1 + e) and 1 / (1 + cosh u) = sech^2(u/2) / 2.
        u = ops.minimum(ops.abs(t) * self.beta, 80.0)
        e = ops.exp(-u)
        return self.beta * (2.0 - u * (1.0 - e) / (1.0 + e)) * (0.5 * _square_of_sech(0.5 * u))


class SoftQuantization(Surrogate):
    """`dsq`: k (1 - tanh^2(k t)) / tanh(k) where |t| <= 1, else 0; k = ln(2/alpha - 1) / 2, so tanh(k) = 1 - alpha.

    The derivative of tanh(k t) / tanh(k): tanh(k) is alpha below 1, and the division stretches it to 1. Source: Gong
    et al., "Differentiable Soft Quantization" (DSQ), ICCV 2019, for one bit on the interval [-1, 1]. Only the estimator
    is implemented: the method also learns alpha and the interval for each layer.

    Args:
        alpha (float): between 0 and 1. Public code differs: a learned alpha that starts at 0.2, or a fixed one of 0.4.

    Raises:
        ValueError: alpha is not between 0 and 1.
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
    """An estimator that sharpens as T grows, log-spaced over training from t_min to exactly t_max; its height is k T.

    k = max(1/T, 1) keeps the height from falling below that of T = 1. Public code sets T once per epoch, from the
    number of finished epochs, and so ends one epoch short of t_max.
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
    2020. Its public code has T from 0.1 to 10 for VGG-Small, and from 0.001 for ResNet-20 with binary activations; for
    ImageNet no values are published. This is only the estimator: IR-Net's weights are the quantizer `libra`.

    Args:
        t_min, t_max (float): T at the start and the end of training, above 0, inverse units of t.

    Raises:
        ValueError: t_min or t_max is not a finite number above 0, or t_max is below t_min.
    """

    def __init__(self, t_min: float = 0.1, t_max: float = 10.0):
        super().__init__(t_min, t_max)

    def derivative(self, t, state):
        height = ops.maximum(state, 1.0)  # k T
        return height * _square_of_sech(state * t)


class RotatedApproximation(_TemperatureSurrogate):
    """`rbnn`: k max(sqrt2 T - T^2 |t|, 0); T grows from t_min to t_max, k = max(1/T, 1).

    A triangle of height k sqrt2 T that ends at |t| = sqrt2 / T. Source: Lin et al., "Rotated Binary Neural Network",
    NeurIPS 2020. Its public code uses this rule for weights; for activations k = 1 and T is max(T, 1). Only the
    estimator is implemented: RBNN also rotates and standardizes weights, standardizes activations, and learns the
    scales.

    Args:
        t_min, t_max (float): T at the start and the end of training, above 0, inverse units of t.

    Raises:
        ValueError: t_min or t_max is not a finite number above 0, or t_max is below t_min.
    """

    def __init__(self, t_min: float = 0.01, t_max: float = 10.0):
        super().__init__(t_min, t_max)

    def derivative(self, t, state):
        height = ops.maximum(state, 1.0)  # k T
        return height * ops.relu(math.sqrt(2) - state * ops.abs(t))


class RectifiedStraightThrough(Surrogate):
    """`reste`: (1/o) |t|^((1-o)/o) where 0.1 < |t| <= 1.5; 0.1^(1/o) / 0.1 where |t| <= 0.1; else 0. o grows from 1.

    The derivative of sign(t) |t|^(1/o); near 0, where it has a pole, the slope of the secant. o follows
    1 + (o_end - 1) (1 - cos(pi p / 2)) over training. Source: Wu et al., "Estimator Meets Equilibrium Perspective: A
    Rectified Straight Through Estimator for Binary Neural Networks Training" (ReSTE), ICCV 2023, with the bounds of its
    public code; the gradient jumps at both bounds. In that code the weights' scale, mean|w| of the layer, multiplies
    the gradient (`scale_in_gradient`) and also receives a gradient, which is left out here.

    Args:
        o_end (float): o at the end of training, at least 1.

    Raises:
        ValueError: o_end is not a finite number of at least 1.
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
    """1 - tanh^2(u) = 1 / cosh^2(u), float32 of any shape, within 1e-6; 0 for large |u|.

    Computed with exp: MindSpore's CPU tanh is 1 from 5 on, an error of 2e-4 here.
    """
    e = ops.exp(-2.0 * ops.minimum(ops.abs(u), 40.0))
    return 4.0 * e / ops.square(1.0 + e)


def _positive(value) -> bool:
    """Whether the value is a finite number greater than 0, also as float32. True does not count as a number."""
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
        """Name of the surrogate gradient in `ESTIMATORS`, or else of its class."""
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
    """Create the estimator called `name` with the given options. An Estimator or None is returned unchanged.

    Raises:
        ValueError: the name or an option is unknown, or a value is outside its range.
    """
    if name is None or isinstance(name, Estimator):
        if options:
            raise ValueError(f"options {sorted(options)} go with an estimator's name, not with {name!r}")
        return name
    return Estimator(build("estimator", ESTIMATORS, name, options))
