"""The shipped recipes: each builds its network; in the slow tests each run of the paper takes a step, and the
networks for ImageNet learn 32 images by heart."""

import csv
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.binary import Binarization, BinaryLayer, schedules
from src.config import load_config
from src.experiment import build, build_network
from src.models import NETWORKS, create_model
from src.models.registry import takes_size
from src.paper.runs import recipe_file
from src.paper.studies import STUDIES
from src.runtime import Worker
from src.training.step import TrainStep
from tests.helpers import processes
from tests.helpers.images import write_tree

FILES = sorted((processes.ROOT / "configs").rglob("*.yaml"))
SPECS = {spec.name: spec for study in STUDIES.values() for spec in study.specs}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("imagenet"), train=16, test=8)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_recipe_builds_its_network(file):
    config = load_config(file)
    network = build_network(config, 10)
    layers = [cell for _, cell in network.cells_and_names() if isinstance(cell, BinaryLayer)]
    assert layers
    assert all((layer.weight_quantizer is not None) == config.network.binary for layer in layers)
    noise = [parameter for parameter in network.get_parameters() if ".noise." in parameter.name]
    assert bool(noise) == (config.network.binary and config.noise.enabled)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "vgg_small" else pytest.mark.slow) for name in sorted(NETWORKS)],
)
def test_every_network_takes_a_step(name):
    """In PyNative mode, which spares the compilation, and without noise; the slow tests have graph mode and noise."""
    network = create_model(name, binarization=Binarization(noise_adaptation=False))
    size = 32 if takes_size(name, 32) else NETWORKS[name].image_size
    optimizer = nn.Momentum(network.trainable_params(), 0.01, 0.9)
    schedules.attach(network, {"n": np.array([9], np.float32)}, optimizer.global_step)
    before = network.linear.weight.asnumpy().copy()
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    step = TrainStep(network, nn.CrossEntropyLoss(), optimizer).set_train()
    loss, norm, finite = step(Tensor(images), Tensor([0, 1], ms.int32))
    assert bool(finite.asnumpy()) and math.isfinite(float(loss.asnumpy())) and float(norm.asnumpy()) > 0
    assert (network.linear.weight.asnumpy() != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_run_of_the_paper_takes_a_step(name, tree):
    spec = SPECS[name]
    data = {"data.name": "digits"} if spec.recipe.startswith("cifar10") else {"data.path": str(tree)}
    # The first of two steps: at the last one alpha is 0, and the noise modules do not change.
    budget = {"data.batch_size": 8, "train.epochs": 2, "train.steps_per_epoch": 1, "scheduler.name": "constant"}
    config = load_config(recipe_file(spec), {**spec.changes, **data, **budget})
    experiment = build(config, Worker())
    before = {parameter.name: parameter.asnumpy().copy() for parameter in experiment.network.trainable_params()}
    step = TrainStep(experiment.network, experiment.loss, experiment.optimizer).set_train()
    loss, norm, finite = (value.asnumpy() for value in step(*next(experiment.data.train(0))))
    assert finite and math.isfinite(loss) and norm > 0
    moved = [
        name
        for name, values in before.items()
        if (experiment.network.parameters_dict()[name].asnumpy() != values).any()
    ]
    assert len(moved) > 0.9 * len(before), sorted(set(before) - set(moved))


def losses(folder) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "resnet34", "alexnet"])
def test_the_networks_for_imagenet_learn_32_images(network, tmp_path):
    """20 steps of batch 8, five times over the same 32 images without augmentation, by train.py: the loss halves."""
    tree = write_tree(tmp_path / "tree", train=32, test=8)
    done = processes.run(
        "train.py",
        *("--config", processes.ROOT / f"configs/imagenet/{network.replace('34', '18')}_fda.yaml"),
        *("--network.name", network, "--data_path", tree, "--data.augment", "false", "--data.batch_size", 8),
        *("--epochs", 5, "--loss.label_smoothing", 0, "--optimizer.lr", 0.003, "--output_dir", "run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    course = losses(tmp_path / "run")
    assert len(course) == 5 and np.isfinite(course).all()
    assert course[-1] <= course[0] / 2, course
    done = processes.run("eval.py", "--checkpoint", "run/last.ckpt", "--data_path", tree, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{network}, run/last.ckpt, 8 test images of imagenet" in done.stdout
