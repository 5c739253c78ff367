"""ONNX graphs of binary layers as MindSpore exports them, without MindSpore."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper

from src.deploy.description import Description, Input, Output, Resize, sha256
from src.deploy.formats import FORMATS
from src.deploy.openvino_graph import binarize
from src.preprocessing import Preprocessing


class Graph:
    """An ONNX graph of binary layers as MindSpore exports them."""

    def __init__(self, *shape: int):
        self.input = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *shape])
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.last = "images"

    def add(self, kind: str, *inputs: str | np.ndarray, name: str | None = None, **attributes) -> str:
        """Append a node; an array becomes a constant, called `name` if it is the last."""
        names = []
        for value in inputs:
            if not isinstance(value, str):
                own = name if name and value is inputs[-1] else f"constant{len(self.constants)}"
                self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), own))
                value = own
            names.append(value)
        self.last = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [self.last], **attributes))
        return self.last

    def sign(self) -> str:
        positive = self.add("Greater", self.last, np.array(0))
        doubled = self.add("Mul", self.add("Cast", positive, to=TensorProto.FLOAT), np.array(2))
        return self.add("Sub", doubled, np.array(1))

    def conv(self, name: str, weight: np.ndarray, stride: int = 1, padding: int = 0, groups: int = 1) -> str:
        geometry = {"strides": [stride] * 2, "pads": [padding] * 4, "group": groups, "kernel_shape": weight.shape[2:]}
        return self.add("Conv", self.sign(), weight, name=f"{name}.weight", **geometry)

    def slope(self, value: float) -> str:
        """max(x, 0) + value * min(x, 0), from the operations of `SharedSlopePReLU`."""
        x = self.last
        positive = self.add("Relu", x)
        return self.add("Add", positive, self.add("Mul", self.add("Sub", x, positive), np.array([value])))

    def norm(self, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> str:
        return self.add("BatchNormalization", self.last, gamma, beta, mean, variance, epsilon=1e-5)

    def model(self) -> onnx.ModelProto:
        """The graph, whose output `logits` is the last value."""
        nodes = [*self.nodes, helper.make_node("Identity", [self.last], ["logits"])]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "network", [self.input], [output], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)


def random_signs(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.choice([-1.0, 1.0], shape)


def run_onnx(graph: Graph, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.model().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": x})[0]


PREPARED = Preprocessing(8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), ("ant", "bee", "crab", "dove"), shorter_side=10)


def model_files(folder: Path) -> list[Path]:
    """A small binary network for 8x8 images as ONNX and OpenVINO files with their descriptions: net.onnx, net.xml."""
    generator = np.random.default_rng(1)
    graph = Graph(3, 8, 8)
    graph.add("Conv", "images", generator.normal(size=(8, 3, 3, 3)))
    graph.conv("layer", random_signs(generator, 8, 8, 3, 3), padding=1)
    graph.slope(0.25)
    graph.add("Flatten", graph.last)
    graph.add("Gemm", graph.last, generator.normal(size=(4, 8 * 36)) / 50, np.zeros(4), transB=1)
    onnx.save(graph.model(), folder / "net.onnx")
    model = openvino.Core().read_model(folder / "net.onnx")
    model.reshape([1, 3, 8, 8])
    binarize(model)
    openvino.save_model(model, folder / "net.xml", compress_to_fp16=False)
    for name in ("ONNX", "OPENVINO"):
        path = folder / f"net{FORMATS[name].suffix}"
        describe(path, name)
    return [folder / "net.onnx", folder / "net.xml"]


def describe(path: Path, name: str, **changed) -> None:
    """Write the description of a model file with images of `PREPARED`, with these fields changed."""
    fields = {
        "format": name,
        "network": "small",
        "binary": True,
        "dataset": "folder",
        "input": Input(batch_size=None, shape=(3, 8, 8)),
        "output": Output(classes=4),
        "resize": Resize(shorter_side=10),
        "preprocessing": PREPARED.to_dict(),
        "sha256": {file.suffix: sha256(file) for file in FORMATS[name].files(path)},
        "versions": {},
    }
    Description(**fields | changed).write(path)
