"""A training network becomes an inference network: weights binarized to constants, estimators and noise gone."""

import copy

import mindspore as ms
from mindspore import Parameter, nn

from ..binary import BinaryLayer, sign


class InputSign(nn.Cell):
    """sign(x), +1 or -1, from operations that every export format has."""

    def construct(self, x):
        return sign(x)


class FrozenLayer(nn.Cell):
    """What a `BinaryConv2d` or `BinaryDense` computes in evaluation, with its quantized weight as a constant.

    A binary weight holds exactly +s and -s, s being one number a layer or a filter; a full-precision layer keeps its
    weight.
    """

    def __init__(self, layer: BinaryLayer):
        super().__init__()
        self.sign = InputSign() if layer.activation_quantizer is not None else None
        self.weight = Parameter(ms.Tensor(layer.quantized_weight().asnumpy()), name="weight", requires_grad=False)
        self.operation = layer.operation

    def construct(self, x):
        if self.sign is not None:
            x = self.sign(x)
        return self.operation(x, self.weight)


def freeze(network: nn.Cell) -> nn.Cell:
    """A copy of `network` for inference alone; the original is not touched.

    Every `BinaryLayer` becomes a `FrozenLayer`; no parameter is trainable; parameter names stay.
    """
    network.set_train(False)
    frozen = copy.deepcopy(network)
    replace(frozen, BinaryLayer, FrozenLayer)
    frozen.update_parameters_name()
    for parameter in frozen.get_parameters():
        parameter.requires_grad = False
    return frozen.set_train(False)


def replace(network: nn.Cell, kind: type, make) -> None:
    """Puts `make(cell)` in the place of every cell of the given kind below `network`."""
    for name, child in list(network.name_cells().items()):
        if isinstance(child, kind):
            replacement = make(child)
            if isinstance(network, nn.SequentialCell):
                network[int(name)] = replacement
            else:
                setattr(network, name, replacement)
        else:
            replace(child, kind, make)
