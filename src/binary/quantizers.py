"""How a tensor becomes 1-bit: activations by their sign, weights by sign and scale.

A layer takes one quantizer for its input and one for its weight; None means full precision. `precision` is the number
of bits, from which sizes are counted. In training a quantizer may add annealed noise; in evaluation it never does.
"""

from mindspore import nn, ops

from src.binary.estimators import Estimator
from src.binary.noise_adaptation import AnnealedNoise


class ActivationSign(nn.Cell):
    """`sign`: x_b = sign(x); backward by the estimator. In training z = sign(x) + alpha e(x) if there is noise.

    Inputs: x, any shape ((N, C, H, W) or (N, C) where there is noise). Outputs: the same shape, +1 or -1.
    """

    precision = 1

    def __init__(self, estimator: Estimator, noise: AnnealedNoise | None = None):
        super().__init__()
        self.estimator = estimator
        self.noise = noise

    def construct(self, x):
        binary = self.estimator(x)
        if self.noise is not None and self.training:
            return self.noise(binary, x)
        return binary


class _ConstantScale(nn.Cell):
    """z * scale forward; backward the gradient passes unscaled, and none goes to the scale."""

    def construct(self, z, scale):
        return z * scale

    def bprop(self, z, scale, out, dout):
        return dout, ops.zeros_like(scale)


class DoReFaWeight(nn.Cell):
    """`dorefa`: w_q = sign(w) * mean|w|, one scale a layer; backward by the estimator.

    The scale is a constant in the backward pass and, unless `scale_in_gradient`, does not multiply the gradient, as in
    the released FDA-BNN code and in Zhou et al., "DoReFa-Net", 2016. With noise, the scale multiplies sign + alpha e as
    a whole, and the one rule holds for the latent weight and for the noise module's parameters.

    Inputs: w, (C_out, ...). Outputs: the same shape, +s or -s with s = mean|w|.
    """

    precision = 1

    def __init__(self, estimator: Estimator, noise: AnnealedNoise | None = None, scale_in_gradient: bool = False):
        super().__init__()
        self.estimator = estimator
        self.noise = noise
        self.scale_in_gradient = scale_in_gradient
        self.constant_scale = _ConstantScale()

    def construct(self, weight):
        binary = self.estimator(weight)
        if self.noise is not None and self.training:
            filters = weight.reshape(weight.shape[0], -1)
            binary = self.noise(binary.reshape(filters.shape), filters).reshape(weight.shape)
        scale = ops.stop_gradient(ops.abs(weight).mean())
        if self.scale_in_gradient:
            return binary * scale
        return self.constant_scale(binary, scale)


WEIGHT_QUANTIZERS = {"dorefa": DoReFaWeight}
