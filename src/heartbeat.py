"""Heartbeats: each worker keeps a file up to date with what it is doing, so that the launcher sees which worker hangs.

`Heartbeat` is the worker's end, `read` the launcher's. The launcher names a folder in FDA_BNN_HEARTBEATS; without that
variable nothing is written. Worker R rewrites the file R there: a line of JSON, padded to a fixed length,

    {"doing": "step 17 of epoch 3", "waiting": true, "until": 12345.6}

`waiting`: the worker may be waiting for other workers, so that it need not be the one that hangs. `until`: the time, in
seconds of the machine's monotonic clock, by which the worker must have gone on to something else; null: no limit.

The worker in turn checks that the launcher lives: if the launcher was killed, nobody else would end the run.
"""

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

FOLDER = "FDA_BNN_HEARTBEATS"
HANG_SECONDS = "FDA_BNN_HANG_SECONDS"  # replaces MIN_SECONDS; 0: nothing has a limit
RUN_ID = "FDA_BNN_RUN_ID"  # the launcher's process id, a dash, and a random number: the run that a process belongs to
LENGTH = 200  # bytes
ENDING = "ending"  # the last note of a worker that has finished
MIN_SECONDS = 25.0  # allowed for anything; after 30 s MindSpore's collectives on CPU give up and blame another worker
FIRST_SECONDS = 1800.0  # allowed for the first of a kind, which may compile a graph
TIMES_LONGEST = 10  # allowed for later ones: so many times the longest until now
SAVING_SECONDS = 600.0  # allowed for writing checkpoint, metrics and curves: a shared disk can be slow


class Heartbeat:
    """One worker's file. A call of `note` costs a write of 200 bytes.

    Args:
        rank: the worker's.
    """

    def __init__(self, rank: int):
        folder = os.environ.get(FOLDER)
        self.path = Path(folder) / str(rank) if folder else None
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT) if self.path else None
        self.min_seconds = float(os.environ.get(HANG_SECONDS, MIN_SECONDS))
        run_id = os.environ.get(RUN_ID)
        self.launcher = int(run_id.partition("-")[0]) if run_id else None
        self.asked_to_stop = False
        self.kind: str | None = None
        self.since = 0.0
        self.first: dict[str, float] = {}
        self.longest: dict[str, float] = {}

    def note(self, kind: str, where: str = "", waiting: bool = False, seconds: float | None = None) -> None:
        """Write down what the worker does from now until the next note. If the launcher has ended, send SIGTERM to this
        process, once, so that it saves and ends.

        Args:
            kind: what, in the same words each time: the limit follows from how long this kind took before.
            where: which one of that kind, for people.
            waiting: whether the worker may be waiting for other workers.
            seconds: the limit, if it is known.
        """
        if self.file is None:
            return
        now = time.monotonic()
        if self.kind in self.first:
            self.longest[self.kind] = max(self.longest.get(self.kind, 0.0), now - self.since)
        elif self.kind is not None:
            self.first[self.kind] = now - self.since
        self.kind, self.since = kind, now
        limit = max(self.min_seconds, self._usual_limit(kind) if seconds is None else seconds)
        until = round(now + limit, 1) if self.min_seconds else None
        self._write({"doing": f"{kind}{where}", "waiting": waiting, "until": until})
        saving = seconds is not None  # perhaps after a signal: a second one would end the worker at once
        if not saving and not self.asked_to_stop and self._launcher_has_ended():
            self.asked_to_stop = True
            os.kill(os.getpid(), signal.SIGTERM)

    def end(self) -> None:
        """Write down that this worker has finished. If the launcher has ended, which would delete the files, remove
        this worker's, and the folder if it is the last."""
        self.note(ENDING, seconds=SAVING_SECONDS)
        if self.file is None or not self._launcher_has_ended():
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(self.path.stat(), os.fstat(self.file)):  # not that of a later run
                self.path.unlink()
                self.path.parent.rmdir()

    def _launcher_has_ended(self) -> bool:
        return self.launcher is not None and has_ended(self.launcher)

    def _write(self, content: dict) -> None:
        """Rewrite the file. If that fails (a full disk), remove it: an old note would look like a worker that hangs."""
        try:
            os.pwrite(self.file, json.dumps(content).encode().ljust(LENGTH)[:LENGTH], 0)
        except OSError:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def _usual_limit(self, kind: str) -> float:
        """Seconds allowed by what this kind took before. The first, which may compile, counts only for the second."""
        if kind not in self.first:
            return FIRST_SECONDS
        return TIMES_LONGEST * self.longest[kind] if kind in self.longest else self.first[kind]


@dataclass(frozen=True)
class Beat:
    """What one worker is doing, for how many seconds now, and until when it may."""

    doing: str
    since: float
    waiting: bool
    until: float | None


def read(folder: Path, rank: int) -> Beat | None:
    """The worker's last note. None if there is none yet, or it is being written."""
    file = folder / str(rank)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        since = max(0.0, time.time() - file.stat().st_mtime)
        until = content["until"]
        return Beat(str(content["doing"]), since, bool(content["waiting"]), None if until is None else float(until))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def has_ended(process: int) -> bool:
    """Whether there is no such process any more, or only a zombie."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
