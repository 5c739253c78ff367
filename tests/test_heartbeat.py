"""What a worker writes for its launcher: how long what it does may take; and what it does without a launcher."""

import json
import os
import signal
import subprocess
import sys

import pytest

from src import heartbeat
from src.heartbeat import FIRST_SECONDS, MIN_SECONDS, SAVING_SECONDS, Heartbeat


class Clock:
    """A clock that stands still until it is set forward."""

    def __init__(self):
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(tmp_path, monkeypatch) -> Clock:
    """Stands in for the machine's clock; a launcher waits for what is written to tmp_path."""
    clock = Clock()
    monkeypatch.setattr(heartbeat, "time", clock)
    monkeypatch.setenv(heartbeat.FOLDER, str(tmp_path))
    monkeypatch.delenv(heartbeat.LAUNCH, raising=False)
    return clock


@pytest.fixture
def limit(clock, tmp_path):
    """The seconds that the worker has from now on; None: no limit."""

    def read() -> float | None:
        until = json.loads((tmp_path / "0").read_text())["until"]
        return until if until is None else pytest.approx(until - clock.seconds, abs=0.1)

    return read


def test_the_second_of_a_kind_may_take_as_long_as_the_first_and_later_ones_ten_times_the_longest(clock, limit):
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
    monkeypatch.setenv(heartbeat.MIN_SECONDS_VARIABLE, least)
    beat, limits = Heartbeat(0), []
    for seconds in (None, None, SAVING_SECONDS):
        beat.note("step", seconds=seconds)
        limits.append(limit())
    assert limits == expected


@pytest.mark.parametrize("waited_for", [True, False], ids=["gone", "zombie"])
def test_a_worker_whose_launcher_has_ended_asks_itself_once_to_stop(waited_for, clock, monkeypatch):
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monkeypatch.setenv(heartbeat.LAUNCH, f"{launcher.pid}-0123abcd")
        beat = Heartbeat(0)
        beat.note("step")
        assert received == []
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
    finally:
        signal.signal(signal.SIGTERM, before)
        launcher.kill()
        launcher.communicate()
