"""The summary against counts by hand, layer by layer and in total; its command line."""

import subprocess
import sys
from functools import cache

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn, ops

from src import cli, summary
from src.binary import Binarization
from src.errors import UserError
from src.models import create_model
from src.summary import Row, summarize
from tests.helpers import network_checks as checks
from tests.helpers import processes

# 1-bit parameters, 32-bit parameters, binary multiply-adds, full multiply-adds. Batch norm has two values a channel.
RESNET20 = (
    6 * 16 * 16 * 9 + (16 * 32 + 5 * 32 * 32) * 9 + (32 * 64 + 5 * 64 * 64) * 9,
    3 * 16 * 9 + 2 * (7 * 16 + 6 * 32 + 6 * 64) + 18 + 64 * 10 + 10,
    6 * 16 * 16 * 9 * 32**2 + (16 * 32 + 5 * 32 * 32) * 9 * 16**2 + (32 * 64 + 5 * 64 * 64) * 9 * 8**2,
    3 * 16 * 9 * 32**2 + 64 * 10,
)
VGG_SMALL = (
    (128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512) * 9,
    3 * 128 * 9 + 2 * (2 * 128 + 2 * 256 + 2 * 512) + 8192 * 10 + 10,
    (128 * 128 * 32**2 + (128 * 256 + 256 * 256) * 16**2 + (256 * 512 + 512 * 512) * 8**2) * 9,
    3 * 128 * 9 * 32**2 + 8192 * 10,
)
STAGE1 = 4 * 64 * 64 * 9
STAGE2 = (64 * 128 + 3 * 128 * 128) * 9
STAGE3 = (128 * 256 + 3 * 256 * 256) * 9
STAGE4 = (256 * 512 + 3 * 512 * 512) * 9
BATCH_NORMS = 2 * (64 + 4 * (64 + 128 + 256 + 512) + 128 + 256 + 512)  # stem, blocks, shortcuts
SHORTCUTS = 64 * 128 + 128 * 256 + 256 * 512
RESNET18 = (
    STAGE1 + STAGE2 + STAGE3 + STAGE4,
    3 * 64 * 49 + SHORTCUTS + BATCH_NORMS + 16 + 512 * 1000 + 1000,
    STAGE1 * 56**2 + STAGE2 * 28**2 + STAGE3 * 14**2 + STAGE4 * 7**2,
    3 * 64 * 49 * 112**2 + 64 * 128 * 28**2 + 128 * 256 * 14**2 + 256 * 512 * 7**2 + 512 * 1000,
)
RESNET18_CIFAR = (
    STAGE1 + STAGE2 + STAGE3 + STAGE4,
    3 * 64 * 9 + SHORTCUTS + BATCH_NORMS + 16 + 512 * 10 + 10,
    STAGE1 * 32**2 + STAGE2 * 16**2 + STAGE3 * 8**2 + STAGE4 * 4**2,
    3 * 64 * 9 * 32**2 + 64 * 128 * 16**2 + 128 * 256 * 8**2 + 256 * 512 * 4**2 + 512 * 10,
)
RESNET34 = (
    (6 * 64 * 64 + 64 * 128 + 7 * 128 * 128 + 128 * 256 + 11 * 256 * 256 + 256 * 512 + 5 * 512 * 512) * 9,
    3 * 64 * 49
    + SHORTCUTS
    + 2 * (64 + 6 * 64 + 8 * 128 + 12 * 256 + 6 * 512 + 128 + 256 + 512)
    + 32
    + 512 * 1000
    + 1000,
    6 * 64 * 64 * 9 * 56**2
    + (64 * 128 + 7 * 128 * 128) * 9 * 28**2
    + (128 * 256 + 11 * 256 * 256) * 9 * 14**2
    + (256 * 512 + 5 * 512 * 512) * 9 * 7**2,
    RESNET18[3],
)
ALEXNET = (  # a filter of a convolution in two groups sees half of the channels
    48 * 256 * 25 + 256 * 384 * 9 + 192 * 384 * 9 + 192 * 256 * 9 + 256 * 36 * 4096 + 4096 * 4096,
    3 * 96 * 144 + 96 + 2 * (256 + 384 + 384 + 256 + 4096 + 4096) + 4096 * 1000 + 1000,
    48 * 256 * 25 * 54**2 + 256 * 384 * 9 * 27**2 + (192 * 384 + 192 * 256) * 9 * 14**2 + 256 * 36 * 4096 + 4096 * 4096,
    3 * 96 * 144 * 54**2 + 4096 * 1000,
)
COUNTS = {
    "resnet20": (32, 10, RESNET20),
    "vgg_small": (32, 10, VGG_SMALL),
    "resnet18": (224, 1000, RESNET18),
    "resnet18_cifar": (32, 10, RESNET18_CIFAR),
    "resnet34": (224, 1000, RESNET34),
    "alexnet": (224, 1000, ALEXNET),
}


@cache
def of(name: str, binary: bool = True) -> summary.Summary:
    size, num_classes, _ = COUNTS[name]
    binarization = Binarization(noise_adaptation=False) if binary else Binarization.full_precision()
    network = create_model(name, num_classes, binarization=binarization)
    return summarize(network, (3, size, size))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_by_hand(name):
    got = of(name)
    counts = (got.binary_parameters, got.full_parameters, got.binary_macs, got.full_macs)
    assert counts == COUNTS[name][2]


def test_all_of_the_baseline_is_full_precision():
    got = of("resnet20", binary=False)
    binary_parameters, full_parameters, binary_macs, full_macs = RESNET20
    assert (got.binary_parameters, got.full_parameters) == (0, binary_parameters + full_parameters)
    assert (got.binary_macs, got.full_macs) == (0, binary_macs + full_macs)
    assert got.memory == got.full_precision_memory


def test_totals_memory_and_operations_of_the_resnet20():
    got = of("resnet20")
    assert got.parameters == 267_264 + 2_476 == 269_740
    assert got.macs == 40_108_032 + 443_008
    assert got.memory == pytest.approx((267_264 / 8 + 2_476 * 4) / 1024)
    assert got.full_precision_memory == pytest.approx(269_740 * 4 / 1024)
    assert got.operations == 443_008 + 40_108_032 / 64


def test_rows_are_the_layers_with_parameters_in_order():
    rows = of("alexnet").rows
    layers = [f"convolutions.{number}" for number in range(4)] + [f"linears.{number}" for number in range(2)]
    inner = [f"{layer}.{part}" for layer in layers for part in ("operation", "bn")]
    assert [row.name for row in rows] == ["conv1", *inner, "linear"]
    assert rows[0] == Row("conv1", "Conv2d", (96, 54, 54), 0, 3 * 96 * 144 + 96, 0, 3 * 96 * 144 * 54 * 54)
    grouped, batch_norm = rows[1:3]
    weights = 48 * 256 * 25
    expected = ("convolutions.0.operation", "BinaryConv2d", (256, 54, 54), weights, 0, weights * 54 * 54, 0)
    assert grouped == Row(*expected)
    assert batch_norm == Row("convolutions.0.bn", "BatchNorm2d", (256, 54, 54), 0, 2 * 256, 0, 0)
    assert rows[9] == Row("linears.0.operation", "BinaryDense", (4096,), 9216 * 4096, 0, 9216 * 4096, 0)
    assert rows[-1] == Row("linear", "Dense", (1000,), 0, 4096 * 1000 + 1000, 0, 4096 * 1000)


def test_a_slope_counts_one_value_and_no_multiply_adds():
    row = next(row for row in of("resnet18_cifar").rows if row.name == "layer2.0.activation")
    assert row == Row("layer2.0.activation", "SharedSlopePReLU", (128, 16, 16), 0, 1, 0, 0)


class Bits:
    def __init__(self, precision: int):
        self.precision = precision


class OwnLayer(nn.Cell):
    """A 1x1 convolution, its weight an attribute as of any layer, that is nothing of src.binary."""

    def __init__(self, weight_quantizer, activation_quantizer):
        super().__init__()
        self.weight = Parameter(Tensor(np.ones((5, 3, 1, 1), np.float32)))
        self.weight_quantizer = weight_quantizer
        self.activation_quantizer = activation_quantizer

    def construct(self, x):
        return ops.conv2d(x, self.weight)


@pytest.mark.parametrize(
    ("weight", "activation", "binary_parameters", "binary_macs"),
    [
        (Bits(1), Bits(1), 15, 15 * 4 * 6),
        (Bits(1), None, 15, 0),
        (Bits(1), Bits(2), 15, 0),
        (None, Bits(1), 0, 0),
        (Bits(8), Bits(1), 0, 0),
        (None, None, 0, 0),
    ],
)
def test_bits_are_what_the_quantizers_of_any_layer_say(weight, activation, binary_parameters, binary_macs):
    got = summarize(nn.SequentialCell(OwnLayer(weight, activation)), (3, 4, 6))
    expected = (binary_parameters, 15 - binary_parameters, binary_macs, 15 * 4 * 6 - binary_macs)
    assert got.rows == (Row("0", "OwnLayer", (5, 4, 6), *expected),)


def test_noise_modules_are_not_counted_in_evaluation():
    """They are not run, so no row is theirs; the network is left in evaluation mode."""
    network = create_model("resnet20").set_train(True)
    assert summarize(network, (3, 32, 32)) == of("resnet20")
    assert not network.training


def test_the_execution_mode_is_the_same_afterwards(mode):
    before = ms.get_context("mode")
    network = create_model("vgg_small", binarization=Binarization(noise_adaptation=False))
    first = summarize(network, (3, 32, 32))
    assert ms.get_context("mode") == before
    with pytest.raises(UserError, match="does not take an input of 3x64x64: the images are 64x64, .* only 32x32"):
        summarize(network, (3, 64, 64))
    assert ms.get_context("mode") == before
    assert summarize(network, (3, 32, 32)) == first


def test_no_hook_is_left_behind(monkeypatch):
    network = create_model("vgg_small", binarization=Binarization(noise_adaptation=False))
    summarize(network, (3, 32, 32))
    with pytest.raises(UserError):
        summarize(network, (3, 64, 64))
    monkeypatch.setattr(summary, "_row", lambda *arguments: pytest.fail("a hook was called"))
    checks.run(network, np.zeros((1, 3, 32, 32), np.float32))


def test_the_command_prints_the_layers_and_the_totals(graph_mode, capsys):
    assert cli.run(summary.main, ["resnet20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "layer kind output 1-bit 32-bit KiB binary MACs full MACs".split()
    assert lines[2].split() == ["conv1", "Conv2d", "16x32x32", "0", "432", "1.7", "0", "442,368"]
    assert ["total", "267,264", "2,476", "42.3", "40,108,032", "443,008"] in [line.split() for line in lines]
    assert lines[-5:] == [
        "input       3x32x32",
        "parameters  269,740, 1-bit 99.08%",
        "memory      42.3 KiB, fp32 1,053.7 KiB, ratio 24.9",
        "MACs        40,551,040, binary 98.91%",
        "OPs         1,069,696 (full MACs + binary MACs / 64), ratio to fp32 37.9",
    ]
    assert ms.get_context("mode") == ms.GRAPH_MODE, "the mode is what it was before"


def test_the_command_knows_the_classes_of_imagenet(capsys):
    assert cli.run(summary.main, ["resnet18"]) == 0
    out = capsys.readouterr().out
    assert "input       3x224x224" in out
    assert "parameters  11,689,528" in out


def test_the_command_takes_input_classes_and_the_baseline(capsys):
    arguments = ["resnet18_cifar", "--input", "1", "64", "40", "--num_classes", "7", "--full_precision"]
    assert cli.run(summary.main, arguments) == 0
    out = capsys.readouterr().out
    expected = sum(RESNET18_CIFAR[:2]) - 2 * 64 * 9 - 3 * (512 + 1)
    assert "input       1x64x40" in out
    assert f"parameters  {expected:,}, 1-bit 0.00%" in out
    assert out.rstrip().endswith("ratio to fp32 1.0")


@pytest.mark.parametrize("arguments", [["--help"], ["resnet20", "--nope"], ["resnet20", "--input", "0", "1", "1"], []])
def test_help_and_bad_arguments_do_not_import_mindspore(arguments):
    program = (
        "import sys\n"
        "from src import cli, summary\n"
        "try:\n"
        f"    code = cli.run(summary.main, {arguments!r})\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "print('code', code, 'mindspore' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=processes.ROOT, capture_output=True, text=True, timeout=300
    )
    assert f"code {0 if arguments == ['--help'] else cli.BAD_INPUT} False" in done.stdout, done.stderr
