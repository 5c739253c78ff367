"""What a run is told at its start about the checkpoint that it continues or starts from, and what it records."""

from types import SimpleNamespace

import mindspore as ms
import pytest

from src import runtime
from src.binary import chosen_path
from src.checkpoints import Checkpoint
from src.config import load_config
from src.errors import UserError
from src.run_dir import read_versions
from src.training.run import (
    require_same_images,
    warn_of_other_draws,
    warn_of_other_options,
    weights_digest,
    write_versions,
)
from tests.helpers.networks import create


def config(**overrides):
    return load_config(overrides={key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("name", "augment", "step", "says", "says_not"),
    [
        ("cifar10", True, 0, "the order of images, their crops and flips are drawn differently", "repeat"),
        ("cifar100", True, 3, "no longer has the augmentation that it began with; the rest of this epoch", "\n\n"),
        ("folder", True, 0, "no longer has the augmentation", "repeat"),
        ("cifar10", False, 0, "images is drawn differently than at the start of this run\n", "augmentation"),
        ("digits", True, 3, "is drawn differently than at the start of this run; the rest", "augmentation"),
    ],
)
def test_a_run_of_format_0_is_told_that_its_images_are_drawn_differently(name, augment, step, says, says_not, capsys):
    own = config(data__name=name, data__augment=augment)
    warn_of_other_draws(own, Checkpoint("last.ckpt", {}, format=0, state={"step": step}))
    told = capsys.readouterr().err
    assert told.startswith("warning: last.ckpt was written by an earlier version")
    assert says in told and says_not not in told
    warn_of_other_draws(own, Checkpoint("last.ckpt", {}, format=1, state={"step": step}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("resnet18", {}, True),  # weights of format 0 were trained with stem_pool same
        ("resnet18", {"stem_pool": "same"}, False),
        ("resnet34", {}, False),
    ],
)
def test_other_options_than_those_of_the_initial_weights_are_said(name, options, told, capsys):
    stored = {"network": {"name": "resnet18", "options": {"stem_pool": "same"}}}
    own = config(network__name=name, network__options=options)
    warn_of_other_options(own, Checkpoint("old.ckpt", {}, format=0, config=stored))
    warning = capsys.readouterr().err
    assert ("old.ckpt has network.options {'stem_pool': 'same'}, but this run's has {}" in warning) == told
    assert told or not warning


def test_initial_weights_of_other_programs_have_no_options_to_compare(capsys):
    warn_of_other_options(config(), Checkpoint("theirs.ckpt", {}))
    assert capsys.readouterr().err == ""


def digest(seed: int, **options) -> str:
    ms.set_seed(seed)
    return weights_digest(create("resnet20", **options))


def test_methods_that_start_from_the_same_weights_have_the_same_checksum():
    assert digest(0) == digest(0, noise_adaptation=False) == digest(0, estimator="clipped_ste")
    assert len({digest(0), digest(1), digest(0, weight_init="he_normal")}) == 3


class FakeData(SimpleNamespace):
    name, root, held_out, checksum = "cifar10", "somewhere", (), "d1"


def fake_trainer(**data) -> SimpleNamespace:
    experiment = SimpleNamespace(network=create("small"), data=FakeData(**data))
    return SimpleNamespace(experiment=experiment, progress=SimpleNamespace(epoch=3, step=7))


def test_a_run_that_continues_elsewhere_adds_what_differs(tmp_path, monkeypatch):
    trainer = fake_trainer()
    monkeypatch.setattr(runtime, "versions", lambda: {"git commit": "a", "processor": "first"})
    write_versions(trainer, tmp_path, None)
    begun = (tmp_path / "versions.txt").read_text()
    resumed = Checkpoint("last.ckpt", {})
    write_versions(trainer, tmp_path, resumed)
    assert (tmp_path / "versions.txt").read_text() == begun
    monkeypatch.setattr(runtime, "versions", lambda: {"git commit": "a", "processor": "second"})
    for _ in range(2):
        write_versions(trainer, tmp_path, resumed)
        added = "\ncontinued after epoch 3, step 7:\ndata: d1\ngit commit: a\nprocessor: second\n"
        added += f"binary layers: {chosen_path()}\n"
        assert (tmp_path / "versions.txt").read_text() == begun + added
    first, second = read_versions(tmp_path)
    assert first["start weights"] == weights_digest(trainer.experiment.network) and first["data"] == "d1"
    assert (first["processor"], second["processor"]) == ("first", "second")
    assert read_versions(tmp_path / "nowhere") == [{}]


def test_a_run_cannot_continue_on_images_in_another_order(tmp_path):
    require_same_images(FakeData(), tmp_path)  # nothing is known
    (tmp_path / "versions.txt").write_text("git commit: a\n")  # begun by older code
    write_versions(fake_trainer(), tmp_path, Checkpoint("last.ckpt", {}))
    require_same_images(FakeData(), tmp_path)
    told = f"the images of cifar10 in somewhere are not those that {tmp_path} was begun with, or are in another order"
    with pytest.raises(UserError, match=f"{told}: give --data_path the folder of those"):
        require_same_images(FakeData(checksum="d2"), tmp_path)
    with pytest.raises(UserError, match=f"{told}, so held-out images would be trained on: give"):
        require_same_images(FakeData(checksum="d2", held_out=(1, 2)), tmp_path)


def test_a_run_of_image_files_has_no_checksum_of_its_data(tmp_path):
    write_versions(fake_trainer(checksum=None), tmp_path, None)
    require_same_images(FakeData(checksum=None), tmp_path)
    assert "data" not in read_versions(tmp_path)[0]
