"""Every network, after brief training and with what is awkward in its weights, through every format, as a process."""

import re
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src import checkpoints
from src.binary import Binarization, BinaryLayer, SharedSlopePReLU
from src.config import load_config
from src.models import create_model
from src.preprocessing import find_preprocessing
from tests.helpers import processes, steps
from tests.helpers.networks import varied

CLASSES = {"resnet18": 1000, "resnet34": 1000, "alexnet": 1000}  # the others have 10
SUFFIXES = {"MINDIR": (".mindir",), "ONNX": (".onnx",), "OPENVINO": (".xml", ".bin")}
SLOPES = (-0.5, 0.0, 0.25, 1.5)


def train_briefly(network: nn.Cell, size: int, classes: int) -> None:
    """Five steps of four random images."""
    step = steps.make(network, lr=0.01)
    generator = np.random.default_rng(0)
    for _ in range(5):
        images = generator.normal(size=(4, 3, size, size)).astype(np.float32)
        loss, _, finite = step(Tensor(images), Tensor(generator.integers(0, classes, 4).astype(np.int32)))
        assert finite.asnumpy() and np.isfinite(loss.asnumpy())


def make_awkward(network: nn.Cell) -> None:
    """Give batch norms gammas of both signs and of 0, some channels the value 0 throughout, and slopes of all kinds."""
    generator = np.random.default_rng(1)
    norms = [cell for _, cell in network.cells_and_names() if isinstance(cell, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for norm in norms:
        gamma, beta = norm.gamma.asnumpy().copy(), norm.beta.asnumpy().copy()
        gamma[1::3] *= -1
        gamma[::5] = 0
        beta[::5] = generator.normal(0, 0.1, len(beta[::5])) * generator.choice([0, 1], len(beta[::5]))
        norm.gamma.set_data(Tensor(gamma))
        norm.beta.set_data(Tensor(beta))
    slopes = [cell for _, cell in network.cells_and_names() if isinstance(cell, SharedSlopePReLU)]
    for number, slope in enumerate(slopes):
        slope.a.set_data(Tensor(np.full(slope.a.shape, SLOPES[number % len(SLOPES)], np.float32)))


@pytest.mark.parametrize(
    "name",
    ["varied"]
    + [
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resnet20", "vgg_small", "resnet18_cifar", "resnet18", "resnet34", "alexnet")
    ],
)
def test_each_format_agrees_with_the_trained_network(name, tmp_path):
    classes, size = CLASSES.get(name, 10), 224 if name in CLASSES else 32
    ms.set_seed(2)
    create = varied if name == "varied" else partial(create_model, name)
    network = create(classes, 3, Binarization(noise_adaptation=False))
    layers = sum(isinstance(cell, BinaryLayer) for _, cell in network.cells_and_names())
    train_briefly(network, size, classes)
    make_awkward(network)
    overrides = {"data.name": "digits", "data.image_size": size, "network.name": name, "noise.enabled": False}
    optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9)
    preprocessing = find_preprocessing("digits", size)
    config = load_config(overrides=overrides).model_dump()
    checkpoints.save(tmp_path / "last.ckpt", network, optimizer, config, preprocessing, None, {})
    program = ("tests/helpers/small_network.py", "export.py", "--checkpoint", "last.ckpt", "--num_classes", classes)
    done = processes.run(*program, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("500 images compared") == len(SUFFIXES), done.stdout
    assert done.stdout.count(f"the sums of all {layers} binary layers are equal on ") == 2, done.stdout
    print(done.stdout)
    if name != "varied":
        check_sizes_in_the_readme(name, tmp_path)


def check_sizes_in_the_readme(name: str, folder: Path) -> None:
    """The README's table of networks has the sizes of the files in MB."""
    page = (processes.ROOT / "README.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
    stated = [float(number) for number in row.rpartition("|")[0].rpartition("|")[2].split(" / ")]
    assert len(stated) == len(SUFFIXES)
    for number, suffixes in zip(stated, SUFFIXES.values(), strict=True):
        measured = sum((folder / f"last{suffix}").stat().st_size for suffix in suffixes) / 1e6
        assert abs(measured - number) <= 0.006 * number + 0.005, (name, suffixes, measured)
