"""Find out which machines train together, and which of them this one is: from flags, a scheduler's variables, or a rank
table. Reads and checks only; processes.py starts the workers."""

import errno
import json
import os
import socket
import subprocess
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError

DEFAULT_PORT = 8118  # msrun's default. Several machines must use the same port, one machine takes a free one
LOOPBACK = "127.0.0.1"
MAX_WORKERS = 256  # on one machine

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """The workers of one run, the same number on each machine, and this machine's place.

    Args:
        workers: number of workers on all machines together.
        master_port: port to which the workers connect; 0: any free one.
        master_addr: name or address of machine 0, which has this port.
        nodes: number of machines.
        node_rank: this machine's number, from 0.
        timeout: seconds that the workers wait for each other at the start.
        rank_table: path of the rank table, for Ascend's collective communication.
        devices: ids of each machine's devices, from the rank table.
        sources: names of the flags and variables that these values were read from, for messages.
    """

    workers: int
    master_port: int
    master_addr: str = LOOPBACK
    nodes: int = 1
    node_rank: int = 0
    timeout: int = 40
    rank_table: str | None = None
    devices: tuple[tuple[str, ...], ...] = ()
    sources: str = ""

    @property
    def local_workers(self) -> int:
        return self.workers // self.nodes

    @property
    def first_rank(self) -> int:
        """The rank of this machine's first worker."""
        return self.node_rank * self.local_workers

    def machine_of(self, rank: int) -> int:
        return rank // self.local_workers

    def others(self) -> str:
        """The other machines in words, such as "machine 1" or "machines 0, 2, 3"."""
        numbers = [str(number) for number in range(self.nodes) if number != self.node_rank]
        return f"machine{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"

    def environment(self) -> dict[str, str]:
        """Variables that the workers need for this cluster, unless the user has set them."""
        return {"ASCEND_RT_VISIBLE_DEVICES": ",".join(self.devices[self.node_rank])} if self.devices else {}

    def msrun_arguments(self, log_dir: Path) -> list[str]:
        """msrun's own arguments, which come before the command that each worker runs."""
        return [
            f"--worker_num={self.workers}",
            f"--local_worker_num={self.local_workers}",
            *([f"--node_rank={self.node_rank}"] if self.nodes > 1 else []),
            f"--master_addr={self.master_addr}",
            f"--master_port={self.master_port}",
            f"--cluster_time_out={self.timeout}",
            *([f"--rank_table_file={self.rank_table}"] if self.rank_table else []),
            f"--log_dir={log_dir}",
            "--join=True",
            f"--tail_worker_log={self.workers}",  # a worker that does not exist: msrun itself shows no log
        ]

    def describe(self) -> str:
        return (
            f"{self.nodes} machines with {self.local_workers} workers each, this is machine {self.node_rank}, "
            f"master {self.master_addr}:{self.master_port} ({self.sources})"
        )


def first_slurm_host(nodes: str) -> str:
    """The first host of a list in Slurm's notation, such as n[3-5,9]."""
    try:
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(
            f"Slurm's list of nodes is {nodes!r}, but `scontrol show hostnames` gave no host for it: use --master_addr"
        ) from error


def first_of_list(hosts: str) -> str:
    return hosts.split(",")[0].strip()


def length_of_list(hosts: str) -> str:
    return str(len(hosts.split(",")))


# A flag that is not given is looked up here, in this order: variable, and how to read its value. First the variables
# that PyTorch users know, then Slurm's (of the step before those of the job, which may have more machines), then
# Volcano's, which Huawei's ModelArts sets too.
VARIABLES: dict[str, dict[str, Callable[[str], str]]] = {
    "nodes": {
        "NNODES": str,
        "SLURM_STEP_NUM_NODES": str,
        "SLURM_JOB_NUM_NODES": str,
        "MA_NUM_HOSTS": str,
        "VC_WORKER_HOSTS": length_of_list,
    },
    "node_rank": {"NODE_RANK": str, "SLURM_NODEID": str, "VC_TASK_INDEX": str},
    "master_addr": {
        "MASTER_ADDR": str,
        "SLURM_STEP_NODELIST": first_slurm_host,
        "SLURM_JOB_NODELIST": first_slurm_host,
        "VC_WORKER_HOSTS": first_of_list,
    },
    "master_port": {"MASTER_PORT": str},
}


def find(options: Namespace, variables: Variables = os.environ) -> Cluster:
    """Return the cluster that the launcher's flags describe. Variables replace flags that are not given.

    Args:
        options: workers, nodes, node_rank, master_addr, master_port, timeout, rank_table, device_target. None: not
            given. One machine without a port gets port 0: any free one.

    Raises:
        UserError: something is missing, out of range, or contradicts something else.
    """
    if options.workers < 1:
        raise UserError(f"--workers is {options.workers}, but must be at least 1")
    if options.timeout < 1:
        raise UserError(f"--timeout is {options.timeout}, but must be at least 1 second")
    devices = _devices(options)
    given = vars(options)
    if devices:
        nodes, nodes_from = len(devices), "--rank_table"
    else:
        nodes, nodes_from = _look_up("nodes", given, variables) or (1, "")
    _require_range(nodes_from, nodes, 1)
    if options.workers % nodes:
        fewer = options.workers - options.workers % nodes
        possible = f"{fewer} or {fewer + nodes}" if fewer else f"{nodes}"
        raise UserError(
            f"--workers is {options.workers}, but must be a multiple of {nodes} machines, such as {possible}"
        )
    if options.workers // nodes > MAX_WORKERS:
        raise UserError(f"--workers is {options.workers}, but a machine has at most {MAX_WORKERS}")
    common = {"timeout": options.timeout, "rank_table": options.rank_table, "devices": devices}
    if nodes == 1:
        if options.node_rank:
            raise UserError(f"--node_rank is {options.node_rank}, but there is one machine: --nodes says how many")
        port = options.master_port or 0
        if port:
            _require_port("--master_port", port)
        return Cluster(options.workers, port, options.master_addr or LOOPBACK, **common)
    machines = f"there are {nodes} machines by {nodes_from}"
    way_out = "" if devices else "; with --nodes 1 only this machine trains"
    rank, rank_from = _require("node_rank", given, variables, machines, way_out)
    _require_range(rank_from, rank, 0, nodes - 1)
    address, address_from = _require("master_addr", given, variables, machines, way_out)
    port, port_from = _look_up("master_port", given, variables) or (DEFAULT_PORT, "default port")
    _require_port(port_from, port)
    sources = ", ".join(dict.fromkeys((nodes_from, rank_from, address_from, port_from)))
    return Cluster(options.workers, port, address, nodes, rank, **common, sources=sources)


def at_open_port(cluster: Cluster) -> Cluster:
    """Return the cluster with a free port. Machine 0 checks address and port; the others check that the address is not
    theirs: msrun starts its scheduler on the machine that has the master's address, even if another one is number 0.

    Raises:
        UserError: the address or the port cannot be used.
    """
    name, port = cluster.master_addr, cluster.master_port
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--master_addr is {name}, which this machine cannot resolve ({error.strerror})") from error
    if cluster.nodes > 1 and address[0].startswith("127."):
        raise UserError(
            f"--master_addr is {name}, here {address[0]}, which other machines cannot reach: give the address under "
            "which they know machine 0"
        )
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if cluster.node_rank:
            try:
                probe.bind((address[0], 0))
            except OSError:
                return cluster
            raise UserError(
                f"--master_addr is {name}, this machine's own, but the master is machine 0, and this is number "
                f"{cluster.node_rank}: start one launcher on each machine, number 0 on the master's"
            )
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(f"--master_port is {port}, but something else listens there; choose another") from error
            raise UserError(
                f"--master_addr is {name}, but this machine, number 0, does not have that address: it must be its own"
            ) from error
        return replace(cluster, master_port=probe.getsockname()[1])


def _look_up(key: str, given: dict, variables: Variables) -> tuple[int | str, str] | None:
    """Return the value of the flag, or of the first variable that is set, and the name of the flag or variable."""
    flag = f"--{key}"
    if given[key] is not None:
        return given[key], flag
    for name, read in VARIABLES[key].items():
        if variables.get(name):
            value = read(variables[name])
            if key == "master_addr":
                return value, name
            if not value.isdecimal():
                raise UserError(f"{name} is {variables[name]!r}, but must be a whole number; or give {flag}")
            return int(value), name
    return None


def _require(key: str, given: dict, variables: Variables, machines: str, way_out: str) -> tuple[int | str, str]:
    found = _look_up(key, given, variables)
    if found is None:
        raise UserError(
            f"--{key} is missing: {machines}, so give it, or set one of {', '.join(VARIABLES[key])}{way_out}"
        )
    return found


def _require_range(name: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise UserError(f"{name} is {value}, but must be {allowed}")


def _require_port(name: str, port: int) -> None:
    _require_range(name, port, 1024, 65535)


def _devices(options: Namespace) -> tuple[tuple[str, ...], ...]:
    """The ids of each machine's devices in the rank table, ordered by rank. Empty without a table.

    Raises:
        UserError: the file cannot be read, is not a rank table, or describes another run.
    """
    if options.rank_table is None:
        return ()
    name = f"--rank_table is {options.rank_table}, "
    if options.device_target in ("CPU", "GPU"):
        raise UserError(f"{name}but only Ascend has rank tables, and --device_target is {options.device_target}")
    try:
        table = json.loads(Path(options.rank_table).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name}which cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{name}which is not JSON ({error})") from error
    try:
        servers = [[(int(d["rank_id"]), str(d["device_id"])) for d in s["device"]] for s in table["server_list"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}which has no server_list of devices with rank_id and device_id") from error
    if table.get("status", "completed") != "completed":
        raise UserError(f"{name}whose status is {table['status']!r}: wait until the cluster has completed it")
    total = sum(map(len, servers))
    if total != options.workers:
        raise UserError(f"{name}which lists {total} devices, but --workers is {options.workers}")
    if options.nodes not in (None, len(servers)):
        raise UserError(f"{name}which lists {len(servers)} servers, but --nodes is {options.nodes}")
    ranks = [sorted(rank for rank, _ in server) for server in servers]
    each = total // len(servers)
    if ranks != [list(range(first, first + each)) for first in range(0, total, each)]:
        raise UserError(
            f"{name}whose rank_id are {ranks} by server, but msrun numbers the workers server by server, {each} on each"
        )
    return tuple(tuple(device for _, device in sorted(server)) for server in servers)
