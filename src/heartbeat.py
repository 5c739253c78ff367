"""What a worker is doing, in a file that the launcher of several workers reads: so a hang is seen, and whose it is.

The launcher names a folder in FDA_BNN_HEARTBEATS; without it nothing is written. Worker R rewrites the file R there: a
line of JSON, padded to a fixed length,

    {"doing": "step 17 of epoch 3", "waiting": true, "until": 12345.6}

`waiting`: it may be waiting for the others, so that it need not be the one that hangs. `until`: when on the machine's
monotonic clock, in seconds, it must have gone on to something else; null: no limit, as FDA_BNN_HANG_SECONDS=0 asks for.

The worker looks after the launcher in turn: when that has been killed, nobody else would end the run.
"""

import json
import os
import signal
import time
from pathlib import Path

FOLDER = "FDA_BNN_HEARTBEATS"
MIN_SECONDS_VARIABLE = "FDA_BNN_HANG_SECONDS"  # instead of MIN_SECONDS; 0: nothing has a limit
LAUNCH = "FDA_BNN_LAUNCH"  # the launcher's process id, a dash, and what tells its runs apart
LENGTH = 200  # bytes
MIN_SECONDS = 25.0  # that anything may take; after 30 MindSpore's collectives on CPU give up, and blame another
FIRST_SECONDS = 1800.0  # that the first of a kind may take: a graph compiles
TIMES_LONGEST = 10  # and so many times what it took at most until now
SAVING_SECONDS = 600.0  # that the checkpoint, metrics and curves may take: a shared disk can be slow


class Heartbeat:
    """One worker's file; `note` costs a write of 200 bytes."""

    def __init__(self, rank: int):
        folder = os.environ.get(FOLDER)
        self.file = os.open(Path(folder) / str(rank), os.O_WRONLY | os.O_CREAT) if folder else None
        self.least = float(os.environ.get(MIN_SECONDS_VARIABLE, MIN_SECONDS))
        launcher = os.environ.get(LAUNCH)
        self.launcher = int(launcher.partition("-")[0]) if launcher else None
        self.kind: str | None = None
        self.since = 0.0
        self.first: dict[str, float] = {}
        self.longest: dict[str, float] = {}

    def note(self, kind: str, where: str = "", waiting: bool = False, seconds: float | None = None) -> None:
        """From now on the worker does this, until the next note. Without its launcher it asks itself to stop, once.

        Args:
            kind: what, the same words each time: what it took before gives the limit.
            where: which one of them, for people.
            waiting: the other workers may be what it takes long for.
            seconds: the limit, where it is known.
        """
        if self.file is None:
            return
        now = time.monotonic()
        if self.kind in self.first:
            self.longest[self.kind] = max(self.longest.get(self.kind, 0.0), now - self.since)
        elif self.kind is not None:
            self.first[self.kind] = now - self.since
        self.kind, self.since = kind, now
        limit = max(self.least, self._usual(kind) if seconds is None else seconds)
        content = {
            "doing": f"{kind}{where}",
            "waiting": waiting,
            "until": round(now + limit, 1) if self.least else None,
        }
        os.pwrite(self.file, json.dumps(content).encode().ljust(LENGTH)[:LENGTH], 0)
        saving = seconds is not None  # perhaps because of a signal: a second would end it at once
        if self.launcher is not None and not saving and _has_ended(self.launcher):
            self.launcher = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _usual(self, kind: str) -> float:
        """The seconds that this kind may take by what it took; the first, with its compilation, counts for the second
        alone."""
        if kind not in self.first:
            return FIRST_SECONDS
        return TIMES_LONGEST * self.longest[kind] if kind in self.longest else self.first[kind]


def _has_ended(process: int) -> bool:
    """Whether it has gone, or is but a zombie that nobody asks about."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:  # another user's, or no such file system
        return False
