"""An exported file that its own runtime has loaded."""

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
    """An exported file in its runtime.

    `logits` maps images (N, C, H, W) to (N, K). `trace` maps them to a `Trace`; None if the runtime does not show the
    values inside.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    trace: Callable[[np.ndarray], Trace] | None = None
