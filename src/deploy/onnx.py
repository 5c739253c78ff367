"""ONNX, for every runtime that reads it. Loading a file imports no MindSpore."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from .exported_model import ExportedModel, Trace

if TYPE_CHECKING:
    from mindspore import nn


def export(network: "nn.Cell", input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> None:
    """Write a frozen network to an ONNX file with input `images` and output `logits`.

    MindSpore exports only fixed shapes; a dynamic batch is set afterwards, which is correct if the network processes
    images independently. A second ONNX export in one process fails inside MindSpore: call this once per process.

    Args:
        network: what `freeze` returns.
        input_shape: (C, H, W).
        batch_size: images per call; None: any number.
        path: the file, which ends in `.onnx`.
    """
    import mindspore as ms

    example = ms.Tensor(np.zeros((batch_size or 1, *input_shape), np.float32))
    ms.export(network, example, file_name=str(path), file_format="ONNX")
    path.chmod(0o644)  # MindSpore makes it readable only by its owner
    model = onnx.load(str(path))
    _rename(model, model.graph.input[0], "images")
    _rename(model, model.graph.output[0], "logits")
    if batch_size is None:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        _free_batch(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def load(path: Path, threads: int | None = None) -> ExportedModel:
    """Load an ONNX file into onnxruntime.

    Args:
        path: the file.
        threads: of the processor; None: onnxruntime's choice.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0

    def session(content: bytes) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    content = path.read_bytes()
    plain = session(content)

    @cache
    def instrumented() -> tuple[onnxruntime.InferenceSession, dict[str, tuple[str, str]], list[str]]:
        """The graph with more outputs, what each layer is called among them, and all their names."""
        model = onnx.load_from_string(content)
        layers = layers_that_take_signs(model)
        shown = sorted({value for names in layers.values() for value in names} - {"images", "logits"})
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
        return session(model.SerializeToString()), layers, ["logits", *shown]

    def trace(images: np.ndarray) -> Trace:
        traced, layers, names = instrumented()
        found = dict(zip(names, traced.run(names, {"images": images}), strict=True), images=images)
        values = {layer: found[value] for layer, (value, _) in layers.items()}
        return Trace(found["logits"], values, {layer: found[sums] for layer, (_, sums) in layers.items()})

    return ExportedModel(lambda images: plain.run(["logits"], {"images": images})[0], trace)


def layers_that_take_signs(model: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """The value before the signs, and the sums, of each product of signs by a constant, by the name of the cell; with
    `#2`, `#3` and so on if it is called again."""
    constants, calls = {tensor.name for tensor in model.graph.initializer}, Counter()
    made_by = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for product in model.graph.node:
        if product.op_type not in ("Conv", "Gemm", "MatMul") or product.input[1] not in constants:
            continue
        node = product
        for kind in ("Sub", "Mul", "Cast", "Greater"):
            node = made_by.get(node.input[0])
            if node is None or node.op_type != kind:
                break
        else:
            name = product.input[1].removesuffix(".weight")
            calls[name] += 1
            found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = (node.input[0], product.output[0])
    return found


def _free_batch(model: onnx.ModelProto) -> None:
    """Let the Reshape nodes around a BatchNorm1d keep any batch; the exporter wrote the example's."""
    constants = {node.output[0]: node.attribute[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type == "Reshape":
            shape = numpy_helper.to_array(constants[node.input[1]].t).copy()
            shape[0] = 0  # the same as in the input
            constants[node.input[1]].t.CopyFrom(numpy_helper.from_array(shape))


def _rename(model: onnx.ModelProto, value: onnx.ValueInfoProto, name: str) -> None:
    """Rename an input or output of a graph wherever it is used."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, used in enumerate(names):
                if used == value.name:
                    names[position] = name
    value.name = name
