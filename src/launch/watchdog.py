"""Which worker hangs, by what the workers tell of themselves and what the system tells of their processes.

A worker of rank R keeps FOLDER/R up to date, one line of JSON:

    {"doing": "step 17 of epoch 3", "waiting": true, "until": 12345.6}

`until` is when that must be over, in time.monotonic(), or null for no limit; `waiting`: it waits for other workers, so
it hangs when one of them does.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STOPPED_SECONDS = 20  # MindSpore itself gives a silent worker half a minute, and then blames another
OTHERS_SECONDS = 15  # more for who waits for other machines: MindSpore, or the launcher there, may know who is to blame


@dataclass(frozen=True)
class Beat:
    """What one worker does, since when (seconds), and until when it may."""

    doing: str
    since: float
    waiting: bool
    until: float | None


class Watch:
    """Looks at the workers of this machine.

    Args:
        folder: where they write.
        alone: there are no workers on other machines.
    """

    def __init__(self, folder: Path, alone: bool):
        self.folder = folder
        self.alone = alone
        self.stopped_since: dict[int, float] = {}

    def hung(self, workers: Mapping[int, int]) -> dict[tuple[int, ...], str]:
        """The workers that keep the run from going on, and a phrase about each, or about all that wait for each other;
        empty: none is late or stopped.

        Args:
            workers: rank -> process.
        """
        now = time.monotonic()
        states = {rank: state(process) for rank, process in workers.items()}
        stopped = {rank for rank, letter in states.items() if letter == "T"}
        self.stopped_since = {rank: self.stopped_since.get(rank, now) for rank in stopped}
        beats = {rank: beat for rank in workers if (beat := read(self.folder / str(rank))) is not None}
        late = {rank for rank, beat in beats.items() if self._ends(beat) < now}
        if not late:
            late = {rank for rank, since in self.stopped_since.items() if now - since > STOPPED_SECONDS}
        if not late:
            return {}
        single = self.alone and len(workers) == 1  # which has nobody to wait for
        working = {rank for rank, beat in beats.items() if single or not beat.waiting}
        asleep = stopped | {rank for rank in late if states[rank] == "D"}
        causes = late & working or asleep or working
        if not causes:
            return {tuple(sorted(beats)): self._wait(beats, everybody=self.alone and len(beats) == len(workers))}
        return {(rank,): self._phrase(rank, states[rank], beats.get(rank), now) for rank in sorted(causes)}

    def _ends(self, beat: Beat) -> float:
        """When what the worker does must be over."""
        if beat.until is None:
            return math.inf
        return beat.until + (OTHERS_SECONDS if beat.waiting and not self.alone else 0)

    def _phrase(self, rank: int, letter: str, beat: Beat | None, now: float) -> str:
        doing = f" ({beat.doing})" if beat else ""
        if letter == "T":
            return f"worker {rank} is stopped, as by SIGSTOP, since {now - self.stopped_since[rank]:.0f} s{doing}"
        since = f" since {beat.since:.0f} s" if beat else ""
        return f"worker {rank} hangs{since}{doing}"

    def _wait(self, beats: Mapping[int, Beat], everybody: bool) -> str:
        """Those that wait, though not whom they wait for: any of them may be what the others wait for.

        Args:
            beats: the waiting workers'.
            everybody: they are all workers of the run.
        """
        who = ", ".join(map(str, sorted(beats)))
        who = f"workers {who} wait" if len(beats) > 1 else f"worker {who} waits"
        first = max(beats.values(), key=lambda beat: beat.since)
        whom, culprit = ("each other", "one of them") if everybody else ("others", "one of the run's workers")
        return f"{who} for {whom} since {first.since:.0f} s ({first.doing}), {culprit} hangs"


def state(process: int) -> str:
    """The letter of the process's state: R runs, S sleeps, D waits for a disk, T stopped; empty: it has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def parent(process: int) -> int | None:
    """The id of the process's parent; None: it has ended."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def failed(process: int) -> bool:
    """Whether a process has ended otherwise than with 0, and its parent has not looked yet."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and fields[-1] != "0"


def read(file: Path) -> Beat | None:
    """What a worker wrote; None if it wrote nothing yet, or is just at it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        since = max(0.0, time.time() - file.stat().st_mtime)
        until = content["until"]
        return Beat(str(content["doing"]), since, bool(content["waiting"]), None if until is None else float(until))
    except (OSError, ValueError, KeyError, TypeError):
        return None
