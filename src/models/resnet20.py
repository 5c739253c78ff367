"""ResNet-20 for 32x32 images as released by the authors of FDA-BNN: every convolution except the first is binary.

Initialisation: `weight_init` for all convolutions (default: uniform within 1/sqrt(fan in)); MindSpore's default for the
linear layer (the same distribution); slopes 0.25; batch norm gamma 1, beta 0.
"""

from mindspore import nn, ops

from ..binary import Binarization, SharedSlopePReLU, SlopeThenNorm
from ..binary.layers import create_weight_init
from .registry import register

STAGES = ((16, 1), (32, 2), (64, 2))  # channels and stride of the first block; three blocks each


class PaddedShortcut(nn.Cell):
    """x[:, :, ::2, ::2] with (C_out - C_in) / 2 zero channels on each side: no parameters."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        # A 1x1 pool picks the same elements as the slice. The slice's gradient fails in PyNative mode on CPU.
        self.subsample = nn.AvgPool2d(kernel_size=1, stride=2)
        self.added = (out_channels - in_channels) // 2
        self.pad = nn.Pad(((0, 0), (self.added, self.added), (0, 0), (0, 0)))

    def construct(self, x):
        x = self.subsample(x)
        if not self.training:
            return self.pad(x)  # every export format has it
        zeros = ops.zeros((x.shape[0], self.added, *x.shape[2:]), x.dtype)
        return ops.cat((zeros, x, zeros), 1)  # on CPU 20 times as fast


class Block(nn.Cell):
    """Convolution, slope, batch norm, twice; then the shortcut is added. There is no activation at the end, because the
    next block begins with a sign."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, binarization: Binarization):
        super().__init__()
        self.conv1 = binarization.conv(in_channels, out_channels, 3, stride, padding=1)
        self.relu1 = SharedSlopePReLU()
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = binarization.conv(out_channels, out_channels, 3, 1, padding=1)
        self.relu2 = SharedSlopePReLU()
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.slope_then_norm = SlopeThenNorm(self.bn1.eps)
        self.shortcut = nn.SequentialCell() if stride == 1 else PaddedShortcut(in_channels, out_channels)

    def construct(self, x):
        out = self.slope_then_norm(self.conv1(x), self.relu1, self.bn1)
        out = self.slope_then_norm(self.conv2(out), self.relu2, self.bn2)
        return out + self.shortcut(x)


class ResNet20(nn.Cell):
    """(N, in_channels, 32, 32) to (N, num_classes). Parameter names are those of the released checkpoint."""

    def __init__(self, num_classes: int, in_channels: int, binarization: Binarization):
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, 16, 3, pad_mode="pad", padding=1, weight_init=create_weight_init(binarization.weight_init)
        )
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for number, (out_channels, stride) in enumerate(STAGES, start=1):
            blocks = []
            for strides in (stride, 1, 1):
                blocks.append(Block(channels, out_channels, strides, binarization))
                channels = out_channels
            setattr(self, f"layer{number}", nn.SequentialCell(*blocks))
        self.linear = nn.Dense(channels, num_classes)

    def construct(self, x):
        x = self.bn1(self.conv1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = ops.ReduceMean()(ops.relu(x), (2, 3))
        return self.linear(x)


@register(image_size=32, size_multiple=1, num_classes=10)
def resnet20(num_classes: int, in_channels: int, binarization: Binarization) -> ResNet20:
    return ResNet20(num_classes, in_channels, binarization)
