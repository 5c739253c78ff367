"""Folders of runs: every run gets its own, runs/latest links to the newest, and metrics.csv can be read again."""

import contextlib
import math
import multiprocessing
import os
from pathlib import Path

import pytest

import train
from src import cli
from src.config import load_config
from src.errors import UserError, WriteError
from src.run_dir import LATEST, METRICS, RUNS, link_latest, lock_run_dir, make_run_dir, read_metrics, resolve_link
from src.training import arguments
from src.training.run import open_run_dir
from src.training.trainer import Trainer
from tests.helpers.processes import ROOT

HEADER = "epoch,train_loss,chosen_on,test_top1,test_top5\n"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def same_second(monkeypatch):
    monkeypatch.setattr("src.run_dir.time.strftime", lambda form: "20261125-220000")


def test_runs_that_begin_in_the_same_second_get_different_folders(same_second):
    names = [make_run_dir("resnet20", "cifar10").name for _ in range(3)]
    assert names == [f"resnet20-cifar10-20261125-220000{suffix}" for suffix in ("", "-2", "-3")]


def test_a_run_directory_that_cannot_be_made_is_a_sentence():
    Path("runs").write_text("a file")
    with pytest.raises(UserError, match="cannot make the folder runs"):
        make_run_dir("resnet20", "cifar10")


def test_latest_is_replaced_and_is_relative():
    for name in ("a", "b"):
        (RUNS / name).mkdir(parents=True)
        link_latest(RUNS / name)
        assert os.readlink(LATEST) == name
    assert sorted(path.name for path in RUNS.iterdir()) == ["a", "b", "latest"]


def test_latest_is_never_missing_while_runs_begin():
    for name in ("a", "b"):
        (RUNS / name).mkdir(parents=True)
    link_latest(RUNS / "a")
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: [link_latest(RUNS / name) for _ in range(500) for name in ("a", "b")]
    )
    worker.start()
    while worker.is_alive():
        assert LATEST.is_dir()
    worker.join()
    assert worker.exitcode == 0


def test_a_run_outside_runs_is_not_the_latest(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link_latest(tmp_path / "elsewhere")
    assert not RUNS.exists()


def test_a_folder_called_latest_stays(capsys):
    LATEST.mkdir(parents=True)
    (RUNS / "a").mkdir()
    link_latest(RUNS / "a")
    assert LATEST.is_dir() and not LATEST.is_symlink()
    assert "warning: runs/latest cannot link to a" in capsys.readouterr().err


def test_a_link_is_resolved_to_the_folder_that_it_means_now():
    (RUNS / "a").mkdir(parents=True)
    link_latest(RUNS / "a")
    assert resolve_link(LATEST) == RUNS / "a"
    assert resolve_link(RUNS / "a") == RUNS / "a"


def test_a_run_in_the_folder_of_the_newest_keeps_the_link():
    """The newest run may have been killed before its first checkpoint. A link to itself could not be opened again."""
    (RUNS / "a").mkdir(parents=True)
    link_latest(RUNS / "a")
    config, _ = arguments.parse(["--output_dir", "runs/latest"])
    with contextlib.ExitStack() as held:
        assert open_run_dir(config, held) == RUNS / "a"
        assert os.readlink(LATEST) == "a"
    link_latest(LATEST)
    assert os.readlink(LATEST) == "a"


def test_a_run_that_starts_from_the_newest_names_its_folder(tmp_path):
    (RUNS / "a").mkdir(parents=True)
    link_latest(RUNS / "a")
    for given, meant in (
        ("runs/latest/best.ckpt", "runs/a/best.ckpt"),
        (f"{tmp_path}/runs/latest/best.ckpt", "runs/a/best.ckpt"),
        ("runs/latest_one/best.ckpt", "runs/latest_one/best.ckpt"),
    ):
        assert arguments.parse(["--init_checkpoint", given])[0].init_checkpoint == meant


def test_a_given_folder_is_used_and_locked(tmp_path):
    config = load_config(None, {"output_dir": "runs/mine"})
    with contextlib.ExitStack() as held:
        assert open_run_dir(config, held) == RUNS / "mine"
        assert os.readlink(LATEST) == "mine"
        with pytest.raises(UserError, match="another run uses runs/mine"):
            open_run_dir(config, held)


def test_two_runs_of_one_command_get_a_folder_each(monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "fit", lambda trainer: None)
    arguments = ["--config", str(ROOT / "configs/digits.yaml"), "--network.binary", "false"]
    folders = []
    for _ in range(2):
        assert cli.run(train.main, arguments) == 0
        folders.append(resolve_link(LATEST))
        assert f"in {folders[-1]}\n" in capsys.readouterr().out
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.name.startswith("resnet20-digits-")
        assert load_config(folder / "config.yaml").output_dir == str(folder)


def test_a_refused_run_leaves_no_folder(capsys):
    assert cli.run(train.main, ["--data_path", "nowhere"]) == 2
    assert "CIFAR-10 is not complete at nowhere" in capsys.readouterr().err
    assert not RUNS.exists()


def test_an_epoch_without_evaluation_has_empty_cells(tmp_path):
    (tmp_path / METRICS).write_text(f"{HEADER}1,0.5,,,\n2,0.4,holdout,0.7,0.9\n")
    first, second = read_metrics(tmp_path)
    assert math.isnan(first["test_top1"]) and math.isnan(first["test_top5"]) and first["train_loss"] == 0.5
    assert second == {"epoch": 2, "train_loss": 0.4, "test_top1": 0.7, "test_top5": 0.9}


def test_an_epoch_in_which_every_step_overflowed_has_no_loss(tmp_path):
    (tmp_path / METRICS).write_text(f"{HEADER}1,,test,0.1,0.5\n")
    (row,) = read_metrics(tmp_path)
    assert math.isnan(row["train_loss"]) and row["test_top1"] == 0.1


@pytest.mark.parametrize(
    "content",
    [
        "nothing\n1\n",
        f"{HEADER}1,0.5\n",
        f"{HEADER}1,0.5,test,0.7,0.9,8\n",
        f"{HEADER},0.5,test,0.7,0.9\n",
        f"{HEADER}1,0.5,test,high,0.9\n",
        "epoch,train_loss\n1,0.5\n",
    ],
)
def test_a_damaged_table_is_refused(tmp_path, content):
    (tmp_path / METRICS).write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_metrics(tmp_path)


def test_an_error_in_a_folder_that_became_unwritable_is_not_hidden_by_its_lock(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with pytest.raises(WriteError, match="^the real one$"), lock_run_dir(tmp_path):
        monkeypatch.setattr("pathlib.Path.unlink", refuse)
        raise WriteError("the real one")
