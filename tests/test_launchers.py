"""The shell launchers as a user starts them: their arguments, their exit codes, and what signals to them do."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from scripts.distribute import MARK
from src import checkpoints
from src.training.distribution import is_statistic

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
THIN = {"run_standalone_train.sh": "train.py", "run_eval.sh": "eval.py", "run_export.sh": "export.py"}
DISTRIBUTE = "run_distribute_train.sh"
# The full-precision twin: it compiles in half the time, and the launcher knows nothing of the method.
TWIN = (
    "--config",
    str(ROOT / "configs/digits.yaml"),
    "--network.binary",
    "false",
    "--data.batch_size",
    "8",
    "--train.save_every_steps",
    "1",
)
PATIENCE = 400  # seconds; on an idle machine of two cores nothing here takes a tenth of them


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
    """run_distribute_train.sh with two workers, as a process with a group of its own, as a shell would start it."""

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
        found = {}
        for file in Path("/proc").glob("[0-9]*/environ"):
            try:
                entries = file.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            variables = dict(entry.partition("=")[::2] for entry in entries)
            if variables.get(MARK, "").startswith(f"{self.process.pid}-"):
                found[int(file.parent.name)] = variables
        return found

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
        """Waits for the end, and asserts that nothing is left behind."""
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
    for launcher in started:
        for process in [*([launcher.process.pid] if launcher.process.poll() is None else []), *launcher.processes()]:
            os.kill(process, signal.SIGKILL)
        launcher.process.wait()


@pytest.mark.parametrize(("script", "program"), THIN.items())
def test_thin_launchers_explain_themselves_and_their_program(script, program, tmp_path):
    done = run(script, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"bash scripts/{script}" in done.stdout
    assert f"usage: {program}" in done.stdout and "--device_target" in done.stdout


def test_the_distributed_launcher_explains_its_arguments(tmp_path):
    done = run(DISTRIBUTE, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("--workers", "--device_target", "--master_port", "--log_dir", f"bash scripts/{DISTRIBUTE}", "143"):
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


def test_bad_input_to_the_workers_is_shown_and_its_exit_code_passed_on(launch):
    launcher = launch("--epochs", 0)
    assert launcher.exit_code() == 2
    assert "error: train.epochs is 0" in launcher.output()
    assert "Traceback" not in launcher.output()


def test_a_signal_before_there_are_workers_ends_the_run(launch):
    launcher = launch(*TWIN)
    launcher.wait_until(lambda: (launcher.logs / "msrun.log").exists())
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143


def test_a_second_signal_ends_the_workers_at_once(launch, tmp_path):
    launcher = launch("--config", ROOT / "configs/digits.yaml", "--output_dir", "run")
    launcher.wait_until(lambda: "epoch 1/" in launcher.output())  # the step compiles now, which no signal interrupts
    launcher.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    launcher.process.send_signal(signal.SIGTERM)
    assert launcher.exit_code() == 143
    assert "again: ending the workers at once" in launcher.output()
    assert not (tmp_path / "run/last.ckpt").exists()


def test_ctrl_c_and_sigterm_let_the_workers_save_and_the_run_goes_on(launch, tmp_path):
    last = tmp_path / "run/last.ckpt"
    launcher = launch(*TWIN, "--output_dir", "run")
    first = launcher.wait_for_a_step(last)
    assert len(launcher.workers()) == 2
    os.killpg(launcher.process.pid, signal.SIGINT)  # as a terminal does
    assert launcher.exit_code() == 130, launcher.output()
    assert "run_distribute_train.sh --workers 2 --resume run" in launcher.output()
    stopped = checkpoints.read(last).state
    assert stopped["epoch"] == 0 and first <= stopped["step"] < stopped["steps_per_epoch"]

    launcher = launch("--resume", "run")
    assert launcher.wait_for_a_step(last) > stopped["step"]
    launcher.process.send_signal(signal.SIGTERM)  # as a cluster's scheduler does, to the launcher alone
    assert launcher.exit_code() == 143, launcher.output()
    assert checkpoints.read(last).state["step"] > stopped["step"]


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_with_the_weights_of_one_that_was_not(launch, tmp_path):
    recipe = (*TWIN, "--epochs", 1, "--steps_per_epoch", 12)
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
        if is_statistic(ms.Parameter(value, name=name)):  # averaged twice: equal but for rounding
            np.testing.assert_allclose(resumed[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(resumed[name], value, name)


@pytest.mark.slow
def test_workers_save_and_end_when_msrun_is_killed(launch, tmp_path):
    launcher = launch(*TWIN, "--output_dir", "run")
    step = launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    os.kill(launcher.msrun(), signal.SIGKILL)
    assert launcher.exit_code() == 137
    assert "stopped and saved" in launcher.output()
    assert checkpoints.read(tmp_path / "run/last.ckpt").state["step"] >= step


@pytest.mark.slow
def test_the_loss_of_a_worker_ends_the_run_and_names_its_log(launch, tmp_path):
    launcher = launch(*TWIN, "--output_dir", "run")
    launcher.wait_for_a_step(tmp_path / "run/last.ckpt")
    os.kill(launcher.workers()["1"], signal.SIGKILL)
    assert launcher.exit_code() == 137
    assert "error: worker 1 ended with exit code 137; see logs/worker_1.log" in launcher.output()


@pytest.mark.slow
def test_ctrl_c_to_a_standalone_run_saves_and_exits_with_130(tmp_path):
    """MindSpore turns SIGINT into SIGTERM while a graph runs: it must not here."""
    last = tmp_path / "run/last.ckpt"
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command("run_standalone_train.sh", *TWIN, "--output_dir", "run"),
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
