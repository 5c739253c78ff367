"""Measure the speed of two or more workers on this machine's cores.

    python benchmarks/distributed.py [--network resnet20] [--batch_size 32] [--workers 2] [--turns 7]

Trains on CPU with one core per worker: one worker, several that are not connected, and several that average their
gradients. All of them are processes under src.launch that take turns. docs/scaling.md explains the tables;
benchmarks/scaling_model.py has the formula.
"""

import os
import queue
import shutil
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.scaling_model import Gradients, build, count_gradients, efficiency, milliseconds, table  # noqa: E402
from src import cli, runtime  # noqa: E402
from src.errors import UserError  # noqa: E402
from src.launch.cluster import Cluster, at_open_port  # noqa: E402
from src.launch.processes import Supervisor  # noqa: E402

WORKER = Path(__file__).resolve().parent / "distributed_worker.py"
REDUCTIONS = 10  # timed allreduces for one timed step


class SilentSupervisor(Supervisor):
    """Supervisor that leaves the workers' output in their logs: only the tables are printed."""

    def show(self) -> None:
        pass


class Group:
    """Workers that train together and take orders, each a process bound to its cores.

    Args:
        cores: cores of each worker; the number of entries is the number of workers.
        network, noise: the network to train.
        folder: folder for logs and the socket.
    """

    def __init__(self, name: str, cores: Sequence[Sequence[int]], network: str, noise: bool, folder: Path):
        self.name = name
        self.size = len(cores)
        self.connections: list[Connection] = []
        logs = folder / name
        logs.mkdir()
        pinned = ":".join(",".join(map(str, own)) for own in cores)
        command = [str(WORKER), str(folder / "socket"), name, pinned, network, str(int(noise))]
        self.supervisor = SilentSupervisor(at_open_port(Cluster(self.size, 0)), logs, command)

    def start(self, arrivals: queue.Queue) -> None:
        """Start the workers. When they end, their exit code goes into `arrivals`, so that `gather` notices it."""
        self.thread = threading.Thread(target=lambda: arrivals.put((self.name, self.supervisor.run())), daemon=True)
        self.thread.start()

    def tell(self, order: tuple | None) -> None:
        for connection in self.connections:
            connection.send(order)

    def answer(self) -> list[float]:
        """Seconds of each ordered call, for the slowest worker.

        Raises:
            UserError: a worker has ended.
        """
        try:
            return [max(times) for times in zip(*(connection.recv() for connection in self.connections), strict=True)]
        except EOFError as error:
            raise UserError(f"a worker of {self.name!r} has ended before its time") from error


def gather(groups: Sequence[Group], listener: Listener) -> None:
    """Start all groups and wait until every worker has connected."""
    arrivals: queue.Queue = queue.Queue()
    missing = sum(group.size for group in groups)

    def accept() -> None:
        for _ in range(missing):
            connection = listener.accept()
            arrivals.put((connection.recv(), connection))

    threading.Thread(target=accept, daemon=True).start()
    for group in groups:
        group.start(arrivals)
    by_name = {group.name: group for group in groups}
    for _ in range(missing):
        name, found = arrivals.get()
        if isinstance(found, int):
            raise UserError(f"the workers of {name!r} ended with exit code {found} before they could train")
        by_name[name].connections.append(found)


def print_measurement(network: str, noise: bool, batch_size: int, workers: int, turns: int, steps: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if workers > len(cores):
        raise UserError(f"--workers is {workers}, but there are {len(cores)} cores: give each worker its own")
    if batch_size % workers:
        raise UserError(f"--batch_size is {batch_size}, but must be a multiple of the {workers} workers")
    size = count_gradients(build(network, noise))
    single = [[core] for core in cores[:workers]]
    folder = Path(tempfile.mkdtemp(prefix="distributed_"))  # kept if a worker fails, for its log
    alone = [Group(f"alone_{number}", [own], network, noise, folder) for number, own in enumerate(single)]
    wide = Group("wide", [cores], network, noise, folder)
    joined = Group("joined", single, network, noise, folder)
    groups = [*alone, wide, joined]
    full, part, timed = ("train", batch_size, steps), ("train", batch_size // workers, steps), steps * REDUCTIONS
    runs = {
        "one": (alone[:1], full),
        "wide": ([wide], full),
        "apart": (alone, full),
        "weak": ([joined], full),
        "strong": ([joined], part),
        "tensors": ([joined], ("reduce", "tensors", timed)),
        "flat": ([joined], ("reduce", "flat", timed)),
    }
    medians: dict[str, list[float]] = {key: [] for key in runs}
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers end too
    try:
        with Listener(str(folder / "socket"), backlog=workers * 2 + 1) as listener:
            gather(groups, listener)
        for turn in range(turns + 1):  # the first turn compiles
            for key, (members, order) in runs.items():
                for group in members:
                    group.tell(order)
                times = [seconds for group in members for seconds in group.answer()]
                if turn:
                    medians[key].append(statistics.median(times))
        for group in groups:
            group.tell(None)
        for group in groups:
            group.thread.join()
    finally:
        for group in groups:
            group.supervisor.kill_all()
    shutil.rmtree(folder)
    report(f"`{network}`{' with noise modules' if noise else ''}", size, batch_size, workers, len(cores), medians)


def report(
    what: str, size: Gradients, batch_size: int, workers: int, cores: int, medians: dict[str, list[float]]
) -> None:
    """Print the two tables. A ratio is the median of the turns' ratios."""
    median = {key: statistics.median(values) for key, values in medians.items()}

    def ratio(one: str, other: str, of: Callable[[float, float], float] = lambda a, b: a / b) -> float:
        return statistics.median(of(a, b) for a, b in zip(medians[one], medians[other], strict=True))

    def spread(key: str) -> str:
        return f"{milliseconds(min(medians[key]))}-{milliseconds(max(medians[key]))}"

    rows = {
        "one": ("1 worker, 1 core", batch_size, batch_size),
        "wide": (f"1 worker, {cores} cores", batch_size, batch_size),
        "apart": (f"{workers} workers, 1 core each, not connected", batch_size, workers * batch_size),
        "weak": (f"{workers} workers, 1 core each, averaged", batch_size, workers * batch_size),
        "strong": (f"{workers} workers, 1 core each, averaged", batch_size // workers, batch_size),
    }
    print(f"{what} on CPU, medians of {len(medians['one'])} turns (the fastest and the slowest turn)\n")
    print(
        table(
            ("", "batch per worker", "step, ms", "images/s", "speed-up"),
            [
                (
                    text,
                    str(own),
                    f"{milliseconds(median[key])} ({spread(key)})",
                    f"{together / median[key]:.1f}",
                    f"{ratio('one', key) * together / batch_size:.2f}",
                )
                for key, (text, own, together) in rows.items()
            ],
        )
    )
    print(f"Their allreduce alone: {size.tensors} tensors, {size.bytes / 1e6:.2f} MB\n")
    print(
        table(
            ("", "ms", "share of a step, not connected"),
            [
                (text, f"{milliseconds(median[key])} ({spread(key)})", f"{ratio(key, 'apart'):.3f}")
                for key, text in (("tensors", "as a step does it"), ("flat", "as one tensor"))
            ],
        )
    )
    predicted = ratio("apart", "tensors", efficiency)
    print(
        f"Efficiency of {workers} workers averaged against {workers} not connected: {ratio('apart', 'weak'):.2f}; "
        f"by the formula from the allreduce alone: {predicted:.2f}"
    )


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/distributed.py", description=__doc__)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--noise", action="store_true", help="with noise modules")
    parser.add_argument("--batch_size", type=int, default=32, help="images per step and worker")
    parser.add_argument("--workers", type=int, default=2, help="at least 2, at most as many as cores")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="timed steps per turn")
    arguments = parser.parse_args(argv)
    if arguments.workers < 2:
        raise UserError(f"--workers is {arguments.workers}, but must be at least 2: one worker is measured anyway")
    if min(arguments.batch_size, arguments.turns, arguments.steps) < 1:
        raise UserError("--batch_size, --turns and --steps must be at least 1")
    runtime.prepare_environment()
    print_measurement(
        arguments.network, arguments.noise, arguments.batch_size, arguments.workers, arguments.turns, arguments.steps
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
