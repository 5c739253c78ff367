"""Find the worker that hangs, by the workers' heartbeats and the states of their processes."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from .. import heartbeat
from ..heartbeat import Beat

STOPPED_SECONDS = 20  # MindSpore waits half a minute for a silent worker, and then blames another one
# Added to the limits of workers that wait for other machines: MindSpore or the launcher there may know the cause.
OTHERS_SECONDS = 15


class Watch:
    """Watches the workers of this machine.

    Args:
        folder: folder of the heartbeats.
        single_machine: whether there are no workers on other machines.
    """

    def __init__(self, folder: Path, single_machine: bool):
        self.folder = folder
        self.single_machine = single_machine
        self.stopped_since: dict[int, float] = {}

    def hung(self, workers: Mapping[int, psutil.Process]) -> dict[tuple[int, ...], str]:
        """The workers that block the run, with a phrase about each of them, or one phrase about all workers if they
        wait for each other. Empty if none is late or stopped.

        Args:
            workers: rank -> process.
        """
        now = time.monotonic()
        states = {rank: status(process) for rank, process in workers.items()}
        stopped = {rank for rank, state in states.items() if state == psutil.STATUS_STOPPED}
        self.stopped_since = {rank: self.stopped_since.get(rank, now) for rank in stopped}
        beats = {rank: beat for rank in workers if (beat := heartbeat.read(self.folder, rank)) is not None}
        late = {rank for rank, beat in beats.items() if self._deadline(beat) < now}
        if not late:
            late = {rank for rank, since in self.stopped_since.items() if now - since > STOPPED_SECONDS}
        if not late:
            return {}
        only_worker = self.single_machine and len(workers) == 1  # has no other worker to wait for
        working = {rank for rank, beat in beats.items() if only_worker or not beat.waiting}
        asleep = stopped | {rank for rank in late if states[rank] == psutil.STATUS_DISK_SLEEP}
        causes = late & working or asleep or working
        if not causes:
            everybody = self.single_machine and len(beats) == len(workers)
            return {tuple(sorted(beats)): self._phrase_about_all(beats, everybody)}
        return {(rank,): self._phrase(rank, states[rank], beats.get(rank), now) for rank in sorted(causes)}

    def scheduler_is_needed(self, workers: Mapping[int, psutil.Process]) -> bool:
        """Whether a worker has not finished yet and so needs msrun's scheduler."""
        beats = (heartbeat.read(self.folder, rank) for rank in workers)
        return any(beat is not None and beat.doing != heartbeat.ENDING for beat in beats)

    def _deadline(self, beat: Beat) -> float:
        """The time by which the worker's current action must end."""
        if beat.until is None:
            return math.inf
        return beat.until + (OTHERS_SECONDS if beat.waiting and not self.single_machine else 0)

    def _phrase(self, rank: int, state: str, beat: Beat | None, now: float) -> str:
        doing = f" ({beat.doing})" if beat else ""
        if state == psutil.STATUS_STOPPED:
            return (
                f"worker {rank} has been stopped (by SIGSTOP or a debugger) for {now - self.stopped_since[rank]:.0f} s"
                f"{doing}"
            )
        since = f" for {beat.since:.0f} s" if beat else ""
        return f"worker {rank} has been hanging{since}{doing}"

    def _phrase_about_all(self, beats: Mapping[int, Beat], everybody: bool) -> str:
        """A phrase about workers that all wait: any of them may be the one that the others wait for.

        Args:
            beats: heartbeats of the waiting workers, by rank.
            everybody: whether these are all workers of the run.
        """
        numbers = ", ".join(map(str, sorted(beats)))
        who = f"workers {numbers} have" if len(beats) > 1 else f"worker {numbers} has"
        first = max(beats.values(), key=lambda beat: beat.since)
        whom, culprit = ("each other", "one of them") if everybody else ("others", "one of the run's workers")
        return f"{who} waited for {whom} for {first.since:.0f} s ({first.doing}): {culprit} hangs"


def status(process: psutil.Process) -> str:
    """The state of the process, a STATUS_ constant of psutil; empty if it has ended."""
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return ""
