"""What several devices bring: bytes of gradients, the time of an allreduce on paper, and workers measured here.

    python benchmarks/distributed.py model [--network resnet20 --batch_size 128 --images_per_second 2000 20000]
    python benchmarks/distributed.py measure [--network resnet20] [--batch_size 32] [--workers 2] [--turns 7]

`model` counts the gradients of every network and puts them into a formula; links and the devices' speeds are
assumptions, named in its tables. `measure` trains on CPU, one core a worker: one worker, several that do not know of
each other, and several whose gradients are averaged, all of them processes under src.launch that take turns.
docs/scaling.md explains both.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from src import cli, runtime  # noqa: E402
from src.errors import UserError  # noqa: E402
from src.launch import cluster as clusters  # noqa: E402
from src.launch.processes import Launch  # noqa: E402

WORKER = Path(__file__).resolve().parent / "distributed_worker.py"
COUNTS = (2, 4, 8, 16, 32, 64)
BACKWARD_SHARE = 2 / 3  # of a step's computing: two products for one of the forward (assumption)
BUCKETS = 4  # messages of a sensible fusion
REDUCTIONS = 10  # timed allreduces for one timed step


@dataclass(frozen=True)
class Link:
    """bandwidth: nominal bytes a second in one direction; share: what of it a collective gets; latency: seconds a
    message and hop."""

    name: str
    bandwidth: float
    share: float
    latency: float
    source: str

    @property
    def speed(self) -> float:
        """Bytes a second that the model reckons with."""
        return self.bandwidth * self.share


@dataclass(frozen=True)
class Cluster:
    """Machines of `devices` devices each, joined by `inside`; a machine has one `between`, which its devices share."""

    inside: Link
    between: Link
    devices: int

    @property
    def name(self) -> str:
        if self.devices == 1:
            return f"{self.between.name}, one device a machine"
        return f"{self.inside.name}, then {self.between.name}"


PCIE = Link("PCIe 4.0 x16", 31.5e9, 0.6, 10e-6, "16 lanes of 16 GT/s, 128b/130b")
HCCS = Link("HCCS", 90e9, 0.6, 10e-6, "three links of 30 GB/s a device: assumption")
NVLINK = Link("NVLink 3", 300e9, 0.65, 5e-6, "NVIDIA: A100, 600 GB/s both directions together")
ROCE = Link("100 Gbit/s RoCE", 12.5e9, 0.8, 10e-6, "its name")
ETHERNET_25 = Link("25 Gbit/s Ethernet", 3.125e9, 0.8, 30e-6, "its name")
ETHERNET_10 = Link("10 Gbit/s Ethernet", 1.25e9, 0.8, 30e-6, "its name")
LINKS = (NVLINK, HCCS, PCIE, ROCE, ETHERNET_25, ETHERNET_10)
CLUSTERS = (
    Cluster(NVLINK, ROCE, 8),
    Cluster(HCCS, ROCE, 8),
    Cluster(PCIE, ETHERNET_25, 8),
    Cluster(PCIE, ETHERNET_10, 8),
    Cluster(ETHERNET_10, ETHERNET_10, 1),
)


@dataclass(frozen=True)
class Case:
    """A network on some accelerator: images a step and device, and two guesses at the images a second of a device."""

    network: str
    batch_size: int
    images_per_second: tuple[float, float]


CASES = (Case("resnet20", 128, (2_000, 20_000)), Case("resnet18", 64, (200, 2_000)))


@dataclass(frozen=True)
class Gradients:
    """What a step averages over the workers: values, tensors, and bytes on the wire, in float32."""

    values: int
    tensors: int

    @property
    def bytes(self) -> int:
        return 4 * self.values


def ring_allreduce(workers: int, size: float, speed: float, latency: float, messages: int = 1) -> float:
    """Seconds of a ring allreduce: 2 (k-1)/k size / speed + 2 (k-1) latency messages (Patarasuk and Yuan, 2009).

    Args:
        workers: k, in one ring; 1 takes no time.
        size: bytes of all messages together.
        speed: bytes a second from one worker to the next.
        latency: seconds a message and hop.
        messages: how many allreduces the bytes are split into.
    """
    return 2 * (workers - 1) * (size / workers / speed + latency * messages)


def allreduce(workers: int, size: float, cluster: Cluster, messages: int = 1) -> float:
    """Seconds on a cluster: a ring inside each machine, and one between the machines.

    Each device reduces its share inside, averages it with its peers of the other machines, and passes it on inside.
    The peers' rings share the machine's link, so that together they take as long as one ring of all the bytes.

    Raises:
        ValueError: more workers than a machine has devices, but not in full machines.
    """
    if workers <= cluster.devices:
        return ring_allreduce(workers, size, cluster.inside.speed, cluster.inside.latency, messages)
    machines, rest = divmod(workers, cluster.devices)
    if rest:
        raise ValueError(f"{workers} workers do not fill machines of {cluster.devices} devices")
    inside = ring_allreduce(cluster.devices, size, cluster.inside.speed, cluster.inside.latency, messages)
    return inside + ring_allreduce(machines, size, cluster.between.speed, cluster.between.latency, messages)


def efficiency(compute: float, communication: float, overlap: float = 0.0) -> float:
    """The share of k times one worker's speed that k workers reach with the same batch a worker.

    Args:
        compute: seconds of a step without communication.
        communication: seconds of the allreduce, 0 for one worker.
        overlap: the share of the backward pass during which communication can run unnoticed, 0 .. 1.
    """
    return compute / (compute + max(0.0, communication - overlap * BACKWARD_SHARE * compute))


def count_gradients(network) -> Gradients:
    """Counts what the optimizer is given to update."""
    from mindspore import nn

    from src.optimizers import parameter_groups

    optimizer = nn.Momentum(parameter_groups(network, weight_decay=1e-4, decay_all=True), 0.1, 0.9)
    return Gradients(sum(parameter.size for parameter in optimizer.parameters), len(optimizer.parameters))


def build(name: str, noise: bool):
    """The network, with as many classes as its data set.

    Raises:
        UserError: there is none of that name.
    """
    from src.binary import Binarization
    from src.models import create_model

    try:
        return create_model(name, binarization=Binarization(noise_adaptation=noise))
    except ValueError as error:
        raise UserError(str(error)) from error


def gradient_types(level: str) -> str:
    """The dtypes of the gradients of ResNet-20 at an amp level, measured, eagerly."""
    import mindspore as ms
    import numpy as np
    from mindspore import amp, nn

    from src.training.step import TrainStep

    network = build("resnet20", noise=False)
    if level != "O0":
        amp.auto_mixed_precision(network, level)
    step = TrainStep(network, nn.CrossEntropyLoss(), nn.Momentum(network.trainable_params(), 0.1, 0.9))
    images = ms.Tensor(np.zeros((2, 3, 32, 32), np.float32))
    _, gradients = step.value_and_grad(images, ms.Tensor([0, 1], ms.int32))
    return ", ".join(sorted({str(gradient.dtype) for gradient in gradients}))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{seconds * 1e3:.3g}'):,g}"


def print_model(cases: Sequence[Case]) -> None:
    import mindspore as ms

    from src.models.registry import NETWORKS

    ms.set_context(mode=ms.PYNATIVE_MODE)
    sizes = {(name, noise): count_gradients(build(name, noise)) for name in NETWORKS for noise in (False, True)}
    print("Gradients a step, float32: without / with noise modules\n")
    print(
        table(
            ("network", "trainable values", "tensors", "MB"),
            [
                (
                    f"`{name}`",
                    " / ".join(f"{sizes[name, noise].values:,}" for noise in (False, True)),
                    " / ".join(str(sizes[name, noise].tensors) for noise in (False, True)),
                    " / ".join(f"{sizes[name, noise].bytes / 1e6:.2f}" for noise in (False, True)),
                )
                for name in NETWORKS
            ],
        )
    )
    types = "; ".join(f"{level}: {gradient_types(level)}" for level in ("O0", "O2", "O3"))
    print(f"Types of resnet20's gradients by amp.level: {types}\n")
    print("Links, one direction; share and latency are assumptions\n")
    print(
        table(
            ("link", "nominal GB/s", "from", "share", "latency, us"),
            [
                (link.name, f"{link.bandwidth / 1e9:g}", link.source, f"{link.share:g}", f"{link.latency * 1e6:g}")
                for link in LINKS
            ],
        )
    )
    for text, fused in (("all gradients as one message", True), ("a message a tensor", False)):
        print(f"Allreduce on paper, ms on 8 / 64 devices: {text}, without noise modules\n")
        times = {
            (cluster, name): " / ".join(
                milliseconds(
                    allreduce(k, sizes[name, False].bytes, cluster, 1 if fused else sizes[name, False].tensors)
                )
                for k in (8, 64)
            )
            for cluster in CLUSTERS
            for name in NETWORKS
        }
        print(
            table(
                ("", *(f"`{name}`" for name in NETWORKS)),
                [(cluster.name, *(times[cluster, name] for name in NETWORKS)) for cluster in CLUSTERS],
            )
        )
    for case in cases:
        print_efficiency(case, sizes[case.network, False])


def print_efficiency(case: Case, gradients: Gradients) -> None:
    steps = [case.batch_size / rate for rate in case.images_per_second]
    speeds = " / ".join(f"{rate:,.0f}" for rate in case.images_per_second)
    heading = f"`{case.network}`, batch {case.batch_size} a device, efficiency on paper"
    print(f"{heading}: devices of {speeds} images/s (assumptions); one message, no overlap\n")
    print(
        table(
            ("workers", *map(str, COUNTS)),
            [
                (
                    cluster.name,
                    *(
                        " / ".join(f"{efficiency(step, allreduce(k, gradients.bytes, cluster)):.2f}" for step in steps)
                        for k in COUNTS
                    ),
                )
                for cluster in CLUSTERS
            ],
        )
    )
    ways = {
        "one message, no overlap": (1, 0.0),
        f"{BUCKETS} messages, overlap": (BUCKETS, 1 - 1 / BUCKETS),
        f"{gradients.tensors} messages, overlap": (gradients.tensors, 1 - 1 / gradients.tensors),
        f"{gradients.tensors} messages, no overlap": (gradients.tensors, 0.0),
    }
    print(f"{heading}: devices of {case.images_per_second[-1]:,.0f} images/s, on 8 / 64\n")
    print(
        table(
            ("", *ways),
            [
                (
                    cluster.name,
                    *(
                        " / ".join(
                            f"{efficiency(steps[-1], allreduce(k, gradients.bytes, cluster, messages), overlap):.2f}"
                            for k in (8, 64)
                        )
                        for messages, overlap in ways.values()
                    ),
                )
                for cluster in CLUSTERS
            ],
        )
    )


class Silent(Launch):
    """A launch whose workers' words stay in their logs: the tables are all that is printed."""

    def show(self) -> None:
        pass


class Group:
    """Workers that train together, each a process pinned to its cores, that do what they are told.

    Args:
        cores: those of each worker; as many workers as entries.
        network, noise: what they train.
        folder: for logs and the socket.
    """

    def __init__(self, name: str, cores: Sequence[Sequence[int]], network: str, noise: bool, folder: Path):
        self.name = name
        self.size = len(cores)
        self.connections: list[Connection] = []
        logs = folder / name
        logs.mkdir()
        pinned = ":".join(",".join(map(str, own)) for own in cores)
        command = [str(WORKER), str(folder / "socket"), name, pinned, network, str(int(noise))]
        self.launch = Silent(clusters.at_open_port(clusters.Cluster(self.size, 0)), logs, command)

    def start(self, arrivals: queue.Queue) -> None:
        """Launches the workers; their end goes into `arrivals`, where an early one is noticed."""
        self.thread = threading.Thread(target=lambda: arrivals.put((self.name, self.launch.run())), daemon=True)
        self.thread.start()

    def tell(self, order: tuple | None) -> None:
        for connection in self.connections:
            connection.send(order)

    def answer(self) -> list[float]:
        """Seconds of each call that was ordered: those of the slowest worker.

        Raises:
            UserError: a worker has ended.
        """
        try:
            return [max(times) for times in zip(*(connection.recv() for connection in self.connections), strict=True)]
        except EOFError as error:
            raise UserError(f"a worker of {self.name!r} has ended before its time") from error


def gather(groups: Sequence[Group], listener: Listener) -> None:
    """Starts all groups and waits until every worker has called."""
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
        raise UserError(f"--workers is {workers}, but there are {len(cores)} cores: give each worker one of its own")
    if batch_size % workers:
        raise UserError(f"--batch_size is {batch_size}, but must be a multiple of the {workers} workers")
    size = count_gradients(build(network, noise))
    single = [[core] for core in cores[:workers]]
    folder = Path(tempfile.mkdtemp(prefix="distributed_"))  # it stays where a worker fails: its log is there
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
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the workers are to end, too
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
            group.launch.kill_all()
    shutil.rmtree(folder)
    report(f"`{network}`{' with noise modules' if noise else ''}", size, batch_size, workers, len(cores), medians)


def report(
    what: str, size: Gradients, batch_size: int, workers: int, cores: int, medians: dict[str, list[float]]
) -> None:
    """Prints the two tables; a ratio is the median of the turns' own ratios."""
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
            ("", "batch a worker", "step, ms", "images/s", "speed-up"),
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
            ("", "ms", "of a step apart"),
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="model|measure")
    model = commands.add_parser("model", help="bytes of gradients, and efficiency on paper")
    model.add_argument("--network", help="default: resnet20 and resnet18, with guesses of their own")
    model.add_argument("--batch_size", type=int, default=128, help="images a step and device, with --network")
    model.add_argument(
        "--images_per_second", type=float, nargs=2, default=(2_000.0, 20_000.0), metavar=("SLOW", "FAST")
    )
    measure = commands.add_parser("measure", help="workers on this machine's cores")
    measure.add_argument("--network", default="resnet20")
    measure.add_argument("--noise", action="store_true", help="with noise modules")
    measure.add_argument("--batch_size", type=int, default=32, help="images a step and worker")
    measure.add_argument("--workers", type=int, default=2, help="at least 2, at most as many as cores")
    measure.add_argument("--turns", type=int, default=7)
    measure.add_argument("--steps", type=int, default=3, help="timed steps a turn")
    arguments = parser.parse_args(argv)
    runtime.prepare_environment()
    if arguments.command == "model":
        if min(arguments.batch_size, *arguments.images_per_second) <= 0:
            raise UserError("--batch_size and --images_per_second must be above 0")
        cases = CASES
        if arguments.network:
            build(arguments.network, noise=False)  # refuses an unknown name before the long count
            cases = (Case(arguments.network, arguments.batch_size, tuple(arguments.images_per_second)),)
        print_model(cases)
        return 0
    if arguments.workers < 2:
        raise UserError(f"--workers is {arguments.workers}, but must be at least 2: one worker is measured anyway")
    if min(arguments.batch_size, arguments.turns, arguments.steps) < 1:
        raise UserError("--batch_size, --turns and --steps must be at least 1")
    print_measurement(
        arguments.network, arguments.noise, arguments.batch_size, arguments.workers, arguments.turns, arguments.steps
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
