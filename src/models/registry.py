"""Networks by name, here and in mindcv's registry."""

from collections.abc import Callable, Mapping
from typing import Any

from mindcv.models.registry import register_model
from mindspore import nn

from ..binary import Binarization
from ..binary.estimators import ESTIMATORS
from ..binary.noise_adaptation import ETAS
from ..binary.quantizers import WEIGHT_QUANTIZERS
from ..binary.validation import build, lookup, require, require_integer, require_options

MAX_CLASSES = 100_000  # a last layer of gigabytes is a slip
MAX_CHANNELS = 1024  # of the input image
NETWORKS: dict[str, Callable[..., nn.Cell]] = {}


def register(make: Callable[..., nn.Cell]) -> Callable[..., nn.Cell]:
    """Decorates `make(num_classes, in_channels, binarization, **options) -> Cell`: registers it by its name for
    `create_model`, and as `fda_<name>` for `mindcv.create_model`.

    The Cell says `image_size`, height and width of the images that it is made for, and `size_step`: it takes images
    whose height and width are multiples of that, or with None of `image_size` alone.
    """
    name = make.__name__
    NETWORKS[name] = make

    def entry(num_classes: int = 10, in_channels: int = 3, pretrained: bool = False, **options) -> nn.Cell:
        return create_model(name, num_classes=num_classes, in_channels=in_channels, pretrained=pretrained, **options)

    entry.__name__ = f"fda_{name}"
    entry.__module__ = make.__module__
    register_model(entry)
    return make


def create_model(
    name: str,
    num_classes: int = 10,
    in_channels: int = 3,
    pretrained: bool = False,
    *,
    options: Mapping[str, Any] | None = None,
    binary: bool = True,
    estimator: str = "fda",
    estimator_options: Mapping[str, Any] | None = None,
    weight_estimator: str | None = None,
    weight_estimator_options: Mapping[str, Any] | None = None,
    weight_quantizer: str = "dorefa",
    weight_init: str = "uniform",
    scale_in_gradient: bool | None = None,
    noise_adaptation: bool = True,
    noise_options: Mapping[str, Any] | None = None,
    noise_in_forward: bool = True,
) -> nn.Cell:
    """The network called `name`, with fresh weights.

    Args:
        name: one of `NETWORKS`, for example "resnet20".
        num_classes: width of the last layer.
        in_channels: channels of the input image.
        pretrained: must be False: no weights are published yet.
        options: of the network itself, for example {"prelu": False} of the ResNets.
        binary: False builds the full-precision twin; the options below are then without effect, but for weight_init.
        estimator: name of the surrogate gradient of sign, for activations and weights.
        estimator_options: its options, for example {"omega": 0.1, "clip": 1.0}.
        weight_estimator: name of another one for weights; None: the same, with the same options.
        weight_estimator_options: its options.
        weight_quantizer: name of the weight quantizer: "sign", "dorefa", "xnor" or "libra".
        weight_init: how convolutions start, binary ones included: "uniform" or "he_normal"; also of the twin.
        scale_in_gradient: whether the weight's scale multiplies its gradient; None: as the quantizer's source does.
        noise_adaptation: whether binary layers get noise modules.
        noise_options: options of `NoiseAdaptation`: eta, amplitude, reduction.
        noise_in_forward: True: Eq. 14; False: Algorithm 1.

    Returns:
        Cell from (N, in_channels, H, W) to logits (N, num_classes), in evaluation mode.

    Raises:
        ValueError: an unknown name or option, a value out of range, or pretrained=True.
    """
    lookup("network", NETWORKS, name)
    for estimator_name in filter(None, (estimator, weight_estimator)):  # of a twin too, which does not build them
        lookup("estimator", ESTIMATORS, estimator_name)
    lookup("weight quantizer", WEIGHT_QUANTIZERS, weight_quantizer)
    require_options("noise_options", noise_options or {})
    lookup("eta", ETAS, (noise_options or {}).get("eta", "sine"))
    if pretrained:
        raise ValueError(
            f"there are no pretrained weights for {name!r} yet: train with train.py and load the checkpoint "
            "with src.checkpoints.load_network"
        )
    require_integer("num_classes", num_classes, 1, MAX_CLASSES)
    require_integer("in_channels", in_channels, 1, MAX_CHANNELS)
    require(isinstance(binary, bool), "binary", binary, "True or False")
    binarization = Binarization(
        estimator=estimator if binary else None,
        estimator_options=estimator_options or {},
        weight_estimator=weight_estimator,
        weight_estimator_options=weight_estimator_options or {},
        weight_quantizer=weight_quantizer,
        weight_init=weight_init,
        scale_in_gradient=scale_in_gradient,
        noise_adaptation=noise_adaptation,
        noise_options=noise_options or {},
        noise_in_forward=noise_in_forward,
    )
    require_options("options", options or {})
    arguments = {"num_classes": num_classes, "in_channels": in_channels, "binarization": binarization}
    return build("network", NETWORKS, name, options or {}, arguments).set_train(False)


def takes_size(network: nn.Cell, size: int) -> bool:
    """Whether a network takes images of size x size."""
    return size == network.image_size if network.size_step is None else size % network.size_step == 0


def sizes_taken(network: nn.Cell) -> str:
    """`32x32 alone`, `multiples of 32`, `any size`."""
    step = network.size_step
    if step is None:
        return f"{network.image_size}x{network.image_size} alone"
    return "any size" if step == 1 else f"multiples of {step}"


def require_size(network: nn.Cell, images) -> None:
    """ValueError unless a network takes these images (N, C, H, W)."""
    height, width = images.shape[2:]
    if not (takes_size(network, height) and takes_size(network, width)):
        raise ValueError(f"the images are {height}x{width}, but this network takes {sizes_taken(network)}")
