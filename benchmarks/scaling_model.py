"""Estimate the cost of several devices: bytes of gradients, time of an allreduce, and efficiency.

    python benchmarks/scaling_model.py [--network resnet20 --batch_size 128 --images_per_second 2000 20000]

Counts the gradients of every network and puts them into a formula. The speeds of links and devices are assumptions,
named in its tables. docs/scaling.md explains them; benchmarks/distributed.py measures.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from src import cli, runtime  # noqa: E402
from src.errors import UserError  # noqa: E402

COUNTS = (2, 4, 8, 16, 32, 64)
BACKWARD_SHARE = 2 / 3  # of a step's computing: two products for each product of the forward pass (assumption)
BUCKETS = 4  # number of messages with a reasonable fusion


@dataclass(frozen=True)
class Link:
    """bandwidth: nominal bytes per second in one direction; share: the part of it that a collective reaches; latency:
    seconds per message and hop."""

    name: str
    bandwidth: float
    share: float
    latency: float
    source: str

    @property
    def speed(self) -> float:
        """Bytes per second that the model assumes."""
        return self.bandwidth * self.share


@dataclass(frozen=True)
class Cluster:
    """Machines with `devices` devices each, connected by `inside`. The devices of a machine share one `between`."""

    inside: Link
    between: Link
    devices: int

    @property
    def name(self) -> str:
        if self.devices == 1:
            return f"{self.between.name}, one device per machine"
        return f"{self.inside.name}, then {self.between.name}"


PCIE = Link("PCIe 4.0 x16", 31.5e9, 0.6, 10e-6, "16 lanes of 16 GT/s, 128b/130b")
HCCS = Link("HCCS", 90e9, 0.6, 10e-6, "three links of 30 GB/s per device: assumption")
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
    """A network on an accelerator: images per step and device, and two assumed speeds of a device in images/s."""

    network: str
    batch_size: int
    images_per_second: tuple[float, float]


CASES = (Case("resnet20", 128, (2_000, 20_000)), Case("resnet18", 64, (200, 2_000)))


@dataclass(frozen=True)
class Gradients:
    """The gradients that a step averages over the workers: float32 values, tensors, and bytes sent."""

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
        speed: bytes per second from one worker to the next.
        latency: seconds per message and hop.
        messages: number of allreduces into which the bytes are split.
    """
    return 2 * (workers - 1) * (size / workers / speed + latency * messages)


def allreduce(workers: int, size: float, cluster: Cluster, messages: int = 1) -> float:
    """Seconds of an allreduce on a cluster: a ring inside each machine, and one between the machines.

    Each device reduces its share inside, averages it with its peers in the other machines, and passes it on inside. The
    peers' rings share the machine's link, so together they take as long as one ring of all the bytes.

    Raises:
        ValueError: there are several machines, and the workers do not fill them.
    """
    if workers <= cluster.devices:
        return ring_allreduce(workers, size, cluster.inside.speed, cluster.inside.latency, messages)
    machines, rest = divmod(workers, cluster.devices)
    if rest:
        raise ValueError(f"{workers} workers do not fill machines of {cluster.devices} devices")
    inside = ring_allreduce(cluster.devices, size, cluster.inside.speed, cluster.inside.latency, messages)
    return inside + ring_allreduce(machines, size, cluster.between.speed, cluster.between.latency, messages)


def efficiency(compute: float, communication: float, overlap: float = 0.0) -> float:
    """Speed of k workers divided by k times the speed of one, with the same batch per worker.

    Args:
        compute: seconds of a step without communication.
        communication: seconds of the allreduce, 0 for one worker.
        overlap: share of the backward pass in which communication costs no time, 0 .. 1.
    """
    return compute / (compute + max(0.0, communication - overlap * BACKWARD_SHARE * compute))


def count_gradients(network) -> Gradients:
    """Count the parameters that the optimizer updates."""
    from mindspore import nn

    from src.optimizers import parameter_groups

    optimizer = nn.Momentum(parameter_groups(network, weight_decay=1e-4, decay_all=True), 0.1, 0.9)
    return Gradients(sum(parameter.size for parameter in optimizer.parameters), len(optimizer.parameters))


def build(name: str, noise: bool):
    """Build the network with the number of classes of its recipe.

    Raises:
        UserError: the name is unknown.
    """
    from src.binary import Binarization
    from src.models import create_model

    try:
        return create_model(name, binarization=Binarization(noise_adaptation=noise))
    except ValueError as error:
        raise UserError(str(error)) from error


def gradient_types(level: str) -> str:
    """The dtypes of ResNet-20's gradients at an amp level, measured in PyNative mode."""
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
    """Milliseconds with three digits, without an exponent."""
    return f"{float(f'{seconds * 1e3:.3g}'):,g}"


def print_model(cases: Sequence[Case]) -> None:
    import mindspore as ms

    from src.models.registry import NETWORKS

    ms.set_context(mode=ms.PYNATIVE_MODE)
    sizes = {(name, noise): count_gradients(build(name, noise)) for name in NETWORKS for noise in (False, True)}
    print("Gradients per step, float32: without / with noise modules\n")
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
    for text, fused in (("all gradients as one message", True), ("one message per tensor", False)):
        print(f"Estimated allreduce time, ms on 8 / 64 devices: {text}, without noise modules\n")
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
    heading = f"`{case.network}`, batch {case.batch_size} per device, estimated efficiency"
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


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="benchmarks/scaling_model.py", description=__doc__)
    parser.add_argument("--network", help="default: resnet20 and resnet18, each with assumed speeds")
    parser.add_argument("--batch_size", type=int, default=128, help="images per step and device, with --network")
    parser.add_argument(
        "--images_per_second",
        type=float,
        nargs=2,
        default=(2_000.0, 20_000.0),
        metavar=("SLOW", "FAST"),
        help="two assumed speeds of a device, with --network",
    )
    arguments = parser.parse_args(argv)
    if min(arguments.batch_size, *arguments.images_per_second) <= 0:
        raise UserError("--batch_size and --images_per_second must be above 0")
    runtime.prepare_environment()
    cases = CASES
    if arguments.network:
        build(arguments.network, noise=False)  # refuses an unknown name before the long count
        cases = (Case(arguments.network, arguments.batch_size, tuple(arguments.images_per_second)),)
    print_model(cases)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
