"""export.py as a process: what the files contain, that they agree with the network, and what is refused."""

import copy
import dataclasses
import importlib
import json
import math
import re
from pathlib import Path

import mindspore as ms
import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from mindspore import nn, ops
from mindspore.train.mind_ir_pb2 import ModelProto

from src import checkpoints, cli
from src.binary import Binarization
from src.config import load_config
from src.deploy import description, export_job, mindir, verification
from src.deploy.exported_model import ExportedModel, Trace
from src.deploy.formats import FORMATS
from src.deploy.freeze import FrozenLayer, freeze, replace, round_to_float16
from src.deploy.verification import compare
from src.errors import UserError
from src.models import create_model, registry
from src.preprocessing import PREPROCESSING
from tests.helpers import processes
from tests.helpers.networks import lively_network, small

# Computation, and what MindSpore's intermediate representation adds to hold a graph together.
STOCK_MINDIR = {
    "Conv2D",
    "BatchNorm",
    "ReLU",
    "Cast",
    "Greater",
    "Mul",
    "Muls",
    "Sub",
    "Add",
    "Div",
    "AvgPool",
    "Pad",
    "ReduceMean",
    "MatMul",
    "BiasAdd",
} | {"Depend", "Load", "MakeTuple", "TupleGetItem", "UpdateState"}
STOCK_ONNX = {
    "Conv",
    "BatchNormalization",
    "Relu",
    "Cast",
    "Greater",
    "Mul",
    "Sub",
    "Add",
    "Div",
    "AveragePool",
    "Pad",
    "ReduceMean",
    "Gemm",
    "Constant",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A network to export. `flips`: images that hold enough values near 0 for a sign to flip within 1e-3 of 0."""

    name: str
    program: tuple[str, ...]
    layers: int  # binary ones
    before_last_sign: str  # a parameter of the batch norm whose output the last sign takes
    images: int  # among so many, two have a value within rounding of 0
    flips: int


SMALL = Case("small", ("tests/helpers/small_network.py", "export.py"), 2, "layer1.bn1.beta", 2000, 50)
RESNET20 = Case("resnet20", ("export.py",), 18, "layer3.2.bn1.beta", 100, 2)


@pytest.fixture(
    scope="module", params=[SMALL, pytest.param(RESNET20, marks=pytest.mark.slow)], ids=lambda case: case.name
)
def case(request) -> Case:
    """Exporting a whole ResNet-20 is slow."""
    return request.param


@pytest.fixture(scope="module")
def exported(case, tmp_path_factory) -> Path:
    """A folder with a training checkpoint, noise modules and optimizer state in it, and what export.py made of it."""
    folder = tmp_path_factory.mktemp("export") / "ä b"
    folder.mkdir()
    network = lively_network(case.name)
    config = load_config(overrides={"data.name": "digits", "network.name": case.name}).model_dump()
    checkpoints.save(
        folder / "last.ckpt",
        network,
        nn.Momentum(network.trainable_params(), 0.1, 0.9),
        config,
        PREPROCESSING["digits"],
        None,
        {},
    )
    done = processes.run(*case.program, "--checkpoint", "last.ckpt", "--output", "out/net", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("500 images compared") == 3
    assert done.stdout.count(f"the sums of all {case.layers} binary layers are equal on 20 images") == 2, done.stdout
    return folder


@pytest.fixture(scope="module")
def network(case, exported):
    frozen = lively_network(case.name)
    checkpoints.load_network(frozen, exported / "last.ckpt")
    return freeze(frozen)


@pytest.fixture(scope="module")
def images(case):
    return np.random.default_rng(5).normal(size=(case.images, 3, 32, 32)).astype(np.float32)


def test_mindir_holds_stock_primitives_and_constant_binary_weights(exported, case):
    model = ModelProto()
    model.ParseFromString((exported / "out/net.mindir").read_bytes())
    primitives = {primitive.op_type for primitive in model.primitives}
    assert "Conv2D" in primitives and primitives <= STOCK_MINDIR, primitives - STOCK_MINDIR
    assert not [parameter.name for parameter in model.graph.parameter if "noise" in parameter.name]
    weights = {
        parameter.name.rsplit(":", 1)[-1]: np.frombuffer(parameter.raw_data, np.float32)
        for parameter in model.graph.parameter
    }
    binary = [weight for name, weight in weights.items() if ".conv" in name and name.endswith(".weight")]
    assert len(binary) == case.layers and all((np.abs(weight) == 1).all() for weight in binary)


def test_onnx_holds_stock_operators_and_constant_binary_weights(exported, case):
    model = onnx.load(str(exported / "out/net.onnx"))
    assert {node.op_type for node in model.graph.node} <= STOCK_ONNX
    assert {node.domain for node in model.graph.node} == {""}
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not [name for name in weights if "noise" in name]
    binary = [
        weight
        for name, weight in weights.items()
        if name.startswith("layer") and name.endswith((".conv1.weight", ".conv2.weight"))
    ]
    assert len(binary) == case.layers and all((np.abs(weight) == 1).all() for weight in binary)


def test_both_take_any_batch_size_and_give_the_networks_logits(exported, network):
    session = onnxruntime.InferenceSession(str(exported / "out/net.onnx"), providers=["CPUExecutionProvider"])
    graph = nn.GraphCell(ms.load(str(exported / "out/net.mindir")))
    for count in (1, 3):
        batch = np.random.default_rng(count).normal(size=(count, 3, 32, 32)).astype(np.float32)
        expected = network(ms.Tensor(batch)).asnumpy()
        np.testing.assert_array_equal(graph(ms.Tensor(batch)).asnumpy(), expected)
        np.testing.assert_allclose(session.run(["logits"], {"images": batch})[0], expected, atol=1e-4, rtol=1e-4)


def test_an_openvino_file_has_1_bit_weights(exported, case):
    model = openvino.Core().read_model(exported / "out/net.xml")
    layers = [node for node in model.get_ordered_ops() if node.get_type_name() == "BinaryConvolution"]
    weights = [layer.input_value(1).get_node() for layer in layers]
    assert len(layers) == case.layers and {weight.get_element_type() for weight in weights} == {openvino.Type.u1}
    bits = sum(math.prod(weight.get_output_shape(0)) for weight in weights)
    floats = sum(
        parameter.size for parameter in lively_network(case.name).get_parameters() if "noise" not in parameter.name
    )
    assert (exported / "out/net.bin").stat().st_size < bits / 8 + 5 * (floats - bits)


def test_float16_weights_of_float_layers_are_half_as_large(exported, case, network):
    program = (*case.program, "--checkpoint", "last.ckpt", "--file_format", "OPENVINO")
    done = processes.run(*program, "--float_weights", "float16", "--output", "half/net", cwd=exported)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^top-1 with float32 weights \d+\.\d\d%, with float16 weights \d+\.\d\d%$", done.stdout, re.M)
    assert "500 images compared" in done.stdout
    rounded = copy.deepcopy(network)
    round_to_float16(rounded)
    floats = [p for p in rounded.get_parameters() if p.ndim >= 2 and "layer" not in p.name]
    assert len(floats) == 2  # the first convolution and the linear layer
    for parameter, before in zip(rounded.get_parameters(), network.get_parameters(), strict=True):
        changed = (parameter.asnumpy() != before.asnumpy()).any()
        assert changed == (parameter.name in [p.name for p in floats])
    saved = (exported / "out/net.bin").stat().st_size - (exported / "half/net.bin").stat().st_size
    assert abs(saved - 2 * sum(p.size for p in floats)) < 100  # constants are aligned


def test_a_description_is_written_next_to_each_file(exported):
    for suffix in ("mindir", "onnx", "xml"):
        found = description.read(exported / f"out/net.{suffix}")
        assert found.input.batch_size is None and found.input.shape == (3, 32, 32) and found.output.classes == 10
        preprocessing = found.image_preprocessing
        assert preprocessing == PREPROCESSING["digits"] and found.dataset == "digits"
        assert found.resize.shorter_side == 32 and found.divisor == 255
    files = ["net.bin", *(f"net.{suffix}{end}" for suffix in ("mindir", "onnx", "xml") for end in ("", ".json"))]
    assert sorted(path.name for path in (exported / "out").iterdir()) == sorted(files)


@pytest.fixture
def known(case, monkeypatch):
    """This process knows the network by its name."""
    if case is SMALL:
        monkeypatch.setitem(registry.NETWORKS, "small", registry.Network(small, 32, 1, 10))


def test_each_file_is_evaluated_to_the_same_last_line(exported, known, capsys, monkeypatch):
    monkeypatch.chdir(exported)
    results = []
    for flag, file in (
        ("--checkpoint", "last.ckpt"),
        ("--model", "last.ckpt"),
        ("--model", "out/net.xml"),
        ("--model", "out/net.onnx"),
        ("--model", "out/net.mindir"),
    ):
        assert cli.run(importlib.import_module("eval").main, [flag, file]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert results[-1].pop("checkpoint") == file
    for result in results[1:]:
        assert list(result) == list(results[0]) and result["images"] == 360
        assert result["Loss"] == pytest.approx(results[0]["Loss"], rel=1e-3)
        assert result["Top1-Acc"] == pytest.approx(results[0]["Top1-Acc"], abs=2.5 / 360)  # a sign may flip


def test_a_file_that_does_not_agree_is_not_kept(exported, known, tmp_path, monkeypatch):
    """And what was there before stays."""
    write = mindir.export

    def write_another(network, *arguments):
        network = copy.deepcopy(network)
        network.linear.bias.set_data(network.linear.bias + 1)
        write(network, *arguments)

    monkeypatch.setattr(mindir, "export", write_another)
    (tmp_path / "net.mindir").write_bytes(b"of yesterday")
    with pytest.raises(UserError, match="the exported file is not this network"):
        export_job.run(str(exported / "last.ckpt"), {}, None, "MINDIR", None, str(tmp_path / "net"))
    assert [path.name for path in tmp_path.iterdir()] == ["net.mindir"]
    assert (tmp_path / "net.mindir").read_bytes() == b"of yesterday"


def altered(exported: Path, tmp_path: Path, name: str, added: float) -> Path:
    """The exported ONNX file with a number added to every value of one parameter."""
    model = onnx.load(str(exported / "out/net.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + np.float32(added), name))
    path = tmp_path / "altered.onnx"
    onnx.save(model, str(path))
    return path


class OtherRounding(nn.Cell):
    """A layer in a runtime that rounds otherwise: values within `bound` of 0 come out on the other side of it."""

    def __init__(self, layer: FrozenLayer, bound: float, found: list[tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self.layer = layer
        self.bound = bound
        self.found = found

    def construct(self, x):
        value = x.asnumpy()
        value = np.where(np.abs(value) < self.bound, -value, value)
        sums = self.layer.operation(ms.Tensor(np.where(value > 0, 1, -1).astype(np.float32)), self.layer.weight)
        self.found.append((value, sums.asnumpy()))
        return sums / self.layer.divisor


def runtime_that_rounds_otherwise(network: nn.Cell, bound: float) -> ExportedModel:
    found: list[tuple[np.ndarray, np.ndarray]] = []
    other = copy.deepcopy(network)
    names = [name for name, cell in other.cells_and_names() if isinstance(cell, FrozenLayer)]  # in the order of calls
    replace(other, FrozenLayer, lambda cell: OtherRounding(cell, bound, found))

    def trace(batch):
        found.clear()
        logits = other(ms.Tensor(batch)).asnumpy()
        values, sums = zip(*found, strict=True)
        return Trace(logits, dict(zip(names, values, strict=True)), dict(zip(names, sums, strict=True)))

    return ExportedModel(lambda batch: trace(batch).logits, trace)


def closest_to_0(right: ExportedModel, images: np.ndarray) -> np.ndarray:
    """Of each image, the distance from 0 of its nearest value before a sign that is not 0."""
    closest = []
    for start in range(0, len(images), 50):
        values = right.trace(images[start : start + 50]).values.values()
        distances = [np.abs(value).reshape(50, -1) for value in values]
        closest.extend(np.min([np.where(d > 0, d, np.inf).min(1) for d in distances], 0))
    return np.array(closest)


def test_a_sign_flipped_within_rounding_of_0_is_explained(network, images, case):
    closest = closest_to_0(runtime_that_rounds_otherwise(network, 0.0), images)
    bound = float(np.sort(closest)[1]) * 1.001  # two images have a value within it
    assert 0 < bound < 5e-6
    result = compare(network, runtime_that_rounds_otherwise(network, bound), images, 50)
    assert 1 <= result.explained <= 2 and result.images == case.images
    assert result.largest_difference < 1e-4


def test_a_sign_flipped_further_out_is_not_explained(network, images, case, monkeypatch):
    monkeypatch.setattr(verification, "MAX_SHARE", 1.0)
    with pytest.raises(UserError, match="a sign before .* flips at .*, beyond rounding of 0"):
        compare(network, runtime_that_rounds_otherwise(network, 1e-3), images[: case.flips], case.flips)


def test_a_file_that_is_another_network_is_refused(exported, network, images, case, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="100 of 100 images differ .* the exported file is not this network"):
        compare(network, FORMATS["ONNX"].load(altered(exported, tmp_path, "linear.bias", 1e-2)), images[:100], 100)
    monkeypatch.setattr(verification, "MAX_SHARE", 1.0)  # past the count, each image must be explained
    with pytest.raises(UserError, match="the logits differ by .* given the same signs"):
        compare(network, FORMATS["ONNX"].load(altered(exported, tmp_path, "linear.bias", 1e-2)), images[:2], 2)
    differs = "before the signs of .* differ by .* given the same signs|beyond rounding of 0"
    with pytest.raises(UserError, match=differs):
        compare(network, FORMATS["ONNX"].load(altered(exported, tmp_path, case.before_last_sign, 0.1)), images[:10], 10)


def wrong_on_some(model: ExportedModel, value: float) -> ExportedModel:
    """A file whose logits are garbage on a fifth of the images, but not where it shows its values."""

    def logits(batch):
        found = model.logits(batch).copy()
        found[::5] = value
        return found

    return ExportedModel(logits, model.trace)


@pytest.mark.parametrize("value", [12345.0, 0.0])
def test_garbage_on_some_images_is_not_explained(network, images, value):
    """Some of them have a value within rounding of 0, whose flip does not give these logits."""
    right = runtime_that_rounds_otherwise(network, 0.0)
    assert compare(network, right, images[:20], 20).explained == 0
    with pytest.raises(UserError, match="no sign that is within rounding of 0 explains it"):
        compare(network, wrong_on_some(right, value), images[:20], 20)


def test_a_flip_that_the_file_does_not_show_is_found(network, images, case, monkeypatch):
    """The graph that shows its values rounds as the network does, the graph without them otherwise."""
    right = runtime_that_rounds_otherwise(network, 0.0)
    closest = closest_to_0(right, images)
    number = int(closest.argmin())
    bound = float(closest[number]) * 1.001
    assert bound < verification.FLIP_TOLERANCE
    other, batch = runtime_that_rounds_otherwise(network, bound), images[number : number + 1]
    monkeypatch.setattr(verification, "MAX_SHARE", 1.0)
    result = compare(network, ExportedModel(other.logits, right.trace), batch, 1)
    differs = np.abs(other.logits(batch) - right.logits(batch)).max() > 1e-3
    assert result.explained == differs and (differs or case is not SMALL)


def test_channels_that_are_0_throughout_do_not_hide_a_flip(network, images, case, monkeypatch):
    """Before the value that flips there are more values of 0 than are tried."""
    silent = copy.deepcopy(network)
    parameters = {parameter.name: parameter for parameter in silent.get_parameters()}
    for name in ("bn1.gamma", "bn1.beta"):
        values = parameters[name].asnumpy().copy()
        values[: len(values) // 2] = 0
        parameters[name].set_data(ms.Tensor(values))
    right = runtime_that_rounds_otherwise(silent, 0.0)
    closest = closest_to_0(right, images)
    number = int(closest.argmin())
    assert closest[number] < verification.FLIP_TOLERANCE
    values = right.trace(images[number : number + 1]).values
    assert sum(int((value == 0).sum()) for value in values.values()) > verification.MAX_FLIPS
    other, batch = runtime_that_rounds_otherwise(silent, closest[number] * 1.001), images[number : number + 1]
    assert np.abs(other.logits(batch) - right.logits(batch)).max() > 1e-3
    monkeypatch.setattr(verification, "MAX_SHARE", 1.0)
    assert compare(silent, ExportedModel(other.logits, right.trace), batch, 1).explained == 1


def checkpoint_of(tmp_path: Path, data: str, classes: tuple[str, ...] | None = None) -> Path:
    """A checkpoint with the texts of a run on the data set."""
    network, path = nn.Dense(2, 2), tmp_path / "last.ckpt"
    preprocessing = (
        PREPROCESSING[data] if classes is None else dataclasses.replace(PREPROCESSING[data], classes=classes)
    )
    config = load_config(overrides={"data.name": data}).model_dump()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    checkpoints.save(path, network, optimizer, config, preprocessing, None, {})
    return path


@pytest.mark.parametrize(
    ("trained_on", "classes", "named", "message"),
    [
        ("digits", None, "cifar10", "the classes differ: class 0 is 0 in the checkpoint and airplane in the data"),
        ("digits", None, "folder", r"with the mean \(0.5, 0.5, 0.5\), but folder has \(0.485"),
        ("folder", ("cat", "dog"), "imagenet", "was trained on folder, not on imagenet; leave out --dataset"),
    ],
)
def test_another_data_set_than_the_checkpoints_is_refused(tmp_path, trained_on, classes, named, message):
    path = checkpoint_of(tmp_path, trained_on, classes)
    with pytest.raises(UserError, match=message):
        export_job.run(str(path), {"data.name": named}, None, "ONNX", None, str(tmp_path / "net"))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("file_format", ["ONNX", "OPENVINO"])
def test_a_full_precision_network_exports(file_format, tmp_path):
    """It has no layer that takes signs."""
    ms.set_seed(1)
    network = small(10, 3, Binarization.full_precision())
    overrides = {"data.name": "digits", "network.name": "small", "network.binary": False}
    config = load_config(overrides=overrides).model_dump()
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    checkpoints.save(tmp_path / "last.ckpt", network, optimizer, config, PREPROCESSING["digits"], None, {})
    done = processes.run(*SMALL.program, "--checkpoint", "last.ckpt", "--file_format", file_format, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "500 images compared, 0 (0.0%)" in done.stdout and "binary layers" not in done.stdout


class CalledTwice(nn.Cell):
    """One binary layer, called twice, and a last layer of zeros."""

    def __init__(self):
        super().__init__()
        self.conv = Binarization(noise_adaptation=False).conv(3, 3, 3, padding=1)
        self.head = nn.Dense(3, 4, weight_init="zeros", bias_init="zeros")

    def construct(self, x):
        x = x + self.conv(x + self.conv(x))
        return self.head(ops.ReduceMean()(x, (2, 3)))


@pytest.mark.parametrize("head", ["zeros", "random"])
def test_a_layer_that_is_called_twice_and_logits_of_0_are_compared(head, tmp_path):
    network = CalledTwice()
    if head == "random":
        network.head.weight.set_data(ms.Tensor(np.random.default_rng(3).normal(size=(4, 3)), ms.float32))
    frozen = freeze(network)
    FORMATS["OPENVINO"].export(frozen, (3, 9, 9), None, tmp_path / "net.xml")
    images = np.random.default_rng(4).normal(size=(30, 3, 9, 9)).astype(np.float32)
    result = compare(frozen, FORMATS["OPENVINO"].load(tmp_path / "net.xml"), images, 10)
    assert result.layers == 2 and result.replayed >= 20


@pytest.mark.slow  # each exports in a separate process
@pytest.mark.parametrize("weight_quantizer", ["dorefa", "xnor", "libra", "sign"])
def test_an_untrained_network_exports_to_onnx(weight_quantizer, tmp_path):
    """Fresh batch norms add nothing, so the sums that are 0 reach the signs after them as 0, or as noise."""
    config = load_config(
        overrides={"data.name": "digits", "network.weight_quantizer": weight_quantizer, "noise.enabled": False}
    )
    binarization = Binarization(weight_quantizer=weight_quantizer, noise_adaptation=False)
    ms.set_seed(1)
    network = create_model("resnet20", binarization=binarization)
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    checkpoints.save(tmp_path / "last.ckpt", network, optimizer, config.model_dump(), PREPROCESSING["digits"], None, {})
    done = processes.run("export.py", "--checkpoint", "last.ckpt", "--file_format", "ONNX", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "500 images compared" in done.stdout
