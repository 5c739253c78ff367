"""Check that an exported file computes the same as the network: its runtime loads it, and logits are compared.

Two runtimes never agree to the last bit. If a value before a sign is within rounding of 0, the sign may flip, and some
of the logits change with it. Such an image must be explained: with the file's signs put into the network, every value
before a sign and the logits must agree, and each sign that differs must belong to a value within `FLIP_TOLERANCE` of 0.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError
from .exported_model import ExportedModel
from .freeze import InputSign, replace

LOGIT_TOLERANCE = 1e-4  # of the logits' scale, their root mean square
FLIP_TOLERANCE = 1e-5  # of a value before a sign, absolute
LAYER_TOLERANCE = 1e-5  # of a layer's largest value, given the same signs
# The largest share of images that may differ; each must be explained. About one sign in 10^7 flips, and an image has
# 10^5 (ResNet-20) to 3 * 10^6 signs (ResNet-34 at 224x224).
MAX_SHARE = 0.5


@dataclass(frozen=True)
class Comparison:
    """Result for `images` images; `explained` of them differ by more than the tolerance because signs flipped."""

    images: int
    explained: int
    largest_difference: float  # of the other images, relative to the logits' scale

    def __str__(self) -> str:
        return (
            f"{self.images} images compared, {self.explained} ({self.explained / self.images:.1%}) with a sign flipped "
            f"within rounding of 0, the rest within {self.largest_difference:.1e} of the logits' scale"
        )


def compare(network: nn.Cell, model: ExportedModel, images: np.ndarray, batch_size: int) -> Comparison:
    """Compare a frozen network and a file.

    Args:
        network: the exported network.
        images: float32 (N, C, H, W), normalised.
        batch_size: batch size of the file; N need not be a multiple of it.

    Raises:
        UserError: an image differs and is not explained, or too many are.
    """
    expected = in_batches(lambda batch: network(ms.Tensor(batch)).asnumpy(), images, batch_size)
    found = in_batches(model.logits, images, batch_size)
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise UserError(
            f"the exported file gives {found.shape} logits, finite: {np.isfinite(found).all()}; "
            f"{expected.shape} finite ones are expected"
        )
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    differences = np.abs(found.astype(np.float64) - expected).max(1) / scale
    suspects = np.flatnonzero(~(differences <= LOGIT_TOLERANCE))
    if len(suspects) > MAX_SHARE * len(images):
        raise UserError(
            f"{len(suspects)} of {len(images)} images differ by more than {LOGIT_TOLERANCE} of the logits' "
            f"scale, the most by {differences.max():.2e}: the exported file is not this network"
        )
    for start in range(0, len(suspects), batch_size):
        some = suspects[start : start + batch_size]
        _explain(network, model, images[some], scale, batch_size, differences[some].max())
    rest = np.delete(differences, suspects)
    return Comparison(len(images), len(suspects), float(rest.max()) if len(rest) else 0.0)


def in_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Apply `function` to batches of exactly `batch_size` images, the last filled up with zeros; join the results."""
    results = []
    for start in range(0, len(images), batch_size):
        results.append(function(_filled(images[start : start + batch_size], batch_size))[: len(images) - start])
    return np.concatenate(results)


class ReplayedSign(nn.Cell):
    """Replacement for an `InputSign` that records its input and returns the sign that another runtime computed."""

    def __init__(self, foreign_values: list[np.ndarray], own_values: list[np.ndarray]):
        super().__init__()
        self.foreign_values = foreign_values
        self.own_values = own_values

    def construct(self, x):
        foreign = self.foreign_values[len(self.own_values)]
        self.own_values.append(x.asnumpy())
        return ms.Tensor(np.where(foreign > 0, 1, -1).astype(np.float32))


def _explain(
    network: nn.Cell, model: ExportedModel, images: np.ndarray, scale: float, batch_size: int, difference: float
) -> None:
    """Raise UserError unless flips within rounding of 0 explain the whole difference on each image.

    There are at most `batch_size` images.
    """
    unexplained = f"an image differs by {difference:.2e} of the logits' scale and "
    if model.values_before_signs is None:
        raise UserError(unexplained + "the runtime is the network's own: the exported file is not this network")
    batch, count = _filled(images, batch_size), len(images)
    foreign = [values[:count] for values in model.values_before_signs(batch)]
    foreign_logits = model.logits(batch)[:count]
    own: list[np.ndarray] = []
    replayed = _replaying(network, foreign, own)
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        logits = replayed(ms.Tensor(images)).asnumpy()
    finally:
        ms.set_context(mode=mode)
    for layer, (mine, theirs) in enumerate(zip(own, foreign, strict=True), start=1):
        flipped = (mine > 0) != (theirs > 0)
        if flipped.any() and np.abs(mine[flipped]).max() > FLIP_TOLERANCE:
            raise UserError(
                f"{unexplained}sign {layer} flips at {np.abs(mine[flipped]).max():.2e}, beyond rounding of 0"
            )
        apart = _largest(mine - theirs)
        if not (apart <= LAYER_TOLERANCE * np.maximum(1.0, _largest(mine))).all():
            raise UserError(
                f"{unexplained}the values before sign {layer} differ by {apart.max():.2e} given the same signs"
            )
    apart = np.abs(logits - foreign_logits).max() / scale
    if not apart <= LAYER_TOLERANCE:
        raise UserError(f"{unexplained}the logits differ by {apart:.2e} of their scale given the same signs")


def _largest(values: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of each image: (N, ...) to (N,)."""
    return np.abs(values).reshape(len(values), -1).max(1)


def _replaying(network: nn.Cell, foreign: list[np.ndarray], own: list[np.ndarray]) -> nn.Cell:
    replayed = copy.deepcopy(network)
    replace(replayed, InputSign, lambda cell: ReplayedSign(foreign, own))
    return replayed


def _filled(images: np.ndarray, batch_size: int) -> np.ndarray:
    missing = batch_size - len(images)
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
