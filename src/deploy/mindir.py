"""MINDIR, MindSpore's own format; a dynamic batch is part of the graph."""

from pathlib import Path

import mindspore as ms
from mindspore import nn

from .exported_model import ExportedModel


def export(network: nn.Cell, input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> None:
    """Write a frozen network to a MINDIR file.

    Args:
        network: what `freeze` returns.
        input_shape: (C, H, W).
        batch_size: images per call; None: any number.
        path: the file, which ends in `.mindir`.
    """
    example = ms.Tensor(shape=[batch_size, *input_shape], dtype=ms.float32)
    ms.export(network, example, file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)  # MindSpore makes it readable only by its owner


def load(path: Path) -> ExportedModel:
    """Load a MINDIR file into MindSpore."""
    graph = nn.GraphCell(ms.load(str(path)))
    return ExportedModel(lambda images: graph(ms.Tensor(images)).asnumpy())
