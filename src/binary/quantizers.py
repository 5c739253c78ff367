"""Quantizers that make a tensor 1-bit: activations become their sign, weights their sign and a scale.

A layer takes one quantizer for its input and one for its weight; None means full precision. The layer computes with the
signs and scales the result. `precision` is the number of bits, used to count sizes. In training a quantizer may add
annealed noise; in evaluation it never does.
"""

import math

import mindspore as ms
from mindspore import nn, ops

from .amp import NoAutoCast
from .estimators import Estimator
from .noise_adaptation import AnnealedNoise
from .validation import require


class SignActivation(NoAutoCast):
    """`sign`: x_b = sign(x), with the estimator's gradient. With noise, z = sign(x) + alpha e(x) in training.

    Inputs: x, any shape; with noise (N, C, H, W) or (N, C). Outputs: the same shape, +1 or -1.
    """

    precision = 1

    def __init__(self, estimator: Estimator, noise: AnnealedNoise | None = None):
        super().__init__()
        _require_estimator(estimator)
        self.estimator = estimator
        self.noise = noise

    def construct(self, x):
        binary = self.estimator(x)
        if self.noise is not None and self.training:
            return self.noise(binary, x)
        return binary


class WeightQuantizer(NoAutoCast):
    """w_q = z * scale(t) with z = sign(t) and t = standardize(w): base class of weight quantizers.

    Backward, the derivative of sign is the estimator's. The scale is a constant: no gradient flows into it.
    `scale_in_gradient` says whether the scale multiplies the gradient of z; None means `scales_gradient`, which follows
    the quantizer's source. In training with noise z = sign(t) + alpha e(t), and the same rule holds for the latent
    weight and for the noise module's parameters. The layer that multiplies by the scale applies the rule.

    Inputs: w, (C_out, ...). Outputs: z in that shape and dtype, +1 or -1 without noise; the scale, float32, of shape ()
    or (C_out,). A quantizer without a scale (`has_scale` is False) gives 1.
    """

    precision = 1
    has_scale = True
    scales_gradient = False

    def __init__(self, estimator: Estimator, noise: AnnealedNoise | None = None, scale_in_gradient: bool | None = None):
        super().__init__()
        _require_estimator(estimator)
        allowed = scale_in_gradient in (True, False, None)
        require(allowed, "scale_in_gradient", scale_in_gradient, "True, False or None")
        self.estimator = estimator
        self.noise = noise
        self.scale_in_gradient = self.scales_gradient if scale_in_gradient is None else scale_in_gradient

    def standardize(self, weight):
        """t, the input of sign, in the shape of `weight`."""
        return weight

    def scale(self, t):
        """s >= 0, float32: () if there is one for the layer, (C_out,) if there is one for each output channel."""
        raise NotImplementedError

    def construct(self, weight):
        t = self.standardize(weight)
        binary = self.estimator(t)
        if self.noise is not None and self.training:
            filters = t.reshape(t.shape[0], -1)
            binary = self.noise(binary.reshape(filters.shape), filters).reshape(t.shape)
        return ops.cast(binary, weight.dtype), ops.stop_gradient(self.scale(ops.cast(t, ms.float32)))


class SignWeight(WeightQuantizer):
    """`sign`: w_q = sign(w), without a scale.

    Source: Hubara et al., "Binarized Neural Networks", NeurIPS 2016.
    """

    has_scale = False

    def scale(self, t):
        return ops.ones((), ms.float32)


class DoReFaWeight(WeightQuantizer):
    """`dorefa`: w_q = sign(w) * mean|w|, one scale per layer, which does not multiply the gradient.

    Source: Zhou et al., "DoReFa-Net", 2016, and the released FDA-BNN code.
    """

    def scale(self, t):
        return ops.abs(t).mean()


class XnorWeight(WeightQuantizer):
    """`xnor`: w_q = sign(w) * mean|w|, one scale per output channel, which multiplies the gradient.

    Source: Rastegari et al., "XNOR-Net", ECCV 2016. Its gradient is (1/m + s 1{|w| < 1}) times the incoming one, with m
    weights in a filter. This class has the second term; the estimator (`clipped_ste`) supplies the indicator. Left out:
    the paper's scale of the input, K, which its public codes leave out too, and the other steps of those codes: they
    centre weights over the input channels and clamp them to [-1, 1] at every step; one uses the exact gradient of the
    scale in place of 1/m; they multiply the gradient by (1 - 1/C_in) and by a factor that corrects for the optimizer.
    """

    scales_gradient = True

    def scale(self, t):
        return _filter_mean(ops.abs(t)).reshape(-1)


class LibraWeight(WeightQuantizer):
    """`libra`: w_q = sign(t) * 2^round(log2 mean|t|), t = (w - mean w) / std w, mean and standard deviation (unbiased)
    of each output channel.

    Backward, the estimator acts on t and the gradient flows through mean and standard deviation; the scale, one per
    output channel, is constant and multiplies the gradient. A filter of equal weights has t = 0 and sign -1.

    Source: Qin et al., "Forward and Backward Information Retention for Accurate Binary Neural Networks" (IR-Net), CVPR
    2020, and its public code, which does not guard the division.
    """

    scales_gradient = True

    def standardize(self, weight):
        weight = ops.cast(weight, ms.float32)
        centred = weight - _filter_mean(weight)
        # Scale to order 1 before squaring, which mixed precision does in float16. t does not depend on the divisor, so
        # no gradient is lost.
        largest = ops.stop_gradient(ops.amax(ops.abs(centred), _filter_axes(centred), keepdims=True))
        centred = centred / (largest + ops.cast(largest == 0, ms.float32))
        fan_in = math.prod(weight.shape[1:])
        variance = _filter_mean(ops.square(centred)) * (fan_in / max(fan_in - 1, 1))
        return centred / ops.sqrt(ops.maximum(variance, 1e-6))  # only a filter of equal weights has less

    def scale(self, t):
        exponent = ops.log(ops.maximum(_filter_mean(ops.abs(t)).reshape(-1), 1e-6)) / math.log(2)
        return ops.pow(2.0, ops.round(exponent))


def _require_estimator(estimator: Estimator) -> None:
    require(isinstance(estimator, nn.Cell), "estimator", estimator, "an Estimator, as create_estimator('fda') makes it")


def _filter_mean(values):
    """The mean of each filter: (C_out, ...) to (C_out, 1, ...)."""
    return values.mean(_filter_axes(values), keep_dims=True)


def _filter_axes(values) -> tuple[int, ...]:
    return tuple(range(1, values.ndim))


WEIGHT_QUANTIZERS = {"sign": SignWeight, "dorefa": DoReFaWeight, "xnor": XnorWeight, "libra": LibraWeight}
