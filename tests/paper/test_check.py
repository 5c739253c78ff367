"""The check of the shipped weights: what it says of right, wrong and missing ones."""

import types

import numpy as np
import pytest

from src import cli, deploy, pretrained
from src.data import open_dataset
from src.paper import __main__ as paper

LABELS = np.concatenate([labels.asnumpy() for _, labels in open_dataset("digits", splits=("test",)).test()])


def model_that_is_wrong_on(count: int):
    """A stand-in for a model file: the right class for all test images of digits but the first `count`, in order."""
    answers = np.where(np.arange(len(LABELS)) < count, (LABELS + 1) % 10, LABELS)
    seen = []

    def logits(images: np.ndarray) -> np.ndarray:
        start = sum(seen)
        seen.append(len(images))
        padded = np.concatenate([answers, np.zeros(len(images), int)])  # the last batch is filled up
        return np.eye(10, dtype=np.float32)[padded[start : start + len(images)]]

    return types.SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("wrong", "code", "told"), [(5, 0, "as stated"), (6, 1, "-1 images: NOT as stated")])
def test_each_file_is_compared_with_its_card(monkeypatch, capsys, tmp_path, wrong, code, told):
    monkeypatch.setattr(deploy, "load_model", lambda path: model_that_is_wrong_on(wrong))
    assert cli.run(paper.main, ["check", "--data_path", str(tmp_path)]) == code
    lines = capsys.readouterr().out.splitlines()
    expected = (len(LABELS) - wrong) / len(LABELS)
    names = ("resnet20_digits.safetensors", "resnet20_digits.xml")
    assert [line for line in lines if line.startswith("resnet20_digits")] == [
        f"{name}: top-1 {expected:.2%} of 360 images, card 98.61%, {told}" for name in names
    ]


def test_an_entry_without_its_data_is_skipped(monkeypatch, capsys, tmp_path):
    entry = pretrained.read_manifest()["resnet20_digits"].model_copy(update={"dataset": "cifar10"})
    monkeypatch.setattr(pretrained, "read_manifest", lambda: {"resnet20_cifar10": entry})
    assert cli.run(paper.main, ["check", "--data_path", str(tmp_path)]) == 0
    assert "resnet20_cifar10: skipped, because its test set is not there: " in capsys.readouterr().out


def test_a_damaged_test_set_is_no_missing_one(monkeypatch, capsys, tmp_path):
    entry = pretrained.read_manifest()["resnet20_digits"].model_copy(update={"dataset": "cifar10"})
    monkeypatch.setattr(pretrained, "read_manifest", lambda: {"resnet20_cifar10": entry})
    (tmp_path / "test_batch.bin").write_bytes(b"half")
    assert cli.run(paper.main, ["check", "--data_path", str(tmp_path)]) == 2
    assert "test_batch.bin" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_weights_are_as_stated(capsys, tmp_path):
    """Those whose data are not here are skipped."""
    assert cli.run(paper.main, ["check", "--data_path", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("as stated") >= 2
