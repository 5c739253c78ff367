"""Size and cost of a network, layer by layer: 1-bit and 32-bit parameters, memory, binary and full multiply-adds.

    python -m src.summary resnet18
    python -m src.summary resnet18_cifar --input 3 64 64 --num_classes 100 --full_precision

Only trainable values count as parameters: the moving statistics of batch norm and the scale of a binary weight fold
into its affine map. Noise modules are left out, as in inference.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import cli

with cli.explain_missing_packages():
    from . import runtime
    from .errors import UserError

if TYPE_CHECKING:  # MindSpore is imported after the arguments are checked
    import mindspore as ms
    from mindspore import nn

MAX_INPUT_VALUES = 3 * 1024 * 1024
BINARY_PER_FULL = 64  # binary multiply-adds in one operation, a 64-bit XNOR and popcount (Bi-Real Net)


@dataclass(frozen=True)
class Row:
    """A layer with parameters. MACs are multiply-adds for one image."""

    name: str
    kind: str
    output: tuple[int, ...]  # without the batch
    binary_parameters: int
    full_parameters: int
    binary_macs: int
    full_macs: int

    @property
    def memory(self) -> float:
        """KiB of the parameters: one bit for a binary one, else four bytes."""
        return (self.binary_parameters / 8 + self.full_parameters * 4) / 1024


@dataclass(frozen=True)
class Summary:
    """The rows of a network and their totals."""

    input_shape: tuple[int, int, int]
    rows: tuple[Row, ...]

    @property
    def binary_parameters(self) -> int:
        return sum(row.binary_parameters for row in self.rows)

    @property
    def full_parameters(self) -> int:
        return sum(row.full_parameters for row in self.rows)

    @property
    def parameters(self) -> int:
        return self.binary_parameters + self.full_parameters

    @property
    def memory(self) -> float:
        """KiB."""
        return sum(row.memory for row in self.rows)

    @property
    def full_precision_memory(self) -> float:
        """KiB of the full-precision baseline."""
        return self.parameters * 4 / 1024

    @property
    def binary_macs(self) -> int:
        return sum(row.binary_macs for row in self.rows)

    @property
    def full_macs(self) -> int:
        return sum(row.full_macs for row in self.rows)

    @property
    def macs(self) -> int:
        return self.binary_macs + self.full_macs

    @property
    def operations(self) -> float:
        """OPs as in the literature: full multiply-adds and a 64th of the binary ones (Liu et al., Bi-Real Net)."""
        return self.full_macs + self.binary_macs / BINARY_PER_FULL

    def __str__(self) -> str:
        header = ("layer", "kind", "output", "1-bit", "32-bit", "KiB", "binary MACs", "full MACs")
        table = [header]
        for row in self.rows:
            counts = (row.binary_parameters, row.full_parameters, row.memory, row.binary_macs, row.full_macs)
            table.append((row.name, row.kind, "x".join(map(str, row.output)), *map(_number, counts)))
        counts = (self.binary_parameters, self.full_parameters, self.memory, self.binary_macs, self.full_macs)
        table.append(("total", "", "", *map(_number, counts)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if number < 3 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in table
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", *self._totals()])

    def _totals(self) -> list[str]:
        baseline = self.full_precision_memory
        return [
            f"input       {'x'.join(map(str, self.input_shape))}",
            f"parameters  {self.parameters:,}, 1-bit {self.binary_parameters / self.parameters:.2%}",
            f"memory      {self.memory:,.1f} KiB, fp32 {baseline:,.1f} KiB, ratio {baseline / self.memory:.1f}",
            f"MACs        {self.macs:,}, binary {self.binary_macs / self.macs:.2%}",
            f"OPs         {self.operations:,.0f} (full MACs + binary MACs / {BINARY_PER_FULL}), "
            f"ratio to fp32 {self.macs / self.operations:.1f}",
        ]


def summarize(network: nn.Cell, input_shape: tuple[int, int, int]) -> Summary:
    """Run an image of zeros through the network, in PyNative mode, and record every layer that has parameters.

    The number of bits is `precision` of the layer's `weight_quantizer` and `activation_quantizer`; 32 without one. The
    number of multiply-adds is the size of the weight times the positions of the output, also with groups. They are
    binary if both the weight and the input are.

    Args:
        network: Cell from (N, C, H, W); it is set to evaluation mode.
        input_shape: (C, H, W).

    Raises:
        UserError: the network does not take this input, or the input is larger than `MAX_INPUT_VALUES`.
    """
    import mindspore as ms
    import numpy as np

    require_input(input_shape)
    rows: list[Row] = []

    def note(name: str):
        def hook(cell, inputs, output):
            rows.append(_row(name, cell, output.shape))

        return hook

    mode = ms.get_context("mode")
    network.set_train(False)
    ms.set_context(mode=ms.PYNATIVE_MODE)  # hooks are not called in graph mode
    handles = [
        cell.register_forward_hook(note(name)) for name, cell in network.cells_and_names() if _own_parameters(cell)
    ]
    try:
        network(ms.Tensor(np.zeros((1, *input_shape), np.float32)))
    except (ValueError, RuntimeError) as error:
        sentence = str(error).strip().splitlines()[0]
        shape = "x".join(map(str, input_shape))
        raise UserError(f"the network does not take an input of {shape}: {sentence}") from error
    finally:
        for handle in handles:
            handle.remove()
        ms.set_context(mode=mode)
    return Summary(tuple(input_shape), tuple(rows))


def require_input(shape: tuple[int, int, int]) -> None:
    """UserError unless `shape` is (C, H, W) with at most `MAX_INPUT_VALUES` values."""
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) > MAX_INPUT_VALUES:
        raise UserError(
            f"the input is {' '.join(map(str, shape))}, but must be three numbers of at least 1, C, H and W, with a "
            f"product of at most {MAX_INPUT_VALUES:,}"
        )


def _own_parameters(cell: nn.Cell) -> list[ms.Parameter]:
    """The trainable parameters of the cell itself, without its children's."""
    return [parameter for parameter in cell.get_parameters(expand=False) if parameter.requires_grad]


def _row(name: str, cell: nn.Cell, output_shape: tuple[int, ...]) -> Row:
    weight_bits, input_bits = (_precision(cell, which) for which in ("weight_quantizer", "activation_quantizer"))
    weight = getattr(cell, "weight", None)  # batch norm and slopes have none, and count no multiply-adds
    weights = 0 if weight is None else weight.size
    macs = weights * math.prod(output_shape[2:])
    binary_parameters = weights if weight_bits == 1 else 0
    binary_macs = macs if weight_bits == input_bits == 1 else 0
    return Row(
        name,
        type(cell).__name__,
        tuple(output_shape[1:]),
        binary_parameters,
        sum(parameter.size for parameter in _own_parameters(cell)) - binary_parameters,
        binary_macs,
        macs - binary_macs,
    )


def _precision(cell: nn.Cell, quantizer: str) -> int:
    return getattr(getattr(cell, quantizer, None), "precision", 32)


def _number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m src.summary", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="name of a network: resnet20, vgg_small, resnet18, ...")
    parser.add_argument(
        "--input", nargs=3, type=cli.integer, metavar=("C", "H", "W"), help="default: the network's image size"
    )
    parser.add_argument(
        "--num_classes", type=cli.integer, metavar="K", help="default: 1000 for networks for ImageNet, else 10"
    )
    parser.add_argument("--full_precision", action="store_true", help="summarize the full-precision baseline")
    arguments = parser.parse_args(argv)
    if arguments.input:
        require_input(arguments.input)
    if arguments.num_classes is not None and arguments.num_classes < 1:
        raise UserError(f"--num_classes is {arguments.num_classes}, but must be at least 1")
    runtime.prepare_environment()

    from .binary import Binarization
    from .binary.validation import lookup
    from .models import NETWORKS, create_model

    try:
        facts = lookup("network", NETWORKS, arguments.name)
        binarization = Binarization(noise_adaptation=False)
        if arguments.full_precision:
            binarization = Binarization.full_precision()
        shape = tuple(arguments.input or (3, facts.image_size, facts.image_size))
        network = create_model(arguments.name, arguments.num_classes, shape[0], binarization)
    except ValueError as error:
        raise UserError(str(error)) from error
    print(summarize(network, shape))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
