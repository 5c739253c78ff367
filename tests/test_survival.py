"""A run survives kills, damaged files, a full disk, a second run in its folder, data that disappear, little memory."""

import contextlib
import fcntl
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import termios
import threading
import time
from pathlib import Path

import pytest

from src import checkpoints, cli
from src.config import load_config
from src.errors import UserError
from src.heartbeat import FIRST_SECONDS
from src.launch.cluster import Cluster, at_open_port
from src.launch.logs import HUNG
from src.launch.processes import Supervisor
from src.run_dir import epoch_checkpoints, lock_run_dir
from tests.helpers import failing_worker, processes
from tests.helpers.images import write_tree
from tests.soak import kills
from train import main as train

SMALL = (
    *("--config", processes.ROOT / "configs/digits.yaml"),
    *("--network.binary", "false", "--data.batch_size", 8, "--steps_per_epoch", 2),
)
# The slow tests run train.py with ResNet-20, the others with a network that compiles faster.
TRAIN, TRAIN_SMALL = ("train.py",), ("tests/helpers/small_network.py", "train.py", "--network.name", "small")


def run_within(limit: tuple[int, int], *arguments, cwd: Path, program=TRAIN) -> subprocess.CompletedProcess:
    """train.py as a process under a limit of `resource`."""
    return subprocess.run(
        processes.command(*program, *arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
        preexec_fn=lambda: resource.setrlimit(limit[0], (limit[1], limit[1])),
    )


def last_line(done: subprocess.CompletedProcess) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr.strip().split("\n")[-1]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path):
    kills.survive(tmp_path, kills=5, seed=int(time.time()))


@pytest.mark.parametrize(
    "program", [TRAIN_SMALL, pytest.param(TRAIN, marks=pytest.mark.slow)], ids=["small", "resnet20"]
)
def test_a_moved_run_with_a_damaged_last_checkpoint_continues_from_the_one_before(tmp_path, program):
    first, moved = tmp_path / "first", tmp_path / "mövéd run"
    process = processes.start(*program, *SMALL, "--epochs", 3, "--output_dir", first, cwd=tmp_path)
    processes.wait_for((first / "epoch_0001.ckpt").exists, process)
    process.kill()
    process.communicate()
    shutil.move(first, moved)
    last = moved / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.chmod(0o600)
    last.write_bytes(content)
    (moved / ".last.ckpt.partial.tmp").write_bytes(b"of a run that was killed while it wrote")

    done = processes.run(*program[:2], "--resume", moved, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"warning: {last} is truncated or damaged: its checksum does not fit its content; continuing" in done.stderr
    assert [row["epoch"] for row in kills.metrics(moved)] == ["1", "2", "3"]
    assert checkpoints.read(last).state["epoch"] == 3
    assert list(epoch_checkpoints(moved)) == [2, 3]  # train.keep
    assert load_config(moved / "config.yaml").output_dir == str(moved)
    assert not list(moved.glob("*partial*")) and not first.exists()


def refused(capsys, *arguments) -> str:
    assert cli.run(train, [str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_a_second_run_in_a_folder_is_refused(tmp_path, capsys):
    new = tmp_path / "new"
    new.mkdir()
    with lock_run_dir(new):
        assert f"another run uses {new}" in refused(capsys, *SMALL, "--output_dir", new)
        assert [path.name for path in new.iterdir()] == [".lock"]
    assert not list(new.iterdir())
    (new / "last.ckpt").write_bytes(b"not read")
    (new / "config.yaml").write_text("seed: 1\n")
    with lock_run_dir(new):
        assert f"another run uses {new}" in refused(capsys, "--resume", new)


def test_an_epoch_that_was_not_kept_is_refused(tmp_path, capsys):
    (tmp_path / "epoch_0004.ckpt").write_bytes(b"")
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    message = refused(capsys, "--resume", tmp_path, "--from_epoch", 3)
    assert message == f"error: --from_epoch is 3, but {tmp_path} keeps the checkpoints of epochs: 4\n"
    assert "needs --resume DIR" in refused(capsys, "--from_epoch", 3)


def test_a_folder_without_a_whole_checkpoint_is_refused_with_every_reason(tmp_path):
    for name in ("last.ckpt", "epoch_0002.ckpt"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"can be resumed: .*last\.ckpt is not .*; .*epoch_0002\.ckpt is not "):
        checkpoints.newest(tmp_path)


@pytest.mark.parametrize(
    ("program", "limit"),
    [(TRAIN_SMALL, 12_000), pytest.param(TRAIN, 2**20, marks=pytest.mark.slow)],
    ids=["small", "resnet20"],
)
def test_a_full_disk_ends_the_run_in_one_sentence(tmp_path, program, limit):
    options = ("--epochs", 1, "--output_dir", "run")
    done = run_within((resource.RLIMIT_FSIZE, limit), *SMALL, *options, cwd=tmp_path, program=program)
    assert done.returncode == 2
    assert last_line(done).startswith("error: cannot write run/best.ckpt: File too large; fix that and start again")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "versions.txt", "log.txt"}


@pytest.mark.slow
def test_a_run_with_go_on_trains_to_the_end_on_a_full_disk_and_prints_what_it_could_not_save(tmp_path):
    options = ("--output_dir", "run", "--train.on_write_error", "go_on", "--epochs", 3)
    process = processes.start("train.py", *SMALL, *options, cwd=tmp_path)
    processes.wait_for((tmp_path / "run/epoch_0001.ckpt").exists, process)
    process.kill()
    process.communicate()
    before = (tmp_path / "run/last.ckpt").read_bytes()
    done = run_within((resource.RLIMIT_FSIZE, 2**20), "--resume", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "warning: cannot write run/last.ckpt: File too large; training continues" in done.stderr
    assert last_line(done).startswith("error: the run ends, but its last state could not be written to run/last.ckpt")
    assert (tmp_path / "run/last.ckpt").read_bytes() == before
    assert [row["epoch"] for row in kills.metrics(tmp_path / "run")] == ["1", "2", "3"]  # small enough to be written


@pytest.mark.slow
def test_too_little_memory_is_one_sentence(tmp_path):
    options = ("--data.batch_size", 1400, "--steps_per_epoch", 1, "--output_dir", "run")
    done = run_within((resource.RLIMIT_AS, 4_500 * 2**20), *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: out of memory, " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_data_that_vanish_end_the_run_in_one_sentence_and_what_was_saved_stays(tmp_path):
    data = write_tree(tmp_path / "data", train=16, test=4, size=(40, 30))
    options = ("--dataset", "folder", "--data_path", data, "--epochs", 2, "--output_dir", tmp_path / "run")
    process = processes.start("train.py", *SMALL, *options, cwd=tmp_path)
    processes.wait_for((tmp_path / "run/versions.txt").exists, process)
    folder = data / "train/class3"
    folder.rename(tmp_path / "elsewhere")  # while the first step compiles
    output = process.communicate(timeout=processes.PATIENCE)[0]
    assert process.returncode == 2 and "Traceback" not in output
    assert f"{folder} is gone; put it back and resume the run" in output


@pytest.mark.slow
def test_sigterm_in_an_evaluation_saves_and_ends_before_its_end(tmp_path, monkeypatch):
    """Nothing of the evaluation is in the history. Resumed, the run evaluates without another step of training."""
    data = processes.write_cifar10(tmp_path / "data")
    monkeypatch.setenv("FDA_BNN_HEARTBEATS", str(tmp_path))
    options = ("--dataset", "cifar10", "--data_path", data, "--epochs", 1, "--output_dir", "run")
    process = processes.start("train.py", *SMALL, *options, cwd=tmp_path)
    beat = tmp_path / "0"
    processes.wait_for(lambda: beat.exists() and "evaluating batch 5 " in beat.read_text(), process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=processes.PATIENCE)[0]
    assert process.returncode == 143, output
    state = checkpoints.read(tmp_path / "run/last.ckpt").state
    assert (state["epoch"], state["step"], state["history"]) == (0, 2, [])
    done = processes.run("train.py", "--resume", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in kills.metrics(tmp_path / "run")] == ["1"]


@pytest.mark.slow
def test_a_worker_that_differs_from_the_others_is_named_and_the_run_ends(tmp_path):
    supervisor = Supervisor(
        at_open_port(Cluster(3, 0)), tmp_path, [failing_worker.__file__, "differ", "1", str(tmp_path / "run")]
    )
    assert supervisor.run() == 2
    logs = "".join((tmp_path / f"worker_{rank}.log").read_text() for rank in range(3))
    assert "error: worker 1 of 3 differs from the others after epoch 2, in weights, statistics or schedules" in logs
    assert "Traceback" not in logs
    assert checkpoints.newest(tmp_path / "run")[0].state["epoch"] == 1  # nothing of the second is saved


@pytest.mark.slow
def test_a_worker_that_hangs_is_named_all_end_soon_and_the_run_continues(tmp_path, capfd):
    command = [failing_worker.__file__, "hang", "1", str(tmp_path / "run")]
    supervisor = Supervisor(at_open_port(Cluster(2, 0)), tmp_path, command)
    log = tmp_path / "worker_1.log"
    ended: list[int] = []
    thread = threading.Thread(target=lambda: ended.append(supervisor.run()))
    thread.start()
    while "hanging" not in (log.read_text() if log.exists() else ""):
        assert not ended
        time.sleep(0.1)
    started = time.monotonic()
    thread.join()
    with capfd.disabled():
        print(f"ended {time.monotonic() - started:.0f} s after the worker began to hang")
    assert ended == [HUNG]
    assert time.monotonic() - started < FIRST_SECONDS  # the limit of a first action does not apply
    assert re.search(
        r"error: worker 1 has been hanging for \d+ s \(reading images of epoch 2\); see", capfd.readouterr().err
    )
    assert checkpoints.newest(tmp_path / "run")[0].state["epoch"] == 1


@pytest.mark.slow
def test_two_workers_that_are_stopped_inside_an_epoch_end_like_two_that_are_not(tmp_path):
    """Each worker then has its own moving statistics, which saving and resuming must not change."""
    whole, run = tmp_path / "whole", tmp_path / "run"

    def launch(log: str, *command) -> int:
        (tmp_path / log).mkdir()
        return Supervisor(at_open_port(Cluster(2, 0)), tmp_path / log, [str(word) for word in command]).run()

    assert launch("log1", failing_worker.__file__, "stop", 9, whole) == 0  # nobody has that rank
    assert launch("log2", failing_worker.__file__, "stop", 1, run) == 143
    state = checkpoints.read(run / "last.ckpt").state
    assert (state["epoch"], state["step"]) == (0, 2)
    assert launch("log3", processes.ROOT / "train.py", "--distribute", "--resume", run) == 0
    kills.require_same(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_the_run_saved_unless_nohup_protects_it(tmp_path, ignored):
    command = processes.command("train.py", *SMALL, "--epochs", 30, "--output_dir", "run")
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        ["nohup", *command] if ignored else command,
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    threading.Thread(target=read_until_closed, args=(master,), daemon=True).start()
    deadline = time.monotonic() + processes.PATIENCE
    while not (tmp_path / "run/last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    if ignored:
        process.send_signal(signal.SIGHUP)
        epochs = len(kills.metrics(tmp_path / "run"))
        while len(kills.metrics(tmp_path / "run")) <= epochs + 1:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.kill()
        process.wait()
    else:
        os.close(master)
        assert process.wait(processes.PATIENCE) == 129
        log = (tmp_path / "run/log.txt").read_text()
        assert "SIGHUP: finishing the step, saving, ending\nstopped and saved; continue with: " in log


def read_until_closed(terminal: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(terminal, 10_000):
            pass
