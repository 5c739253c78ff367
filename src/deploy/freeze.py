"""Turn a trained network into an inference network: binary weights as constants, no estimators and no noise."""

import copy

import mindspore as ms
import numpy as np
from mindspore import Parameter, nn

from ..binary import BinaryLayer, sign


class InputSign(nn.Cell):
    """sign(x), +1 or -1, from operations that every export format has."""

    def construct(self, x):
        return sign(x)


class FrozenLayer(nn.Cell):
    """Compute what a `BinaryConv2d` or `BinaryDense` computes in evaluation, with its quantized weight as a constant.

    A binary weight holds +1 and -1 exactly, and the scale is applied to the output:

        y = operation(sign(x), sign(w)) / divisor,   divisor = 1 / scale, one per layer or per output channel

    If the input is binary too, the sums are integers: exact in every runtime, in any order of summation, and a sum of 0
    is exactly 0. With the scale in the weight, 4 to 7 % of ResNet-20's values were 0 only up to rounding, and the signs
    after them depended on the runtime. A weight that is not binary is kept, without a divisor.
    """

    def __init__(self, layer: BinaryLayer):
        super().__init__()
        weight = layer.quantized_weight().asnumpy()
        signs, scale = split_scale(weight) if layer.weight_quantizer is not None else (weight, None)
        self.sign = InputSign() if layer.activation_quantizer is not None else None
        self.weight = Parameter(ms.Tensor(signs), name="weight", requires_grad=False)
        self.operation = layer.operation
        # Divide, do not multiply: onnxruntime folds a product with a constant into the weight of the convolution.
        self.divisor = None
        if scale is not None and (scale != 1).any():
            with np.errstate(divide="ignore"):  # a scale of 0: sums / inf = 0
                divisor = (1 / scale).reshape(-1, *(1,) * (weight.ndim - 2))
            self.divisor = Parameter(ms.Tensor(divisor), name="divisor", requires_grad=False)

    def construct(self, x):
        if self.sign is not None:
            x = self.sign(x)
        x = self.operation(x, self.weight)
        return x if self.divisor is None else x / self.divisor


def split_scale(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Split a weight (C_out, ...) into signs of its shape and scales, float32.

    The scales are (C_out,), or (1,) if all are equal. If a filter has more than one magnitude, the weight is returned
    unchanged, with None.
    """
    magnitudes = np.abs(weight).reshape(len(weight), -1)
    scale = magnitudes[:, 0]
    if (magnitudes != scale[:, None]).any():
        return weight, None
    signs = np.where(weight > 0, 1, -1).astype(np.float32)
    return signs, scale[:1] if (scale == scale[0]).all() else scale


def freeze(network: nn.Cell) -> nn.Cell:
    """Copy `network` for inference only; the original is not changed.

    Every `BinaryLayer` becomes a `FrozenLayer`; no parameter is trainable; parameter names stay, and a layer with a
    scale gets a `divisor`.
    """
    network.set_train(False)
    frozen = copy.deepcopy(network)
    replace(frozen, BinaryLayer, FrozenLayer)
    frozen.update_parameters_name()
    for parameter in frozen.get_parameters():
        parameter.requires_grad = False
    return frozen.set_train(False)


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
