"""AIR, an offline format for Ascend. MindSpore writes it only on an Ascend host, and plans to remove it."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn


def export(network: nn.Cell, input_shape: tuple[int, int, int], batch_size: int, path: Path) -> None:
    """Write a frozen network to an AIR file. No runtime here can read it back.

    Args:
        network: what `freeze` returns.
        input_shape: (C, H, W).
        batch_size: images per call; the format has no dynamic batch here.
        path: the file, which ends in `.air`.
    """
    example = ms.Tensor(np.zeros((batch_size, *input_shape), np.float32))
    ms.export(network, example, file_name=str(path), file_format="AIR")
