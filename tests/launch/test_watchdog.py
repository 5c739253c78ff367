"""Find the worker that hangs, by heartbeats and states of processes."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from src import heartbeat
from src.launch import watchdog
from src.launch.watchdog import Watch


@pytest.fixture
def processes() -> Iterator[dict[int, psutil.Process]]:
    """Two sleeping processes as workers: rank -> process."""
    started = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    yield {rank: psutil.Process(process.pid) for rank, process in enumerate(started)}
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def tell(tmp_path) -> Callable[..., None]:
    """Writes a worker's heartbeat; `left`: seconds to its deadline."""

    def write(rank: int, left: float | None, waiting: bool, doing: str = "step 17 of epoch 3") -> None:
        until = None if left is None else time.monotonic() + left
        text = json.dumps({"doing": doing, "waiting": waiting, "until": until})
        (tmp_path / str(rank)).write_text(f"{text:200}\n")

    return write


def stop(process: psutil.Process) -> None:
    process.suspend()
    while process.status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_workers_within_their_limits_do_not_hang(processes, tell, tmp_path):
    tell(0, 60, waiting=True)
    tell(1, None, waiting=False)
    assert Watch(tmp_path, single_machine=True).hung(processes) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"doing": 1}', '{"doing": "", "waiting": true, "until": "x"}'])
def test_unreadable_content_is_ignored(content, processes, tmp_path):
    (tmp_path / "0").write_text(content)
    assert Watch(tmp_path, single_machine=True).hung(processes) == {}


def test_the_one_that_does_not_wait_is_the_cause(processes, tell, tmp_path):
    tell(0, -1, waiting=True)
    tell(1, -2, waiting=False, doing="reading images, epoch 3")
    os.utime(tmp_path / "1", (time.time() - 47,) * 2)
    hung = Watch(tmp_path, single_machine=True).hung(processes)
    assert hung == {(1,): "worker 1 has been hanging for 47 s (reading images, epoch 3)"}


def test_a_worker_that_is_still_in_time_is_the_cause_when_the_late_ones_wait_for_it(processes, tell, tmp_path):
    tell(0, -1, waiting=True)
    tell(1, 5, waiting=False)
    assert list(Watch(tmp_path, single_machine=True).hung(processes)) == [(1,)]


def test_a_stopped_worker_is_the_cause_when_all_wait(processes, tell, tmp_path):
    tell(0, -1, waiting=True)
    tell(1, -1, waiting=True)
    stop(processes[1])
    hung = Watch(tmp_path, single_machine=True).hung(processes)
    assert hung == {(1,): "worker 1 has been stopped (by SIGSTOP or a debugger) for 0 s (step 17 of epoch 3)"}


@pytest.mark.parametrize(
    ("single_machine", "expected"),
    [
        (True, "workers 0, 1 have waited for each other for 47 s (step 17 of epoch 3): one of them hangs"),
        (False, "workers 0, 1 have waited for others for 47 s (step 17 of epoch 3): one of the run's workers hangs"),
    ],
)
def test_all_are_named_when_all_wait_though_only_the_first_is_late(single_machine, expected, processes, tell, tmp_path):
    tell(0, -1 if single_machine else -1 - watchdog.OTHERS_SECONDS, waiting=True)
    os.utime(tmp_path / "0", (time.time() - 47,) * 2)
    tell(1, 5, waiting=True)
    assert Watch(tmp_path, single_machine).hung(processes) == {(0, 1): expected}


def test_workers_that_wait_for_other_machines_get_more_time(processes, tell, tmp_path):
    tell(0, -10, waiting=True)
    tell(1, -10, waiting=True)
    assert Watch(tmp_path, single_machine=False).hung(processes) == {}
    tell(1, -1, waiting=False)
    assert list(Watch(tmp_path, single_machine=False).hung(processes)) == [(1,)]


def test_a_worker_without_a_heartbeat_may_be_the_one_that_hangs(processes, tell, tmp_path):
    tell(1, -1, waiting=True)
    expected = "worker 1 has waited for others for 0 s (step 17 of epoch 3): one of the run's workers hangs"
    assert Watch(tmp_path, single_machine=True).hung(processes) == {(1,): expected}


def test_a_single_worker_has_no_other_to_wait_for(processes, tell, tmp_path):
    tell(0, -1, waiting=True)
    hung = Watch(tmp_path, single_machine=True).hung({0: processes[0]})
    assert hung == {(0,): "worker 0 has been hanging for 0 s (step 17 of epoch 3)"}


@pytest.mark.parametrize(("at_the_disk", "named"), [(0, (0,)), (1, (0, 1))])
def test_a_worker_that_waits_for_a_disk_is_the_cause_only_if_it_is_late(
    at_the_disk, named, processes, tell, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        watchdog,
        "status",
        lambda process: psutil.STATUS_DISK_SLEEP if process == processes[at_the_disk] else psutil.STATUS_SLEEPING,
    )
    tell(0, -1, waiting=True)
    tell(1, 5, waiting=True)
    assert list(Watch(tmp_path, single_machine=True).hung(processes)) == [named]


def test_a_worker_that_stays_stopped_is_found_without_any_limit(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "STOPPED_SECONDS", 0.2)
    looks = Watch(tmp_path, single_machine=True)
    stop(processes[0])
    assert looks.hung(processes) == {}
    time.sleep(0.3)
    assert list(looks.hung(processes)) == [(0,)]
    processes[0].resume()
    while processes[0].status() == psutil.STATUS_STOPPED:
        time.sleep(0.01)
    assert looks.hung(processes) == {}


def test_the_scheduler_is_needed_until_all_workers_are_ending(processes, tell, tmp_path):
    watch = Watch(tmp_path, single_machine=True)
    assert not watch.scheduler_is_needed(processes)  # programs without heartbeats
    tell(0, 60, waiting=True, doing=heartbeat.ENDING)
    tell(1, 60, waiting=True)
    assert watch.scheduler_is_needed(processes)
    tell(1, 60, waiting=True, doing=heartbeat.ENDING)
    assert not watch.scheduler_is_needed(processes)
