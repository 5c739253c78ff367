"""OpenVINO, whose CPU plug-in computes convolutions of signs on 1-bit data. Loading a file imports no MindSpore."""

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino

from .exported_model import ExportedModel, Trace
from .openvino_graph import binarize, binary_layers

if TYPE_CHECKING:
    from mindspore import nn

# A processor with bfloat16 would compute the float layers in it by itself: 3 digits instead of 7.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def export(network: "nn.Cell", input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> str | None:
    """Write a frozen network to an OpenVINO file `path` and its weights next to it, with the suffix `.bin`.

    MindSpore writes ONNX, OpenVINO reads it, and `binarize` makes its binary layers 1-bit. Call this once per process,
    as `onnx.export`.

    Args:
        network: what `freeze` returns.
        input_shape: (C, H, W).
        batch_size: images per call of the file as it is; None: 1. `load` sets the batch size anew in either case.
        path: the file, which ends in `.xml`.

    Returns:
        A sentence about binary layers that are stored as float convolutions of +1 and -1, if there are any.
    """
    from . import onnx  # not needed for loading, and slow to import

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        exported = Path(folder) / "network.onnx"
        onnx.export(network, input_shape, None, exported)
        model = openvino.Core().read_model(exported)
    model.reshape([batch_size or 1, *input_shape])
    kept = binarize(model)
    openvino.save_model(model, path, compress_to_fp16=False)
    if not kept:
        return None
    return f"{', '.join(kept)}: stored as float convolutions by +1 and -1, because their padding is not written out"


def load(path: Path, threads: int | None = None) -> ExportedModel:
    """Load an OpenVINO file and its weights. It is compiled once for each batch size that it gets.

    Args:
        path: the `.xml` file.
        threads: of the processor; None: OpenVINO's choice.

    Raises:
        OSError, ValueError, RuntimeError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(5) != b"<?xml":  # OpenVINO would take it for another format
            raise ValueError("its content is not XML")
    core = openvino.Core()
    source = core.read_model(path)
    options = FLOAT32 if threads is None else {**FLOAT32, "INFERENCE_NUM_THREADS": threads}

    def with_batch(batch_size: int) -> openvino.Model:
        model = source.clone()
        model.reshape([batch_size, *list(source.input(0).shape)[1:]])
        return model

    @cache
    def compiled(batch_size: int) -> openvino.CompiledModel:
        return core.compile_model(with_batch(batch_size), "CPU", options)

    @cache
    def traced(batch_size: int) -> tuple[openvino.CompiledModel, dict[str, tuple[int, int]]]:
        """The graph with more outputs, and the positions of each layer's values and sums among them."""
        model = with_batch(batch_size)
        layers = binary_layers(model)
        outputs = list(dict.fromkeys(output for layer in layers for output in (layer.value, layer.sums)))
        model.add_outputs(outputs)
        positions = {layer.name: (1 + outputs.index(layer.value), 1 + outputs.index(layer.sums)) for layer in layers}
        return core.compile_model(model, "CPU", options), positions

    def trace(images: np.ndarray) -> Trace:
        network, positions = traced(len(images))
        found = network(images)
        values = {name: found[position] for name, (position, _) in positions.items()}
        return Trace(found[0], values, {name: found[position] for name, (_, position) in positions.items()})

    return ExportedModel(lambda images: compiled(len(images))(images)[0], trace)
