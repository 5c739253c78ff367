"""eval.py: on our own checkpoints, and on one in the released layout."""

import importlib
import json

import mindspore as ms
import pytest

from src import cli
from src.binary import Binarization
from src.models import create_model
from tests.helpers import processes

evaluation = importlib.import_module("eval")


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A folder with a checkpoint as MindSpore 1.3 wrote it (no config, slopes named `a`), and CIFAR-10 test files."""
    folder = tmp_path_factory.mktemp("released")
    ms.set_seed(1)
    network = create_model("resnet20", binarization=Binarization(estimator="ste", noise_adaptation=False))
    ms.save_checkpoint(network, str(folder / "released.ckpt"))
    processes.write_cifar10(folder / "data", ["test_batch.bin"], "cifar-10-verify-bin")
    return folder


def report(capsys, *argv) -> tuple[dict, str]:
    assert cli.run(evaluation.main, [str(argument) for argument in argv]) == 0
    output = capsys.readouterr().out
    return json.loads(output.strip().split("\n")[-1]), output


@pytest.mark.slow
def test_the_released_scripts_flags_work_as_they_are(released, capsys):
    result, output = report(
        capsys,
        *("--data_path", released / "data", "--ckpt", released / "released.ckpt", "-b", 96),
        *("--num-classes", 10, "--smoothing", 0.1, "--image_size", 32),
    )
    assert {"Validation-Loss", "Loss", "Top1-Acc", "Top5-Acc"} <= result.keys()
    assert f"loss {result['Loss']:.4f}, smoothed loss {result['Validation-Loss']:.4f} (smoothing 0.1)" in output
    assert result["Loss"] != result["Validation-Loss"]
    assert result["images"] == 10_000  # the last partial batch of 16 included, which the release drops
    assert 0 <= result["Top1-Acc"] <= result["Top5-Acc"] <= 1
    assert output.count("airplane") == 1 and "truck" in output
