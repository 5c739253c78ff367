"""The supervisor of msrun and its workers, with workers and logs that are written for the purpose."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from src import heartbeat
from src.launch import processes
from src.launch.cluster import Cluster, at_open_port
from src.launch.logs import HUNG
from src.launch.processes import Supervisor
from tests.helpers.processes import PATIENCE

SLEEP = "time.sleep(600)"


def seen(workers: dict[int, int]) -> dict[int, SimpleNamespace]:
    """Workers as the supervisor remembers them. rank -> process id."""
    return {rank: SimpleNamespace(pid=process) for rank, process in workers.items()}


def fake_run(folder: Path, worker: str, cluster: Cluster | None = None, scheduler: str = SLEEP) -> Supervisor:
    """A run, not yet started, with workers and a scheduler that only execute these lines. `beat` writes a heartbeat."""
    script = folder / "worker.py"
    script.write_text(
        "import json, os, sys, time\n"
        "def beat(**content):\n"
        "    with open(os.path.join(os.environ['FDA_BNN_HEARTBEATS'], str(rank)), 'w') as file:\n"
        "        json.dump(content, file)\n"
        + "from mindspore.communication import init\n" * ("init()" in worker)
        + f"if os.environ['MS_ROLE'] == 'MS_SCHED':\n    {scheduler}\n    sys.exit()\n"
        + "rank = int(os.environ['MS_NODE_ID'])\n"
        + textwrap.dedent(worker)
    )
    return Supervisor(cluster or at_open_port(Cluster(2, master_port=0)), folder, [str(script)])


def test_a_worker_that_hangs_is_named_and_all_end(tmp_path, capfd):
    supervisor = fake_run(
        tmp_path,
        f"beat(doing='reading images', waiting=rank == 0, until=time.monotonic() + 3); {SLEEP}",
    )
    start = time.monotonic()
    assert supervisor.run() == HUNG
    assert time.monotonic() - start < PATIENCE
    error = capfd.readouterr().err
    sentence = rf"worker 1 has been hanging for \d+ s \(reading images\); see {tmp_path}/worker_1.log"
    assert re.fullmatch(f"error: {sentence}; all workers are ended\n", error)
    assert supervisor.processes() == {} and not supervisor.heartbeats.exists()


def test_a_worker_that_refuses_its_input_is_quoted(tmp_path, capfd, monkeypatch):
    supervisor = fake_run(
        tmp_path,
        """
        if rank == 1:
            while not os.path.exists(os.path.join(os.path.dirname(__file__), "seen")):
                time.sleep(0.1)
            print("error: data.path is DIR, but there is no such folder")
            sys.exit(2)
        time.sleep(600)
        """,
    )
    poll = supervisor.poll

    def poll_and_tell() -> None:
        poll()
        if len(supervisor.workers) == 2:
            (tmp_path / "seen").touch()

    monkeypatch.setattr(supervisor, "poll", poll_and_tell)
    assert supervisor.run() == 2
    expected = "worker 1 ended with exit code 2: data.path is DIR, but there is no such folder"
    assert capfd.readouterr().err == f"error: {expected}; see {tmp_path}/worker_1.log\n"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_reaches_every_worker_once(number, code, tmp_path, monkeypatch, capfd):
    supervisor = fake_run(
        tmp_path,
        f"""
        import pathlib, signal
        folder = pathlib.Path(__file__).parent
        def wait_for_both(name):
            (folder / f"{{name}}_{{rank}}").touch()
            while len(list(folder.glob(f"{{name}}_*"))) < 2:
                time.sleep(0.1)
        def save(number, frame):
            time.sleep(1)  # a second signal would run this again
            print("saved", flush=True)
            wait_for_both("saved")  # msrun kills the others when one ends
            sys.exit(128 + number)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, save)
        (folder / f"ready_{{rank}}").touch()
        {SLEEP}
        """,
    )
    poll = supervisor.poll

    def poll_and_send() -> None:
        poll()
        if len(list(tmp_path.glob("ready_*"))) == 2:
            supervisor.on_signal(number, None)  # many times within a second, as timeout(1) does twice

    monkeypatch.setattr(processes, "ECHO_SECONDS", 600)
    monkeypatch.setattr(supervisor, "poll", poll_and_send)
    assert supervisor.run() == code
    assert [supervisor.logs.text(f"worker_{rank}.log") for rank in (0, 1)] == ["saved\n"] * 2
    assert capfd.readouterr() == ("saved\n", "") and supervisor.processes() == {}


def test_a_second_signal_kills_the_workers(tmp_path, monkeypatch, capfd):
    supervisor = fake_run(tmp_path, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}")
    poll = supervisor.poll

    def poll_and_send() -> None:
        poll()
        if len(supervisor.workers) == 2:
            supervisor.on_signal(signal.SIGTERM, None)

    monkeypatch.setattr(processes, "ECHO_SECONDS", 0.1)
    monkeypatch.setattr(supervisor, "poll", poll_and_send)
    with pytest.raises(SystemExit) as ended:
        supervisor.run()
    assert ended.value.code == 143 and supervisor.processes() == {}
    assert "SIGTERM again: ending the workers at once" in capfd.readouterr().err


def test_what_a_killed_launcher_left_in_the_log_folder_does_no_harm(tmp_path, capfd):
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats/0").write_text('{"doing": "step 1", "waiting": false, "until": 1}')
    assert fake_run(tmp_path, "time.sleep(1)", scheduler="pass").run() == 0
    assert capfd.readouterr() == ("", "") and not (tmp_path / "heartbeats").exists()


@pytest.mark.parametrize(
    ("status", "scheduler", "worker", "code", "expected"),
    [
        (
            -9,
            "",
            "",
            137,
            "worker 3 was killed by SIGKILL (exit code 137), as the kernel does when memory runs out; see",
        ),
        (-15, "", "", 143, "worker 3 was killed by SIGTERM (exit code 143); see"),
        (143, "", "", 143, ""),  # another machine's launcher was asked to end the run
        (130, "", "", 130, ""),
        (1, "The node: 1 is timed out. It may exit", "", HUNG, "worker 1 of machine 0 no longer answers"),
        (1, "The node: 2 is timed out. It may exit", "", HUNG, "worker 2 no longer answers"),
        (1, "Building networking for MS_SCHED failed.", "", HUNG, "--timeout): machines 0, 2 did not connect; see"),
        (1, "", "Building networking for MS_WORKER failed.", HUNG, "--timeout): machines 0, 2 did not connect; see"),
        (
            1,
            "",
            "RunRingAllReduce] Ring wait failed.",
            HUNG,
            "worker 3 lost the workers of machines 0, 2; see the logs",
        ),
        (
            1,
            "",
            "Failed to initialize the node.\nBuilding networking for MS_WORKER failed.",
            HUNG,
            "the 6 workers did not connect at n0:8118 within 40 s (--timeout): the master did not answer; see",
        ),
    ],
)
def test_one_sentence_explains_the_end_of_a_run(status, scheduler, worker, code, expected, tmp_path, capsys):
    """From the logs of msrun and MindSpore, on machine 1 of three, with workers 2 and 3."""
    supervisor = fake_run(tmp_path, "", Cluster(6, 8118, "n0", nodes=3, node_rank=1))
    supervisor.msrun = SimpleNamespace(returncode=1)
    supervisor.workers = seen({2: 1000, 3: 1001})
    (tmp_path / "msrun.log").write_text(f"Worker process 1001 exit with exception. Error code: {status}.\n")
    (tmp_path / "scheduler.log").write_text(scheduler)
    (tmp_path / "worker_3.log").write_text(worker)
    assert supervisor.exit_code() == code
    error = capsys.readouterr().err
    assert error.count("error: ") == bool(expected), error
    assert expected in error


@pytest.mark.parametrize(
    ("asked", "status", "code", "reported"),
    [
        (signal.SIGTERM, -signal.SIGTERM, 143, False),
        (signal.SIGHUP, -signal.SIGTERM, 143, False),
        (signal.SIGINT, -signal.SIGINT, 130, False),
        (signal.SIGTERM, -signal.SIGKILL, 137, True),
        (0, -signal.SIGTERM, 143, True),
    ],
)
def test_a_worker_that_ends_by_the_users_signal_before_it_can_catch_it_is_no_error(
    asked, status, code, reported, tmp_path, capsys
):
    supervisor = fake_run(tmp_path, "")
    supervisor.workers = seen({0: 1000, 1: 1001})
    supervisor.stop_signal = asked
    (tmp_path / "msrun.log").write_text(f"Worker process 1001 exit with exception. Error code: {int(status)}.\n")
    assert supervisor.exit_code() == code
    assert bool(capsys.readouterr().err) == reported


def test_the_only_worker_that_was_not_seen_is_the_one_that_failed(tmp_path):
    supervisor = fake_run(tmp_path, "", Cluster(6, 8118, "n0", nodes=2, node_rank=1))
    supervisor.workers = seen({3: 1000})
    assert supervisor.rank_of(1002) is None
    supervisor.workers |= seen({5: 1001})
    assert [supervisor.rank_of(process) for process in (1000, 1001, 1002)] == [3, 5, 4]


@pytest.fixture
def start_for(request) -> Callable[..., psutil.Process]:
    """Starts a shell with a child process and the variables of a run; returns the process."""

    def start(supervisor: Supervisor, new_session: bool, **variables: str) -> psutil.Process:
        process = subprocess.Popen(
            ["sh", "-c", "sleep 600 & wait"],
            env={**os.environ, heartbeat.RUN_ID: supervisor.run_id, **variables},
            start_new_session=new_session,
        )
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        request.addfinalizer(lambda: end_all_of(supervisor))
        return psutil.Process(process.pid)

    def end_all_of(supervisor: Supervisor) -> None:
        supervisor.unkillable.clear()
        Supervisor.kill(supervisor, supervisor.processes())

    return start


def test_child_processes_are_not_counted_as_workers_and_end_with_them(tmp_path, start_for):
    supervisor = fake_run(tmp_path, "")
    supervisor.msrun = SimpleNamespace(pid=os.getpid(), poll=lambda: None)
    worker = start_for(supervisor, True, MS_ROLE="MS_WORKER", MS_NODE_ID="1")
    scheduler = start_for(supervisor, False, MS_ROLE="MS_SCHED")
    while len(supervisor.processes()) < 4:
        time.sleep(0.01)
    assert supervisor.processes("MS_WORKER") == {worker: 1}
    assert supervisor.processes("MS_SCHED") == {scheduler: -1}
    supervisor.kill_all()
    assert supervisor.processes() == {}


def test_a_process_that_cannot_be_killed_is_named_and_left_behind(tmp_path, start_for, monkeypatch, capsys):
    monkeypatch.setattr(processes, "KILLING_SECONDS", 0.3)
    supervisor = fake_run(tmp_path, "")
    supervisor.msrun = SimpleNamespace(poll=lambda: None)
    process = start_for(supervisor, True)
    monkeypatch.setattr(supervisor, "kill", lambda processes: None)  # as a process in the kernel's hands ignores it
    supervisor.kill_all()
    error = capsys.readouterr().err
    assert f" {process.pid} (sleeping)" in error and "left behind" in error
    assert process not in supervisor.processes()


def test_a_run_continues_when_its_output_cannot_be_written(tmp_path, monkeypatch):
    supervisor = fake_run(tmp_path, "")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        for _ in range(2):
            with supervisor.logs.of(0).open("a") as log:
                log.write("epoch 1/2\n")
            supervisor.show()


def test_an_error_is_not_glued_to_the_progress_bar(tmp_path, capfd):
    supervisor = fake_run(tmp_path, "")
    for output, shown in (("", ""), ("epoch 1/2\n", "epoch 1/2\n"), ("epoch 2/2: 50%", "epoch 2/2: 50%\n")):
        with supervisor.logs.of(0).open("a") as log:
            log.write(output)
        supervisor.show()
        supervisor.report("worker 1 was killed")
        assert capfd.readouterr() == (shown, "error: worker 1 was killed\n")


def test_the_message_that_others_are_lost_is_found_when_it_comes_in_pieces(tmp_path):
    supervisor = fake_run(tmp_path, "")
    for piece in ("\n" * 5000, "RunRingAllReduce] Ring wa", "it fai", "led."):
        assert supervisor.cut_off_at is None
        with supervisor.logs.of(0).open("a") as log:
            log.write(piece)
        supervisor.show()
    assert supervisor.cut_off_at is not None


@pytest.mark.slow
def test_a_scheduler_that_fails_ends_the_run(tmp_path, capfd):
    worker = f"beat(doing='step 1', waiting=True, until=None); {SLEEP}"
    supervisor = fake_run(tmp_path, worker, scheduler="time.sleep(5); sys.exit(3)")
    assert supervisor.run() == HUNG
    assert "error: msrun's scheduler has failed" in capfd.readouterr().err


@pytest.mark.slow
def test_a_machine_that_does_not_connect_is_named(tmp_path, capfd):
    cluster = replace(at_open_port(Cluster(2, master_port=0)), nodes=2, timeout=5)
    start = time.monotonic()
    assert fake_run(tmp_path, "init()", cluster, "init()").run() == HUNG
    assert time.monotonic() - start < PATIENCE
    expected = f"did not connect at 127.0.0.1:{cluster.master_port} within 5 s (--timeout): machine 1 did not connect"
    assert expected in capfd.readouterr().err


@pytest.mark.slow
def test_a_master_that_cannot_be_reached_is_named(tmp_path, capfd):
    # 127.0.0.2 is this machine, too, but msrun takes it for another.
    cluster = Cluster(2, 8118, "127.0.0.2", nodes=2, node_rank=1, timeout=5)
    assert fake_run(tmp_path, "init()", cluster, "init()").run() == HUNG
    assert "at 127.0.0.2:8118 within 5 s (--timeout): the master did not answer" in capfd.readouterr().err
