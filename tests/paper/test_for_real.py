"""Studies over the real train.py: killed in the middle, gone on with, reported."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import processes
from tests.helpers.images import write_tree

TABLE2 = ("table2", "--dataset", "digits", "--data.batch_size", "32", "--epochs", "1", "--steps_per_epoch", "6")
TABLE5 = ("table5", "--data.batch_size", "8", "--epochs", "1", "--steps_per_epoch", "2")


def begin(output: Path, *study) -> subprocess.Popen:
    """The command, in its own process group; the runs that it starts are not in that group."""
    words = [sys.executable, "-m", "src.paper", *map(str, study), "--output_dir", str(output)]
    return subprocess.Popen(
        [*words, "--train.save_every_steps", "1"],
        cwd=processes.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_in_the_middle(output: Path, *study) -> list[Path]:
    """Kills the command and its run once the second run has a checkpoint; the run folders that are there then."""
    process = begin(output, *study)
    processes.wait_for(lambda: len(list(output.glob("runs/*/seed0/last.ckpt"))) >= 2, process)
    process.kill()
    process.wait()
    for folder in output.glob("runs/*/seed0"):
        subprocess.run(["pkill", "-KILL", "-f", str(folder)])
    return list(output.glob("runs/*/seed0"))


def go_on(output: Path, *study) -> str:
    process = begin(output, *study, "--resume")
    said, _ = process.communicate(timeout=processes.PATIENCE)
    assert process.returncode == 0, said
    return said


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as content:
        return list(csv.DictReader(content))


@pytest.mark.slow
def test_table2_on_digits_is_killed_and_resumed(tmp_path):
    output = tmp_path / "out"
    assert len(kill_in_the_middle(output, *TABLE2)) == 2
    said = go_on(output, *TABLE2)
    assert "seed 0  finished" in said and "[1/3]" not in said
    rows = table(output / "table2.csv")
    assert [row["seed"] for row in rows] == ["0", "0", "0"]
    assert all(0 < float(row["top1"]) < 100 for row in rows)
    for folder in output.glob("runs/*"):
        assert len(table(folder / "seed0/metrics.csv")) == 1
    assert "**Not the paper's recipe.** These are shortened runs" in (output / "table2.md").read_text()


@pytest.mark.slow
def test_sigterm_reaches_the_run_which_saves(tmp_path):
    output = tmp_path / "out"
    process = begin(output, *TABLE2[:-1], "40")
    processes.wait_for(lambda: any(output.glob("runs/*/seed0/last.ckpt")), process)
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=processes.PATIENCE)
    assert process.returncode == 143, said
    assert "cifar10_resnet20_dorefa, seed 0, is begun: continue with the same command and --resume" in said
    assert "stopped and saved" in (output / "runs/cifar10_resnet20_dorefa/seed0.log").read_text()


@pytest.mark.slow
def test_table5_on_200_images_is_killed_and_resumed(tmp_path):
    tree = write_tree(tmp_path / "tree", train=160, test=40, size=(120, 100))
    output = tmp_path / "out"
    study = (*TABLE5, "--data_path", tree, "--data_name", "200 made images")
    assert len(kill_in_the_middle(output, *study)) == 2
    go_on(output, *study)
    rows = [row for row in table(output / "table5.csv") if row["run"]]
    assert len(rows) == 11 and {row["seed"] for row in rows} == {"0"}
    assert "200 made images, 1 of 256 epochs of 2 steps, batch 8." in (output / "table5.md").read_text()
