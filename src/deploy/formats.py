"""Export formats: each writes a frozen network to a file. MINDIR and AIR for Ascend inference, ONNX for the rest."""

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import nn

from ..errors import UserError

SUFFIXES = {"MINDIR": ".mindir", "ONNX": ".onnx", "AIR": ".air"}
DYNAMIC = None  # as a batch size


def export_mindir(network: nn.Cell, input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> None:
    """MindSpore's own format; a dynamic batch is part of the graph."""
    example = ms.Tensor(shape=[batch_size, *input_shape], dtype=ms.float32)
    ms.export(network, example, file_name=str(path), file_format="MINDIR")
    path.chmod(0o644)  # MindSpore leaves it readable by its owner alone


def export_onnx(network: nn.Cell, input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> None:
    """ONNX, input `images`, output `logits`.

    MindSpore exports fixed shapes alone; a dynamic batch is set afterwards, which holds for networks whose operations
    treat images separately. A second ONNX export in one process fails inside MindSpore: call this once a process.
    """
    import onnx

    example = ms.Tensor(np.zeros((batch_size or 1, *input_shape), np.float32))
    ms.export(network, example, file_name=str(path), file_format="ONNX")
    path.chmod(0o644)
    model = onnx.load(str(path))
    _rename(model, model.graph.input[0], "images")
    _rename(model, model.graph.output[0], "logits")
    if batch_size is DYNAMIC:
        for value in (model.graph.input[0], model.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        _free_batch(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def export_air(network: nn.Cell, input_shape: tuple[int, int, int], batch_size: int | None, path: Path) -> None:
    """Ascend's offline format, which MindSpore writes on an Ascend host alone.

    Raises:
        UserError: not on Ascend, or a dynamic batch, which the format does not have here.
    """
    require_air(batch_size)
    example = ms.Tensor(np.zeros((batch_size, *input_shape), np.float32))
    ms.export(network, example, file_name=str(path), file_format="AIR")


def require_air(batch_size: int | None) -> None:
    """UserError unless AIR can be written here with that batch size."""
    if not on_ascend():
        raise UserError(
            "AIR files can be written on a host with Ascend alone (--device_target Ascend); "
            "export MINDIR here and convert it there"
        )
    if batch_size is DYNAMIC:
        raise UserError("AIR needs a fixed --batch_size")


EXPORTERS = {"MINDIR": export_mindir, "ONNX": export_onnx, "AIR": export_air}


def on_ascend() -> bool:
    """Whether this process runs on an Ascend device."""
    return ms.get_context("device_target") == "Ascend"


def _free_batch(model) -> None:
    """Lets the Reshape nodes that surround a BatchNorm1d keep any batch; the exporter wrote the example's."""
    from onnx import numpy_helper

    constants = {node.output[0]: node.attribute[0] for node in model.graph.node if node.op_type == "Constant"}
    for node in model.graph.node:
        if node.op_type == "Reshape":
            shape = numpy_helper.to_array(constants[node.input[1]].t).copy()
            shape[0] = 0  # as the input has it
            constants[node.input[1]].t.CopyFrom(numpy_helper.from_array(shape))


def _rename(model, value, name: str) -> None:
    """Gives an input or output of an ONNX graph another name, wherever it is used."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            for position, used in enumerate(names):
                if used == value.name:
                    names[position] = name
    value.name = name
