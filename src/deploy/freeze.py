"""Turn a trained network into an inference network: binary weights as constants, no estimators and no noise."""

import copy

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from ..binary import BinaryLayer, SlopeThenNorm, sign


class InputSign(nn.Cell):
    """sign(x), +1 or -1, from operations that every export format has."""

    def construct(self, x):
        return sign(x)


class FrozenLayer(nn.Cell):
    """Compute what a `BinaryConv2d` or `BinaryDense` computes in evaluation, with its quantized weight as a constant.

    A binary weight holds +1 and -1 exactly, and the scale is applied to the output:

        y = operation(sign(x), sign(w)) / divisor,   divisor = 1 / scale, one per layer or per output channel

    A weight that is not binary is kept, without a divisor.
    """

    def __init__(self, layer: BinaryLayer):
        super().__init__()
        weight, scale = (layer.weight, None) if layer.weight_quantizer is None else layer.signs_and_scale()
        self.sign = InputSign() if layer.activation_quantizer is not None else None
        self.weight = Parameter(ms.Tensor(weight.asnumpy()), name="weight", requires_grad=False)
        self.operation = layer.operation
        # Divide, do not multiply: onnxruntime folds a product with a constant into the weight of the convolution.
        self.divisor = None
        if layer.weight_quantizer is not None and layer.weight_quantizer.has_scale:
            with np.errstate(divide="ignore"):  # a scale of 0: sums / inf = 0
                divisor = np.reciprocal(scale.asnumpy()).reshape(-1, *(1,) * (weight.ndim - 2))
            self.divisor = Parameter(ms.Tensor(divisor), name="divisor", requires_grad=False)

    def construct(self, x):
        if self.sign is not None:
            x = self.sign(x)
        x = self.operation(x, self.weight)
        return x if self.divisor is None else x / self.divisor


class PlainSlopeThenNorm(nn.Cell):
    """A `SlopeThenNorm` without the kernel for CPU, which no file can hold."""

    def construct(self, x, slope, norm):
        return norm(slope(x))


def freeze(network: nn.Cell) -> nn.Cell:
    """Copy `network` for inference only; the original is not changed.

    Every `BinaryLayer` becomes a `FrozenLayer`; no parameter is trainable; parameter names stay, and a layer with a
    scale gets a `divisor`.
    """
    network.set_train(False)
    frozen = copy.deepcopy(network)
    replace(frozen, BinaryLayer, FrozenLayer)
    replace(frozen, SlopeThenNorm, lambda cell: PlainSlopeThenNorm())
    frozen.update_parameters_name()
    for parameter in frozen.get_parameters():
        parameter.requires_grad = False
    return frozen.set_train(False)


def round_to_float16(frozen: nn.Cell) -> None:
    """Round the weights of convolutions and linear layers of a frozen network to values that float16 holds exactly.

    Those of binary layers are +1 and -1. Vectors stay: biases, scales, slopes, batch norms.
    """
    for parameter in frozen.get_parameters():
        if parameter.name.endswith("weight") and parameter.ndim >= 2:
            values = parameter.asnumpy().astype(np.float16).astype(np.float32)
            parameter.set_data(ms.Tensor(values))


def replace(network: nn.Cell, kind: type, make) -> None:
    """Replace every cell of the given kind below `network` by `make(cell)`."""
    for name, child in list(network.name_cells().items()):
        if isinstance(child, kind):
            replacement = make(child)
            if isinstance(network, nn.SequentialCell):
                network[int(name)] = replacement
            else:
                setattr(network, name, replacement)
        else:
            replace(child, kind, make)
