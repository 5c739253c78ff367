"""AlexNet for 224x224 images in DoReFa-Net's public layout: all layers except the first convolution and the last
linear layer are binary, including two linear layers of width 4096.

Initialisation: `weight_init` for convolutions and binary linear layers; MindSpore's default for the last linear layer;
batch norm gamma 1, beta 0.

Source: Zhou et al., "DoReFa-Net", 2016, and its public code, tensorpack's examples/DoReFa-Net/alexnet-dorefa.py. The
bias of its first linear layer is left out: the batch norm after it cancels any bias. The FDA-BNN paper only names the
network.
"""

from mindspore import nn

from ..binary import Binarization
from ..binary.layers import create_weight_init
from .registry import register, require_size

IMAGE_SIZE = 224  # fixed by the width of the first linear layer
FIRST = 96  # channels of the full-precision convolution
CONVOLUTIONS = (  # channels, kernel, groups, padding of the 3x3 max-pool of stride 2 that follows (None: no pool)
    (256, 5, 2, "same"),
    (384, 3, 1, "same"),
    (384, 3, 2, None),
    (256, 3, 2, "valid"),
)
POSITIONS = 6 * 6  # height and width after the convolutions
LINEAR = (4096, 4096)
EPSILON = 1e-4  # of batch norm, as in DoReFa-Net


class Layer(nn.Cell):
    """Binary convolution or linear layer, batch norm, optional max-pool, activation."""

    def __init__(self, operation: nn.Cell, bn: nn.Cell, pool: nn.Cell, activation: nn.Cell):
        super().__init__()
        self.operation = operation
        self.bn = bn
        self.pool = pool
        self.activation = activation

    def construct(self, x):
        return self.activation(self.pool(self.bn(self.operation(x))))


class AlexNet(nn.Cell):
    """(N, in_channels, 224, 224) to (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, binarization: Binarization):
        super().__init__()
        # DoReFa clips to [0, 1] before it quantizes to k bits, and uses ReLU at 32 bits. Before a sign, either of them
        # would change no value but remove the gradient of all negative values. So only the full-precision baseline has
        # ReLU here.
        activation = nn.Identity if binarization.binary else nn.ReLU
        # No batch norm follows the first convolution, so it has a bias, initially 0, as in the public code.
        self.conv1 = nn.Conv2d(
            in_channels,
            FIRST,
            12,
            4,
            pad_mode="valid",
            has_bias=True,
            weight_init=create_weight_init(binarization.weight_init),
            bias_init="zeros",
        )
        self.activation1 = activation()
        layers, channels = [], FIRST
        for out_channels, kernel_size, groups, pool in CONVOLUTIONS:
            conv = binarization.conv(channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups)
            pool = nn.MaxPool2d(3, 2, pad_mode=pool) if pool else nn.Identity()
            layers.append(Layer(conv, nn.BatchNorm2d(out_channels, eps=EPSILON), pool, activation()))
            channels = out_channels
        self.convolutions = nn.SequentialCell(*layers)
        self.flatten = nn.Flatten()
        layers, width = [], channels * POSITIONS
        for number, out_width in enumerate(LINEAR, start=1):
            # The input of the last linear layer is not quantized, so DoReFa's clip is not needed: ReLU in both cases.
            last = nn.ReLU() if number == len(LINEAR) else activation()
            bn = nn.BatchNorm1d(out_width, eps=EPSILON)
            layers.append(Layer(binarization.dense(width, out_width), bn, nn.Identity(), last))
            width = out_width
        self.linears = nn.SequentialCell(*layers)
        self.linear = nn.Dense(width, num_classes)

    def construct(self, x):
        require_size(x, IMAGE_SIZE)
        x = self.convolutions(self.activation1(self.conv1(x)))
        return self.linear(self.linears(self.flatten(x)))


@register(image_size=IMAGE_SIZE, num_classes=1000)
def alexnet(num_classes: int, in_channels: int, binarization: Binarization) -> AlexNet:
    return AlexNet(num_classes, in_channels, binarization)
