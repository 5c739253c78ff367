"""A worker's heartbeat: what it writes, how long a thing may take, and what happens when the launcher has ended."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from src import heartbeat
from src.heartbeat import FIRST_SECONDS, MIN_SECONDS, SAVING_SECONDS, Heartbeat


class Clock:
    """A clock that advances only when told to."""

    def __init__(self):
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    time = monotonic


@pytest.fixture
def clock(tmp_path, monkeypatch) -> Clock:
    """Replaces the machine's clock. Heartbeats go to tmp_path."""
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setenv(heartbeat.FOLDER, str(tmp_path))
    monkeypatch.delenv(heartbeat.RUN_ID, raising=False)
    return clock


@pytest.fixture
def limit(clock, tmp_path):
    """The seconds that the worker has from now on; None: no limit."""

    def read() -> float | None:
        until = json.loads((tmp_path / "0").read_text())["until"]
        return until if until is None else pytest.approx(until - clock.seconds, abs=0.1)

    return read


def test_limits_follow_the_first_and_the_longest_action(clock, limit):
    beat, limits = Heartbeat(0), []
    for took in (300.0, 200.0, 20.0, 1.0):
        beat.note("step", f" of {took} s", waiting=True)
        limits.append(limit())
        clock.seconds += took
        beat.note("reading images")
    assert limits == [FIRST_SECONDS, 300.0, 2000.0, 2000.0]


def test_nothing_has_less_than_the_least_limit(clock, limit):
    beat, limits = Heartbeat(0), []
    for _ in range(4):
        beat.note("step")
        limits.append(limit())
        clock.seconds += 0.5
    assert limits == [FIRST_SECONDS, *[MIN_SECONDS] * 3]


@pytest.mark.parametrize(
    ("least", "expected"),
    [("5", [FIRST_SECONDS, 5.0, SAVING_SECONDS]), ("7200", [7200.0] * 3), ("0", [None] * 3)],
)
def test_the_launcher_may_set_the_least_limit_or_none(least, expected, clock, limit, monkeypatch):
    monkeypatch.setenv(heartbeat.HANG_SECONDS, least)
    beat, limits = Heartbeat(0), []
    for seconds in (None, None, SAVING_SECONDS):
        beat.note("step", seconds=seconds)
        limits.append(limit())
    assert limits == expected


def test_the_launcher_reads_what_the_worker_wrote(clock, tmp_path):
    Heartbeat(3).note("step", " 17 of epoch 3", waiting=True)
    found = heartbeat.read(tmp_path, 3)
    assert (found.doing, found.waiting, found.until) == ("step 17 of epoch 3", True, clock.seconds + FIRST_SECONDS)
    assert heartbeat.read(tmp_path, 0) is None


def test_a_heartbeat_that_cannot_be_written_is_removed(clock, tmp_path, monkeypatch):
    """An old one would look like a worker that hangs."""
    beat = Heartbeat(0)
    beat.note("step")

    def full_disk(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    beat.note("step")
    assert not (tmp_path / "0").exists() and heartbeat.read(tmp_path, 0) is None


def test_a_worker_leaves_the_heartbeats_of_a_later_run(clock, tmp_path, monkeypatch):
    monkeypatch.setenv(heartbeat.RUN_ID, "1-0123abcd")
    monkeypatch.setattr(heartbeat, "has_ended", lambda process: True)
    old = Heartbeat(0)
    (tmp_path / "0").unlink()
    Heartbeat(0)
    old.end()
    assert (tmp_path / "0").exists()


@pytest.mark.parametrize("waited_for", [True, False], ids=["gone", "zombie"])
def test_a_worker_whose_launcher_has_ended_asks_itself_once_to_stop(waited_for, clock, tmp_path, monkeypatch):
    """And at its end it removes its heartbeat, which the launcher would have deleted."""
    received = []
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    monkeypatch.setenv(heartbeat.FOLDER, str(folder))
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setenv(heartbeat.RUN_ID, f"{launcher.pid}-0123abcd")
        beat = Heartbeat(0)
        beat.note("step")
        assert received == []
        other = Heartbeat(1)
        other.end()
        assert heartbeat.read(folder, 1).doing == heartbeat.ENDING
        launcher.kill()
        if waited_for:
            launcher.wait()
        else:
            os.waitid(os.P_PID, launcher.pid, os.WEXITED | os.WNOWAIT)
        beat.note("saving", seconds=SAVING_SECONDS)
        assert received == []
        beat.note("step")
        beat.note("step")
        assert received == [signal.SIGTERM]
        other.end()
        assert [path.name for path in folder.iterdir()] == ["0"]
        beat.end()
        assert received == [signal.SIGTERM] and not folder.exists()
    finally:
        signal.signal(signal.SIGTERM, before)
        launcher.kill()
        launcher.communicate()
