"""train.py as a process: resuming, signals, divergence; and its arguments, without a process."""

import csv
import importlib
import shutil
import signal
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

import doors as processes
from src import doors

train = importlib.import_module("train")

# A few steps of CIFAR-10 files with augmentation, two threads, a checkpoint every other step.
SMALL_RUN = ("--data.batch_size", 50, "--steps_per_epoch", 8, "--train.save_every_steps", 2, "--data.workers", 2)
TIMES = {"seconds", "images_per_second"}


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, np.ndarray]:
    content = ms.load_checkpoint(str(folder / "last.ckpt"))
    return {name: value.asnumpy() for name, value in content.items() if isinstance(value, ms.Tensor)}


def interrupted_and_whole(tmp_path: Path, *options) -> tuple[Path, Path]:
    """Two runs of a recipe: one stopped by SIGTERM, resumed, killed in the middle of an epoch, resumed; one not."""
    data = processes.write_cifar10(tmp_path / "data")
    recipe = ("--data_path", data, *SMALL_RUN, *options)
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    done = processes.run("train.py", *recipe, "--output_dir", whole, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    last = interrupted / "last.ckpt"
    process = processes.start("train.py", *recipe, "--output_dir", interrupted, cwd=tmp_path)
    processes.wait_for(last.exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "stopped and saved" in output
    assert not (interrupted / "metrics.csv").exists(), "it was stopped within the first epoch, as meant"

    stopped = processes.modified(last)
    process = processes.start("train.py", "--resume", interrupted, cwd=tmp_path)
    processes.wait_for(lambda: processes.modified(last) > stopped, process)
    process.kill()
    process.communicate()
    done = processes.run("train.py", "--resume", interrupted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(data)  # 184 MB
    return interrupted, whole


def assert_same_run(interrupted: Path, whole: Path) -> None:
    assert metrics(interrupted) == metrics(whole)
    first, second = weights(interrupted), weights(whole)
    assert first.keys() == second.keys() and len(first) > 150
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)


def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(tmp_path):
    interrupted, whole = interrupted_and_whole(tmp_path, "--epochs", 1, "--noise.enabled", "false")
    assert_same_run(interrupted, whole)
    assert [row["epoch"] for row in metrics(whole)] == ["1"]
    assert metrics(whole)[-1]["n"] == "18.0"
    for name in ("config.yaml", "versions.txt", "curves.png", "best.ckpt"):
        assert (whole / name).stat().st_size > 0
    assert "mindspore: 2.10.0" in (whole / "versions.txt").read_text()
    assert not [path for path in whole.iterdir() if "partial" in path.name]


@pytest.mark.slow
def test_the_same_with_noise_modules_and_adam(tmp_path):
    assert_same_run(
        *interrupted_and_whole(tmp_path, "--epochs", 2, "--optimizer.name", "adam", "--optimizer.lr", 0.001)
    )


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    done = processes.run(
        "train.py",
        "--config",
        processes.ROOT / "configs/digits.yaml",
        "--network.binary",
        "false",
        "--optimizer.name",
        "momentum",
        "--optimizer.lr",
        1e30,
        "--scheduler.name",
        "constant",
        "--steps_per_epoch",
        6,
        "--train.save_every_steps",
        1,
        "--output_dir",
        "run",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "is no finite number at step" in done.stderr and "Traceback" not in done.stderr
    saved = weights(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in saved.values())


def refused(capsys, *argv) -> str:
    """The sentence with which train.py refuses these arguments; fails if it accepts them."""
    assert doors.run(train.main, [str(argument) for argument in argv]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--optimizer.lrr", "0.1"), "did you mean --optimizer.lr"),
        (("--lr", "0.1"), "did you mean --optimizer.lr"),
        (("--epochs", "-1"), "train.epochs is -1"),
        (("--epochs", "many"), "train.epochs is 'many'"),
        (("--seed", "-3"), "seed is -3"),
        (("--optimizer.lr", "nan"), "optimizer.lr is 'nan'"),
        (("--amp_level", "O1"), "amp.level is 'O1'"),
        (("--mode", "fast"), "runtime.mode is 'fast'"),
        (("--device_target", "TPU"), "runtime.device_target is 'TPU'"),
        (("--train.sink_size", 0), "train.sink_size is 0"),
        (("--train.sink_size", 10), "train.sink_size is 10, but runtime.device_target is CPU"),
        (
            ("--train.sink_size", 10, "--device_target", "GPU", "--mode", "pynative"),
            "train.sink_size is 10, but runtime.mode is pynative",
        ),
        (("--epochs",), "expected one argument"),
        (("--schedules.n.setting", "4"), "schedules.n.setting is 4"),
        (("--network.estimator_options.omega",), "needs a value"),
        (("stray",), "stray"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--resume", "nowhere"), "nowhere holds no run"),
        (("--scheduler.warmup_epochs", "400"), "scheduler.warmup_epochs is 400"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(argv, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, *argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--network.estimator", "fdaa"), "unknown estimator 'fdaa' (did you mean 'fda'?)"),
        (("--network.name", "resnet21"), "unknown network 'resnet21'"),
        (("--network.weight_quantizer", "doref"), "unknown weight quantizer 'doref'"),
        (("--network.estimator_options.omega", "-1"), "omega is -1"),
        (("--network.estimator_options.omegaa", "1"), "unknown option 'omegaa'"),
        (("--noise.eta", "cosine"), "unknown eta 'cosine'"),
        (("--dataset", "cifar11"), "unknown data set 'cifar11'"),
        (("--dataset", "cifar10", "--data_path", "nowhere"), "CIFAR-10 is not complete at nowhere"),
        (("--init_checkpoint", "nowhere.ckpt"), "nowhere.ckpt does not exist"),
        (("--data.batch_size", "5000"), "data.batch_size is 5000"),
        (("--device_target", "Ascend"), "device Ascend is not available here"),
        (("--distribute",), "--distribute needs a launcher"),
    ],
)
def test_wrong_names_files_and_devices_are_refused_in_one_sentence(argv, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert expected in refused(capsys, "--dataset", "digits", *argv)
    assert not [path for path in tmp_path.iterdir() if path.name != "rank_0"]


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"a run")
    assert "already holds a run" in refused(capsys, "--output_dir", tmp_path)
    assert (tmp_path / "last.ckpt").read_bytes() == b"a run"


def test_a_run_folder_that_cannot_be_made_is_one_sentence(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot make the folder" in refused(
        capsys,
        "--dataset",
        "digits",
        "--data.batch_size",
        8,
        "--network.binary",
        "false",
        "--output_dir",
        tmp_path / "file/run",
    )


def test_resuming_does_not_change_the_recipe(capsys, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"a run")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert "optimizer.lr cannot change" in refused(capsys, "--resume", tmp_path, "--optimizer.lr", 0.2)


def test_help_explains_the_flags_without_importing_mindspore(tmp_path):
    done = processes.run("train.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for flag in ("--config", "--data_path", "--resume", "--amp_level", "--optimizer.lr"):
        assert flag in done.stdout


def test_a_traceback_only_when_asked_for(capsys, tmp_path):
    assert doors.run(train.main, ["--epochs", "0", "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err
