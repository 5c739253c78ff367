"""Sign functions whose backward pass is a named surrogate gradient.

An estimator is its derivative alone: a subclass of `Surrogate` with `derivative(t, state)`. The sign, the `bprop` and
the way in which scheduled values arrive are written once, here. Three ways to get one:

    create_estimator("fda", omega=0.1, n=9)      by name, with options
    create_estimator(estimator)                  an Estimator goes through as it is
    create_estimator(None)                       None: no binarization

Forward, for every estimator: +1 where t > 0, else -1. It is never 0: a packed bit cannot hold one.
"""

import math

import mindspore as ms
from mindspore import nn, ops

from src.binary import fourier
from src.binary.registry import build, require
from src.binary.schedules import ScheduledValue


def sign(t):
    """+1 where t > 0, else -1 (also at 0, -0 and NaN), in the dtype of `t`; any shape. No gradient of its own.

    In graph mode MindSpore's CPU threads take subnormal numbers for 0: their sign is -1 there.
    """
    # Compare and cast: MindSpore's Sign is 0 at 0, has no ONNX mapping, and select takes three times as long on CPU.
    # In float32, since the CPU has no comparison of bfloat16; for a float32 input these casts cost nothing.
    positive = ops.cast(t, ms.float32) > 0
    return ops.cast(ops.cast(positive, ms.float32) * 2 - 1, t.dtype)


class Surrogate(nn.Cell):
    """sign(t) forward, derivative(t, state) times the incoming gradient backward.

    `state` is a float32 Tensor of shape () that may change from step to step, an input so that nothing recompiles;
    estimators without scheduled values ignore it. `scheduled` names the value ("n"), or is None.
    """

    scheduled = None
    initial = 0.0

    def __init__(self):  # without nn.Cell's own arguments, which are no options of an estimator
        super().__init__()

    def add_flags(self, **flags):
        # Mixed precision ends here: in graph mode it would compute the derivative in float16, with poles around t = 0.
        return super().add_flags(**{name: on for name, on in flags.items() if name not in ("fp16", "bf16", "fp32")})

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
        n (int): number of cosines less one, >= 0; constant until a schedule is attached.
        clip (float, optional): a bound > 0 on |t| beyond which the gradient is 0. None, as in the paper's Eq. 15: no
            bound.

    Raises:
        ValueError: for values outside these ranges.
    """

    scheduled = "n"

    def __init__(self, omega: float = 0.1, n: int = 9, clip: float | None = None):
        super().__init__()
        require(_positive(omega), "omega", omega, "a finite number greater than 0")
        require(isinstance(n, int) and not isinstance(n, bool) and n >= 0, "n", n, "an integer of at least 0")
        require(clip is None or _positive(clip), "clip", clip, "None or a finite number greater than 0")
        self.initial = float(n)
        self.clip = clip
        self.constants = fourier.closed_form_constants(omega)

    def derivative(self, t, state):
        gradient = fourier.derivative(t, state, self.constants)
        if self.clip is None:
            return gradient
        return ops.select(ops.abs(t) > self.clip, 0.0, gradient)  # not a product: infinity is out of bounds, NaN stays


def _positive(value) -> bool:
    """Whether it is a finite number greater than 0; True is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


class Estimator(nn.Cell):
    """sign(t) with a surrogate gradient: Tensor of any shape and float dtype to Tensor of the same.

    The gradient is computed in float32 and returned in the dtype of the input.
    """

    precision = 1

    def __init__(self, surrogate: Surrogate):
        super().__init__()
        self.surrogate = surrogate
        self.state = ScheduledValue(surrogate.scheduled, surrogate.initial)

    def construct(self, t):
        return self.surrogate(t, self.state())


ESTIMATORS = {"ste": StraightThrough, "clipped_ste": ClippedStraightThrough, "fda": FourierApproximation}


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
