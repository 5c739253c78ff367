"""ResNet-18 and ResNet-34 as in Bi-Real Net, with a shortcut around every binary convolution, and with PReLU.

`resnet18` and `resnet34` are for ImageNet; `resnet18_cifar` differs only in its stem. Full precision: the stem, the
1x1 convolutions of the down-sampling shortcuts, the linear layer. Initialisation: `weight_init` for all convolutions;
MindSpore's default for the linear layer; slopes 0.25; batch norm gamma 1, beta 0.

Source: Liu et al., "Bi-Real Net", ECCV 2018, and its public code. The FDA-BNN paper only mentions Bi-Real shortcuts and
PReLU; comments below explain our choices where it leaves the details open.
"""

from mindspore import nn, ops

from ..binary import Binarization, SharedSlopePReLU, SlopeThenNorm
from ..binary.layers import create_weight_init
from ..binary.validation import lookup, require
from .registry import register, require_size

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels and stride of the first block
# Image size, and size multiple: for other sizes shortcuts and convolutions would round differently when they halve.
SMALL_IMAGES = (32, 8)
LARGE_IMAGES = (224, 32)
DEPTHS = {18: (4, 4, 4, 4), 34: (6, 8, 12, 6)}  # binary convolutions of each stage


class PaddedMaxPool(nn.Cell):
    """3x3 max-pool of stride 2 with the image padded by 1 on all sides with -infinity, as in Bi-Real Net:
    (N, C, H, W) with even H and W to (N, C, H/2, W/2).

    For even sizes the padding below and on the right is never read. The padding above and on the left is the same as
    repeating the first row and column, because a repeated value does not change a maximum. MindSpore's padded pool does
    not export to ONNX; these operations do.
    """

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, pad_mode="valid")
        self.concat_rows = ops.Concat(2)
        self.concat_columns = ops.Concat(3)

    def construct(self, x):
        x = self.concat_rows((x[:, :, :1], x))
        x = self.concat_columns((x[:, :, :, :1], x))
        return self.pool(x)


# "same" pads only below and on the right: old checkpoints, without a format number, were trained with it.
STEM_POOLS = {"padded": PaddedMaxPool, "same": lambda: nn.MaxPool2d(3, 2, pad_mode="same")}


def full_precision_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, init: str) -> nn.Conv2d:
    """k x k convolution without bias, padded with k // 2 zeros."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride,
        pad_mode="pad",
        padding=kernel_size // 2,
        weight_init=create_weight_init(init),
    )


class Block(nn.Cell):
    """One binary convolution, activation, batch norm; then the shortcut is added."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, binarization: Binarization, prelu: bool):
        super().__init__()
        self.conv = binarization.conv(in_channels, out_channels, 3, stride, padding=1)
        # The paper does not say where PReLU is and which channels share a slope. As in the released ResNet-20, it
        # follows the convolution and has one slope. Bi-Real Net has no activation except the sign; its full-precision
        # baseline gets ReLU, or it would be linear.
        self.activation = SharedSlopePReLU() if prelu else nn.Identity() if binarization.binary else nn.ReLU()
        self.bn = nn.BatchNorm2d(out_channels)
        self.slope_then_norm = SlopeThenNorm(self.bn.eps)
        self.shortcut = nn.SequentialCell()
        if stride != 1:
            self.shortcut = nn.SequentialCell(
                nn.AvgPool2d(stride, stride),
                full_precision_conv(in_channels, out_channels, 1, 1, binarization.weight_init),
                nn.BatchNorm2d(out_channels),
            )

    def construct(self, x):
        return self.slope_then_norm(self.conv(x), self.activation, self.bn) + self.shortcut(x)


class BiRealResNet(nn.Cell):
    """(N, in_channels, H, W) to (N, num_classes).

    Args:
        depths: binary convolutions of each stage.
        small_images (bool): True: a 3x3 stem of stride 1 without pool, for 32x32. False: 7x7 of stride 2 and a
            max-pool, for 224x224. H and W are multiples of 8, or of 32 with the pool.
        prelu (bool): False: no activation except the sign, as in Bi-Real Net.
        stem_pool: name of the stem's pool in `STEM_POOLS`; unused with `small_images`.

    Raises:
        ValueError: prelu is not a bool, stem_pool is unknown, or the images have another size.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        binarization: Binarization,
        depths: tuple[int, ...],
        small_images: bool,
        prelu: bool,
        stem_pool: str = "padded",
    ):
        require(isinstance(prelu, bool), "prelu", prelu, "true or false")
        super().__init__()
        self.image_size, self.size_multiple = SMALL_IMAGES if small_images else LARGE_IMAGES
        channels = STAGES[0][0]
        kernel_size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = full_precision_conv(in_channels, channels, kernel_size, stride, binarization.weight_init)
        self.bn1 = nn.BatchNorm2d(channels)
        # No activation in the stem, as in Bi-Real's public code.
        self.pool = nn.Identity() if small_images else lookup("stem pool", STEM_POOLS, stem_pool)()
        for number, ((out_channels, stride), depth) in enumerate(zip(STAGES, depths, strict=True), start=1):
            blocks = []
            for block_stride in (stride, *(depth - 1) * (1,)):
                blocks.append(Block(channels, out_channels, block_stride, binarization, prelu))
                channels = out_channels
            setattr(self, f"layer{number}", nn.SequentialCell(*blocks))
        self.linear = nn.Dense(channels, num_classes)

    def construct(self, x):
        require_size(x, self.image_size, self.size_multiple)
        x = self.pool(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = ops.ReduceMean()(x, (2, 3))  # without a ReLU before it, as in Bi-Real's public code
        return self.linear(x)


@register(image_size=LARGE_IMAGES[0], size_multiple=LARGE_IMAGES[1], num_classes=1000)
def resnet18(
    num_classes: int, in_channels: int, binarization: Binarization, prelu: bool = True, stem_pool: str = "padded"
) -> BiRealResNet:
    return BiRealResNet(num_classes, in_channels, binarization, DEPTHS[18], False, prelu, stem_pool)


@register(image_size=LARGE_IMAGES[0], size_multiple=LARGE_IMAGES[1], num_classes=1000)
def resnet34(
    num_classes: int, in_channels: int, binarization: Binarization, prelu: bool = True, stem_pool: str = "padded"
) -> BiRealResNet:
    return BiRealResNet(num_classes, in_channels, binarization, DEPTHS[34], False, prelu, stem_pool)


@register(image_size=SMALL_IMAGES[0], size_multiple=SMALL_IMAGES[1], num_classes=10)
def resnet18_cifar(num_classes: int, in_channels: int, binarization: Binarization, prelu: bool = True) -> BiRealResNet:
    return BiRealResNet(num_classes, in_channels, binarization, DEPTHS[18], True, prelu)
