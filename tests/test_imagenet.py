"""Image folders through the entry points: training, evaluation, export, broken files."""

import csv
import importlib
import json
import signal

import mindspore as ms
import pytest
from PIL import Image

from src import cli
from src.binary import Binarization
from src.models import create_model
from src.models.registry import NETWORKS, Network
from tests.helpers import processes
from tests.helpers.images import write_tree
from tests.helpers.networks import small

train = importlib.import_module("train")
evaluation = importlib.import_module("eval")

# ResNet-20 takes any size, and its full-precision baseline compiles fast.
NETWORK = ("--dataset", "imagenet", "--network.name", "resnet20", "--network.binary", "false", "--data.batch_size", 4)


@pytest.fixture(scope="module", params=["small", pytest.param("resnet20", marks=pytest.mark.slow)])
def program(request):
    """Gives the words before a program's own; this process knows the network, too."""
    if request.param == "resnet20":
        yield ()
    else:
        NETWORKS["small"] = Network(small, image_size=32, size_multiple=1, num_classes=10)
        yield ("tests/helpers/small_network.py",)
        del NETWORKS["small"]


@pytest.fixture(scope="module")
def trained(program, tmp_path_factory):
    """A folder with a tree of which one image in training is broken, and the run that train.py made of it."""
    folder = tmp_path_factory.mktemp("run")
    tree = write_tree(folder / "tree", train=12, test=8)
    (tree / "train/class1/0005.JPEG").write_bytes(b"no image")
    options = (*NETWORK, *(("--network.name", "small") if program else ()))
    done = processes.run(
        *program, "train.py", *options, "--data_path", "tree", "--epochs", 1, "--output_dir", "run", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert "1 undecodable images replaced" in done.stdout
    return folder


def refused(capsys, program, *argv) -> str:
    assert cli.run(program.main, [str(argument) for argument in argv]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def test_training_counts_what_it_replaced(trained):
    with (trained / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["replaced_images"]) for row in rows] == [("3", "1")]


def test_evaluation_knows_the_classes(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert cli.run(evaluation.main, ["--checkpoint", "run/best.ckpt", "--data_path", "tree", "--check_data"]) == 0
    output = capsys.readouterr().out
    assert "8 images can be decoded" in output and "8 test images of imagenet" in output
    assert all(f"class{label}" in output for label in range(4))
    assert json.loads(output.strip().split("\n")[-1])["images"] == 8


def test_sigterm_saves_and_resume_counts_what_the_epoch_replaced(tmp_path):
    """With two threads that decode; the reader must leave the process its signal handlers."""
    tree = write_tree(tmp_path / "tree", train=80, test=4, size=(60, 50))
    (tree / "train/class1/0005.JPEG").write_bytes(b"no image")
    last = tmp_path / "run/last.ckpt"
    program = ("tests/helpers/small_network.py", "train.py")
    process = processes.start(
        *program,
        *(
            *(*NETWORK, "--network.name", "small"),
            "--data_path",
            tree,
            "--data.num_parallel_workers",
            2,
            "--epochs",
            1,
            "--train.save_every_steps",
            1,
        ),
        *("--output_dir", "run"),
        cwd=tmp_path,
    )
    processes.wait_for(last.exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=processes.PATIENCE)
    assert process.returncode == 143, output
    assert "stopped and saved" in output
    (tree / "train/class3").rename(tree / "train/class9")
    (tree / "val/class3").rename(tree / "val/class9")
    done = processes.run(*program, "--resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "trained on 4 classes" in done.stderr
    assert "class 3 is class3 in the checkpoint and class9 in the data" in done.stderr
    (tree / "train/class9").rename(tree / "train/class3")
    (tree / "val/class9").rename(tree / "val/class3")
    done = processes.run(*program, "--resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run/metrics.csv").open() as file:
        assert [(row["step"], row["replaced_images"]) for row in csv.DictReader(file)] == [("20", "1")]


def test_a_broken_test_image_ends_training_before_it_begins(capsys, tmp_path):
    tree = write_tree(tmp_path / "tree", train=8, test=4)
    (tree / "val/class1/0001.JPEG").write_bytes(b"")
    message = refused(capsys, train, *NETWORK, "--data_path", tree, "--output_dir", tmp_path / "new")
    assert "1 of 4 images cannot be decoded" in message and "val/class1/0001.JPEG" in message
    assert not (tmp_path / "new").exists()


def test_evaluation_on_other_classes_is_refused(trained, capsys, tmp_path):
    tree = write_tree(tmp_path, train=4, test=8)
    (tree / "val/class3").rename(tree / "val/class9")
    message = refused(capsys, evaluation, "--checkpoint", trained / "run/best.ckpt", "--data_path", tree)
    assert "trained on 4 classes" in message and "class 3 is class3 in the checkpoint and class9 in the data" in message


def test_a_broken_image_is_named_in_evaluation(trained, capsys, tmp_path):
    tree = write_tree(tmp_path, train=4, test=8)
    (tree / "val/class2/0006.JPEG").write_bytes(b"")
    message = refused(capsys, evaluation, "--checkpoint", trained / "run/best.ckpt", "--data_path", tree)
    assert "val/class2/0006.JPEG cannot be decoded" in message


def test_check_data_names_broken_images_before_training(trained, capsys, tmp_path):
    message = refused(
        capsys, train, *NETWORK, "--data_path", trained / "tree", "--check_data", "--output_dir", tmp_path / "new"
    )
    assert "1 of 20 images cannot be decoded, first" in message and "train/class1/0005.JPEG" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_an_export_describes_its_preprocessing(program, trained):
    done = processes.run(
        *program,
        "export.py",
        "--checkpoint",
        "run/best.ckpt",
        "--file_format",
        "MINDIR",
        "--output",
        "net",
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    assert "500 images compared" in done.stdout
    description = json.loads((trained / "net.mindir.json").read_text())
    assert description["input"]["batch_size"] is None and description["input"]["shape"] == [3, 224, 224]
    assert description["resize"] == {"filter": "Pillow bilinear", "shorter_side": 256, "crop": "centre"}
    preprocessing = description["preprocessing"]
    assert preprocessing["classes"] == [f"class{label}" for label in range(4)]
    assert (preprocessing["size"], preprocessing["shorter_side"]) == (224, 256)


def test_a_network_of_fixed_size_refuses_other_images(capsys, tmp_path):
    tree = write_tree(tmp_path, train=4, test=4)
    for_cifar = ("--dataset", "imagenet", "--data_path", tree, "--network.name", "vgg_small", "--data.batch_size", 4)
    message = refused(capsys, train, *for_cifar)
    assert "vgg_small takes only 32x32, but images of imagenet are 224x224" in message


def test_evaluation_at_a_size_that_the_network_does_not_take_is_refused(capsys, tmp_path):
    ms.save_checkpoint(
        create_model("vgg_small", binarization=Binarization.full_precision()), str(tmp_path / "vgg.ckpt")
    )
    options = ("--network.name", "vgg_small", "--network.binary", "false", "--dataset", "digits", "--image_size", 64)
    message = refused(capsys, evaluation, "--checkpoint", tmp_path / "vgg.ckpt", *options)
    assert "vgg_small takes only 32x32, but images of digits are 64x64" in message


def test_a_foreign_checkpoint_takes_the_folders_classes(program, trained, capsys, tmp_path):
    name = "small" if program else "resnet20"
    ms.save_checkpoint(
        create_model(name, num_classes=4, binarization=Binarization.full_precision()),
        str(tmp_path / "foreign.ckpt"),
    )
    Image.new("RGB", (50, 300)).save(trained / "tree/val/class0/narrow.JPEG")
    network = (*NETWORK, "--network.name", name)
    argv = ["--checkpoint", tmp_path / "foreign.ckpt", *network, "--data_path", trained / "tree"]
    assert cli.run(evaluation.main, [str(argument) for argument in argv]) == 0
    assert "9 test images of imagenet" in capsys.readouterr().out
    (trained / "tree/val/class0/narrow.JPEG").unlink()
