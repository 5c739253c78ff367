"""The shell launchers as a user starts them: their arguments, their exit codes, and what signals to them do."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from src import checkpoints, heartbeat
from src.config import load_config
from src.errors import UserError
from src.launch import __main__ as launcher
from src.launch.cluster import Cluster
from src.launch.logs import HUNG
from src.launch.processes import Supervisor, changes_to_environment
from tests.helpers import processes
from tests.helpers.processes import PATIENCE, ROOT

SCRIPTS = ROOT / "scripts"
THIN = {"run_standalone_train.sh": "train.py", "run_eval.sh": "eval.py", "run_export.sh": "export.py"}
DISTRIBUTE = "run_distribute_train.sh"
# Full precision compiles in half the time, and the launcher does not depend on the method.
RECIPE = (
    "--config",
    str(ROOT / "configs/digits.yaml"),
    "--network.binary",
    "false",
    "--data.batch_size",
    "8",
    "--train.save_every_steps",
    "1",
)


def environment(**changes: str) -> dict[str, str]:
    """This test's own interpreter for the launchers."""
    return {**os.environ, "PYTHON": sys.executable, **changes}


def command(script: str, *arguments) -> list[str]:
    return ["bash", str(SCRIPTS / script), *map(str, arguments)]


def run(script: str, *arguments, cwd: Path, **changes: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(script, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(**changes),
    )


def terminal_defaults() -> None:
    """In the child: Ctrl-C works, whatever this test was started from."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Launcher:
    """run_distribute_train.sh with two workers, as a process with its own group, as a shell would start it."""

    def __init__(self, cwd: Path, *arguments):
        self.cwd = cwd
        self.logs = cwd / "logs"
        with (cwd / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                command(DISTRIBUTE, "--workers", 2, "--log_dir", "logs", *arguments),
                cwd=cwd,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
                preexec_fn=terminal_defaults,
            )

    def output(self) -> str:
        return (self.cwd / "output.txt").read_text()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.output()}"
            assert time.monotonic() < end, f"waited in vain: {self.output()}"
            time.sleep(0.05)

    def wait_for_a_step(self, last: Path) -> int:
        """Returns how many steps of the first epoch are done once another checkpoint has been written."""
        before = last.stat().st_mtime_ns if last.exists() else 0
        self.wait_until(lambda: last.exists() and last.stat().st_mtime_ns > before)
        return checkpoints.read(last).state["step"]

    def processes(self) -> dict[int, dict[str, str]]:
        """The living processes that it has started, with their environments."""
        return {
            process.pid: variables
            for process in psutil.process_iter(["environ"])
            if (variables := process.info["environ"] or {}).get(heartbeat.RUN_ID, "").startswith(f"{self.process.pid}-")
        }

    def workers(self) -> dict[str, int]:
        """Rank -> process."""
        return {
            variables["MS_NODE_ID"]: process
            for process, variables in self.processes().items()
            if variables.get("MS_ROLE") == "MS_WORKER"
        }

    def msrun(self) -> int:
        return next(process for process, variables in self.processes().items() if "MS_ROLE" not in variables)

    def exit_code(self) -> int:
        """Wait for the end, and assert that nothing is left."""
        code = self.process.wait(PATIENCE)
        assert not self.processes()
        return code


@pytest.fixture
def launch(tmp_path) -> Iterator[Callable[..., Launcher]]:
    """Starts launchers in tmp_path; ends them and what they started when the test is over."""
    started: list[Launcher] = []

    def start(*arguments) -> Launcher:
        started.append(Launcher(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        for process in [*([each.process.pid] if each.process.poll() is None else []), *each.processes()]:
            os.kill(process, signal.SIGKILL)
        each.process.wait()


@pytest.mark.parametrize(("script", "program"), THIN.items())
def test_thin_launchers_explain_themselves_and_their_program(script, program, tmp_path):
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"bash scripts/{script}" in done.stdout
    assert f"usage: {program}" in done.stdout and "--device_target" in done.stdout


def test_the_distributed_launcher_explains_its_arguments(tmp_path):
    done = run(DISTRIBUTE, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    flags = (
        "--workers --nodes --node_rank --master_addr --master_port --timeout --hang_timeout --rank_table --log_dir "
        "--dry-run".split()
    )
    targets = [f"--device_target {target}" for target in ("Ascend", "GPU", "CPU")]
    for text in (
        *flags,
        *targets,
        f"bash scripts/{DISTRIBUTE} --workers 8",
        "srun --nodes 2",
        "--resume",
        "143",
        "124",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(("script", "program"), THIN.items())
def test_thin_launchers_pass_arguments_and_exit_code_on_as_they_are(script, program, tmp_path):
    fake = tmp_path / "fake python"
    fake.write_text('#!/bin/sh\nprintf \'%s\\n\' "$@" "$(pwd)"\nexit 7\n')
    fake.chmod(0o755)
    done = run(script, "--data_path", "my data/*", "", cwd=tmp_path, PYTHON=str(fake))
    assert done.returncode == 7
    assert done.stdout.splitlines() == [str(ROOT / program), "--data_path", "my data/*", "", str(tmp_path)]


@pytest.mark.parametrize(("active", "expected"), [("", "own"), ("/somewhere", "active")])
def test_the_active_environment_goes_before_the_repositorys_own(active, expected, tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    for name, path in (("own", tmp_path / ".venv/bin/python"), ("active", tmp_path / "bin/python3")):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho {name}\n")
        path.chmod(0o755)
    variables = {key: value for key, value in os.environ.items() if not key.startswith("CONDA") and key != "PYTHON"}
    variables.update(VIRTUAL_ENV=active, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = subprocess.run(["bash", tmp_path / "scripts/run_eval.sh"], env=variables, capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


def test_a_dry_run_prints_the_commands_of_all_machines_and_does_nothing(tmp_path):
    arguments = ("--workers", 4, "--nodes", 2, "--master_addr", "10.0.0.1", "--data_path", "my data")
    done = run(DISTRIBUTE, *arguments, "--dry-run", cwd=tmp_path, GLOG_v="2")
    assert done.returncode == 0, done.stderr
    comments, commands = done.stdout.splitlines()[::2], done.stdout.splitlines()[1::2]
    assert comments == ["# machine 0 of 2", "# machine 1 of 2"]
    for node, command_line in enumerate(commands):
        words = shlex.split(command_line)
        for word in ("GLOG_v=2", "--worker_num=4", "--local_worker_num=2", "--master_addr=10.0.0.1", "my data"):
            assert word in words
        assert words[-2] == "--output_dir" and words[-1].startswith("runs/resnet20-cifar10-2")
        assert f"--node_rank={node}" in words and f"--log_dir={words[-1]}/launch_logs/node_{node}" in words
    assert list(tmp_path.iterdir()) == []
    there = run(DISTRIBUTE, *arguments, "--output_dir", "mine", "--log_dir", "logs", "--dry-run", cwd=tmp_path).stdout
    assert there.count("--output_dir mine") == 2 and "--log_dir=logs/node_1 " in there
    variables = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "GLOG_v": "2"}
    arguments = (*arguments[:2], "--data_path", "my data")
    by_variables = run(DISTRIBUTE, *arguments, "--dry-run", cwd=tmp_path, **variables).stdout
    date = r"2\d{7}-\d{6}"
    assert re.sub(date, "DATE", by_variables) == re.sub(date, "DATE", done.stdout)


@pytest.mark.parametrize(("given", "level"), [(None, "3"), ("", "3"), ("0", "0"), ("2", "2"), ("3", "3"), ("4", "3")])
def test_the_errors_that_the_launcher_reads_are_logged_whatever_the_user_has_set(given, level, monkeypatch):
    monkeypatch.setenv("GLOG_logtostderr", "0")
    if given is None:
        monkeypatch.delenv("GLOG_v", raising=False)
    else:
        monkeypatch.setenv("GLOG_v", given)
    changes = changes_to_environment(Cluster(2, 0))
    assert (changes["GLOG_v"], changes["GLOG_logtostderr"]) == (level, "1")


@pytest.fixture
def supervisors(tmp_path, monkeypatch) -> list[Supervisor]:
    """Collects what the launcher would run, in an empty folder, and starts none of it."""
    started: list[Supervisor] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Supervisor, "run", lambda supervisor: started.append(supervisor))
    monkeypatch.setattr(Supervisor, "forward_signals", lambda supervisor: None)
    return started


def test_the_hang_timeout_reaches_the_workers(supervisors):
    for given in ((), ("--hang_timeout", "0"), ("--hang_timeout", "300")):
        launcher.main((*RECIPE, "--output_dir", "run", *given))
    assert [supervisor.changes["FDA_BNN_HANG_SECONDS"] for supervisor in supervisors] == ["25", "0", "300"]
    with pytest.raises(UserError, match="--hang_timeout is -1, but must be at least 0"):
        launcher.main((*RECIPE, "--output_dir", "run", "--hang_timeout", "-1"))


def test_every_launch_has_its_own_run_folder_with_the_logs_in_it(supervisors, tmp_path):
    for _ in range(2):
        launcher.main(RECIPE)
    folders = sorted(path.relative_to(tmp_path) for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all(folder.name.startswith("resnet20-digits-2") for folder in folders)
    for folder, supervisor in zip(folders, supervisors, strict=True):
        assert supervisor.command[-2:] == ["--output_dir", str(folder)]
        assert supervisor.logs.folder == folder / "launch_logs"


def test_a_given_log_folder_leaves_the_run_folder_to_worker_0(supervisors, tmp_path):
    launcher.main((*RECIPE, "--log_dir", "logs"))
    launcher.main((*RECIPE, "--log_dir", "logs", "--output_dir", "run"))
    assert "--output_dir" not in supervisors[0].command
    assert supervisors[1].command[-2:] == ["--output_dir", "run"] and supervisors[1].command.count("run") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_all_workers_resume_in_the_folder_that_the_link_means_at_the_start(supervisors, tmp_path):
    run = tmp_path / "runs/a"
    run.mkdir(parents=True)
    (run / "last.ckpt").touch()
    (run / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "runs/latest").symlink_to("a")
    launcher.main(("--resume", "runs/latest"))
    assert supervisors[0].command[-2:] == ["--resume", "runs/a"]
    assert str(supervisors[0].logs.folder) == "runs/a/launch_logs"


def test_bad_input_is_refused_before_there_are_workers(launch):
    launcher = launch("--epochs", 0)
    assert launcher.exit_code() == 2
    assert launcher.output().startswith("error: train.epochs is 0")
    assert launcher.output().count("\n") == 1
    assert not launcher.logs.exists()


def test_a_signal_before_there_are_workers_ends_the_run(launch):
    launcher = launch(*RECIPE)
    launcher.wait_until(lambda: (launcher.logs / "msrun.log").exists())
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143


@pytest.mark.slow
def test_a_second_signal_ends_the_workers_at_once(launch, tmp_path):
    launcher = launch("--config", ROOT / "configs/digits.yaml", "--output_dir", "run")
    launcher.wait_until(lambda: "epoch 1/" in launcher.output())  # the step compiles now, which no signal interrupts
    launcher.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143
    assert "again: ending the workers at once" in launcher.output()
    assert not (tmp_path / "run/last.ckpt").exists()


@pytest.mark.slow
def test_ctrl_c_and_sigterm_let_the_workers_save_and_the_run_continues(launch, tmp_path):
    last = tmp_path / "run/last.ckpt"
    launcher = launch(*RECIPE, "--output_dir", "run")
    first = launcher.wait_for_a_step(last)
    assert len(launcher.workers()) == 2
    os.killpg(launcher.process.pid, signal.SIGINT)  # as a terminal does
    assert launcher.exit_code() == 130, launcher.output()
    assert "run_distribute_train.sh --workers 2 --resume run" in launcher.output()
    stopped = checkpoints.read(last).state
    assert stopped["epoch"] == 0 and first <= stopped["step"] < stopped["steps_per_epoch"]

    launcher = launch("--resume", "run")
    assert launcher.wait_for_a_step(last) > stopped["step"]
    launcher.process.send_signal(signal.SIGTERM)  # as a cluster's scheduler does, only to the launcher
    assert launcher.exit_code() == 143, launcher.output()
    assert checkpoints.read(last).state["step"] > stopped["step"]


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_one_that_was_not(launch, tmp_path):
    recipe = (*RECIPE, "--epochs", 1, "--steps_per_epoch", 12)
    assert launch(*recipe, "--output_dir", "whole").exit_code() == 0
    launcher = launch(*recipe, "--output_dir", "run")
    launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143, launcher.output()
    launcher = launch("--resume", "run")
    assert launcher.exit_code() == 0, launcher.output()
    assert "epoch 1:" in launcher.output()
    resumed, whole = (checkpoints.read(tmp_path / name / "last.ckpt").parameters for name in ("run", "whole"))
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, name)


@pytest.mark.slow
def test_another_number_of_workers_resumes_only_from_the_end_of_an_epoch(launch, tmp_path):
    last = tmp_path / "run/last.ckpt"
    launcher = launch(*RECIPE, "--epochs", 3, "--steps_per_epoch", 12, "--output_dir", "run")
    launcher.wait_until((tmp_path / "run/epoch_0001.ckpt").exists)
    launcher.wait_for_a_step(last)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143, launcher.output()
    stopped = checkpoints.read(last).state
    assert stopped["epoch"] == 1 and 0 < stopped["step"] < 12 and stopped["workers"] == 2

    done = processes.run("train.py", "--resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "--from_epoch 1" in done.stderr and "Traceback" not in done.stderr
    done = processes.run("train.py", "--resume", "run", "--from_epoch", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    state = checkpoints.read(last).state
    assert (state["epoch"], state["workers"]) == (3, 1)
    with (tmp_path / "run/metrics.csv").open() as file:
        assert [(row["epoch"], row["step"]) for row in csv.DictReader(file)] == [("1", "12"), ("2", "24"), ("3", "36")]
    assert load_config(tmp_path / "run/config.yaml").data.batch_size == 16  # the global batch stays


@pytest.mark.slow
def test_workers_save_and_end_when_msrun_is_killed(launch, tmp_path):
    launcher = launch(*RECIPE, "--output_dir", "run")
    step = launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    os.kill(launcher.msrun(), signal.SIGKILL)
    assert launcher.exit_code() == 137
    assert "stopped and saved" in launcher.output()
    assert checkpoints.read(tmp_path / "run/last.ckpt").state["step"] >= step


@pytest.mark.slow
def test_workers_save_and_end_when_the_launcher_is_killed(launch, tmp_path):
    launcher = launch(*RECIPE, "--output_dir", "run")
    step = launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    launcher.process.kill()
    end = time.monotonic() + PATIENCE
    while launcher.processes():
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "stopped and saved" in (launcher.logs / "worker_0.log").read_text()
    assert not (launcher.logs / "heartbeats").exists()
    assert checkpoints.read(tmp_path / "run/last.ckpt").state["step"] >= step


@pytest.mark.slow
def test_the_loss_of_a_worker_ends_the_run_and_names_its_log(launch, tmp_path):
    launcher = launch(*RECIPE, "--output_dir", "run")
    launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    os.kill(launcher.workers()["1"], signal.SIGKILL)
    assert launcher.exit_code() == 137
    assert "error: worker 1 was killed by SIGKILL (exit code 137)" in launcher.output()
    assert "; see logs/worker_1.log" in launcher.output()


@pytest.mark.slow
def test_a_worker_that_is_stopped_ends_the_run_and_the_last_checkpoint_resumes(launch, tmp_path):
    last = tmp_path / "run/last.ckpt"
    launcher = launch(*RECIPE, "--output_dir", "run")
    launcher.wait_for_a_step(last)
    start = time.monotonic()
    os.kill(launcher.workers()["1"], signal.SIGSTOP)
    assert launcher.exit_code() == HUNG
    assert time.monotonic() - start < PATIENCE
    assert "error: worker 1 has been stopped (by SIGSTOP or a debugger)" in launcher.output()
    step = checkpoints.read(last).state["step"]
    launcher = launch("--resume", "run")
    assert launcher.wait_for_a_step(last) > step


@pytest.mark.slow
def test_ctrl_c_to_a_standalone_run_saves_and_exits_with_130(tmp_path):
    """MindSpore turns SIGINT into SIGTERM while a graph runs: it must not here."""
    last = tmp_path / "run/last.ckpt"
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command("run_standalone_train.sh", *RECIPE, "--output_dir", "run"),
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment(),
            preexec_fn=terminal_defaults,
        )
    end = time.monotonic() + PATIENCE
    while not last.exists():
        assert process.poll() is None and time.monotonic() < end, (tmp_path / "output.txt").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "SIGINT" in (tmp_path / "output.txt").read_text()
    assert 0 < checkpoints.read(last).state["step"]
