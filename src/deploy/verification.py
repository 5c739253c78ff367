"""Check that an exported file computes the same as the network: its runtime loads it, and results are compared.

Two runtimes never agree to the last bit. If a value before a sign is within rounding of 0, the sign may flip, and some
of the logits change with it. So layers are compared given the same signs: the file's signs are put into the network,
then the sums of each binary layer must be equal, every value before a sign and the logits must agree up to rounding,
and each sign that differs must belong to a value within `FLIP_TOLERANCE` of 0. That is done for some images, and for
each image whose logits differ visibly.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError
from .exported_model import ExportedModel, Trace, filled, in_batches
from .freeze import FrozenLayer, replace

LOGIT_TOLERANCE = 1e-4  # of the logits' scale, their root mean square
FLIP_TOLERANCE = 1e-5  # of a value before a sign, absolute
LAYER_TOLERANCE = 1e-5  # of a layer's largest value, given the same signs
REPLAYED_IMAGES = 20  # compared layer by layer in any case
MAX_FLIPS = 50  # tried for an image whose signs the file does not show
ANOTHER = "the exported file is not this network"
# The largest share of images that may differ; each must be explained. About one sign in 10^7 flips, and an image has
# 10^5 (ResNet-20) to 3 * 10^6 signs (ResNet-34 at 224x224).
MAX_SHARE = 0.5


@dataclass(frozen=True)
class Comparison:
    """Result for `images` images; `explained` of them differ by more than the tolerance because signs flipped.

    `replayed` images were compared at `layers` layers that take signs.
    """

    images: int
    explained: int
    largest_difference: float  # of the other images, relative to the logits' scale
    replayed: int = 0
    layers: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.images} images compared, {self.explained} ({self.explained / self.images:.1%}) with a sign flipped "
            f"within rounding of 0, the rest within {self.largest_difference:.1e} of the logits' scale"
        )
        if not self.layers:
            return text
        return f"{text}; the sums of all {self.layers} binary layers are equal on {self.replayed} images"


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
    scale, differences, suspects = _differences(found, expected)
    if len(suspects) and model.trace is None:
        raise UserError(
            f"an image differs by {differences.max():.2e} of the logits' scale and the runtime is the network's own: "
            f"{ANOTHER}"
        )
    replayed, layers = np.union1d(np.arange(min(REPLAYED_IMAGES, len(images))), suspects), 0
    if model.trace is not None:
        for start in range(0, len(replayed), batch_size):
            some = replayed[start : start + batch_size]
            layers = _compare_layers(network, model, images[some], found[some], scale, batch_size)
    return _comparison(differences, suspects, len(replayed) if layers else 0, layers)


def compare_files(reference: ExportedModel, model: ExportedModel, images: np.ndarray, batch_size: int) -> Comparison:
    """Compare a file with another one, whose runtime shows its values, where the network is not at hand.

    An image that differs is explained if a value before a sign is within `FLIP_TOLERANCE` of 0 in the reference. That
    is less than what `compare` asks for.

    Args:
        reference: has a `trace`.
        images: float32 (N, C, H, W), normalised.
        batch_size: as in `compare`.

    Raises:
        UserError: an image differs and is not explained, or too many are.
    """
    expected = in_batches(reference.logits, images, batch_size)
    found = in_batches(model.logits, images, batch_size)
    _, differences, suspects = _differences(found, expected)
    for number in suspects:
        values = reference.trace(filled(images[number : number + 1], batch_size)).values.values()
        closest = min((float(np.abs(value[0]).min()) for value in values), default=np.inf)
        if closest > FLIP_TOLERANCE:
            raise UserError(
                f"an image differs by {differences[number]:.2e} of the logits' scale, and no value before a sign is "
                f"within rounding of 0: {ANOTHER}"
            )
    return _comparison(differences, suspects)


def _differences(found: np.ndarray, expected: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The logits' scale, of each image the largest difference relative to that, and the images that differ visibly.

    Raises:
        UserError: the logits have another shape or are not finite, or too many images differ.
    """
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise UserError(
            f"the exported file gives {found.shape} logits, finite: {np.isfinite(found).all()}; "
            f"{expected.shape} finite ones are expected"
        )
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0  # all are 0 with a zero last layer
    differences = np.abs(found.astype(np.float64) - expected).max(1) / scale
    suspects = np.flatnonzero(~(differences <= LOGIT_TOLERANCE))
    if len(suspects) > MAX_SHARE * len(found):
        raise UserError(
            f"{len(suspects)} of {len(found)} images differ by more than {LOGIT_TOLERANCE} of the logits' "
            f"scale, the most by {differences.max():.2e}: {ANOTHER}"
        )
    return scale, differences, suspects


def _comparison(differences: np.ndarray, suspects: np.ndarray, replayed: int = 0, layers: int = 0) -> Comparison:
    rest = np.delete(differences, suspects)
    largest = float(rest.max()) if len(rest) else 0.0
    return Comparison(len(differences), len(suspects), largest, replayed, layers)


Positive = Callable[[str, np.ndarray], np.ndarray]  # by name and values of a layer: where the signs are +1


class ReplayedLayer(nn.Cell):
    """Replacement for a `FrozenLayer` that records its values and sums, and takes signs from elsewhere.

    If it is called again, `#2`, `#3` and so on follow its name, as in the traces of files.
    """

    def __init__(self, layer: FrozenLayer, name: str, positive: Positive, own: Trace):
        super().__init__()
        self.layer = layer
        self.name = name
        self.positive = positive
        self.own = own
        self.calls = 0

    def construct(self, x):
        self.calls += 1
        name = self.name if self.calls == 1 else f"{self.name}#{self.calls}"
        self.own.values[name] = value = x.asnumpy()
        signs = np.where(self.positive(name, value), 1, -1).astype(np.float32)
        sums = self.layer.operation(ms.Tensor(signs), self.layer.weight)
        self.own.sums[name] = sums.asnumpy()
        return sums if self.layer.divisor is None else sums / self.layer.divisor


def replay(network: nn.Cell, images: np.ndarray, positive: Positive) -> Trace:
    """What a frozen network computes with the signs that `positive` gives."""
    own = Trace(np.empty(0), {}, {})
    replayed = copy.deepcopy(network)
    names = {id(cell): name for name, cell in replayed.cells_and_names()}
    replace(
        replayed,
        FrozenLayer,
        lambda cell: ReplayedLayer(cell, names[id(cell)], positive, own) if cell.sign is not None else cell,
    )
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        logits = replayed(ms.Tensor(images)).asnumpy()
    finally:
        ms.set_context(mode=mode)
    return Trace(logits, own.values, own.sums)


def _compare_layers(
    network: nn.Cell, model: ExportedModel, images: np.ndarray, found: np.ndarray, scale: float, batch_size: int
) -> int:
    """Compare values, sums and logits given the file's signs; return the number of layers that take signs.

    Args:
        images: at most `batch_size`.
        found: logits of the file.

    Raises:
        UserError: something differs by more than its tolerance, or a sign flips further from 0.
    """
    count = len(images)
    traced = model.trace(filled(images, batch_size))
    foreign = Trace(traced.logits[:count], *(_first(part, count) for part in (traced.values, traced.sums)))

    def positive(name: str, value: np.ndarray) -> np.ndarray:
        if name not in foreign.values:
            raise UserError(f"the exported file does not take signs in {name}: {ANOTHER}")
        return foreign.values[name].reshape(value.shape) > 0

    own = replay(network, images, positive)
    if others := foreign.values.keys() - own.values.keys():
        raise UserError(f"the exported file takes signs in {', '.join(sorted(others))}: {ANOTHER}")
    for name, value in own.values.items():
        flipped = (value > 0) != positive(name, value)
        if flipped.any() and np.abs(value[flipped]).max() > FLIP_TOLERANCE:
            raise UserError(
                f"a sign before {name} flips at {np.abs(value[flipped]).max():.2e}, beyond rounding of 0: {ANOTHER}"
            )
        _require_close(f"the values before the signs of {name}", foreign.values[name].reshape(value.shape), value)
        if (own.sums[name] == np.round(own.sums[name])).all() and (own.sums[name] != foreign.sums[name]).any():
            raise UserError(f"the sums of {name} differ given the same signs: {ANOTHER}")
        _require_close(f"the sums of {name}", foreign.sums[name], own.sums[name])
    apart = np.abs(own.logits - foreign.logits).max() / scale
    if not apart <= LAYER_TOLERANCE:
        raise UserError(f"the logits differ by {apart:.2e} of their scale given the same signs: {ANOTHER}")
    for number in np.flatnonzero(~(np.abs(found - foreign.logits).max(1) / scale <= LOGIT_TOLERANCE)):
        _explain_by_a_flip(network, images[number : number + 1], found[number], scale)
    return len(own.values)


def _explain_by_a_flip(network: nn.Cell, image: np.ndarray, found: np.ndarray, scale: float) -> None:
    """Raise UserError unless the network gives the logits `found` with its own signs, or with one flipped near 0.

    A runtime that shows its values may round otherwise than it does by itself, so the signs behind `found` are unknown.
    """

    def is_close(logits: np.ndarray) -> bool:
        return bool(np.abs(logits[0] - found).max() / scale <= LOGIT_TOLERANCE)

    own = replay(network, image, lambda name, value: value > 0)
    if is_close(own.logits):
        return
    near = []
    for layer, value in own.values.items():
        for at in np.argwhere(np.abs(value) <= FLIP_TOLERANCE):
            near.append((float(abs(value[tuple(at)])), layer, at))
    # The nearest first, but 0 itself last: a channel that is switched off is 0 throughout, in any runtime.
    near.sort(key=lambda one: one[0] or np.inf)
    for _, layer, at in near[:MAX_FLIPS]:

        def positive(name: str, value: np.ndarray, layer: str = layer, at: np.ndarray = at) -> np.ndarray:
            signs = value > 0
            if name == layer:
                signs[tuple(at)] ^= True
            return signs

        if is_close(replay(network, image, positive).logits):
            return
    raise UserError(f"an image differs, and no sign that is within rounding of 0 explains it: {ANOTHER}")


def _require_close(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    apart, largest = np.abs(found - expected).max(), np.abs(expected).max()
    if not apart <= LAYER_TOLERANCE * largest:
        raise UserError(f"{what} differ by {apart:.2e}, at most {largest:.2e} large, given the same signs: {ANOTHER}")


def _first(arrays: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    return {name: array[:count] for name, array in arrays.items()}
