"""train.py as a process: resuming, signals, divergence. What it refuses is in test_bad_input.py."""

import csv
import shutil
import signal
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from src.binary.kernels import chosen_path
from tests.helpers import processes

# A few steps of CIFAR-10 files with augmentation, two threads, a checkpoint every other step.
SMALL_RUN = (
    "--data.batch_size",
    50,
    "--steps_per_epoch",
    8,
    "--train.save_every_steps",
    2,
    "--data.num_parallel_workers",
    2,
)
SMALL_PROGRAM = ("tests/helpers/small_network.py", "train.py")
TIMES = {"seconds", "images_per_second"}


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def weights(folder: Path) -> dict[str, np.ndarray]:
    content = ms.load_checkpoint(str(folder / "last.ckpt"))
    return {name: value.asnumpy() for name, value in content.items() if isinstance(value, ms.Tensor)}


def interrupted_and_whole(tmp_path: Path, *options, program: tuple[str, ...] = ("train.py",)) -> tuple[Path, Path]:
    """Two runs of a recipe: one stopped by SIGTERM, resumed, killed in the middle of an epoch, resumed; one not."""
    data = processes.write_cifar10(tmp_path / "data ä")
    recipe = ("--data_path", data, *SMALL_RUN, *options)
    whole, interrupted = tmp_path / "whole run", tmp_path / "ünterbrochen"
    done = processes.run(*program, *recipe, "--output_dir", whole, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    last = interrupted / "last.ckpt"
    process = processes.start(*program, *recipe, "--output_dir", interrupted, cwd=tmp_path)
    processes.wait_for(last.exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=processes.PATIENCE)
    assert process.returncode == 143, output
    assert "stopped and saved" in output
    assert not (interrupted / "metrics.csv").exists(), "it was stopped within the first epoch, as meant"

    kept = {path: path.read_bytes() for path in interrupted.iterdir() if path.name != "log.txt"}
    moved = processes.write_cifar10(tmp_path / "other data", processes.CIFAR10_FILES[::-1])
    done = processes.run(*program, "--resume", interrupted, "--data_path", moved, cwd=tmp_path)
    assert done.returncode == 2 and f"are not those that {interrupted} was begun with" in done.stderr
    assert {path: path.read_bytes() for path in interrupted.iterdir() if path.name != "log.txt"} == kept
    shutil.rmtree(moved)

    stopped = processes.modified(last)
    process = processes.start(*program, "--resume", interrupted, cwd=tmp_path)
    processes.wait_for(lambda: processes.modified(last) > stopped, process)
    process.kill()
    process.communicate()
    done = processes.run(*program, "--resume", interrupted, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(data)  # 184 MB
    return interrupted, whole


def assert_same_run(interrupted: Path, whole: Path) -> None:
    assert metrics(interrupted) == metrics(whole)
    first, second = weights(interrupted), weights(whole)
    assert first.keys() == second.keys() and first
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], name)


def test_a_run_that_was_stopped_and_killed_ends_like_one_that_was_not(tmp_path):
    options = ("--epochs", 1, "--network.name", "small")
    interrupted, whole = interrupted_and_whole(tmp_path, *options, program=SMALL_PROGRAM)
    assert_same_run(interrupted, whole)
    assert [row["epoch"] for row in metrics(whole)] == ["1"]
    assert metrics(whole)[-1]["n"] == "18.0"
    for name in ("config.yaml", "versions.txt", "curves.png", "best.ckpt"):
        assert (whole / name).stat().st_size > 0
    versions = (whole / "versions.txt").read_text()
    assert "mindspore: 2.10.0" in versions and "git commit: " in versions
    log = (whole / "log.txt").read_text()
    assert "best.ckpt is chosen on the test images" in log
    assert f"binary layers are computed by {chosen_path()}\n" in log  # native kernels, if there is a compiler
    assert not [path for path in whole.iterdir() if "partial" in path.name]


@pytest.mark.slow
def test_the_same_with_the_whole_resnet20_and_adam(tmp_path):
    assert_same_run(
        *interrupted_and_whole(tmp_path, "--epochs", 2, "--optimizer.name", "adam", "--optimizer.lr", 0.001)
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_NATIVE", "0")  # the run prints that
    done = processes.run(
        *SMALL_PROGRAM,
        "--network.name",
        "small",
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
    assert "is not finite at step" in done.stderr and "Traceback" not in done.stderr
    assert "binary layers are computed by plain operations (" in done.stdout
    saved = weights(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in saved.values())


def test_help_explains_the_flags_without_importing_mindspore(tmp_path):
    done = processes.run("train.py", "--help", cwd=tmp_path)
    assert done.returncode == 0
    for flag in ("--config", "--data_path", "--resume", "--amp_level", "--optimizer.lr"):
        assert flag in done.stdout
