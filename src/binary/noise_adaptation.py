"""The noise adaptation module: a small trainable term that is added to sign and annealed to 0.

Xu et al., NeurIPS 2021, Eq. 12-17: e(t) = ReLU(t W1) W2 + eta(t), added as z = sign(t) + alpha e(t) with alpha falling
to 0 over training. The paper leaves these points open: here rows of t are filters (d = C_in k_h k_w) for a weight and
positions (d = C_in) for an activation; the hidden width is max(1, d // k), because d // k is 0 for networks with 16 or
32 channels. The initial W1 and W2 are an option, see `NOISE_INITS`: they set how large the trainable part is compared
to eta.
"""

import math

import mindspore as ms
from mindspore import Parameter, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from .amp import NoAutoCast
from .kernels import native
from .schedules import ScheduledValue
from .validation import lookup, require_integer, require_number

ETAS = {"sine": "a sin(t)", "linear": "a t", "none": "0"}
# Initial W1 and W2 by their fan in: d for W1, the hidden width for W2.
NOISE_INITS = {
    "normal": lambda fan_in: Normal(0.01),  # standard deviation 0.01
    "uniform": lambda fan_in: Uniform(1 / math.sqrt(fan_in)),  # within +-1/sqrt(fan in), as PyTorch's linear layer
}


class NoiseAdaptation(NoAutoCast):
    """e(t) = ReLU(t W1) W2 + eta(t), Eq. 13; eta(t) = a sin(t) ("sine"), a t ("linear") or 0 ("none").

    Args:
        dimension (int): d, the length of a row of t.
        eta (str): "sine", "linear" or "none". Table 4 of the paper: sine is best.
        amplitude (float): a; the paper's best is 0.1.
        reduction (int): k; the paper's is 64.
        init (str): initial W1 and W2: "normal" or "uniform". The paper only says that their mean is zero; the public
            re-implementation uses "uniform".

    Inputs:
        t: (rows, d), or (N, d, H, W), where the rows are the N H W positions.

    Outputs:
        Tensor of the shape of t.

    Raises:
        ValueError: eta or init is unknown, dimension or reduction is not an integer of at least 1, or amplitude is not
            finite.
    """

    def __init__(
        self, dimension: int, eta: str = "sine", amplitude: float = 0.1, reduction: int = 64, init: str = "normal"
    ):
        super().__init__()
        lookup("eta", ETAS, eta)
        start = lookup("noise init", NOISE_INITS, init)
        require_integer("dimension", dimension, 1)
        require_integer("reduction", reduction, 1)
        require_number("amplitude", amplitude)
        hidden = max(1, dimension // reduction)
        self.eta = eta
        self.amplitude = amplitude
        self.w1 = Parameter(initializer(start(dimension), (dimension, hidden), ms.float32))
        self.w2 = Parameter(initializer(start(hidden), (hidden, dimension), ms.float32))

    def extend_repr(self):
        dimension, hidden = self.w1.shape
        return f"dimension={dimension}, hidden={hidden}, eta={self.eta}, amplitude={self.amplitude}"

    def construct(self, t):
        w1, w2 = ops.cast(self.w1, t.dtype), ops.cast(self.w2, t.dtype)
        if t.ndim == 4:  # a linear map of each position is a convolution with a 1x1 kernel
            hidden = ops.relu(ops.conv2d(t, ops.transpose(w1, (1, 0))[:, :, None, None]))
            e = ops.conv2d(hidden, ops.transpose(w2, (1, 0))[:, :, None, None])
        else:
            e = ops.matmul(ops.relu(ops.matmul(t, w1)), w2)
        if self.eta == "sine":
            e = e + self.amplitude * ops.sin(t)
        elif self.eta == "linear":
            e = e + self.amplitude * t
        return e


class AnnealedNoise(NoAutoCast):
    """binary + alpha e(t), Eq. 14; alpha is a scheduled value.

    Args:
        adaptation (NoiseAdaptation): computes e.
        alpha (float): the value until a schedule is attached; 0.1 as in the public re-implementation.
        in_forward (bool): True: Eq. 14. False: the paper's Algorithm 1 as printed: forward is only `binary`, backward
            is that of Eq. 14.

    Inputs: binary = sign(t), with the gradient of an estimator; t. Outputs: the shape of t.
    """

    def __init__(self, adaptation: NoiseAdaptation, alpha: float = 0.1, in_forward: bool = True):
        super().__init__()
        self.adaptation = adaptation
        require_number("alpha", alpha)
        self.alpha = ScheduledValue("alpha", alpha)
        self.in_forward = in_forward
        hidden = adaptation.w1.shape[1]
        self.kernels = native and native.noise(adaptation.eta, adaptation.amplitude, in_forward, hidden)

    def construct(self, binary, t):
        if self.kernels is not None and t.dtype == ms.float32:
            return self.kernels(binary, t, self.adaptation.w1, self.adaptation.w2, self.alpha())
        noise = ops.cast(self.alpha(), t.dtype) * self.adaptation(t)
        if not self.in_forward:
            noise = noise - ops.stop_gradient(noise)
        return binary + noise
