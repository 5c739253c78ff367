"""VGG-Small for 32x32 images, as in IR-Net's public code: every convolution except the first is binary.

128-128-P-256-256-P-512-512-P, then one linear layer; a layer is convolution, (pool), batch norm, Hardtanh.
Initialisation: `weight_init` for all convolutions; MindSpore's default for the linear layer; batch norm gamma 1,
beta 0.

Source: Qin et al., "Forward and Backward Information Retention for Accurate Binary Neural Networks" (IR-Net), CVPR
2020, and its public code. The FDA-BNN paper only names the network.
"""

from mindspore import nn

from ..binary import Binarization
from ..binary.layers import create_weight_init
from .registry import register, require_size

IMAGE_SIZE = 32  # fixed by the width of the linear layer
FIRST = 128  # channels of the full-precision convolution
LAYERS = ((128, True), (256, False), (256, True), (512, False), (512, True))  # channels, and whether a pool follows


class Layer(nn.Cell):
    """3x3 convolution, 2x2 max-pool if `pool`, batch norm, Hardtanh."""

    def __init__(self, conv: nn.Cell, channels: int, pool: bool):
        super().__init__()
        self.conv = conv
        # Before the batch norm, and so before the sign: the maximum of signs would be +1 nearly everywhere.
        self.pool = nn.MaxPool2d(2, 2) if pool else nn.Identity()
        self.bn = nn.BatchNorm2d(channels)
        # Changes no sign, but stops the gradient where |t| > 1 for every estimator: from n = 15 on, activations see
        # (for n up to 18) part of the first side lobe of the Fourier gradient. In the full-precision baseline it is the
        # activation, as in IR-Net's code.
        self.activation = nn.Hardtanh()

    def construct(self, x):
        return self.activation(self.bn(self.pool(self.conv(x))))


class VGGSmall(nn.Cell):
    """(N, in_channels, 32, 32) to (N, num_classes)."""

    def __init__(self, num_classes: int, in_channels: int, binarization: Binarization):
        super().__init__()
        first = nn.Conv2d(
            in_channels, FIRST, 3, pad_mode="pad", padding=1, weight_init=create_weight_init(binarization.weight_init)
        )
        layers, channels = [Layer(first, FIRST, pool=False)], FIRST
        for out_channels, pool in LAYERS:
            layers.append(Layer(binarization.conv(channels, out_channels, 3, padding=1), out_channels, pool))
            channels = out_channels
        self.layers = nn.SequentialCell(*layers)
        self.flatten = nn.Flatten()
        self.linear = nn.Dense(channels * 4 * 4, num_classes)

    def construct(self, x):
        require_size(x, IMAGE_SIZE)
        return self.linear(self.flatten(self.layers(x)))


@register(image_size=IMAGE_SIZE, num_classes=10)
def vgg_small(num_classes: int, in_channels: int, binarization: Binarization) -> VGGSmall:
    return VGGSmall(num_classes, in_channels, binarization)
