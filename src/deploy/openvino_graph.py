"""Rewrite an OpenVINO graph of +1 and -1 in floats to 1-bit operations; and find the binary layers of such a graph.

A frozen network, read from ONNX, holds a binary layer as

    x -> Greater(0) -> Convert -> Multiply(2) -> Subtract(1) -> Convolution, GroupConvolution or MatMul by +1 and -1

`binarize` turns it into

    x -> FakeQuantize (0 where x <= 0, else 1) -> BinaryConvolution by 1-bit weights

whose sums are the same integers. The operations after it (division by 1 / scale, slope, batch norm) become one PRelu,
one Multiply and one Add, which OpenVINO's CPU plug-in computes inside the convolution.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import openvino
from openvino import Node, Output
from openvino import opset13 as ops
from openvino.passes import ConstantFolding, Manager

# The CPU plug-in's BinaryConvolution is silently wrong on images if the input channels are no multiple of this.
CHANNEL_MULTIPLE = 8
# Nodes of a layer are called LAYER/NAME; those of INSERTED lie between the value before a sign and the sums.
SUMS, INSERTED = "sums", ("rows", "groups", "pairs", "signs")
PRODUCTS = ("Convolution", "GroupConvolution", "MatMul")
# 2 * (x > 0) - 1, from the end, with the constant operand of each.
FLOAT_SIGN = (("Subtract", 1), ("Multiply", 2), ("Convert", None), ("Greater", 0))


@dataclass(frozen=True)
class BinaryLayer:
    """A layer that takes signs: its name, the value before them, and its sums, integers if its weight is binary."""

    name: str
    value: Output
    sums: Output


def binarize(model: openvino.Model) -> list[str]:
    """Replace each product of signs by a 1-bit one, and fold what follows it. The model is changed.

    A layer with a number of input channels (of a group) that is no multiple of 8 gets further channels, in pairs whose
    weights +1 and -1 cancel. One channel without a partner adds 1 for each tap of the kernel inside the image, which is
    subtracted. A layer that is called again has `#2`, `#3` and so on after its name.

    Returns:
        Names of layers that stay float, because their padding is not written out.
    """
    products, calls = {}, Counter()
    for node in model.get_ordered_ops():
        if _value_before_signs(node) is not None and (name := _layer_name(node)) is not None:
            calls[name] += 1
            products[node] = name if calls[name] == 1 else f"{name}#{calls[name]}"
    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
    kept = []
    for node, name in products.items():
        value, sums, weight = _value_before_signs(node), node.output(0), _signs_of_weight(node)
        if weight is not None and node.get_attributes().get("auto_pad", "explicit") == "explicit":
            sums = _binary_sums(node, value, weight, name)
            _fold(node.output(0), sums)
        elif weight is not None:
            kept.append(name)
        sums.get_node().set_friendly_name(f"{name}/{SUMS}")
    _store_in_half_the_bytes(model)
    model.validate_nodes_and_infer_types()
    return kept


def binary_layers(model: openvino.Model) -> list[BinaryLayer]:
    """The layers that take signs, in a graph that `binarize` made, also after it was stored and read."""
    by_name = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    found: dict[str, BinaryLayer] = {}
    for node in model.get_ordered_ops():
        name, value = node.get_friendly_name().rpartition("/")[0], _value_before_signs(node)
        if node.get_type_name() == "BinaryConvolution":
            value = node.input_value(0)
            while _is_inserted(value.get_node()):
                value = value.get_node().input_value(0)
        if value is not None and f"{name}/{SUMS}" in by_name:
            found[name] = BinaryLayer(name, value, by_name[f"{name}/{SUMS}"].output(0))
    return list(found.values())


def _is_inserted(node: Node) -> bool:
    """Whether the node lies between the value before a sign and the sums. OpenVINO merges equal nodes, so it may have
    the name of another layer."""
    _, slash, last = node.get_friendly_name().rpartition("/")
    return bool(slash) and last.rstrip("0123456789") in INSERTED


def _value_before_signs(node: Node) -> Output | None:
    """The value whose signs the product `node` takes as +1 and -1 in floats; None for any other node."""
    if node.get_type_name() not in PRODUCTS:
        return None
    for kind, operand in FLOAT_SIGN:
        node = node.input_value(0).get_node()
        if node.get_type_name() != kind or (operand is not None and _number(node.input_value(1)) != operand):
            return None
    return node.input_value(0)


def _number(output: Output) -> float | None:
    """The value of a constant with one element."""
    node = output.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    constant = _constant(node.output(0))
    return None if constant is None or constant.size != 1 else float(constant.reshape(-1)[0])


def _layer_name(product: Node) -> str | None:
    """The name of the cell whose weight the product takes, before constants are folded; None if it takes none."""
    weight = product.input_value(1).get_node()
    while weight.get_type_name() == "Reshape":  # of a convolution in groups
        weight = weight.input_value(0).get_node()
    return weight.get_friendly_name().removesuffix(".weight") if weight.get_type_name() == "Constant" else None


def _signs_of_weight(node: Node) -> np.ndarray | None:
    """The weight of a product if it is a constant of +1 and -1: (groups, C_out, C_in, height, width) of each group."""
    weight = _constant(node.input_value(1))
    if weight is None or not (np.abs(weight) == 1).all():
        return None
    if node.get_type_name() == "MatMul":
        attributes = node.get_attributes()
        if attributes["transpose_a"] or weight.ndim != 2:
            return None
        return (weight if attributes["transpose_b"] else weight.T)[None, :, :, None, None]
    return weight if node.get_type_name() == "GroupConvolution" else weight[None]


def _binary_sums(product: Node, value: Output, weight: np.ndarray, name: str) -> Output:
    """The sums of a product of signs by 1-bit operations."""
    groups, _, channels, *_ = weight.shape

    def named(node: Node, suffix: str) -> Node:
        node.set_friendly_name(f"{name}/{suffix}")
        return node

    attributes = {"pads_begin": (0, 0), "pads_end": (0, 0), "strides": (1, 1), "dilations": (1, 1)}
    is_linear = product.get_type_name() == "MatMul"
    if is_linear:
        value = named(ops.reshape(value, [0, channels, 1, 1], True), "rows").output(0)
    else:
        attributes |= product.get_attributes()
    gap = -channels % CHANNEL_MULTIPLE
    parts = [value]
    if groups > 1:
        parts = named(ops.variadic_split(value, 1, [channels] * groups), "groups").outputs()
    if gap:
        parts = [
            named(ops.pad(part, [0] * 4, [0, gap, 0, 0], "constant", 0.0), f"pairs{n}") for n, part in enumerate(parts)
        ]
        pairs = np.resize([-1.0, 1.0], gap)[None, None, :, None, None]  # by the sign of 0, -1: +1, -1, +1, ...
        weight = np.concatenate([weight, np.broadcast_to(pairs, (*weight.shape[:2], gap, *weight.shape[3:]))], 2)
    sums = [
        _binary_convolution(part, of_group, attributes, lambda node, suffix, n=n: named(node, f"{suffix}{n}"))
        for n, (part, of_group) in enumerate(zip(parts, weight, strict=True))
    ]
    result = sums[0] if groups == 1 else ops.concat(sums, 1)
    if gap % 2:
        result = ops.subtract(result, _floats(_taps_inside(value, weight.shape[3:], attributes)))
    return (ops.reshape(result, [0, weight.shape[1]], True) if is_linear else result).output(0)


def _taps_inside(value: Output, kernel: tuple[int, int], geometry: dict) -> np.ndarray:
    """How many taps of the kernel lie inside the image at each position of the output: (1, 1, height, width)."""
    counts = []
    for axis, taps in enumerate(kernel):
        size = value.get_partial_shape()[2 + axis].get_length()
        begin, end, stride, dilation = (
            geometry[name][axis] for name in ("pads_begin", "pads_end", "strides", "dilations")
        )
        starts = np.arange(-begin, size + end - dilation * (taps - 1), stride)
        places = starts[:, None] + dilation * np.arange(taps)
        counts.append(((places >= 0) & (places < size)).sum(1))
    return np.multiply.outer(*counts)[None, None]


def _binary_convolution(value, weight: np.ndarray, geometry: dict, named: Callable[[Node, str], Node]) -> Node:
    """FakeQuantize and BinaryConvolution of `value` by the signs (C_out, C_in, height, width)."""
    bits = named(ops.fake_quantize(value, *(_floats(bound) for bound in (0.0, 0.0, 0.0, 1.0)), 2), "signs")
    packed = openvino.Tensor(openvino.Type.u1, openvino.Shape(weight.shape))
    packed.data[:] = np.packbits(weight.reshape(-1) > 0, bitorder="little")
    return named(
        ops.binary_convolution(
            bits,
            named(ops.constant(packed), "weight"),
            *(list(geometry[name]) for name in ("strides", "pads_begin", "pads_end", "dilations")),
            "xnor-popcount",
            0.0,  # adds nothing at the border
        ),
        "part",
    )


def _fold(old: Output, sums: Output) -> None:
    """Put `sums` and as few operations as possible in the place of `old` and the operations that follow it.

    Those operations are followed as long as each is the only user of the one before. A positive scale passes slopes
    and max-pools, so all scales and shifts become one Multiply and one Add at the end.
    """
    result, end = sums, old
    scale, shift = np.ones(1), np.zeros(1)
    while True:
        users = [port.get_node() for port in end.get_target_inputs()]
        scale_passes = (shift == 0).all() and (scale >= 0).all()
        if scale_passes and (slope := _slope(end, users)) is not None:
            result = ops.prelu(result, _floats(slope[1].reshape(-1))).output(0)
            end = slope[0].output(0)
            continue
        if len(users) != 1:
            break
        (user,) = users
        if (affine := _affine(user)) is not None:
            scale, shift = affine[0] * scale, affine[0] * shift + affine[1]
        elif scale_passes and user.get_type_name() in ("Relu", "PRelu", "MaxPool"):
            user.input(0).replace_source_output(result)
            result = user.output(0)
        elif not _only_adds_ones(user):
            break
        end = user.output(0)
    rank = result.get_partial_shape().rank.get_length()
    for operation, factor, neutral in ((ops.multiply, scale, 1), (ops.add, shift, 0)):
        if (factor != neutral).any():
            result = operation(result, _floats(factor.reshape(1, -1, *(1,) * (rank - 2)))).output(0)
    shape = end.get_partial_shape()
    if shape.rank.get_length() != rank:
        result = ops.reshape(result, [0, shape[1].get_length(), *(1,) * (shape.rank.get_length() - 2)], True).output(0)
    if result == old:
        return
    result.add_names(end.get_names())
    for port in end.get_target_inputs():
        if port.get_node() != result.get_node():
            port.replace_source_output(result)


def _slope(value: Output, users: list[Node]) -> tuple[Node, np.ndarray] | None:
    """The Add that ends relu(x) + (x - relu(x)) * a, and a, if these are the only users of `value`."""
    by_kind = {user.get_type_name(): user for user in users}
    if len(users) != 2 or by_kind.keys() != {"Relu", "Subtract"}:
        return None
    positive, negative = by_kind["Relu"].output(0), by_kind["Subtract"].output(0)
    scaled = _only_user(negative, "Multiply")
    if scaled is None or by_kind["Subtract"].input_values() != [value, positive]:
        return None
    slope = _constant(scaled.input_value(1))
    result = _only_user(scaled.output(0), "Add")
    if result is None or slope is None or slope.size != 1 or positive not in result.input_values():
        return None
    return (result, slope) if len(positive.get_target_inputs()) == 2 else None


def _only_user(value: Output, kind: str) -> Node | None:
    users = [port.get_node() for port in value.get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None


def _affine(node: Node) -> tuple[np.ndarray, np.ndarray] | None:
    """Scale and shift of each channel, or of all, if `node` multiplies by constants and adds constants."""
    kind = node.get_type_name()
    rank = node.get_output_partial_shape(0).rank.get_length()
    if kind == "BatchNormInference":
        gamma, beta, mean, variance = (_constant(node.input_value(n)).astype(np.float64) for n in range(1, 5))
        scale = gamma / np.sqrt(variance + node.get_attributes()["epsilon"])
        return scale, beta - mean * scale
    if kind not in ("Multiply", "Divide", "Add", "Subtract"):
        return None
    first, second = (_constant(node.input_value(n)) for n in (0, 1))
    operand = first if second is None else second
    values = None if operand is None else _per_channel(operand, rank)
    if values is None or (kind == "Divide" and second is None):
        return None
    one, zero = np.ones(1), np.zeros(1)
    if kind == "Multiply":
        return values, zero
    if kind == "Divide":
        return 1 / values, zero
    if kind == "Add":
        return one, values
    return (one, -values) if first is None else (-one, values)


def _per_channel(constant: np.ndarray, rank: int) -> np.ndarray | None:
    """A constant that varies at most along the channels of (N, C, ...) as a vector, float64; None for any other."""
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if len(shape) != rank or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return constant.reshape(-1).astype(np.float64)


def _only_adds_ones(node: Node) -> bool:
    """Whether `node` only appends axes of length 1 to (N, C), or takes them away."""
    if node.get_type_name() != "Reshape":
        return False
    before, after = (
        [str(size) for size in shape] for shape in (node.get_input_partial_shape(0), node.get_output_partial_shape(0))
    )
    return len(before) >= 2 and before[:2] == after[:2] and {*before[2:], *after[2:]} == {"1"}


def _constant(output: Output) -> np.ndarray | None:
    node = output.get_node()
    return np.asarray(node.data) if node.get_type_name() == "Constant" else None


def _floats(values) -> Node:
    return ops.constant(np.asarray(values, np.float32))


def _store_in_half_the_bytes(model: openvino.Model) -> None:
    """Store weights as float16 where that changes no value; the runtime turns them back into float32."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in PRODUCTS:
            weight = _constant(node.input_value(1))
            if weight is not None and weight.dtype == np.float32 and (weight.astype(np.float16) == weight).all():
                name = node.input_value(1).get_node().get_friendly_name()
                half = ops.constant(weight.astype(np.float16))
                half.set_friendly_name(name)
                node.input(1).replace_source_output(ops.convert(half, "f32").output(0))
