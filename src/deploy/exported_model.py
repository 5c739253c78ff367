"""An exported file that its own runtime has loaded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ExportedModel:
    """An exported file in its runtime.

    `logits` maps images (N, C, H, W) to (N, K). `values_before_signs` maps images to the values before each sign, in
    order; None if the runtime does not show them.
    """

    logits: Callable[[np.ndarray], np.ndarray]
    values_before_signs: Callable[[np.ndarray], list[np.ndarray]] | None = None
