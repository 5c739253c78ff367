"""OpenVINO files: 1-bit layers give the integers of numpy, and what follows them is folded without a difference."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, numpy_helper

from src.deploy.openvino import load
from src.deploy.openvino_graph import binarize
from tests.helpers.onnx_graph import Graph, random_signs, run_onnx


@dataclass
class Stored:
    """A graph that went through `binarize` and a file: the layers that stay float, and its operations."""

    path: Path
    kept: list[str]
    kinds: list[str]


def store(graph: Graph, folder: Path, batch_size: int = 1) -> Stored:
    onnx.save(graph.model(), folder / "network.onnx")
    model = openvino.Core().read_model(folder / "network.onnx")
    model.reshape([batch_size, *[size.get_length() for size in list(model.input(0).get_partial_shape())[1:]]])
    kept = binarize(model)
    path = folder / "network.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    read = openvino.Core().read_model(path)
    return Stored(path, kept, [node.get_type_name() for node in read.get_ordered_ops()])


def signs(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, 1, -1)


def sums(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """Convolution of the signs of x in numpy, exact; the border is padded with 0."""
    padded = np.pad(signs(x), ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    channels, filters = weight.shape[1], len(weight) // groups
    return np.concatenate(
        [
            np.einsum(
                "nchwij,ocij->nohw",
                windows[:, group * channels : (group + 1) * channels],
                weight[group * filters : (group + 1) * filters].astype(int),
            )
            for group in range(groups)
        ],
        1,
    )


def images_with_zeros(generator: np.random.Generator, *shape: int) -> np.ndarray:
    x = generator.normal(size=shape).astype(np.float32)
    x[generator.random(shape) < 0.1] = 0  # whose sign is -1
    return x


@pytest.mark.parametrize(
    "channels", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 15, 16, 17, 20, 24, 31, 33, 50, 64, 65, 100, 130]
)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(3, 1, 1, 7), (3, 2, 1, 8), (1, 1, 0, 5), (5, 1, 2, 9), (3, 1, 0, 3)]
)
def test_a_convolution_gives_the_integers_of_numpy(channels, kernel, stride, padding, size, tmp_path):
    generator = np.random.default_rng(channels)
    weight = random_signs(generator, 1 + channels % 19, channels, kernel, kernel)
    graph = Graph(channels, size, size)
    graph.conv("layer", weight, stride, padding)
    stored = store(graph, tmp_path)
    assert "BinaryConvolution" in stored.kinds and not stored.kept
    x = images_with_zeros(generator, 2, channels, size, size)
    np.testing.assert_array_equal(load(stored.path).logits(x), sums(x, weight, stride, padding, 1))


@pytest.mark.parametrize(("groups", "channels"), [(2, 8), (2, 6), (4, 16), (3, 1), (2, 5)])
def test_groups_are_computed_one_by_one(groups, channels, tmp_path):
    generator = np.random.default_rng(groups)
    weight = random_signs(generator, 3 * groups, channels, 3, 3)
    graph = Graph(groups * channels, 6, 6)
    graph.conv("layer", weight, 1, 1, groups)
    stored = store(graph, tmp_path)
    assert stored.kinds.count("BinaryConvolution") == groups and not stored.kept
    x = images_with_zeros(generator, 3, groups * channels, 6, 6)
    model = load(stored.path)
    expected = sums(x, weight, 1, 1, groups)
    np.testing.assert_array_equal(model.logits(x), expected)
    traced = model.trace(x)
    np.testing.assert_array_equal(traced.values["layer"], x)
    np.testing.assert_array_equal(traced.sums["layer"], expected)


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 31, 64, 100, 513])
def test_a_linear_layer_gives_the_integers_of_numpy(channels, tmp_path):
    generator = np.random.default_rng(channels)
    weight = random_signs(generator, 5, channels)
    graph = Graph(channels)
    graph.add("Gemm", graph.sign(), weight, np.zeros(5), transB=1)
    stored = store(graph, tmp_path)
    assert "BinaryConvolution" in stored.kinds and not stored.kept
    x = images_with_zeros(generator, 4, channels)
    np.testing.assert_array_equal(load(stored.path).logits(x), signs(x) @ weight.T.astype(int))


def norm_of(generator: np.random.Generator, channels: int) -> list[np.ndarray]:
    gamma = generator.normal(size=channels)
    gamma[: channels // 4] = 0  # a channel may be switched off, and some are negative
    return [
        gamma,
        generator.normal(size=channels),
        generator.normal(size=channels),
        generator.uniform(0.1, 2, channels),
    ]


@pytest.mark.parametrize("slope", [None, 0.25, -0.5, 0.0, 1.0])
@pytest.mark.parametrize("scale", [None, "layer", "channel"])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("channels", [8, 5])
def test_scale_slope_and_norm_become_one_of_each(slope, scale, norm, channels, tmp_path):
    """5 channels: the count of the channel without a partner is subtracted before all of it."""
    generator = np.random.default_rng(3)
    weight = random_signs(generator, 8, channels, 3, 3)
    graph = Graph(channels, 5, 5)
    graph.conv("layer", weight, 1, 1)
    expected = sums(x := images_with_zeros(generator, 2, channels, 5, 5), weight, 1, 1, 1).astype(np.float64)
    if scale:
        divisor = generator.uniform(1, 50, (8, 1, 1) if scale == "channel" else (1, 1, 1))
        if scale == "channel":
            divisor[2] = np.inf  # a filter whose scale is 0
        graph.add("Div", graph.last, divisor)
        expected = expected / divisor.astype(np.float32)
    if slope is not None:
        graph.slope(slope)
        expected = np.where(expected > 0, expected, slope * expected)
    if norm:
        gamma, beta, mean, variance = values = norm_of(generator, 8)
        graph.norm(*values)
        gamma, beta, mean, variance = (value[:, None, None] for value in values)
        expected = (expected - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    stored = store(graph, tmp_path)
    found = load(stored.path).logits(x)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
    assert stored.kinds.count("PRelu") == (slope is not None)
    assert stored.kinds.count("Multiply") == (bool(scale) or norm)
    assert stored.kinds.count("Add") == norm
    assert not {"Divide", "Relu", "BatchNormInference"} & set(stored.kinds)


@pytest.mark.parametrize("channels", [1, 3, 4, 8, 15, 33])
def test_sums_of_0_are_0_for_the_sign_that_follows(channels, tmp_path):
    """With the scale in its weights, a convolution of an odd number of channels would give 1e-9 or -1e-9."""
    generator = np.random.default_rng(channels)
    first, second = random_signs(generator, 8, channels, 3, 3), random_signs(generator, 4, 8, 3, 3)
    graph = Graph(channels, 9, 9)
    graph.conv("first", first, stride=2, padding=1)
    graph.add("Div", graph.last, np.array([[[1 / 0.0437]]]))
    graph.conv("second", second, padding=1)
    stored = store(graph, tmp_path)
    x = images_with_zeros(generator, 3, channels, 9, 9)
    between = sums(x, first, 2, 1, 1)
    assert channels % 2 or (between == 0).any()
    np.testing.assert_array_equal(load(stored.path).logits(x), sums(between, second, 1, 1, 1))


def test_a_layer_whose_padding_is_not_written_out_stays_float(tmp_path):
    weight = random_signs(np.random.default_rng(9), 4, 8, 3, 3)
    graph = Graph(8, 5, 5)
    graph.add("Conv", graph.sign(), weight, name="layer.weight", auto_pad="SAME_UPPER")
    stored = store(graph, tmp_path)
    assert stored.kept == ["layer"] and "BinaryConvolution" not in stored.kinds
    x = images_with_zeros(np.random.default_rng(9), 2, 8, 5, 5)
    np.testing.assert_array_equal(load(stored.path).logits(x), sums(x, weight, 1, 1, 1))


def test_calls_of_one_layer_are_told_apart(tmp_path):
    weight = random_signs(np.random.default_rng(10), 8, 8, 3, 3)
    graph = Graph(8, 4, 4)
    sign = graph.sign()
    graph.constants.append(numpy_helper.from_array(weight.astype(np.float32), "layer.weight"))
    first = graph.add("Conv", sign, "layer.weight", pads=[1] * 4)
    graph.add("Conv", graph.sign(), "layer.weight", pads=[1] * 4)
    stored = store(graph, tmp_path)
    x = images_with_zeros(np.random.default_rng(10), 2, 8, 4, 4)
    traced = load(stored.path).trace(x)
    expected = sums(x, weight, 1, 1, 1)
    np.testing.assert_array_equal(traced.sums["layer"], expected)
    np.testing.assert_array_equal(traced.values["layer#2"], expected)
    np.testing.assert_array_equal(traced.sums["layer#2"], sums(expected, weight, 1, 1, 1))
    assert first != graph.last


@pytest.mark.parametrize("name", ["logits", "pairs", "signs0", "groups", "rows", "images", "sums"])
def test_a_layer_may_have_any_name(name, tmp_path):
    generator = np.random.default_rng(11)
    first, second = random_signs(generator, 6, 6, 3, 3), random_signs(generator, 4, 6, 1, 1)
    graph = Graph(6, 4, 4)
    graph.conv(name, first, padding=1)
    graph.conv("last", second)
    stored = store(graph, tmp_path)
    x = images_with_zeros(generator, 2, 6, 4, 4)
    traced = load(stored.path).trace(x)
    expected = sums(x, first, 1, 1, 1)
    np.testing.assert_array_equal(traced.values[name], x)
    np.testing.assert_array_equal(traced.sums[name], expected)
    np.testing.assert_array_equal(traced.values["last"], expected)
    np.testing.assert_array_equal(traced.logits, sums(expected, second, 1, 0, 1))


def test_a_product_of_signs_by_something_computed_is_left_alone(tmp_path):
    graph = Graph(8)
    graph.add("MatMul", graph.sign(), graph.add("Transpose", "images", perm=[1, 0]))
    stored = store(graph, tmp_path)
    x = np.random.default_rng(12).normal(size=(1, 8)).astype(np.float32)
    assert "BinaryConvolution" not in stored.kinds
    np.testing.assert_allclose(load(stored.path).logits(x), np.abs(x).sum().reshape(1, 1), rtol=1e-6)


def test_a_positive_scale_passes_a_max_pool_and_a_shift_does_not(tmp_path):
    generator = np.random.default_rng(4)
    weight = random_signs(generator, 8, 8, 3, 3)
    x = images_with_zeros(generator, 2, 8, 6, 6)
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    for shifted in (False, True):
        graph = Graph(8, 6, 6)
        graph.conv("layer", weight, 1, 1)
        graph.add("Div", graph.last, np.array([[[3.0]]]))
        if shifted:
            graph.add("Add", graph.last, np.arange(8.0)[:, None, None])
        graph.add("MaxPool", graph.last, **pool)
        graph.norm(*norm_of(generator, 8))
        onnx.save(graph.model(), tmp_path / "reference.onnx")
        stored = store(graph, tmp_path)
        assert stored.kinds.count("Multiply") == 1
        assert stored.kinds.count("BatchNormInference") == shifted
        expected = run_onnx(graph, x)
        np.testing.assert_allclose(load(stored.path).logits(x), expected, atol=2e-6 * np.abs(expected).max())


def test_a_value_that_something_else_uses_keeps_its_own_operations(tmp_path):
    """The sums go to a norm and, past it, to an addition: nothing may be folded away."""
    generator = np.random.default_rng(5)
    weight = random_signs(generator, 8, 8, 3, 3)
    graph = Graph(8, 4, 4)
    scaled = graph.add("Div", graph.conv("layer", weight, 1, 1), np.array([[[7.0]]]))
    graph.add("Add", graph.norm(*norm_of(generator, 8)), scaled)
    stored = store(graph, tmp_path)
    x = images_with_zeros(generator, 2, 8, 4, 4)
    np.testing.assert_allclose(load(stored.path).logits(x), run_onnx(graph, x), atol=1e-5)


def test_two_layers_share_the_signs_of_one_value(tmp_path):
    generator = np.random.default_rng(6)
    first, second = random_signs(generator, 4, 8, 3, 3), random_signs(generator, 4, 8, 1, 1)
    graph = Graph(8, 4, 4)
    taken = graph.sign()
    a = graph.add("Conv", taken, first, name="a.weight", pads=[1] * 4)
    b = graph.add("Conv", taken, second, name="b.weight")
    graph.add("Add", a, b)
    stored = store(graph, tmp_path)
    x = images_with_zeros(generator, 2, 8, 4, 4)
    traced = load(stored.path).trace(x)
    assert set(traced.sums) == {"a", "b"}
    np.testing.assert_array_equal(traced.sums["a"], sums(x, first, 1, 1, 1))
    np.testing.assert_array_equal(traced.sums["b"], sums(x, second, 1, 0, 1))
    np.testing.assert_array_equal(traced.logits, traced.sums["a"] + traced.sums["b"])


@pytest.mark.parametrize("changed", ["threshold", "factor", "offset", "weight"])
def test_what_is_no_sign_is_left_alone(changed, tmp_path):
    generator = np.random.default_rng(7)
    weight = random_signs(generator, 4, 8, 1, 1) * (0.5 if changed == "weight" else 1)
    graph = Graph(8, 4, 4)
    positive = graph.add("Greater", "images", np.array(0.5 if changed == "threshold" else 0))
    doubled = graph.add(
        "Mul", graph.add("Cast", positive, to=TensorProto.FLOAT), np.array(3 if changed == "factor" else 2)
    )
    graph.add("Conv", graph.add("Sub", doubled, np.array(0 if changed == "offset" else 1)), weight, name="layer.weight")
    stored = store(graph, tmp_path)
    assert "BinaryConvolution" not in stored.kinds
    x = images_with_zeros(generator, 2, 8, 4, 4)
    np.testing.assert_allclose(load(stored.path).logits(x), run_onnx(graph, x), rtol=1e-6)


def test_it_computes_in_float32(tmp_path, monkeypatch):
    """A processor with bfloat16 would choose that by itself."""
    graph = Graph(8, 4, 4)
    graph.conv("layer", random_signs(np.random.default_rng(8), 4, 8, 1, 1))
    stored = store(graph, tmp_path)
    found, compile_model = [], openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "compile_model", lambda *given: found.append(compile_model(*given)) or found[-1])
    model = load(stored.path)
    for call in (model.logits, model.trace, model.logits):
        call(np.zeros((1, 8, 4, 4), np.float32))
    assert [compiled.get_property("INFERENCE_PRECISION_HINT") for compiled in found] == [openvino.Type.f32] * 2
