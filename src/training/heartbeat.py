"""What a worker is doing, in a file that the launcher of several workers reads: so a hang is seen, and whose it is.

The launcher names a folder in FDA_BNN_HEARTBEATS; without it nothing is written. Worker R rewrites the file R there: a
line of JSON, padded to a fixed length,

    {"doing": "step 17 of epoch 3", "waiting": true, "until": 12345.6}

`waiting`: it may be waiting for the others, so that it need not be the one that hangs. `until`: when on the machine's
monotonic clock, in seconds, it must have gone on to something else; null: nobody can say, as while a graph compiles.
"""

import json
import os
import time
from pathlib import Path

FOLDER = "FDA_BNN_HEARTBEATS"
LENGTH = 200  # bytes
LEAST_SECONDS = 40.0  # that anything may take
TIMES_LONGEST = 10  # and so many times what it took at most until now
SAVING_SECONDS = 600.0  # that the checkpoint, metrics and curves may take: a shared disk can be slow


class Heartbeat:
    """One worker's file; `note` costs a write of 200 bytes."""

    def __init__(self, rank: int):
        folder = os.environ.get(FOLDER)
        self.file = os.open(Path(folder) / str(rank), os.O_WRONLY | os.O_CREAT) if folder else None
        self.kind: str | None = None
        self.since = 0.0
        self.longest: dict[str, float] = {}

    def note(self, kind: str, where: str = "", waiting: bool = False, seconds: float | None = None) -> None:
        """From now on the worker does this, until the next note.

        Args:
            kind: what, the same words each time: the first time has no limit, then what was longest gives it.
            where: which one of them, for people.
            waiting: the other workers may be what it takes long for.
            seconds: the limit, where it is known.
        """
        if self.file is None:
            return
        now = time.monotonic()
        if self.kind in self.longest:
            self.longest[self.kind] = max(self.longest[self.kind], now - self.since)
        elif self.kind is not None:
            self.longest[self.kind] = 0.0  # what the first took, with its compilation, says nothing of the next
        self.kind, self.since = kind, now
        if seconds is None and kind in self.longest:
            seconds = max(LEAST_SECONDS, TIMES_LONGEST * self.longest[kind])
        content = {
            "doing": f"{kind}{where}",
            "waiting": waiting,
            "until": None if seconds is None else round(now + seconds, 1),
        }
        os.pwrite(self.file, json.dumps(content).encode().ljust(LENGTH)[:LENGTH], 0)
