"""A model file that its own runtime has loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trace:
    """What a file computes for a batch of images.

    `values` and `sums` have an entry for each layer that takes signs, by the name of its cell: the values before the
    signs, and the product of the signs with the weight, which are integers if the weight is +1 and -1.
    """

    logits: np.ndarray
    values: dict[str, np.ndarray]
    sums: dict[str, np.ndarray]


@dataclass(frozen=True)
class ExportedModel:
    """A model file in its runtime.

    `logits` maps images, float32 (N, C, H, W), to (N, K). `trace` maps them to a `Trace`; None if the runtime does not
    show the values inside.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    trace: Callable[[np.ndarray], Trace] | None = None


def in_batches(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch_size: int) -> np.ndarray:
    """Apply `function` to batches of exactly `batch_size` images, the last filled up with zeros; join the results."""
    results = []
    for start in range(0, len(images), batch_size):
        results.append(function(filled(images[start : start + batch_size], batch_size))[: len(images) - start])
    return np.concatenate(results)


def filled(images: np.ndarray, batch_size: int) -> np.ndarray:
    """The images, and zeros up to `batch_size`."""
    missing = batch_size - len(images)
    return np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
