"""python -m src.paper: what it runs, skips, resumes and reports, with a replacement for train.py."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from src import cli
from src.paper import __main__ as paper
from src.paper import plots, runs
from tests.helpers import processes

ON_DIGITS = ("--dataset", "digits", "--data.batch_size", "32", "--epochs", "2")
DRAW = plots.draw
TABLE2 = ["cifar10_resnet20_dorefa", "cifar10_resnet20_fda_no_noise", "cifar10_resnet20_fda"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A folder with the replacement of train.py; signal handlers are restored afterwards."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "train.py").write_text((processes.ROOT / "tests/helpers/fake_train.py").read_text())
    (root / "configs").symlink_to(processes.ROOT / "configs")
    (root / "root.json").write_text(json.dumps(str(processes.ROOT)))
    behave(root)
    monkeypatch.setattr(runs, "ROOT", root)
    monkeypatch.setattr(plots, "draw", lambda *arguments: arguments[-1].touch())  # a second each; one test draws
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield root
    for number, handler in handlers.items():
        signal.signal(number, handler)


def behave(root: Path, **behaviours: str) -> None:
    """Set how runs end, by their name: finish, fail, crash or wait."""
    (root / "behaviours.json").write_text(json.dumps(behaviours))


def calls(root: Path) -> list[str]:
    file = root / "calls.txt"
    found = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return found


def call(output: Path, *argv, name: str = "table2") -> int:
    return cli.run(paper.main, [name, "--output_dir", str(output), *ON_DIGITS, *argv])


def table(output: Path, name: str = "table2") -> list[dict[str, str]]:
    with (output / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def seeds_of(rows: list[dict[str, str]]) -> list[str]:
    return [row["seed"] for row in rows]


def test_executes_every_run_with_every_seed_and_reports_mean_and_spread(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "draw", DRAW)
    output = tmp_path / "out"
    assert call(output, "--seeds", "2") == 0
    assert calls(stand_in) == [f"{name} seed{seed} new" for seed in (0, 1) for name in TABLE2]
    rows = table(output)
    assert [row["method"] for row in rows] == [
        method for method in ("STE", "sine module", "sine and noise modules") for _ in "ab"
    ]
    for row in rows:
        assert row["top1"] == {"0": "20.0", "1": "21.0"}[row["seed"]] and row["not_the_recipe"] == "True"
        assert (row["git commit"], row["processor"], row["start_weights"]) == ("c1", "a chip", f"start{row['seed']}")
    page = (output / "table2.md").read_text()
    assert "| ResNet-20 | sine module | 85.83 | 20.50 ± 0.71 | 0-1 |" in page
    assert "digits, 2 of 400 epochs of 44 steps, batch 32." in page
    assert "**Not the paper's recipe.** These are shortened runs" in page
    difference = "| sine and noise modules - STE | +1.76 | 2 | +0.00 | - | no spread, no claim |"
    assert difference in page and page.count("no spread, no claim") == 3
    made_by = "6 of 6 runs: commit c1, MindSpore 2, a chip, 2 core(s), binary layers computed by native kernels, "
    assert f"\nMade by:\n\n- {made_by}checksum of the data unknown\n" in page
    again = f"taskset --cpu-list 0-1 python train.py --config {output}/runs/{TABLE2[0]}/seed0/config.yaml --output_dir"
    assert again in page
    assert "Start weights, by checksum, noise modules left out: seed 0 start0; seed 1 start1." in page
    assert (output / "table2.png").stat().st_size > 10_000
    assert (output / "table2.png").read_bytes().startswith(b"\x89PNG")  # tests/paper/test_plots.py looks at figures
    assert "cifar10_resnet20_fda           seed 1  new" in capsys.readouterr().out


def test_the_config_of_a_run_is_one_that_anybody_can_run(stand_in, tmp_path):
    output = tmp_path / "out"
    call(output)
    file = output / "runs/cifar10_resnet20_dorefa/seed0.yaml"
    config = runs.load_config(file)
    assert (config.network.estimator, config.noise.enabled) == ("clipped_ste", False)
    assert (config.data.name, config.train.epochs, config.seed) == ("digits", 2, 0)
    assert "optimizer" not in file.read_text(), "it names only what differs from the default"


def test_finished_runs_are_not_run_again_and_studies_share_them(stand_in, tmp_path):
    output = tmp_path / "out"
    assert call(output) == 0
    calls(stand_in)
    assert call(output) == 0
    assert calls(stand_in) == []
    assert call(output, name="table4") == 0
    assert calls(stand_in) == ["cifar10_resnet20_fda_eta_none seed0 new", "cifar10_resnet20_fda_eta_linear seed0 new"]
    assert seeds_of(table(output, "table4")) == ["0", "0", "0"]


def test_seeds_of_other_commands_count_and_need_no_checkpoint_any_more(stand_in, tmp_path):
    output = tmp_path / "out"
    assert call(output, "--seeds", "2") == 0
    for path in output.glob("runs/*/seed*/last.ckpt"):
        path.unlink()
    calls(stand_in)
    assert call(output, "--seeds", "3-4") == 0
    assert calls(stand_in) == [f"{name} seed{seed} new" for seed in (3, 4) for name in TABLE2]
    assert seeds_of(table(output)) == ["0", "1", "3", "4"] * 3
    assert call(output) == 0
    assert calls(stand_in) == [] and seeds_of(table(output)) == ["0", "1", "3", "4"] * 3
    assert "seed 3 start3; seed 4 start4" in (output / "table2.md").read_text()


def test_one_seed_is_no_claim(stand_in, tmp_path):
    call(tmp_path / "out")
    page = (tmp_path / "out/table2.md").read_text()
    assert "| sine module - STE | +1.39 | 1 | +0.00 | - | one seed, no claim |" in page
    assert "| ResNet-20 | sine module | 85.83 | 20.00 | 0 | one seed, no claim |" in page


def test_a_study_of_many_rows_is_judged_by_the_spread_of_all_seeds(stand_in, tmp_path):
    holdout = ("--data.holdout", "100", "--train.eval_test", "false")
    assert call(tmp_path / "out", "--seeds", "2", *holdout, name="settings") == 0
    page = (tmp_path / "out/settings.md").read_text()
    assert "a method's standard deviation over seeds is 0.55 points (11 degrees of freedom)." in page
    assert re.search(r"\| omega 0\.2 - FDA \| 2 \| \+21.00 \| \+19.\d\d to \+22.\d\d \| higher \|", page)
    assert re.search(r"\| omega 0\.05 - FDA \| 2 \| \+0\.00 \| -\S+ to \+\S+ \| not distinguishable at", page)
    assert "\n| network | method | ours top-1 % | seeds | note |\n| --- | --- | --- | --- | --- |\n" in page
    assert "\n| ResNet-20 | omega 0.2 | 41.50 ± 2.12 | 0-1 |  |\n" in page
    assert "standard deviation over the seeds, on 100 held-out training images." in page
    assert {row["images"] for row in table(tmp_path / "out", "settings")} == {"on 100 held-out training images"}


def test_runs_that_continued_elsewhere_are_counted_for_both(stand_in, tmp_path):
    output = tmp_path / "ä b"
    assert call(output) == 0
    versions = output / "runs" / TABLE2[0] / "seed0/versions.txt"
    versions.write_text(versions.read_text() + "\ncontinued after epoch 1, step 0:\ndata: d\nprocessor: another\n")
    (output / "runs" / TABLE2[1] / "seed0/versions.txt").unlink()
    assert call(output) == 0
    page = (output / "table2.md").read_text()
    assert "A run that continued with other code or on another machine is counted for each." in page
    assert "- 2 of 3 runs: commit c1, MindSpore 2, a chip, 2 core(s)" in page
    assert "- 1 of 3 runs: commit unknown, MindSpore unknown, another, unknown core(s)" in page
    assert f"--config '{output}/runs/{TABLE2[0]}/seed0/config.yaml' --output_dir" in page
    first, second, _ = table(output)
    assert (first["processor"], first["data"], second["processor"]) == ("a chip then another", "d", "")


def test_missing_runs_and_gaps_are_told(stand_in, tmp_path):
    output = tmp_path / "out"
    behave(stand_in, **{TABLE2[0]: "fail"})
    assert call(output, "--seeds", "2") == 1
    behave(stand_in)
    assert "| ResNet-20 | STE | 84.44 | - | none of 2 | failed" in (output / "table2.md").read_text()
    assert call(output, "--seeds", "4-5", "--resume") == 0
    assert "| ResNet-20 | sine module | 85.83 | 22.50 ± 2.38 | 0-1, 4-5 |" in (output / "table2.md").read_text()


def test_a_run_of_another_budget_is_found_before_anything_is_trained(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    assert call(output, "--seeds", "7-7", "--epochs", "3") == 0
    calls(stand_in)
    assert call(output) == 2
    assert "seed7 holds a run with train.epochs 3, but 2 is wanted" in capsys.readouterr().err
    assert calls(stand_in) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_two_runs_at_once_share_the_cores(stand_in, tmp_path):
    behave(stand_in, **{name: "meet" for name in TABLE2[:2]})
    assert call(tmp_path / "out", "--jobs", "2") == 0
    assert sorted(calls(stand_in)) == sorted(f"{name} seed0 new" for name in TABLE2)
    first, second = (json.loads((stand_in / f"{name}.cores").read_text()) for name in TABLE2[:2])
    assert len(first) == len(second) == len(os.sched_getaffinity(0)) // 2 and not set(first) & set(second)


def test_a_failed_run_does_not_lose_the_others_and_is_tried_again(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    behave(stand_in, cifar10_resnet20_dorefa="fail", cifar10_resnet20_fda_no_noise="crash")
    assert call(output) == 1
    assert "2 of 3 runs failed" in capsys.readouterr().err
    assert seeds_of(table(output)) == ["", "", "0"]
    page = (output / "table2.md").read_text()
    assert "failed, seed 0: the loss is not finite (see " in page
    assert "failed, seed 0: killed by signal 9" in page
    behave(stand_in)
    calls(stand_in)
    assert call(output, "--resume") == 0
    assert calls(stand_in) == [f"{name} seed0 new" for name in TABLE2[:2]]
    assert "failed, seed" not in (output / "table2.md").read_text()


def test_a_signal_reaches_the_current_run_which_resume_continues(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    behave(stand_in, cifar10_resnet20_fda_no_noise="wait")

    def interrupt() -> None:
        while not (stand_in / "waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert call(output) == 143
    thread.join()
    assert "continue with the same command and --resume" in capsys.readouterr().out
    assert calls(stand_in) == [f"{name} seed0 new" for name in TABLE2[:2]]
    assert call(output) == 2
    assert "seed0 was started but not finished: continue with --resume" in capsys.readouterr().err
    assert call(output, "--resume") == 0
    assert calls(stand_in) == [f"{TABLE2[1]} seed0 resume", f"{TABLE2[2]} seed0 new"]


def test_another_budget_in_the_same_folder_is_refused(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    call(output)
    assert call(output, "--epochs", "3") == 2
    assert "holds a run with train.epochs 2, but 3 is wanted: choose another --output_dir" in capsys.readouterr().err
    assert call(output, "--data.augment", "false") == 2
    assert call(output, "--data.num_parallel_workers", "1") == 0  # no result depends on it


def test_a_run_that_outlived_its_command_is_waited_for(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    with runs.lock_output_dir(output, print) as held:
        orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)"], pass_fds=(held,))
    assert call(output) == 0
    assert orphan.poll() == 0
    assert "waiting until it ends" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda run: (run / "config.yaml").unlink(), marks=pytest.mark.slow),
        lambda run: (run / "config.yaml").write_text("seed: [1"),
        pytest.param(
            lambda run: (shutil.rmtree(run), run.with_suffix(".log").unlink(), run.with_suffix(".log").mkdir()),
            marks=pytest.mark.slow,
        ),
        lambda run: (shutil.rmtree(run.parent), run.parent.write_text("a file")),
    ],
    ids=["no config", "broken config", "log is a folder", "folder is a file"],
)
def test_a_damaged_run_does_not_lose_the_others(stand_in, tmp_path, damage, capsys):
    output = tmp_path / "out"
    call(output)
    damage(output / "runs/cifar10_resnet20_dorefa/seed0")
    assert call(output, "--resume", "--seeds", "2") == 1
    assert seeds_of(table(output))[-4:] == ["0", "1"] * 2
    assert "failed, seed 0: " in (output / "table2.md").read_text()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", marks=pytest.mark.slow),
        pytest.param("nothing\n1\n", marks=pytest.mark.slow),
        "epoch,train_loss,test_top5,test_top1\n1,0.5\n",
        "\0\0",
    ],
)
def test_a_damaged_table_of_metrics_is_made_again_by_going_on(stand_in, tmp_path, content):
    output = tmp_path / "out"
    call(output)
    (output / "runs/cifar10_resnet20_dorefa/seed0/metrics.csv").write_text(content)
    calls(stand_in)
    assert call(output) == 2
    assert call(output, "--resume") == 0
    assert calls(stand_in) == ["cifar10_resnet20_dorefa seed0 resume"]
    assert seeds_of(table(output)) == ["0"] * 3


def test_what_differs_from_the_recipe_is_in_the_title(stand_in, tmp_path):
    output = tmp_path / "out"
    call(
        output, "--epochs", "400", "--optimizer.lr", "0.5", "--data_name", "Digits", "--data.num_parallel_workers", "1"
    )
    page = (output / "table2.md").read_text()
    assert "Digits, 400 epochs of 44 steps, batch 32, optimizer.lr 0.5." in page
    assert "**Not the paper's recipe.** These are runs that differ from the paper's recipe" in page


def test_a_signal_that_was_ignored_stays_ignored(stand_in, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    assert call(tmp_path / "out") == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_null_keys_reach_a_run_that_is_resumed(stand_in, tmp_path):
    output = tmp_path / "out"
    behave(stand_in, cifar10_resnet20_dorefa="crash after saving")
    assert call(output, "--train.save_every_steps", "null", "--download", "false") == 1
    behave(stand_in)
    assert call(output, "--resume", "--train.save_every_steps", "null", "--download", "false") == 0
    log = (output / "runs/cifar10_resnet20_dorefa/seed0.log").read_text()
    assert "--resume" in log and "--data.download false --train.save_every_steps null" in log


def test_a_dry_run_prints_what_would_run_and_writes_nothing(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    assert call(output, "--dry-run", name="figure4") == 0
    said = capsys.readouterr().out
    assert "Figure 4: three settings of n: 3 runs in " in said
    assert said.count(" new ") == 3 and " in total, estimated from the speed of" in said
    assert not output.exists() and calls(stand_in) == []


def test_a_dry_run_needs_no_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(paper.main, ["table5", "--dry-run", "--data_path", "nowhere"]) == 0
    said = capsys.readouterr().out
    assert "nowhere/train is not a folder" in said and "imagenet_alexnet_fda" in said
    assert not list(tmp_path.iterdir())


def test_without_an_output_folder_there_is_a_default(capsys):
    assert cli.run(paper.main, ["figure1", "--dry-run", "--output_dir", "null"]) == 0
    assert "runs/paper" in capsys.readouterr().out


def test_a_dry_run_of_figure1_writes_nothing(tmp_path):
    assert cli.run(paper.main, ["figure1", "--dry-run", "--output_dir", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "out").exists()


def test_speeds_measured_in_the_folder_serve_the_estimate(stand_in, tmp_path, capsys):
    output = tmp_path / "out"
    call(output)
    capsys.readouterr()
    assert call(output, "--dry-run", name="table4") == 0
    # 2 epochs of 44 steps of 32 images, and a quarter of 360, at 100 images/s; 30 s to start
    assert "cifar10_resnet20_fda_eta_none    seed 0  new       about 60 s" in (said := capsys.readouterr().out)
    assert "about 2 min in total, estimated from the speed of this study's runs so far" in said
