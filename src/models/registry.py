"""Networks by name, here and in mindcv's registry."""

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mindcv.models.registry import register_model
from mindspore import nn

from ..binary import Binarization
from ..binary.validation import build, lookup, require, require_integer, require_options
from ..checkpoints import load_network
from ..cli import echo
from . import pretrained as pretrained_weights
from .initialization import draw_by_name

MAX_CLASSES = 100_000  # more is a typing error: the last layer would take gigabytes
MAX_CHANNELS = 1024  # of the input image
NETWORK_ARGUMENTS = ("num_classes", "in_channels", "binarization")  # of every `make`; its others are options
MINDCV_CLASSES = 1000  # mindcv.create_model passes this if its caller gives no num_classes


@dataclass(frozen=True)
class Network:
    """A registered network: the function that builds it, and facts about it that need no building.

    `image_size` is the height and width of its images. It also takes images with height and width that are multiples of
    `size_multiple`; None: only `image_size`. `num_classes` is that of its recipe's data set.
    """

    make: Callable[..., nn.Cell]
    image_size: int
    size_multiple: int | None
    num_classes: int


NETWORKS: dict[str, Network] = {}


def register(
    make: Callable[..., nn.Cell] | None = None,
    *,
    image_size: int = 32,
    size_multiple: int | None = None,
    num_classes: int = 10,
) -> Callable[..., Any]:
    """Register the decorated `make(num_classes, in_channels, binarization, **options) -> Cell` by its name for
    `create_model` and as `fda_<name>` for `mindcv.create_model`, with the facts of `Network`. `@register` without
    arguments means a network for CIFAR-10: only 32x32, 10 classes.

    mindcv passes 1000 classes if its caller gives no number, so there 1000 means the network's default number. For 1000
    classes of small images call `create_model`.
    """
    if make is None:
        return partial(register, image_size=image_size, size_multiple=size_multiple, num_classes=num_classes)
    name = make.__name__
    NETWORKS[name] = Network(make, image_size, size_multiple, num_classes)

    def entry(
        num_classes: int | None = None, in_channels: int = 3, pretrained: bool | str = False, **options
    ) -> nn.Cell:
        own = None if num_classes == MINDCV_CLASSES else num_classes
        return create_model(name, own, in_channels, pretrained=pretrained, **options)

    entry.__name__ = f"fda_{name}"
    entry.__module__ = make.__module__
    register_model(entry)
    return make


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int = 3,
    binarization: Binarization = Binarization(),
    options: Mapping[str, Any] | None = None,
    pretrained: bool | str = False,
) -> nn.Cell:
    """Create the network called `name`. New weights depend only on `ms.set_seed` and each one's name.

    Args:
        name: one of `NETWORKS`, for example "resnet20".
        num_classes: width of the last layer; None: that of the pretrained weights, or else 10 for networks for 32x32
            images and 1000 for those for ImageNet.
        in_channels: channels of the input image.
        binarization: estimators, weight quantizer and noise of the binary layers; `Binarization.full_precision()` for
            the full-precision baseline.
        options: options of the network itself, for example {"prelu": False} for the ResNets.
        pretrained: name of weights in pretrained/manifest.yaml; True: the network's default there, binary or in full
            precision as `binarization` is. With another number of classes the last layer starts fresh, and a note says
            so.

    Returns:
        Cell from (N, in_channels, H, W) to logits (N, num_classes), in evaluation mode.

    Raises:
        ValueError: a name or option is unknown, a value is out of range, or there are no such pretrained weights.
    """
    network = lookup("network", NETWORKS, name)
    require(
        isinstance(binarization, Binarization),
        "binarization",
        binarization,
        "a Binarization, for example Binarization(estimator='fda') or Binarization.full_precision()",
    )
    require_options("options", options or {})
    weights = None
    if pretrained:
        parameters = inspect.signature(network.make).parameters
        defaults = {key: parameters[key].default for key in parameters if key not in NETWORK_ARGUMENTS}
        weights = pretrained_weights.read(name, pretrained, binarization, options or {}, defaults)
    if num_classes is None:
        num_classes = network.num_classes if weights is None else len(weights.preprocessing.classes)
    require_integer("num_classes", num_classes, 1, MAX_CLASSES)
    require_integer("in_channels", in_channels, 1, MAX_CHANNELS)
    arguments = dict(zip(NETWORK_ARGUMENTS, (num_classes, in_channels, binarization), strict=True))
    built = draw_by_name(lambda: build("network", {name: network.make}, name, options or {}, arguments))
    if weights is not None:
        for note in load_network(built, weights, new_classes=True):
            echo(f"note: {note}", sys.stderr)
    return built.set_train(False)


def takes_size(name: str, size: int) -> bool:
    """Whether the network called `name` takes images of size x size."""
    network = lookup("network", NETWORKS, name)
    return _fits(size, network.image_size, network.size_multiple)


def sizes_taken(name: str) -> str:
    """The image sizes that the network called `name` takes, as text: `only 32x32`, `multiples of 32`, `any size`."""
    network = lookup("network", NETWORKS, name)
    return _sizes(network.image_size, network.size_multiple)


def require_size(images, image_size: int, size_multiple: int | None = None) -> None:
    """ValueError unless the images (N, C, H, W) are of a size that a network with these facts takes."""
    height, width = images.shape[2:]
    if not (_fits(height, image_size, size_multiple) and _fits(width, image_size, size_multiple)):
        raise ValueError(f"the images are {height}x{width}, but this network takes {_sizes(image_size, size_multiple)}")


def _fits(size: int, image_size: int, size_multiple: int | None) -> bool:
    return size == image_size if size_multiple is None else size % size_multiple == 0


def _sizes(image_size: int, size_multiple: int | None) -> str:
    if size_multiple is None:
        return f"only {image_size}x{image_size}"
    return "any size" if size_multiple == 1 else f"multiples of {size_multiple}"
